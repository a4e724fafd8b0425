"""High-resolution images and bicubic low-resolution ones, computed on the fly (SAM-DiffSR, SRDiff, BasicSR's SR)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sam4ir.data.cropped import Colour, CroppedDataset
from sam4ir.data.sample import Sample
from sam4ir.data.transforms import Corner, Cuttable, Placement, Window
from sam4ir.errors import UserError
from sam4ir.utils.image import to_float_tensor, to_grey
from sam4ir.utils.resize import SUPPORT, shrunk_pixels


@dataclass(kw_only=True, eq=False)
class SuperResolutionDataset(CroppedDataset):
    """LQ = MATLAB's bicubic of GT (utils.resize), 1/scale of its size; equal to reading an LQ image stored as PNG.

    GT is the image cut at its bottom and right to a multiple of scale. A crop lies on whole LQ pixels, and its lq is
    that crop of the whole image's LQ: the kernel sees the real GT pixels around the crop as far as the image has them
    and mirrored ones beyond. lq is computed before the flip, so a flipped sample is the flipped pair. Masks are of the
    whole GT image, uncut, and are read on the GT grid. Raises ValueError naming an image that is smaller than scale.

    Args:
        quantize: Round lq to the bits of its GT's file (8, or 16) and clip it to [0, 1], as a stored LQ image would
            be; without it lq keeps all values and may leave [0, 1] by the kernel's overshoot.
        scale: Size of GT over size of LQ, 2 or more.
        channels: 3 for RGB; 1 for grey, the luma of LQ and of GT.
    """

    quantize: bool = True
    scale: int = 4
    channels: Colour = 3

    def __post_init__(self) -> None:
        if self.scale < 2:
            raise UserError(f"scale: {self.scale} must be at least 2 for super-resolution")
        super().__post_init__()

    def examine(self, index: int) -> bool:
        """Compare GT and masks of image `index` by headers, as CroppedDataset does, and its size with scale."""
        self._lq_size(index, self.source.size(self.keys[index]))
        return super().examine(index)

    def get(self, index: int, rng: np.random.Generator) -> Sample:
        """Return a sample; window and flip are drawn from rng. Raise ValueError naming an image that does not fit."""
        key = self.keys[index]
        with self.source.lend(key) as image:
            size = (image.shape[0], image.shape[1])
            h, w = self._lq_size(index, size)
            on_lq = self.draw((h, w), rng)
            on_gt = on_lq.scaled(self.scale)
            used = Corner(image, h * self.scale, w * self.scale)
            gt = self.pixels(used, on_gt)
            lq = self._shrunk(used, on_lq)
        maps = self.maps(key, size, on_gt, used=(h * self.scale, w * self.scale))
        return Sample(key, lq, gt, maps)

    def _lq_size(self, index: int, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (h, w) of LQ for a GT image of (h, w) = size; raise ValueError where no pixel is left."""
        h, w = size[0] // self.scale, size[1] // self.scale
        if min(h, w) < 1:
            where = self.source.where(self.keys[index])
            raise UserError(
                f"{where} is {size[0]}x{size[1]} (h x w), smaller than scale: {self.scale}; leave it out "
                "(meta_info_file)"
            )
        return h, w

    def _shrunk(self, used: Cuttable, on_lq: Placement) -> Tensor:
        """Return the placement, on the LQ grid, of the shrunk image: (channels, h, w) float32."""
        whole = on_lq.window.scaled(self.scale) == Window.whole((used.shape[0], used.shape[1]))
        margin = SUPPORT
        if whole:
            margin = 0
        around = np.ascontiguousarray(on_lq.window.grown(margin).scaled(self.scale).cut(used))
        if self.quantize:
            pixels = on_lq.flip.copy(_cut(shrunk_pixels(around, self.scale), margin))
            if self.channels == 1:
                pixels = to_grey(pixels)  # a stored LQ image is RGB
            return to_float_tensor(pixels)
        if self.channels == 1:
            around = to_grey(around)
        fine = shrunk_pixels(around, self.scale, rounded=False)
        values = on_lq.flip.apply(_cut(fine, margin))
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1), np.float32))


def _cut(image: np.ndarray, margin: int) -> np.ndarray:
    """Return (h, w, c) without `margin` pixels on each side."""
    return image[margin : image.shape[0] - margin, margin : image.shape[1] - margin]
