"""The base of all data sets: images by sorted key, a crop of each with flips, and the maps of its masks."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from torch import Tensor

from sam4ir.data.sources import IoBackend, open_source, select_keys
from sam4ir.data.transforms import Cuttable, Placement, augmentation, patch_side, refuse_normalization
from sam4ir.data.views import MapReader, MaskStoreLike, Views
from sam4ir.errors import UserError
from sam4ir.utils.image import ExifOrientation, to_float_tensor, to_grey

Self = TypeVar("Self", bound="CroppedDataset")
Colour = Literal[1, 3]  # grey or RGB


@dataclass(kw_only=True, eq=False)
class CroppedDataset:
    """GT images by sorted key, whose crops are samples, and the arguments that all data sets have.

    A data set derives from it as a dataclass with keyword arguments: it declares as fields what it takes beside these
    (or with another default), opens its files in __post_init__ after super().__post_init__(), and defines
    get(index, rng) with the help of draw, pixels and maps below.

    channels: of lq, for which a network is built; a class sets it, or has a field of that name for grey images.
    lq_views: images that are stacked in lq. source: the GT images; keys: the keys of the used ones, sorted.

    Args:
        dataroot_gt: Folder of the ground-truth images, read with its subfolders, or an LMDB folder (*.lmdb).
        io_backend: How images are stored, {type: disk} or {type: lmdb}; left out, the name of the folder decides.
        meta_info_file: Text file with the names of the GT images to use, one a line; left out, all are used.
        gt_size: Side of the GT crop in pixels, a multiple of scale; smaller images are mirrored at their bottom and
            right. Left out, whole images are used.
        use_hflip: Flip samples horizontally at random, with probability 1/2.
        use_flip: Another name of use_hflip, from the option files of NAFNet and HINet.
        use_rot: Flip samples vertically and transpose them at random, each with probability 1/2.
        scale: Size of GT over size of LQ.
        exif_orientation: 'apply' turns images as their EXIF orientation says; 'ignore' reads them as they are stored.
        mean: Accepted from other option files as zeros only; images stay in [0, 1].
        std: Accepted from other option files as ones only; images stay in [0, 1].
        masks: Mask store with a record for each GT key, or None for samples without maps.
        mask_views: Views of the store's records by the names of their maps (data.views), on the GT grid.
    """

    dataroot_gt: str
    io_backend: IoBackend | None = None
    meta_info_file: str | None = None
    gt_size: int | None = None
    use_hflip: bool = False
    use_flip: bool | None = None
    use_rot: bool = False
    scale: int = 1
    exif_orientation: ExifOrientation = "apply"
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    masks: MaskStoreLike | None = None
    mask_views: Views | None = None

    channels = 3
    lq_views = 1

    def __post_init__(self) -> None:
        refuse_normalization(self.mean, self.std)
        self._augmentation = augmentation(self.gt_size, self.use_hflip, self.use_flip, self.use_rot, self.scale)
        self._reader = MapReader(self.masks, self.mask_views)
        if self.gt_channels not in (1, 3):
            raise UserError(f"in_ch (channels): {self.gt_channels} must be 3 for RGB or 1 for grey")
        self.source = open_source(self.dataroot_gt, self.io_backend, "dataroot_gt", self.exif_orientation)
        self.keys = select_keys(self.source, self.meta_info_file)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def gt_channels(self) -> int:
        """Channels of GT: 3 = RGB, 1 = grey."""
        return self.channels // self.lq_views

    def key(self, index: int) -> str:
        """Return the GT key of image `index`; images are sorted by it."""
        return self.keys[index]

    def examine(self, index: int) -> bool:
        """Compare the files of image `index` by headers; return whether it is at least as large as the patch.

        Raises ValueError naming the files that do not fit.
        """
        key = self.keys[index]
        size = self.source.size(key)
        self._refuse_other_orientation(key)
        self._reader.record(key, self.source.where(key), size)
        return min(size) >= (self._augmentation.patch or 0) * self.scale

    def with_gt_size(self: Self, gt_size: int | None) -> Self:
        """Return the same images in GT crops of another side, for a stage of training; None gives whole images.

        The copy shares the opened sources. Raises ValueError where gt_size is no positive multiple of scale.
        """
        changed = copy.copy(self)
        changed.gt_size = gt_size
        changed._augmentation = dataclasses.replace(self._augmentation, patch=patch_side(gt_size, self.scale))
        return changed

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> Placement:
        """Draw the window and the flip of a sample, on the LQ grid of an image whose LQ is (h, w) = size."""
        return self._augmentation.draw(size, rng)

    def pixels(self, image: Cuttable, placement: Placement) -> Tensor:
        """Return the placement's part of an (h, w, 3) RGB image, (gt_channels, h, w) float32 in [0, 1]."""
        crop = placement.pixels(image)
        if self.gt_channels == 1:
            crop = to_grey(crop)
        return to_float_tensor(crop)

    def maps(
        self, key: str, size: tuple[int, int], placement: Placement, used: tuple[int, int] | None = None
    ) -> dict[str, Tensor]:
        """Return Sample.maps of image `key`, whose GT is (h, w) = size; {} without masks.

        placement: on the GT grid. used: the (h, w) of GT that samples show where that is not all of it.
        """
        self._refuse_other_orientation(key)
        return self._reader.read(key, self.source.where(key), size, placement, used)

    def _refuse_other_orientation(self, key: str) -> None:
        """Raise UserError where the image has an EXIF orientation that its masks do not follow, or the other way."""
        if self.masks is None:
            return
        of_masks = getattr(self.masks, "exif_orientation", self.exif_orientation)  # a user's own store may lack it
        if of_masks == self.exif_orientation:
            return
        number = self.source.orientation(key)
        if number != 1:
            raise UserError(
                f"{self.masks.path}: masks of {key!r}: the store was made with exif_orientation: "
                f"{of_masks}, their image {self.source.where(key)} has EXIF orientation {number} "
                f"and is read with {self.exif_orientation}; make the masks of such images again in a new store, or set "
                f"exif_orientation: {of_masks}"
            )
