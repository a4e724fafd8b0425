"""Make the mask store of sub-images: cut the records of whole images as the images are cut (sam4ir masks crop)."""

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
from sam4ir.utils.faults import fault_of_item
from sam4ir.utils.files import atomic, encode_text, output_path

_TASKS_A_PROCESS = 24


def cut_records(record: MaskRecord, windows: Sequence[SubImage], hashes: Sequence[bytes]) -> list[bytes]:
    """Return the records of windows of an image, equal to those that record_from_sam makes from the cut masks.

    Masks without a pixel in the window are left out; the others keep their order and scores. Area, box and SPE sum are
    those of the cut mask. hashes: image_sha256 of each sub-image, b'' where it is not known.
    """
    labels, table = record.labels(0, 0, *record.size), record.table
    records = []
    for window, sha256 in zip(windows, hashes, strict=True):
        atoms, remaining = regions.drop_absent_masks(regions.Atoms(window.cut(labels), table))
        iou, stability = record.predicted_iou[remaining], record.stability_score[remaining]
        records.append(record_from_atoms(atoms, iou, stability, sha256))
    return records


@dataclass(frozen=True)
class CutImage:
    """Makes the records of a Cut's sub-images, and their pixels if encoding is set; can be sent to worker processes.

    whole: the images that are cut. parts: sub-images that exist already; give at most one of the two. encoding: of the
    sub-images to write, None to write none. The records have no checksums where the generator read other whole images.
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
        same_image = image is None or record.image_sha256 in (None, pixel_sha256(image))
        hashes, images = [], {}
        for key, window, pixels in zip(cut.keys, cut.windows, self._pixels(cut, image), strict=True):
            hashes.append(_sha256(pixels, window, record) if same_image else b"")
            if self.encoding is not None:
                images[key] = self._packed(pixels)
        records = cut_records(record, cut.windows, hashes)
        return TaskResult(dict(zip(cut.keys, records, strict=True)), images)

    def _pixels(self, cut: Cut, image: np.ndarray | None) -> Iterator[np.ndarray | None]:
        """Yield the pixels of each sub-image, None where neither the whole image nor the sub-images are given."""
        for key, window in zip(cut.keys, cut.windows, strict=True):
            if image is not None:
                yield window.cut(image)
            elif self.parts is not None:
                yield self._read_part(self.parts, key, (window.height, window.width))
            else:
                yield None

    def _read_part(self, parts: ImageSource, key: str, size: tuple[int, int]) -> np.ndarray:
        part = read(parts, key)
        if part.shape[:2] != size:
            raise MaskStoreError(f"{parts.where(key)}: is {_times(part.shape)}, its window {_times(size)}")
        return part

    def _packed(self, image: np.ndarray | None) -> Packed:
        assert image is not None
        assert self.encoding is not None
        return pack(np.ascontiguousarray(image), self.encoding)


def crop_by_table(
    store: MaskStore, output: Path, table: Path, parts: ImageSource | None = None, new: bool = False, workers: int = 1
) -> FillResult:
    """Make the mask store for the sub-images of a prepared data set.

    table: its windows.jsonl. parts: its GT LMDB, from which the records get their checksums. Raises MaskStoreError
    where the store has none of the table's images, or parts lacks some of the sub-images.
    """
    if not table.is_file():
        inside = table / TABLE
        advice = f"sam4ir prepare writes {TABLE} beside LMDBs"
        if inside.is_file():
            advice = f"did you mean {inside}?"
        raise MaskStoreError(f"--windows: {table} is no file; {advice}")
    cuts = list(read_table(table))
    cutting = {"store": store.path.name, "table": table.name, "table_sha256": _digest(cuts)}
    ready, bad = _with_masks(store, cuts, str(table))
    if parts is not None:
        _refuse_missing_parts(ready, parts, table)
    result = fill(output, _meta(store, cutting), ready, CutImage(store, parts=parts), workers, new, _TASKS_A_PROCESS)
    result.bad = bad + result.bad
    return result


def _refuse_missing_parts(cuts: Sequence[Cut], parts: ImageSource, table: Path) -> None:
    part_keys = set(parts.keys)
    missing: list[str] = []
    for cut in cuts:
        missing += [key for key in cut.keys if key not in part_keys]
    if missing:
        raise MaskStoreError(f"--images: {parts.root} lacks {listed(missing)} of {table}; give the LMDB beside it")


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
    """Cut images and their masks together, by BasicSR's rule; the keys are <image>_s001, ...

    output_images: an LMDB (*.lmdb) or a folder of PNGs for the sub-images, None to write none. An image LMDB gets its
    name when no image is bad; until then it is <name>.part, and the same command continues it. Raises MaskStoreError
    where output_images holds another image under a sub-image's key, or lies in the folder that is cut.
    """
    _refuse_place(output_images, whole)
    cutting = {"store": store.path.name, "crop": crop.settings()}
    cuts: list[Cut] = []
    unfit: list[str] = []
    for key in whole.keys:
        try:
            cuts.append(_cut(whole, key, crop))
        except Exception as error:
            fault = fault_of_item(error)
            if fault is None:
                raise
            unfit.append(fault if key in fault else f"{whole.where(key)}: {fault}")
    if not cuts:
        raise MaskStoreError(f"--images: no image of {whole.root} can be cut: {unfit[0]}")
    ready, bad = _with_masks(store, cuts, f"--images {whole.root}")
    make = CutImage(store, whole)
    if output_images is not None:
        make = CutImage(store, whole, encoding=encoding if output_images.suffix == ".lmdb" else "png")
    with _open_sink(output_images, encoding) as sink:
        result = fill(output, _meta(store, cutting), ready, make, workers, new, _TASKS_A_PROCESS, sink)
        result.bad = unfit + bad + result.bad
        if isinstance(sink, LmdbSink):
            sink.complete = not result.bad
    return result


def _cut(whole: ImageSource, key: str, crop: Crop) -> Cut:
    size = whole.size(key)
    if min(size) < crop.size:
        raise MaskStoreError(f"{whole.where(key)}: is {_times(size)}, smaller than --crop-size {crop.size}")
    return Cut(key, size, crop.windows(size))


class FolderSink:
    """Stores sub-images as PNG files."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __contains__(self, key: str) -> bool:
        return self._path(key).exists()

    def add(self, key: str, image: Packed) -> None:
        with atomic(self._path(key)) as part:
            part.write_bytes(image.value)

    def check(self, key: str, image: Packed) -> None:
        path = self._path(key)
        _refuse_other_pixels(path.read_bytes(), image, str(path))

    def _path(self, key: str) -> Path:
        return output_path(self._root, key, ".png", "--output-images")


class LmdbSink:
    """Stores sub-images in an image LMDB, which may be new, continued, or finished by an earlier run.

    complete: whether all images are stored, so that the LMDB gets its name.
    """

    def __init__(self, path: Path, encoding: Encoding) -> None:
        self.path = path
        self.complete = False
        self._writer: LmdbWriter | None = None
        if path.exists():
            self._keys = set(read_image_keys(path))
        else:
            self._writer = LmdbWriter(path, encoding, resume=True)
            self._keys = set(self._writer.keys())

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, key: str, image: Packed) -> None:
        if self._writer is None:
            raise MaskStoreError(f"--output-images: {self.path} is finished and lacks {key!r}; name another")
        self._writer.add(key, image)
        self._keys.add(key)

    def check(self, key: str, image: Packed) -> None:
        if self._writer is not None:
            stored = self._writer.value(key)
        else:
            with LmdbReader(self.path).value(key) as value:
                stored = bytes(value)
        _refuse_other_pixels(stored, image, f"{self.path}[{key}]")

    def leave(self) -> None:
        """Give the LMDB its name if it is complete, otherwise keep what it holds for the next run."""
        if self._writer is None:
            return
        if self.complete:
            self._writer.close()
        else:
            self._writer.commit()
            self._writer.abandon()


def _refuse_other_pixels(stored: bytes, image: Packed, place: str) -> None:
    """Raise MaskStoreError where the stored sub-image has other pixels than the one that was cut now."""
    if stored == image.value:
        return
    if not np.array_equal(unpack_image(stored, place), unpack_image(image.value, place)):
        raise MaskStoreError(
            f"--output-images: {place} is there already, cut otherwise or of another image; name another"
        )


def _refuse_place(path: Path | None, whole: ImageSource) -> None:
    """Raise MaskStoreError where sub-images would replace a file or lie among the images that are cut."""
    if path is None or path.suffix == ".lmdb":
        return
    if path.exists() and not path.is_dir():
        raise MaskStoreError(f"--output-images: {path} is a file; name a folder, or an LMDB (*.lmdb)")
    if path.resolve().is_relative_to(whole.root.resolve()):
        raise MaskStoreError(
            f"--output-images: {path} lies in --images {whole.root}, whose images the sub-images would become; "
            "name another folder"
        )


def _open_sink(path: Path | None, encoding: Encoding) -> AbstractContextManager[ImageSink | None]:
    if path is None:
        return nullcontext()
    if path.suffix == ".lmdb":
        return _leaving(LmdbSink(path, encoding))
    return nullcontext(FolderSink(path))


@contextmanager
def _leaving(sink: LmdbSink) -> Iterator[LmdbSink]:
    try:
        yield sink
    finally:
        sink.leave()


def _with_masks(store: MaskStore, cuts: Sequence[Cut], where: str) -> tuple[list[Cut], list[str]]:
    """Return the cuts whose image has a record, and a sentence about the others in a list, empty if there are none."""
    ready: list[Cut] = []
    lacking: list[str] = []
    for cut in cuts:
        if cut.key in store:
            ready.append(cut)
        else:
            lacking.append(cut.key)
    if not ready:
        keys = store.keys()
        raise MaskStoreError(
            f"{store.path}: has masks of none of {where} ({listed(lacking)}); its own are {listed(keys)}. Make masks "
            "of the whole images under the keys that were cut: of what sam4ir prepare makes with --no-crop"
        )
    if not lacking:
        return ready, []
    return ready, [f"{store.path}: lacks {listed(lacking)} of {where}"]


def _meta(store: MaskStore, cutting: dict[str, Any]) -> dict[str, Any]:
    """Return the meta of the store of sub-images; a store that was cut twice holds the earlier cut under `of`."""
    meta = inherited_meta(store)
    if "cut" in meta:
        cutting = {**cutting, "of": meta["cut"]}
    return {**meta, "cut": cutting}


def _sha256(image: np.ndarray | None, window: SubImage, record: MaskRecord) -> bytes:
    """Return the checksum of a sub-image's pixels, b'' where it is not known."""
    if image is not None:
        return bytes.fromhex(pixel_sha256(np.ascontiguousarray(image)))
    if record.image_sha256 and (window.top, window.left, window.height, window.width) == (0, 0, *record.size):
        return bytes.fromhex(record.image_sha256)  # the window is the whole image
    return b""


def _digest(cuts: Sequence[Cut]) -> str:
    digest = hashlib.sha256()
    for cut in cuts:
        digest.update(encode_text(cut.line()))
    return digest.hexdigest()


def _times(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]} (h x w)"
