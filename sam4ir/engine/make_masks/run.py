"""Making masks of many images: what scripts/make_masks.py runs, by one process or many (torchrun, Slurm, shards).

An image is done whole or not at all: its record is one committed transaction. A run that is stopped anywhere goes on
with the same command, by any number of processes. Each takes every n-th image of the sorted list, skips what is in
the store, and asks nobody anything until all are at the end.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from sam4ir import regions
from sam4ir.data.lmdb_env import network_filesystem
from sam4ir.data.masks import parts as mask_parts
from sam4ir.data.masks.from_sam import pixel_sha256, record_from_atoms, record_from_sam
from sam4ir.data.masks.record import MaskStoreError
from sam4ir.data.masks.store import MaskStore, MaskStoreWriter
from sam4ir.data.sources import ImageSource, read
from sam4ir.engine.interrupt import Interrupted, Signals
from sam4ir.errors import UserError
from sam4ir.utils.dist import PeerError, Tally, World
from sam4ir.utils.image import eight_bits

Generator = Callable[[np.ndarray], Sequence[Mapping[str, Any]]]
ALONE = World()
COUNTERS = ("made", "found", "bad")

_TELL_EVERY = 60.0  # seconds between two lines where there is no terminal
_SHARED_PATIENCE = 60.0  # seconds until a file of another machine must be seen


@dataclass(frozen=True)
class Share:
    """Which of the images a process takes: keys[index::count]. kind: 'rank', or 'shard' for one that runs by itself."""

    index: int = 0
    count: int = 1
    kind: str = "rank"

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UserError(f"shard {self.index}/{self.count}: the first number runs from 0 to {self.count - 1}")

    @property
    def name(self) -> str:
        """Its part's name: 'rank-0of2'."""
        return f"{self.kind}-{self.index}of{self.count}"

    def of(self, keys: Sequence[str]) -> Sequence[str]:
        """Its keys."""
        return keys[self.index :: self.count]


@dataclass(frozen=True)
class RecordMaker:
    """An image's key -> its mask record's bytes; a ValueError where the image or its masks are at fault.

    source: the images. generate: (h, w, 3) uint8 RGB -> segment-anything's mask dictionaries. restore: image ->
    restored image of the same type, which the generator looks at instead; None without. max_side: larger images are
    shrunk until their longest side has so many pixels, and their masks enlarged again; None for any size. scale: the
    ground truth is so many times larger than what the generator looks at, and the masks are enlarged to its grid.
    """

    source: ImageSource
    generate: Generator
    restore: Callable[[np.ndarray], np.ndarray] | None = None
    max_side: int | None = None
    scale: int = 1

    def __call__(self, key: str) -> bytes:
        image = read(self.source, key)
        sha256 = bytes.fromhex(pixel_sha256(image))
        seen = eight_bits(image if self.restore is None else self.restore(image))
        size = seen.shape[0] * self.scale, seen.shape[1] * self.scale
        if self.max_side is not None and max(seen.shape[:2]) > self.max_side:
            seen = shrunk(seen, self.max_side)
        if seen.shape[:2] == size:
            return record_from_sam(self.generate(seen), size, sha256)
        return enlarged_record(self.generate(seen), size, sha256)


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """The image with `side` pixels on its longest side, by area averages."""
    h, w = image.shape[:2]
    scale = side / max(h, w)
    return np.asarray(
        cv2.resize(image, (max(1, round(w * scale)), max(1, round(h * scale))), None, 0, 0, cv2.INTER_AREA)
    )


def enlarged_record(masks: Sequence[Mapping[str, Any]], size: tuple[int, int], image_sha256: bytes = b"") -> bytes:
    """The record of an image of `size` (h, w) from masks of a smaller form of it: every pixel takes the nearest one's.

    A partition stays one, and overlaps stay overlaps, since the atoms are enlarged and not the masks.
    """
    if not masks:
        return record_from_sam([], size, image_sha256)
    small = masks[0]["segmentation"]["size"]
    runs = [regions.parse_counts(mask["segmentation"]["counts"], (small[0], small[1])) for mask in masks]
    atoms = regions.resize_atoms(regions.atoms_of_runs(runs, (small[0], small[1])), size)
    iou, stability = (
        np.array([mask[name] for mask in masks], np.float64) for name in ("predicted_iou", "stability_score")
    )
    return record_from_atoms(atoms, iou, stability, image_sha256)


@dataclass
class Output:
    """Where one process puts its records.

    todo: the images of its share that were not in the store when it began; found: how many were.
    """

    writer: MaskStoreWriter
    todo: Sequence[str]
    found: int


@dataclass
class Report:
    """What a run did, over all processes. bad: (image, reason). left: parts that other processes still write."""

    images: int
    made: int = 0
    found: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    stored: int = 0
    masks: int | None = None
    left: tuple[str, ...] = ()

    @property
    def rate(self) -> float:
        """Images a second that were made now."""
        return self.made / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Place:
    """Where the masks go.

    store, meta: the store and what its meta says. new: it is begun anew. parts: each process writes a part of its own.
    overwrite: images that are in the store are made again, and their records replaced.
    """

    store: Path
    meta: Mapping[str, Any]
    new: bool = False
    parts: bool = False
    overwrite: bool = False

    @property
    def split(self) -> bool:
        """Whether each process writes a part of its own."""
        return self.parts or network_filesystem(self.store) is not None


def generate_masks(
    make: Callable[[str], bytes],
    keys: Sequence[str],
    place: Place,
    *,
    shard: Share | None = None,
    world: World = ALONE,
    signals: Signals | None = None,
    begun: Callable[[int, int], None] | None = None,
) -> Report:
    """Make the masks of all images that the store lacks.

    make: key -> record bytes, or a ValueError: such an image is left out, reported, and tried again by the next run.
    keys: all images, sorted, the same in all processes. shard: this process's share where it runs by itself.
    begun: told (images, how many of them are in the store) when the work begins, in the main process.
    Raises Interrupted after SIGTERM or Ctrl-C, when the image under way is stored; MaskStoreError where the store
    cannot be written, or was made in another way.
    """
    if shard is not None and world.size > 1:
        raise UserError("--shard is for processes that run by themselves; torchrun and Slurm share the images out")
    if place.overwrite and place.split:
        raise UserError(
            "--overwrite: the first record of an image stays where processes write parts (--parts, network file "
            "systems); copy the store to a local disk, or begin a new one"
        )
    if shard is not None and place.new:
        raise UserError("--new with --shard: each shard would begin anew; name another --store, or move the old one")
    share = shard or Share(world.rank, world.size)
    with _output(place, share, keys, world) as output:
        shares = world.gather((len(output.todo) + output.found, output.found))
        images, found = (sum(numbers) for numbers in zip(*shares, strict=True))
        if world.main and begun is not None:
            begun(images, found)
        signals = signals or Signals()
        try:
            report = _work(make, output, Progress(images, world.main), world, signals, place.overwrite)
        except PeerError:
            if signals.number():  # it stops all, and who waits at the end of its share sees the others go
                raise Interrupted(signals.number()) from None
            raise
    report.left = _finish(place, share, world)
    store = MaskStore(place.store)
    report.stored, report.masks = len(store), store.meta["counts"].get("masks")
    return report


def _work(
    make: Callable[[str], bytes], output: Output, progress: Progress, world: World, signals: Signals, overwrite: bool
) -> Report:
    """This process's images; the report is of all processes."""
    begun = time.monotonic()
    made, found, bad = 0, output.found, list[tuple[str, str]]()
    tally = Tally(world, len(COUNTERS))
    with progress:
        for key in output.todo:
            if signals.number():
                raise Interrupted(signals.number())
            if not overwrite and key in output.writer:  # another run has made it meanwhile
                found += 1
            else:
                try:
                    output.writer.encode_key(key)  # before the time is spent
                    record = make(key)
                except (ValueError, cv2.error) as error:
                    bad.append((key, str(error)))
                else:
                    stored = output.writer.put_record(key, record, overwrite)
                    made, found = made + stored, found + (not stored)
            progress.show(tally.post((made, found, len(bad))))
        totals = tally.finish((made, found, len(bad)), progress.show)
        progress.show(totals)
    everywhere = [entry for part in world.gather(bad) for entry in part]
    return Report(sum(totals), totals[0], totals[1], sorted(everywhere), time.monotonic() - begun)


class Progress:
    """Images per second and the time left, over all processes: a bar on a terminal, else a line a minute.

    The rate is that of images made now; those found in the store take no time.
    """

    def __init__(self, images: int, shown: bool) -> None:
        self._images, self._shown = images, shown
        self._begun = self._told = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self._shown and sys.stderr.isatty():
            self._bar = tqdm(total=self._images, unit="image", desc="masks", smoothing=0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, totals: Sequence[int]) -> None:
        """totals: made, found, bad."""
        made, found, bad = totals
        if self._bar is not None:
            self._bar.initial, self._bar.n = found, made + found + bad
            self._bar.refresh()
        elif self._shown and time.monotonic() - self._told > _TELL_EVERY:
            self._told = time.monotonic()
            print(self.line(totals, self._told - self._begun), flush=True)

    def line(self, totals: Sequence[int], seconds: float) -> str:
        """'120 of 400 images, 0.52 images/s, 9 min left'."""
        made, found, bad = totals
        rate = (made + bad) / seconds
        left = self._images - made - found - bad
        told = f", {left / rate / 60:.0f} min left" if rate else ""
        return f"{made + found + bad} of {self._images} images, {rate:.3g} images/s{told}" + (
            f", {bad} bad" if bad else ""
        )


@contextlib.contextmanager
def _output(place: Place, share: Share, keys: Sequence[str], world: World) -> Iterator[Output]:
    """Begins or joins the store; the writer is closed after the block."""
    mine = share.of(keys)
    token = world.from_main(secrets.token_hex(8))
    world.main_first(lambda: _begin(place, token if world.size > 1 else None))
    _check_shared(place.store, token, world)
    if place.split:
        with mask_parts.merging(place.store):  # nobody else writes it meanwhile
            done = MaskStore(place.store)
            todo = [key for key in mine if key not in done]
            del done
        with mask_parts.part_writer(place.store, share.name, place.meta) as writer:
            yield Output(writer, todo, len(mine) - len(todo))
    else:
        with MaskStoreWriter(place.store, place.meta) as writer:
            todo = [key for key in mine if place.overwrite or key not in writer]
            yield Output(writer, todo, len(mine) - len(todo))


def _begin(place: Place, token: str | None) -> None:
    """Make the store, or check that it was made in this way, and take in what earlier runs have left in parts."""
    if place.new:
        mask_parts.begin_new(place.store, place.meta)
    with mask_parts.merging(place.store):
        mask_parts.merge_idle(place.store, place.meta)
    if token is not None:
        _token(place.store, token).touch()


def _token(store: Path, token: str) -> Path:
    return store / f".shared-{token}"


def _check_shared(store: Path, token: str, world: World) -> None:
    """Raise MaskStoreError in all processes where one does not see the main one's store."""
    if world.size == 1:
        return
    patience = time.monotonic() + _SHARED_PATIENCE
    seen = False
    while not seen and time.monotonic() < patience:
        seen = _token(store, token).exists()
        if not seen:
            time.sleep(0.1)
    blind = [rank for rank, sees in enumerate(world.gather(seen)) if not sees]
    if world.main:
        _token(store, token).unlink(missing_ok=True)
    if blind:
        raise MaskStoreError(
            f"{store}: the processes {', '.join(map(str, blind))} do not see the store that process 0 has begun; with "
            "several machines put --store on a file system that they share, or give each machine a --shard and a store"
        )


def _finish(place: Place, share: Share, world: World) -> tuple[str, ...]:
    """Merge the parts; those that other runs write stay, and are named."""
    if not place.split:
        world.wait()
        return ()
    names = world.gather(share.name)
    left: list[str] = []

    def merge() -> None:
        if network_filesystem(place.store) is not None:
            _wait_for(mask_parts.parts_folder(place.store), names)
        with mask_parts.merging(place.store):
            left.extend(mask_parts.merge_idle(place.store, place.meta).living)

    world.main_first(merge)
    return tuple(left)


def _wait_for(folder: Path, names: Sequence[str]) -> None:
    """Until the listing of a network file system shows the parts of other machines."""
    patience = time.monotonic() + _SHARED_PATIENCE
    while time.monotonic() < patience:
        there = {path.stem for path in folder.glob("*.lmdb")}
        if there.issuperset(names):
            return
        time.sleep(0.1)
