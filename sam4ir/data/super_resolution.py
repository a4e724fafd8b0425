"""High-resolution images and their bicubic low-resolution ones, made on the fly (SAM-DiffSR, SRDiff, BasicSR's SR)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sam4ir.data.cropped import Colour, CroppedDataset
from sam4ir.data.sample import MaskReader, MaskStoreLike, MaskViews, Sample
from sam4ir.data.sources import IoBackend, open_source, select_keys
from sam4ir.data.transforms import Placement, Window, augmentation, refuse_normalization
from sam4ir.errors import UserError
from sam4ir.utils.image import to_float_tensor, to_grey
from sam4ir.utils.resize import SUPPORT, shrunk_pixels


class SuperResolutionDataset(CroppedDataset):
    """LQ = MATLAB's bicubic of GT (utils.resize), 1/scale of its size; equal to reading an LQ image stored as PNG.

    GT is the image cut at its bottom and right to a multiple of scale. A crop lies on whole LQ pixels, and its lq is
    that crop of the whole image's LQ: it is made of the GT pixels that the kernel sees, of the real ones around the
    crop as far as the image has them and mirrored ones beyond. lq is made before the flip, so a flipped sample is the
    flipped pair. Masks are of the whole GT image, uncut, and are read on the GT grid.

    scale: GT size over LQ size. gt_size: side of the GT crop in pixels, a multiple of scale; None gives whole images.
    quantize: lq is rounded to the bits of its GT's file (8, or 16), clipped to [0, 1], as a stored LQ image would be;
        without it lq keeps all values and may leave [0, 1] by the kernel's overshoot.
    channels: 3 for RGB; 1 for grey, luma of LQ and of GT. The other arguments are PairedImageDataset's.
    Raises ValueError naming an image that is smaller than scale.
    """

    def __init__(
        self,
        dataroot_gt: str,
        io_backend: IoBackend | None = None,
        meta_info_file: str | None = None,
        gt_size: int | None = None,
        use_hflip: bool = False,
        use_flip: bool | None = None,
        use_rot: bool = False,
        quantize: bool = True,
        scale: int = 4,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels: Colour = 3,
        masks: MaskStoreLike | None = None,
        mask_views: MaskViews | None = None,
    ) -> None:
        refuse_normalization(mean, std)
        if scale < 2:
            raise UserError(f"scale: {scale} must be at least 2 for super-resolution")
        self._quantize = quantize
        source = open_source(dataroot_gt, io_backend, "dataroot_gt")
        super().__init__(
            source,
            select_keys(source, meta_info_file),
            augmentation(gt_size, use_hflip, use_flip, use_rot, scale),
            MaskReader(masks, mask_views),
            scale,
            channels,
        )

    def examine(self, index: int) -> bool:
        self._lq_size(index, self._gt.size(self._keys[index]))
        return super().examine(index)

    def get(self, index: int, rng: np.random.Generator) -> Sample:
        """One sample; window and flip are drawn from rng. Raises ValueError naming the file that does not do."""
        key = self._keys[index]
        with self._gt.open(key) as image:
            size = (image.shape[0], image.shape[1])
            h, w = self._lq_size(index, size)
            on_lq = self._augmentation.draw((h, w), rng)
            on_gt = on_lq.scaled(self.scale)
            used = image[: h * self.scale, : w * self.scale]
            gt = self._pixels(used, on_gt)
            lq = self._shrunk(used, on_lq)
        fields = self._masks.read(key, self._gt.where(key), size, on_gt, used=(h * self.scale, w * self.scale))
        return Sample(key, lq, gt, fields.get("regions"), fields.get("spe"))

    def _lq_size(self, index: int, size: tuple[int, int]) -> tuple[int, int]:
        h, w = (side // self.scale for side in size)
        if min(h, w) < 1:
            where = self._gt.where(self._keys[index])
            raise UserError(
                f"{where} is {size[0]}x{size[1]} (h x w), smaller than scale: {self.scale}; leave it out "
                "(meta_info_file)"
            )
        return h, w

    def _shrunk(self, used: np.ndarray, on_lq: Placement) -> Tensor:
        """(channels, h, w) float32, the placement on the LQ grid of what the image shrinks to."""
        margin = 0 if on_lq.window.scaled(self.scale) == Window.whole((used.shape[0], used.shape[1])) else SUPPORT
        around = np.ascontiguousarray(on_lq.window.grown(margin).scaled(self.scale).cut(used))
        if self._quantize:
            pixels = on_lq.flip.copy(_cut(shrunk_pixels(around, self.scale), margin))
            return to_float_tensor(pixels if self.channels == 3 else to_grey(pixels))
        fine = shrunk_pixels(around if self.channels == 3 else to_grey(around), self.scale, rounded=False)
        values = on_lq.flip.apply(_cut(fine, margin))
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1), np.float32))


def _cut(image: np.ndarray, margin: int) -> np.ndarray:
    """(h, w, c) without `margin` pixels on each side."""
    return image[margin : image.shape[0] - margin, margin : image.shape[1] - margin]
