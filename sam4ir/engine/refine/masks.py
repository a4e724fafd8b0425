"""Where the masks of a restored image come from: a mask store, or a SAM that looks at the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sam4ir.config.schema import Options
from sam4ir.data.masks.from_sam import record_from_sam
from sam4ir.data.masks.meta import read_meta
from sam4ir.data.masks.record import MaskRecord
from sam4ir.data.masks.store import MaskStore
from sam4ir.distill.segments import own_segments
from sam4ir.engine.make_masks.build import GENERATOR, LoadedGenerator, generator_of
from sam4ir.engine.make_masks.settings import SETTINGS, settings_for
from sam4ir.engine.weights import locate
from sam4ir.errors import UserError, first_line
from sam4ir.regions import densify
from sam4ir.utils.files import sha256_of
from sam4ir.utils.image import ExifOrientation
from sam4ir.utils.memory import out_of_memory, release


class Masks(Protocol):
    """The region labels of restored images."""

    @property
    def lines(self) -> Sequence[str]:
        """Where the masks come from, and what a user may not have meant."""

    def labels(self, key: str, image: np.ndarray, restored: Tensor) -> np.ndarray:
        """Return the labels of an image, (h, w) int64, 0 = no region, else 1..n.

        key: of the image. image: the restored image, (h, w, 3) uint8 RGB. restored: the same as the student gave it,
        (1, c, h, w). Raises UserError where it has no masks.
        """


@dataclass(frozen=True)
class StoredMasks:
    """Masks that a store holds by the keys of images.

    student: the weights that restore the images, a file or a name of the zoo.
    """

    store: MaskStore
    student: str

    @property
    def lines(self) -> list[str]:
        """Where the masks come from, and whether they are of images that another network has restored."""
        meta = self.store.meta
        images = f"{len(self.store)} {meta.get('source') or 'unknown'} images"
        lines = [f"masks: {self.store.path}, of {images}, by {_maker(meta)}"]
        restored_by = meta.get("restored_by")
        if isinstance(restored_by, dict) and restored_by.get("checkpoint_sha256") != sha256_of(locate(self.student)):
            other = restored_by.get("checkpoint")
            lines.append(f"note: the masks are of images restored by {other}, which are not the weights here")
        return lines

    def labels(self, key: str, image: np.ndarray, restored: Tensor) -> np.ndarray:
        """Return the labels of an image. Raises MaskStoreError without a record, UserError for one of another size."""
        record = self.store.read(key)
        if record.size != image.shape[:2]:
            raise UserError(
                f"{self.store.path}: masks of {key!r} are {_size(record.size)}, the restored image is "
                f"{_size(image.shape)}; make the masks of the images that are restored"
            )
        return _labels(record)


@dataclass(frozen=True)
class SamMasks:
    """Masks that a SAM makes of each restored image, as sam4ir make-masks --image restored does.

    origin: where the settings of the generator come from.
    """

    generator: LoadedGenerator
    origin: str

    @property
    def lines(self) -> list[str]:
        """Which SAM makes the masks, with which settings."""
        return [f"masks: of the restored images by {self.generator.summary}; {self.origin}"]

    def labels(self, key: str, image: np.ndarray, restored: Tensor) -> np.ndarray:
        """Return the labels of an image. Raises UserError where memory runs out."""
        try:
            masks = self.generator.generate(image)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            release()
            raise UserError(
                f"memory ran out while {self.generator.name} looked at an image of {_size(image.shape)} "
                f"({first_line(error)}); make its masks with sam4ir make-masks --points-per-batch 16, which needs "
                "less, and name their store by --masks"
            ) from error
        return _labels(MaskRecord(record_from_sam(masks, (image.shape[0], image.shape[1]))))


@dataclass(frozen=True)
class NoMasks:
    """No masks at all, for a refiner that was trained without."""

    lines: tuple[str, ...] = ("masks: none, as the refiner was trained without (distill.masks: empty)",)

    def labels(self, key: str, image: np.ndarray, restored: Tensor) -> np.ndarray:
        """Return 0, no region, for each pixel."""
        return np.zeros(image.shape[:2], np.int64)


@dataclass(frozen=True)
class OwnMasks:
    """Segments of the restored image, for a refiner that was trained with them."""

    lines: tuple[str, ...] = ("masks: segments of the restored images, as in training (distill.masks: own)",)

    def labels(self, key: str, image: np.ndarray, restored: Tensor) -> np.ndarray:
        """Return the segments of the student's image, without a pixel that has none."""
        return own_segments(restored)[0][0].cpu().numpy()


def _labels(record: MaskRecord) -> np.ndarray:
    """Return the labels of a whole image, as the view of regions gives them."""
    return densify(record.region_map(0, 0, *record.size))[0]


def _maker(meta: Mapping[str, Any]) -> str:
    """Return what made the masks of a store, by its metadata."""
    return str(meta.get("checkpoint") or meta.get("generator") or "an unknown generator")


def _size(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]} (h x w)"


def stored_masks(path: Path, exif: ExifOrientation, student: str) -> StoredMasks:
    """Open a mask store. exif: how the images are read. student: see StoredMasks.

    Raises MaskStoreError where there is none, and UserError where its masks are of images that were turned otherwise.
    """
    store = MaskStore(path)
    if store.exif_orientation != exif:
        remedy = "leave --ignore-exif out"
        if exif == "apply":
            remedy = "add --ignore-exif"
        raise UserError(
            f"--masks: {path} was made of images whose EXIF orientation counts as {store.exif_orientation!r}, and here "
            f"it counts as {exif!r}; {remedy}"
        )
    return StoredMasks(store, student)


def sam_masks(sam: str, training: TrainingMasks | None, device: torch.device) -> SamMasks:
    """Load a SAM, a name of the zoo or a file, with the settings of make-masks, or of the training's store.

    training: the masks that the refiner was trained with; None where they are not known. Raises UserError for what is
    no SAM.
    """
    from sam4ir.priors.sam.load import load_sam

    loaded = load_sam(sam, device)
    settings, origin = _settings(sam, loaded.sha256, training)
    return SamMasks(generator_of(loaded, settings, "fp32", device), origin)


class TrainingMasks(NamedTuple):
    """The mask store that an option file trains with, and its metadata; None where the store is not there."""

    path: Path
    meta: dict[str, Any] | None


def training_masks(options: Options) -> TrainingMasks | None:
    """Return the masks of the training set of an option file; None where it names no store."""
    for dataset in options.phase("train").values():
        if dataset.masks is not None:
            path = Path(dataset.masks.store)
            try:
                return TrainingMasks(path, read_meta(path))
            except UserError:
                return TrainingMasks(path, None)
    return None


def _settings(sam: str, sha256: str, training: TrainingMasks | None) -> tuple[dict[str, Any], str]:
    """Return the settings of the generator beside the package's, and a text on where they come from."""
    usual = "settings of make-masks"
    if training is None:
        return settings_for(sam), usual
    path, meta = training
    if meta is None:
        return settings_for(sam), f"{usual}, as {path}, which the refiner was trained with, is not here"
    trained = f"{path}, which the refiner was trained with"
    source = meta.get("source") or "unknown"
    if source != "restored":
        trained += f" (masks of {source} images)"
    if meta.get("generator") != GENERATOR or meta.get("checkpoint_sha256") != sha256:
        return settings_for(sam), f"{usual}, as {trained}, is by {_maker(meta)}"
    stored = meta.get("settings") or {}
    return {name: stored[name] for name in SETTINGS if name in stored}, f"settings of {trained}"
