"""What all data sets share: images by sorted key, of each a crop with flips, masks along with it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
from torch import Tensor

from sam4ir.data.sample import MaskReader
from sam4ir.data.sources import ImageSource
from sam4ir.data.transforms import Augmentation, Placement, patch_side
from sam4ir.errors import UserError
from sam4ir.utils.image import to_float_tensor, to_grey

Self = TypeVar("Self", bound="CroppedDataset")
Colour = Literal[1, 3]  # grey or RGB


class CroppedDataset:
    """The keys of a data set and how a crop is drawn; `get` is the data set's own.

    gt: the GT images; keys: those of them that are used, sorted. augmentation: on the LQ grid.
    scale: GT size over LQ size.
    gt_channels: 3 = RGB, 1 = grey; lq_views: images that are stacked in lq.
    channels: of lq, what a network for this data set takes.
    """

    def __init__(
        self,
        gt: ImageSource,
        keys: Sequence[str],
        augmentation: Augmentation,
        masks: MaskReader,
        scale: int = 1,
        gt_channels: Colour = 3,
        lq_views: int = 1,
    ) -> None:
        if gt_channels not in (1, 3):
            raise UserError(f"in_ch (channels): {gt_channels} must be 3 for RGB or 1 for grey")
        self.scale = scale
        self.gt_channels = gt_channels
        self.channels = gt_channels * lq_views
        self._gt = gt
        self._keys = keys
        self._augmentation = augmentation
        self._masks = masks

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """The GT key of image `index`; images are sorted by it."""
        return self._keys[index]

    def examine(self, index: int) -> bool:
        """Compare what belongs to image `index` by headers: whether it is at least as large as the patch.

        Raises ValueError naming the files that do not fit.
        """
        key = self._keys[index]
        size = self._gt.size(key)
        self._masks.record(key, self._gt.where(key), size)
        return min(size) >= (self._augmentation.patch or 0) * self.scale

    def with_gt_size(self: Self, gt_size: int | None) -> Self:
        """The same images in GT crops of another size, for a stage of progressive training; None gives whole images.

        The copy shares the opened sources. Raises ValueError where gt_size is no positive multiple of scale.
        """
        changed = copy.copy(self)
        changed._augmentation = dataclasses.replace(self._augmentation, patch=patch_side(gt_size, self.scale))
        return changed

    def _pixels(self, image: np.ndarray, placement: Placement) -> Tensor:
        """(gt_channels, h, w) float32 of what the placement takes of an (h, w, 3) RGB image."""
        taken = placement.pixels(image)
        return to_float_tensor(taken if self.gt_channels == 3 else to_grey(taken))
