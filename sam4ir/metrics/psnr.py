"""Peak signal-to-noise ratio on RGB and on luma, as BasicSR, NAFNet, HINet, Restormer and MATLAB compute it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sam4ir.metrics.inputs import MetricError, luma, luma_rounded, prepare
from sam4ir.metrics.kinds import Traits, described
from sam4ir.utils.resize import imresize


def psnr(image: Tensor, reference: Tensor, crop_border: int = 0, data_range: float = 255.0) -> float:
    """Return PSNR = 20 log10(data_range / RMSE) in dB over all pixels and channels; inf for equal images.

    image, reference: (3, h, w) or (1, h, w), RGB, values in [0, data_range]; uint8 goes with 255. Raises MetricError (a
    UserError) for different shapes and for a border that leaves nothing.

    Args:
        crop_border: Pixels cut from every side before scoring.
    """
    return _decibels(*prepare(image, reference, crop_border, data_range))


def psnr_y(image: Tensor, reference: Tensor, crop_border: int = 0, data_range: float = 255.0) -> float:
    """Return PSNR of luma (BT.601 studio swing, not rounded) with a peak of `data_range`, not of luma's 219 levels.

    Images and errors as in `psnr`; a (1, h, w) image counts as luma.

    Args:
        crop_border: Pixels cut from every side before scoring.
    """
    first, second = prepare(image, reference, crop_border, data_range)
    return _decibels(luma(first), luma(second))


def psnr_y_rounded(image: Tensor, reference: Tensor, crop_border: int = 0, data_range: float = 255.0) -> float:
    """Return PSNR of luma rounded to 8 bits, as Restormer's MATLAB script for its deraining tables computes it.

    Rounding adds noise to both lumas: about 0.1 dB less than `psnr_y` at 39 dB. RGB images are rounded to 8 bits
    first, since MATLAB's rounding is that of 8-bit images. Images and errors as in `psnr`.

    Args:
        crop_border: Pixels cut from every side before scoring.
    """
    first, second = prepare(image, reference, crop_border, data_range)
    return _decibels(luma_rounded(first), luma_rounded(second))


@described(Traits(definition="RGB, the bicubic (MATLAB) down-scaling of the image against the degraded input"))
def lr_psnr(image: Tensor, reference: Tensor, lq: Tensor, crop_border: int = 0, data_range: float = 255.0) -> float:
    """Return how well an up-scaled image agrees with its LR input: `psnr` between that and the image, down-scaled.

    lq: (c, h, w); image: (c, h s, w s) for a whole s > 1; reference is not used. uint8 images are down-scaled to 8
    bits, as they would be stored; floating ones are clipped and not rounded. Raises MetricError if the image is not
    larger than lq by a whole factor, and as `psnr` does. SRDiff (arXiv 2104.14951) defines it, and SAM-DiffSR uses it.

    Args:
        crop_border: Pixels of the LR image cut from every side before scoring.
    """
    del reference
    (h, w), (small_h, small_w) = image.shape[-2:], lq.shape[-2:]
    scale = h // max(small_h, 1)
    if scale < 2 or (h, w) != (small_h * scale, small_w * scale):
        raise MetricError(
            f"lr_psnr: image is {h} x {w}, its degraded input {small_h} x {small_w}; it is defined for "
            "super-resolution by a whole factor"
        )
    small = imresize(image.to(torch.float64), 1 / scale).clamp(0, data_range)
    small = small if image.is_floating_point() else small.round().to(image.dtype)
    return psnr(small, lq, crop_border, data_range)


def _decibels(image: Tensor, reference: Tensor) -> float:
    """Return 20 log10(255 / RMSE) of float64 images on the 0..255 scale."""
    mse = (image - reference).square().mean().item()
    if mse == 0:
        return math.inf
    return 10.0 * math.log10(255.0**2 / mse)
