"""Masks of sub-images: the records of whole images, cut as the images are (scripts/masks.py crop)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam4ir import regions
from sam4ir.data.lmdb_io import Encoding, LmdbReader, LmdbWriter, Packed, pack, read_image_keys, unpack_image
from sam4ir.data.masks.fill import FillResult, ImageSink, TaskResult, fill, inherited_meta
from sam4ir.data.masks.from_sam import pixel_sha256, record_from_atoms
from sam4ir.data.masks.record import MaskRecord, MaskStoreError
from sam4ir.data.masks.store import MaskStore
from sam4ir.data.sources import ImageSource, listed, read
from sam4ir.data.windows import TABLE, Crop, Cut, SubImage, read_table
from sam4ir.utils.files import atomic

_TASKS_A_PROCESS = 24


def cut_records(record: MaskRecord, windows: Sequence[SubImage], hashes: Sequence[bytes]) -> list[bytes]:
    """The records of windows of an image, each as record_from_sam would make it of the cut masks.

    Masks without a pixel in the window are left out, the others keep their order and scores; area, box and SPE sum
    are those of the cut mask. hashes: image_sha256 of each sub-image, b'' where not known.
    """
    labels = record.labels(0, 0, *record.size)
    table, scores = record.table, (record.predicted_iou, record.stability_score)
    made = []
    for window, sha256 in zip(windows, hashes, strict=True):
        atoms, kept = regions.drop_absent_masks(regions.Atoms(window.cut(labels), table))
        iou, stability = (score[kept] for score in scores)
        made.append(record_from_atoms(atoms, iou, stability, sha256))
    return made


@dataclass(frozen=True)
class CutImage:
    """Cut -> the records of its sub-images, and their pixels where they are asked for; goes to worker processes.

    whole: the images that are cut; parts: the sub-images that somebody has cut already; at most one of the two.
    encoding: of the sub-images to be written, None for none. Whole images that the generator did not see leave the
    records without checksums.
    """

    store: MaskStore
    whole: ImageSource | None = None
    parts: ImageSource | None = None
    encoding: Encoding | None = None

    def __call__(self, cut: Cut) -> TaskResult:
        record = self.store.read(cut.key)
        if record.size != tuple(cut.size):
            raise MaskStoreError(
                f"{record.name}: the masks are of {_times(record.size)}, the image that was cut of {_times(cut.size)}; "
                "make them of the images that were cut"
            )
        image = None if self.whole is None else read(self.whole, cut.key)
        other = image is not None and record.image_sha256 not in (None, pixel_sha256(image))
        pixels = list(self._pixels(cut, image))
        known = [
            b"" if other else _sha256(part, window, record) for part, window in zip(pixels, cut.windows, strict=True)
        ]
        images = {} if self.encoding is None else dict(zip(cut.keys, map(self._packed, pixels), strict=True))
        return TaskResult(dict(zip(cut.keys, cut_records(record, cut.windows, known), strict=True)), images)

    def _pixels(self, cut: Cut, image: np.ndarray | None) -> Iterator[np.ndarray | None]:
        if image is not None:
            yield from (window.cut(image) for window in cut.windows)
            return
        for key, window in zip(cut.keys, cut.windows, strict=True):
            part = None if self.parts is None else read(self.parts, key)
            if part is not None and self.parts is not None and part.shape[:2] != (window.height, window.width):
                told = f"is {_times(part.shape)}, its window {_times((window.height, window.width))}"
                raise MaskStoreError(f"{self.parts.where(key)}: {told}")
            yield part

    def _packed(self, image: np.ndarray | None) -> Packed:
        assert image is not None
        assert self.encoding is not None
        return pack(np.ascontiguousarray(image), self.encoding)


def crop_by_table(
    store: MaskStore, output: Path, table: Path, parts: ImageSource | None = None, new: bool = False, workers: int = 1
) -> FillResult:
    """A store of the sub-images of a prepared set: table is its windows.jsonl, parts its GT LMDB (for checksums).

    Raises MaskStoreError where the store has none of the table's images.
    """
    if not table.is_file():
        inside = table / TABLE
        told = f"did you mean {inside}?" if inside.is_file() else f"scripts/prepare_data.py writes {TABLE} beside LMDBs"
        raise MaskStoreError(f"--windows: {table} is no file; {told}")
    cuts = list(read_table(table))
    how = {"store": store.path.name, "table": table.name, "table_sha256": _digest(cut.line() for cut in cuts)}
    ready, bad = _with_masks(store, cuts, str(table))
    if parts is not None:
        there = set(parts.keys)
        without = [key for cut in ready for key in cut.keys if key not in there]
        if without:
            raise MaskStoreError(f"--images: {parts.root} lacks {listed(without)} of {table}; give the LMDB beside it")
    filled = fill(output, _meta(store, how), ready, CutImage(store, parts=parts), workers, new, _TASKS_A_PROCESS)
    filled.bad = bad + filled.bad
    return filled


def crop_images(
    store: MaskStore,
    output: Path,
    whole: ImageSource,
    crop: Crop,
    output_images: Path | None = None,
    encoding: Encoding = "raw",
    new: bool = False,
    workers: int = 1,
) -> FillResult:
    """Cuts images and their masks together, by BasicSR's rule; keys are <image>_s001, ...

    output_images: an LMDB (*.lmdb) or a folder of PNGs for the sub-images, None for none. An image LMDB gets its name
    when no image is bad; until then it is <name>.part, and the same command goes on.
    Raises MaskStoreError where it holds another image under a sub-image's key, or lies in the folder that is cut.
    """
    _refuse_place(output_images, whole)
    how = {"store": store.path.name, "crop": crop.settings()}
    cuts: list[Cut] = []
    unfit: list[str] = []
    for key in whole.keys:
        try:
            cuts.append(_cut(whole, key, crop))
        except ValueError as error:
            unfit.append(str(error))
    if not cuts:
        raise MaskStoreError(f"--images: no image of {whole.root} can be cut: {unfit[0]}")
    ready, bad = _with_masks(store, cuts, f"--images {whole.root}")
    as_file: Encoding = encoding if output_images is not None and output_images.suffix == ".lmdb" else "png"
    make = CutImage(store, whole, encoding=as_file if output_images is not None else None)
    with _sink(output_images, encoding) as sink:
        filled = fill(output, _meta(store, how), ready, make, workers, new, _TASKS_A_PROCESS, sink)
        filled.bad = unfit + bad + filled.bad
        if isinstance(sink, LmdbSink):
            sink.whole = not filled.bad
    return filled


def _cut(whole: ImageSource, key: str, crop: Crop) -> Cut:
    size = whole.size(key)
    if min(size) < crop.size:
        raise MaskStoreError(f"{whole.where(key)}: is {_times(size)}, smaller than --crop-size {crop.size}")
    return Cut(key, size, crop.windows(size))


class FolderSink:
    """Sub-images as PNG files."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __contains__(self, key: str) -> bool:
        return (self._root / f"{key}.png").exists()

    def add(self, key: str, image: Packed) -> None:
        with atomic(self._root / f"{key}.png") as part:
            part.write_bytes(image.value)

    def check(self, key: str, image: Packed) -> None:
        path = self._root / f"{key}.png"
        _refuse_other(path.read_bytes(), image, str(path))


class LmdbSink:
    """Sub-images in an image LMDB, begun, gone on with, or finished before. whole: whether it may get its name."""

    def __init__(self, path: Path, encoding: Encoding) -> None:
        self.path = path
        self.whole = False
        self._writer = None if path.exists() else LmdbWriter(path, encoding, resume=True)
        self._keys = set(read_image_keys(path) if self._writer is None else self._writer.keys())

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, key: str, image: Packed) -> None:
        if self._writer is None:
            raise MaskStoreError(f"--output-images: {self.path} is finished and lacks {key!r}; name another")
        self._writer.add(key, image)
        self._keys.add(key)

    def check(self, key: str, image: Packed) -> None:
        if self._writer is not None:
            there = self._writer.value(key)
        else:
            with LmdbReader(self.path).value(key) as value:
                there = bytes(value)
        _refuse_other(there, image, f"{self.path}[{key}]")

    def leave(self) -> None:
        """Gives the LMDB its name where it is whole, else keeps what is there for the next time."""
        if self._writer is not None and self.whole:
            self._writer.close()
        elif self._writer is not None:
            self._writer.commit()
            self._writer.abandon()


def _refuse_other(there: bytes, image: Packed, place: str) -> None:
    """MaskStoreError where the sub-image that is there has other pixels than the one that was cut now."""
    if there != image.value and not np.array_equal(unpack_image(there, place), unpack_image(image.value, place)):
        raise MaskStoreError(
            f"--output-images: {place} is there already, cut otherwise or of another image; name another"
        )


def _refuse_place(path: Path | None, whole: ImageSource) -> None:
    """MaskStoreError where sub-images would be written over a file or among the images that are cut."""
    if path is None or path.suffix == ".lmdb":
        return
    if path.exists() and not path.is_dir():
        raise MaskStoreError(f"--output-images: {path} is a file; name a folder, or an LMDB (*.lmdb)")
    if path.resolve().is_relative_to(whole.root.resolve()):
        raise MaskStoreError(
            f"--output-images: {path} lies in --images {whole.root}, whose images the sub-images would become; "
            "name another folder"
        )


def _sink(path: Path | None, encoding: Encoding) -> AbstractContextManager[ImageSink | None]:
    if path is None:
        return nullcontext()
    return _left(LmdbSink(path, encoding)) if path.suffix == ".lmdb" else nullcontext(FolderSink(path))


@contextmanager
def _left(sink: LmdbSink) -> Iterator[LmdbSink]:
    try:
        yield sink
    finally:
        sink.leave()


def _with_masks(store: MaskStore, cuts: Sequence[Cut], where: str) -> tuple[list[Cut], list[str]]:
    """The images that have a record, and one sentence about the others."""
    ready = [cut for cut in cuts if cut.key in store]
    lacking = [cut.key for cut in cuts if cut.key not in store]
    if not ready:
        keys = store.keys()
        raise MaskStoreError(
            f"{store.path}: has masks of none of {where} ({listed(lacking)}); its own are {listed(keys)}. Make masks "
            "of the whole images under the keys that were cut: of what scripts/prepare_data.py makes with --no-crop"
        )
    return ready, [f"{store.path}: lacks {listed(lacking)} of {where}"] if lacking else []


def _meta(store: MaskStore, how: dict[str, Any]) -> dict[str, Any]:
    meta = inherited_meta(store)
    earlier = {"of": meta["cut"]} if "cut" in meta else {}
    return {**meta, "cut": {**how, **earlier}}


def _sha256(image: np.ndarray | None, window: SubImage, record: MaskRecord) -> bytes:
    """Of a sub-image's pixels, b'' where they are not known."""
    if image is not None:
        return bytes.fromhex(pixel_sha256(np.ascontiguousarray(image)))
    as_it_is = (window.top, window.left, window.height, window.width) == (0, 0, *record.size)
    return bytes.fromhex(record.image_sha256 or "") if as_it_is else b""


def _digest(lines: Iterator[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
    return digest.hexdigest()


def _times(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]} (h x w)"
