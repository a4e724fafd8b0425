"""Clean images, degraded on the fly by a chain of models (noise.py, blur.py, rain.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sam4ir.data.cropped import Colour, CroppedDataset
from sam4ir.data.sample import MaskReader, MaskStoreLike, MaskViews, Sample
from sam4ir.data.sources import IoBackend, open_source, select_keys
from sam4ir.data.transforms import augmentation, refuse_normalization
from sam4ir.errors import UserError
from sam4ir.utils.rng import generator

# (c, h, w) float32 -> the same shape; a `margin: int` attribute tells how far over a pixel's place it looks
Degrade = Callable[[Tensor, np.random.Generator], Tensor]


class DegradedImageDataset(CroppedDataset):
    """LQ = the degradations of GT, in their order; float32, neither clipped nor quantised unless one of them is that.

    degradations: each takes (c, h, w) float32 and the sample's stream, and keeps the shape. Where one has a `margin`,
        its input is larger by that many pixels on each side, real neighbours as far as the image has them and mirrored
        ones beyond, and its result is cut: a patch is what the same place of the degraded whole image would be.
    noise_seed: None draws from the sample's stream; a number makes the degradation a function of (noise_seed, key)
        alone, whatever the order or the subset of images: for validation.
    channels: 3 for RGB, 1 for grey. scale: 1. The other arguments are PairedImageDataset's.
    """

    def __init__(
        self,
        dataroot_gt: str,
        degradations: Sequence[Degrade],
        noise_seed: int | None = None,
        io_backend: IoBackend | None = None,
        meta_info_file: str | None = None,
        gt_size: int | None = None,
        use_hflip: bool = False,
        use_flip: bool | None = None,
        use_rot: bool = False,
        scale: int = 1,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels: Colour = 3,
        masks: MaskStoreLike | None = None,
        mask_views: MaskViews | None = None,
    ) -> None:
        if not degradations:
            raise UserError("degradations: name at least one, such as {type: GaussianNoise, sigma: 25}")
        if scale != 1:
            raise UserError(f"scale: {scale} must be 1 here; degradations change no size")
        refuse_normalization(mean, std)
        self._chain = [(degrade, int(getattr(degrade, "margin", 0))) for degrade in degradations]
        self._noise_seed = noise_seed
        source = open_source(dataroot_gt, io_backend, "dataroot_gt")
        super().__init__(
            source,
            select_keys(source, meta_info_file),
            augmentation(gt_size, use_hflip, use_flip, use_rot),
            MaskReader(masks, mask_views),
            gt_channels=channels,
        )

    def get(self, index: int, rng: np.random.Generator) -> Sample:
        """One sample; window, flip and (without noise_seed) the degradations are drawn from rng, in this order."""
        key = self._keys[index]
        margin = sum(m for _, m in self._chain)
        with self._gt.open(key) as image:
            size = (image.shape[0], image.shape[1])
            placement = self._augmentation.draw(size, rng)
            around = self._pixels(image, placement.grown(margin))
        fields = self._masks.read(key, self._gt.where(key), size, placement)
        own = rng if self._noise_seed is None else generator(self._noise_seed, "noise", key)
        gt = _cut(around, margin).clone(memory_format=torch.contiguous_format)  # a degradation may work in place
        return Sample(key, self._degrade(around, own), gt, fields.get("regions"), fields.get("spe"))

    def _degrade(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        for degrade, margin in self._chain:
            degraded = degrade(image, rng)
            if degraded.shape != image.shape:
                name = getattr(degrade, "__name__", type(degrade).__name__)
                raise UserError(
                    f"{name} turns {tuple(image.shape)} into {tuple(degraded.shape)}; a degradation keeps the shape"
                )
            image = _cut(degraded, margin)
        return image.contiguous()


def _cut(image: Tensor, margin: int) -> Tensor:
    """(c, h, w) without `margin` pixels on each side."""
    return image[:, margin : image.shape[1] - margin, margin : image.shape[2] - margin] if margin else image
