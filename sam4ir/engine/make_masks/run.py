"""Make masks of many images, by one process or many (torchrun, Slurm, shards), for sam4ir make-masks.

The record of an image is one transaction, so the store holds it whole or not at all. A run that is stopped anywhere
goes on with the same command, by any number of processes. Each process takes every n-th image of the sorted list,
skips those in the store, and waits for no other process until all have come to the end.
"""

from __future__ import annotations

import contextlib
import itertools
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
from sam4ir.utils.dist import ALONE, PeerError, Tally, World
from sam4ir.utils.faults import fault_of_item
from sam4ir.utils.image import eight_bits
from sam4ir.utils.memory import out_of_memory

Generator = Callable[[np.ndarray], Sequence[Mapping[str, Any]]]
COUNTERS = ("new", "old", "bad")
LESS_MEMORY = "--points-per-batch 16 or --max-side 1024 need less"

_PRINT_EVERY = 60.0  # seconds between two lines where there is no terminal
_TOO_LITTLE = 3  # images for which memory runs out, before any was done, that end a run
_SHARED_PATIENCE = 60.0  # seconds until a file of another machine must be visible


@dataclass(frozen=True)
class ImageShare:
    """The images that a process takes: keys[index::count]. kind: 'rank', or 'shard' for one that runs by itself."""

    index: int = 0
    count: int = 1
    kind: str = "rank"

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UserError(f"shard {self.index}/{self.count}: the first number runs from 0 to {self.count - 1}")

    @property
    def name(self) -> str:
        """Name of its part of the store, such as 'rank-0of2'."""
        return f"{self.kind}-{self.index}of{self.count}"

    def of(self, keys: Sequence[str]) -> Sequence[str]:
        """Return its keys."""
        return keys[self.index :: self.count]


@dataclass(frozen=True)
class RecordMaker:
    """The maker of mask records; it raises UserError where an image or its masks are at fault.

    source: the images. generate: (h, w, 3) uint8 RGB -> segment-anything's mask dictionaries. restore: image ->
    restored image of the same type, which the generator gets instead; None for the image itself. max_side: larger
    images are shrunk until their longest side has so many pixels, and their masks are enlarged again; None for any
    size. scale: how many times the ground truth is larger than the image; masks are enlarged to its grid.
    """

    source: ImageSource
    generate: Generator
    restore: Callable[[np.ndarray], np.ndarray] | None = None
    max_side: int | None = None
    scale: int = 1

    def __call__(self, key: str) -> bytes:
        """Return the bytes of the mask record of an image."""
        rgb, size, sha256 = self._prepared(key)
        if rgb.shape[:2] == size:
            return record_from_sam(self.generate(rgb), size, sha256)
        return enlarged_record(self.generate(rgb), size, sha256)

    def image(self, key: str) -> np.ndarray:
        """Return the image that the generator gets, (h, w, 3) uint8 RGB."""
        return self._prepared(key)[0]

    def _prepared(self, key: str) -> tuple[np.ndarray, tuple[int, int], bytes]:
        """Return the image that the generator gets, the (h, w) of the record, and the hash of the image's pixels."""
        image = read(self.source, key)
        sha256 = bytes.fromhex(pixel_sha256(image))
        if self.restore is not None:
            image = self.restore(image)
        rgb = eight_bits(image)
        size = rgb.shape[0] * self.scale, rgb.shape[1] * self.scale
        if self.max_side is not None and max(rgb.shape[:2]) > self.max_side:
            rgb = shrink(rgb, self.max_side)
        return rgb, size, sha256


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """Shrink an image until its longest side has `side` pixels, by area averages."""
    h, w = image.shape[:2]
    scale = side / max(h, w)
    return np.asarray(
        cv2.resize(image, (max(1, round(w * scale)), max(1, round(h * scale))), None, 0, 0, cv2.INTER_AREA)
    )


def enlarged_record(masks: Sequence[Mapping[str, Any]], size: tuple[int, int], image_sha256: bytes = b"") -> bytes:
    """Make the record of an image of `size` (h, w) from masks of a smaller form of it, by nearest neighbours.

    A partition stays one, and overlaps stay overlaps, since the atoms are enlarged and not the masks.
    """
    if not masks:
        return record_from_sam([], size, image_sha256)
    small = masks[0]["segmentation"]["size"]
    runs = [regions.parse_counts(mask["segmentation"]["counts"], (small[0], small[1])) for mask in masks]
    atoms = regions.resize_atoms(regions.atoms_of_runs(runs, (small[0], small[1])), size)
    iou = np.array([mask["predicted_iou"] for mask in masks], np.float64)
    stability = np.array([mask["stability_score"] for mask in masks], np.float64)
    return record_from_atoms(atoms, iou, stability, image_sha256)


@dataclass
class MaskOutput:
    """The writer of one process, and its images.

    todo: images of its share that the store lacked when it began. old: number of those that the store had.
    """

    writer: MaskStoreWriter
    todo: Sequence[str]
    old: int


@dataclass
class MaskReport:
    """The figures of a run, over all processes.

    images: all of them. new: those with new masks. old: those that the store had. bad: (image, reason). stored, masks:
    images and masks of the store. left: parts of the store that other processes still write.
    """

    images: int
    new: int = 0
    old: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    stored: int = 0
    masks: int | None = None
    left: tuple[str, ...] = ()

    @property
    def rate(self) -> float:
        """Images made now a second."""
        if not self.seconds:
            return 0.0
        return self.new / self.seconds


@dataclass(frozen=True)
class Place:
    """The store that masks are written into.

    store, meta: its folder and its metadata. new: begin it anew. parts: each process writes a part of its own.
    overwrite: make the masks of all images again and replace their records.
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
    shard: ImageShare | None = None,
    world: World = ALONE,
    signals: Signals | None = None,
    begun: Callable[[int, int, Sequence[str]], None] | None = None,
) -> MaskReport:
    """Make the masks of all images that the store lacks.

    make: key -> record bytes, or an error: such an image is left out and reported; the next run tries it again.
    keys: all images, sorted, the same in all processes. shard: this process's share where it runs by itself.
    begun: called with (images, number of those in the store, this process's images without masks) when the work begins,
    in the main process.
    Raises Interrupted after SIGTERM or Ctrl-C, when the present image is stored; MaskStoreError where the store cannot
    be written, or was made in another way.
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
    share = shard or ImageShare(world.rank, world.size)
    with _output(place, share, keys, world) as output:
        shares = world.gather((len(output.todo) + output.old, output.old))
        images, old = map(sum, zip(*shares, strict=True))
        if world.main and begun is not None:
            begun(images, old, output.todo)
        signals = signals or Signals()
        try:
            report = _work(make, output, MaskProgress(images, world.main), world, signals, place.overwrite)
        except PeerError:
            if signals.number():  # a signal stops all processes, and one that waits for the others loses them
                raise Interrupted(signals.number()) from None
            raise
    report.left = _finish(place, share, world)
    store = MaskStore(place.store)
    report.stored, report.masks = len(store), store.meta["counts"].get("masks")
    return report


def _work(
    make: Callable[[str], bytes],
    output: MaskOutput,
    progress: MaskProgress,
    world: World,
    signals: Signals,
    overwrite: bool,
) -> MaskReport:
    """Make the masks of this process's images; the report is of all processes."""
    begun = time.monotonic()
    new, old, bad = 0, output.old, list[tuple[str, str]]()
    tally = Tally(world, len(COUNTERS))
    with progress:
        for key in output.todo:
            if signals.number():
                raise Interrupted(signals.number())
            if not overwrite and key in output.writer:  # another run has stored it meanwhile
                old += 1
            else:
                try:
                    output.writer.encode_key(key)  # before the time is spent
                    record = make(key)
                except Exception as error:
                    bad.append((key, _fault(error)))
                    if out_of_memory(error) and not new and len(bad) in {_TOO_LITTLE, len(output.todo)}:
                        raise  # no fault of the images
                else:
                    stored = output.writer.put_record(key, record, overwrite)
                    new, old = new + stored, old + (not stored)
            progress.show(tally.post((new, old, len(bad))))
        totals = tally.finish((new, old, len(bad)), progress.show)
        progress.show(totals)
    everywhere = itertools.chain.from_iterable(world.gather(bad))
    return MaskReport(sum(totals), totals[0], totals[1], sorted(everywhere), time.monotonic() - begun)


def _fault(error: Exception) -> str:
    """Return what is wrong with an image; raise the error where it is none of an image's."""
    fault = fault_of_item(error)
    if fault is None:
        raise error
    if out_of_memory(error):
        fault += f"; {LESS_MEMORY}"
    return fault


class MaskProgress:
    """Images per second and the time left, over all processes: a bar on a terminal, else a line a minute.

    The rate is that of images made now; those that the store had take no time.
    """

    def __init__(self, images: int, shown: bool) -> None:
        self._images, self._shown = images, shown
        self._begun = self._printed = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> MaskProgress:
        if self._shown and sys.stderr.isatty():
            self._bar = tqdm(total=self._images, unit="image", desc="masks", smoothing=0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, totals: Sequence[int]) -> None:
        """Show the totals (new, old, bad)."""
        new, old, bad = totals
        if self._bar is not None:
            self._bar.initial, self._bar.n = old, new + old + bad
            self._bar.refresh()
        elif self._shown and time.monotonic() - self._printed > _PRINT_EVERY:
            self._printed = time.monotonic()
            print(self.line(totals, self._printed - self._begun), flush=True)

    def line(self, totals: Sequence[int], seconds: float) -> str:
        """Return '120 of 400 images, 0.52 images/s, 9 min left'."""
        new, old, bad = totals
        rate = (new + bad) / seconds
        left = self._images - new - old - bad
        line = f"{new + old + bad} of {self._images} images, {rate:.3g} images/s"
        if rate:
            line += f", {left / rate / 60:.0f} min left"
        if bad:
            line += f", {bad} bad"
        return line


@contextlib.contextmanager
def _output(place: Place, share: ImageShare, keys: Sequence[str], world: World) -> Iterator[MaskOutput]:
    """Begin or join the store; the writer is closed after the block."""
    mine = share.of(keys)
    token = world.from_main(secrets.token_hex(8))
    world.main_first(lambda: _begin(place, token if world.size > 1 else None))
    _check_shared(place.store, token, world)
    if place.split:
        with mask_parts.merging(place.store):  # no other process writes it meanwhile
            done = MaskStore(place.store)
            todo = [key for key in mine if key not in done]
            del done
        with mask_parts.part_writer(place.store, share.name, place.meta) as writer:
            yield MaskOutput(writer, todo, len(mine) - len(todo))
    else:
        with MaskStoreWriter(place.store, place.meta) as writer:
            todo = [key for key in mine if place.overwrite or key not in writer]
            yield MaskOutput(writer, todo, len(mine) - len(todo))


def _begin(place: Place, token: str | None) -> None:
    """Make the store, or check that it was made in this way, and merge the parts that earlier runs have left."""
    if place.new:
        mask_parts.begin_new(place.store, place.meta)
    with mask_parts.merging(place.store):
        mask_parts.merge_idle(place.store, place.meta)
    if token is not None:
        _token(place.store, token).touch()


def _token(store: Path, token: str) -> Path:
    """Return the file that the main process writes, so that the others can look for it."""
    return store / f".shared-{token}"


def _check_shared(store: Path, token: str, world: World) -> None:
    """Raise MaskStoreError in all processes where one does not find the main process's store."""
    if world.size == 1:
        return
    patience = time.monotonic() + _SHARED_PATIENCE
    visible = False
    while not visible and time.monotonic() < patience:
        visible = _token(store, token).exists()
        if not visible:
            time.sleep(0.1)
    blind = []
    for rank, sees in enumerate(world.gather(visible)):
        if not sees:
            blind.append(str(rank))
    if world.main:
        _token(store, token).unlink(missing_ok=True)
    if blind:
        raise MaskStoreError(
            f"{store}: the processes {', '.join(blind)} do not see the store that process 0 has begun; with "
            "several machines put --store on a file system that they share, or give each machine a --shard and a store"
        )


def _finish(place: Place, share: ImageShare, world: World) -> tuple[str, ...]:
    """Merge the parts; return the names of those that other runs still write, which stay."""
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
    """Wait until the listing of a network file system shows the parts of other machines."""
    patience = time.monotonic() + _SHARED_PATIENCE
    while time.monotonic() < patience:
        parts = {path.stem for path in folder.glob("*.lmdb")}
        if parts.issuperset(names):
            return
        time.sleep(0.1)
