"""Peak signal-to-noise ratio on RGB and on luma, as BasicSR, NAFNet, HINet, Restormer and MATLAB compute it."""

from __future__ import annotations

import math

from torch import Tensor

from sam4ir.metrics.inputs import luma, luma_rounded, prepared


def psnr(image: Tensor, reference: Tensor, crop_border: int = 0, data_range: float = 255.0) -> float:
    """PSNR = 20 log10(data_range / RMSE) in dB over all pixels and channels; inf for equal images.

    image, reference: (3, h, w) or (1, h, w), RGB, values in [0, data_range]; uint8 goes with 255.
    crop_border: pixels cut from every side first.
    Raises MetricError (a ValueError) for different shapes and for a border that leaves nothing.
    """
    return _decibels(*prepared(image, reference, crop_border, data_range))


def psnr_y(image: Tensor, reference: Tensor, crop_border: int = 0, data_range: float = 255.0) -> float:
    """PSNR of luma (BT.601 studio swing, not rounded) with a peak of `data_range`, not of luma's 219 levels.

    Arguments and errors as `psnr`; a (1, h, w) image is taken as luma already.
    """
    first, second = prepared(image, reference, crop_border, data_range)
    return _decibels(luma(first), luma(second))


def psnr_y_rounded(image: Tensor, reference: Tensor, crop_border: int = 0, data_range: float = 255.0) -> float:
    """PSNR of luma rounded to 8 bits, as Restormer's MATLAB script for its deraining tables computes it.

    Rounding adds noise to both lumas: about 0.1 dB less than `psnr_y` at 39 dB. RGB images are rounded to 8 bits
    first, since MATLAB's rounding is that of 8-bit images. Arguments and errors as `psnr`.
    """
    first, second = prepared(image, reference, crop_border, data_range)
    return _decibels(luma_rounded(first), luma_rounded(second))


def _decibels(image: Tensor, reference: Tensor) -> float:
    """20 log10(255 / RMSE) of float64 images on the 0..255 scale."""
    mse = (image - reference).square().mean().item()
    return math.inf if mse == 0 else 10.0 * math.log10(255.0**2 / mse)
