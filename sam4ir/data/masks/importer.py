"""Fill a mask store with masks that other programs wrote (sam4ir masks import)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam4ir.data.masks.fill import FillResult, TaskResult, crop_hint, fill
from sam4ir.data.masks.formats import MaskFile, MaskFolder, read_masks
from sam4ir.data.masks.from_sam import pixel_sha256, record_from_sam
from sam4ir.data.masks.labels import SPE_SUM_KEY, LabelRules
from sam4ir.data.masks.record import MaskStoreError
from sam4ir.data.sources import ImageSource, listed, read


@dataclass(frozen=True)
class ReadFile:
    """Makes the record of a MaskFile; can be sent to worker processes.

    images: the images that the masks belong to. With them sizes are checked, records hold the checksum of the pixels,
    and an image without masks has a known size.
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
                    hint = ""
                    if self.images.orientation(file.key) >= 5:
                        hint = " (EXIF orientation applied; if the masks do not follow it, say --ignore-exif)"
                    raise MaskStoreError(
                        f"{file.path}: is of size {list(size)}, the image {list(image.shape[:2])}{hint}"
                    )
                size, sha256 = (image.shape[0], image.shape[1]), bytes.fromhex(pixel_sha256(image))
            sums = None
            if self.form == "spe":
                sums = [mask[SPE_SUM_KEY] for mask in masks]
            return TaskResult({file.key: record_from_sam(masks, size, sha256, sums)})
        except ValueError as error:
            message = str(error)
            if not message.startswith(str(file.path)):
                message = f"{file.path}: image {file.key!r}: {message}"
            raise MaskStoreError(message) from None


def import_masks(
    folder: MaskFolder,
    store: Path,
    meta: Mapping[str, Any],
    rules: LabelRules,
    images: ImageSource | None = None,
    new: bool = False,
    workers: int = 1,
) -> FillResult:
    """Store the records of all mask files that can be read, and list those that cannot; continue an earlier import.

    meta: as for MaskStoreWriter; for another format than segment-anything's, the rules of reading are added to it.
    Raises MaskStoreError, before a store is made, where none of the files has its image.
    """
    if folder.format != "sam":
        reading: dict[str, Any] = {"format": folder.format}
        if folder.format == "labels":
            reading |= {"background": list(rules.background), "rgb": rules.rgb}
        meta = {**meta, "imported": reading}
    files: Sequence[MaskFile] = folder.files
    without_image: list[str] = []
    if images is not None:
        files, without_image = _files_with_image(folder, images)
    result = fill(store, meta, files, ReadFile(folder.format, rules, images), workers, new)
    result.bad = without_image + result.bad
    return result


def _files_with_image(folder: MaskFolder, images: ImageSource) -> tuple[list[MaskFile], list[str]]:
    """Return the mask files that have an image, and a sentence for each that has none."""
    image_keys = set(images.keys)
    files, without_image = [], []
    for file in folder.files:
        if file.key in image_keys:
            files.append(file)
        else:
            without_image.append(f"{file.path}: {images.root} has no image {file.key!r}")
    if not files:
        keys = {file.key for file in folder.files}
        raise MaskStoreError(
            f"--images: {images.root} has none of the images that the masks belong to ({listed(keys)}); it has "
            f"{listed(images.keys)}{crop_hint(images, keys)}"
        )
    return files, without_image
