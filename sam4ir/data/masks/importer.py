"""A mask store of masks that other programs wrote (scripts/masks.py import)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam4ir.data.masks.fill import Filled, TaskResult, crop_hint, fill
from sam4ir.data.masks.formats import MaskFile, MaskFolder, read_masks
from sam4ir.data.masks.from_sam import pixel_sha256, record_from_sam
from sam4ir.data.masks.labels import SPE_SUM, LabelRules
from sam4ir.data.masks.record import MaskStoreError
from sam4ir.data.sources import ImageSource, listed, read


@dataclass(frozen=True)
class ReadFile:
    """MaskFile -> its record; a callable that goes to worker processes.

    images: checks sizes, and gives the checksum of the pixels and the size of images without masks.
    """

    form: str
    rules: LabelRules
    images: ImageSource | None = None

    def __call__(self, file: MaskFile) -> TaskResult:
        try:
            masks, size = read_masks(self.form, file.path, self.rules)
            sha256 = b""
            if self.images is not None:
                image = read(self.images, file.key)
                if size is not None and size != image.shape[:2]:
                    raise MaskStoreError(f"{file.path}: is of size {list(size)}, the image {list(image.shape[:2])}")
                size, sha256 = (image.shape[0], image.shape[1]), bytes.fromhex(pixel_sha256(image))
            sums = [mask[SPE_SUM] for mask in masks] if self.form == "spe" else None
            return TaskResult({file.key: record_from_sam(masks, size, sha256, sums)})
        except ValueError as error:
            known = str(error).startswith(str(file.path))
            raise MaskStoreError(str(error) if known else f"{file.path}: image {file.key!r}: {error}") from None


def import_masks(
    folder: MaskFolder,
    store: Path,
    meta: Mapping[str, Any],
    rules: LabelRules,
    images: ImageSource | None = None,
    new: bool = False,
    workers: int = 1,
) -> Filled:
    """Stores what can be read, tells what cannot. Goes on with a store that it began.

    meta: as MaskStoreWriter takes it; how files of another format than segment-anything's were read is added to it.
    Raises MaskStoreError where none of the files has its image, before a store is begun.
    """
    if folder.format != "sam":
        how: dict[str, Any] = {"format": folder.format}
        if folder.format == "labels":
            how |= {"background": list(rules.background), "rgb": rules.rgb}
        meta = {**meta, "imported": how}
    files, strange = folder.files, []
    if images is not None:
        known = set(images.keys)
        files = [file for file in folder.files if file.key in known]
        strange = [f"{f.path}: {images.root} has no image {f.key!r}" for f in folder.files if f.key not in known]
        if not files:
            keys = {file.key for file in folder.files}
            raise MaskStoreError(
                f"--images: {images.root} has none of the images that the masks are of ({listed(keys)}); its own are "
                f"{listed(images.keys)}{crop_hint(images, keys)}"
            )
    filled = fill(store, meta, files, ReadFile(folder.format, rules, images), workers, new)
    filled.bad = strange + filled.bad
    return filled
