"""Structural similarity in the field's definitions, which give very different numbers on one pair.

`ssim`, `ssim_y` (BasicSR, super-resolution tables): Gaussian 2-D window, valid region, mean over channels.
`ssim_y_rounded` (Restormer's deraining tables): the same on luma rounded to 8 bits.
`ssim3d` (NAFNet, HINet, Restormer RGB tables): Gaussian 3-D window that reaches across colour, replicated border.
`ssim_y_replicate` (the luma of those programs): Gaussian 2-D window, replicated border.
`ssim_uniform` (SAM-DiffSR, Restormer's defocus tables): uniform 2-D window, valid region, mean over channels.
Wang, Bovik, Sheikh, Simoncelli: Image quality assessment, TIP 2004, eq. 13.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from sam4ir.metrics.inputs import MetricError, luma, luma_rounded, prepare

WINDOW = 11
SIGMA = 1.5
RADIUS = WINDOW // 2
UNIFORM_WINDOW = 7


def ssim(image: Tensor, reference: Tensor, crop_border: int = 0, data_range: float = 255.0) -> float:
    """Return SSIM with an 11 x 11 Gaussian window (sigma 1.5) on the valid region, mean over channels.

    Equal images give 1. image, reference: (3, h, w) or (1, h, w), RGB, values in [0, data_range]; uint8 goes with 255.
    Raises MetricError (a UserError) for different shapes and if less than 11 x 11 pixels are left.

    Args:
        crop_border: Pixels cut from every side before scoring.
    """
    return _valid_ssim(*prepare(image, reference, crop_border, data_range), crop_border)


def ssim_y(image: Tensor, reference: Tensor, crop_border: int = 0, data_range: float = 255.0) -> float:
    """Return `ssim` of luma (BT.601 studio swing, not rounded); a (1, h, w) image counts as luma.

    Args:
        crop_border: Pixels cut from every side before scoring.
    """
    first, second = prepare(image, reference, crop_border, data_range)
    return _valid_ssim(luma(first), luma(second), crop_border)


def ssim_y_rounded(image: Tensor, reference: Tensor, crop_border: int = 0, data_range: float = 255.0) -> float:
    """Return `ssim` of luma rounded to 8 bits, as Restormer's MATLAB script for its deraining tables computes it.

    RGB images are rounded to 8 bits first, as in `psnr_y_rounded`.

    Args:
        crop_border: Pixels cut from every side before scoring.
    """
    first, second = prepare(image, reference, crop_border, data_range)
    return _valid_ssim(luma_rounded(first), luma_rounded(second), crop_border)


def ssim_y_replicate(image: Tensor, reference: Tensor, crop_border: int = 0, data_range: float = 255.0) -> float:
    """Return SSIM of luma with an 11 x 11 Gaussian window and replicated borders, so that every pixel counts.

    NAFNet, HINet and Restormer compute this for test_y_channel; luma is not rounded. A (1, h, w) image counts as luma.
    Images as in `ssim`; any size is large enough.

    Args:
        crop_border: Pixels cut from every side before scoring.
    """
    first, second = prepare(image, reference, crop_border, data_range)
    first, second = luma(first), luma(second)
    kernel = _gaussian(first)
    return _mean_similarity(_blur_valid(_padded(moment), kernel) for moment in _moments(first, second))


def ssim3d(image: Tensor, reference: Tensor, crop_border: int = 0, data_range: float = 255.0) -> float:
    """Return SSIM with an 11 x 11 x 11 Gaussian window over (colour, h, w) and replicated borders.

    Equal images give 1. The RGB columns of NAFNet, HINet and Restormer have this definition (and so has MATLAB's ssim
    of an RGB array). Their code computes it in float32 and this one in float64: photographs differ by less than 1e-4, a
    flat bright image with faint noise by up to 2e-3. Images as in `ssim`; any size is large enough.

    Args:
        crop_border: Pixels cut from every side before scoring.
    """
    first, second = prepare(image, reference, crop_border, data_range)
    kernel = _gaussian(first)
    return _mean_similarity(_blur_same(moment, kernel) for moment in _moments(first, second))


def ssim_uniform(image: Tensor, reference: Tensor, crop_border: int = 0, data_range: float = 255.0) -> float:
    """Return SSIM with a 7 x 7 uniform window and unbiased variances on the valid region, mean over channels.

    It is the default of scikit-image's structural_similarity, which SAM-DiffSR's measure_ssim and Restormer's script
    for defocus deblurring call. Images and errors as in `ssim`, with 7 x 7 pixels as the smallest image.

    Args:
        crop_border: Pixels cut from every side before scoring.
    """
    first, second = prepare(image, reference, crop_border, data_range)
    _check_size(first, UNIFORM_WINDOW, crop_border)
    kernel = first.new_full((UNIFORM_WINDOW,), 1.0 / UNIFORM_WINDOW)
    pixels = UNIFORM_WINDOW**2
    blurred = (_blur_valid(moment, kernel) for moment in _moments(first, second))
    return _mean_similarity(blurred, unbiased=pixels / (pixels - 1))


def _valid_ssim(image: Tensor, reference: Tensor, crop_border: int) -> float:
    _check_size(image, WINDOW, crop_border)
    kernel = _gaussian(image)
    return _mean_similarity(_blur_valid(moment, kernel) for moment in _moments(image, reference))


def _check_size(image: Tensor, window: int, crop_border: int) -> None:
    h, w = image.shape[-2:]
    if min(h, w) < window:
        raise MetricError(
            f"image is {h} x {w} after crop_border {crop_border}, smaller than the {window} x {window} window of ssim"
        )


def _moments(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x, y, x^2 + y^2 and x y: SSIM needs the two variances only as their sum."""
    return x, y, x.square().addcmul_(y, y), x * y


def _mean_similarity(blurred: Iterable[Tensor], unbiased: float = 1.0) -> float:
    """Return the mean of the map (2 mx my + c1)(2 sxy + c2) / ((mx^2 + my^2 + c1)(sx^2 + sy^2 + c2)), scale 0..255.

    blurred: the four `_moments` under the window. unbiased: factor of variances and covariance, n / (n - 1) for
    unbiased ones.
    """
    mean_x, mean_y, mean_squares, mean_product = blurred
    c1, c2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
    product = mean_x * mean_y
    squares = mean_x.square().addcmul_(mean_y, mean_y)
    covariance, variances = (mean_product - product) * unbiased, (mean_squares - squares) * unbiased
    similarity = (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))
    return similarity.mean().item()


def _gaussian(like: Tensor) -> Tensor:
    """Return a Gaussian window (11,) of sum 1, in `like`'s dtype and on its device."""
    offsets = torch.arange(-RADIUS, RADIUS + 1, dtype=like.dtype, device=like.device)
    window = torch.exp(-offsets.square() / (2 * SIGMA**2))
    return window / window.sum()


def _padded(planes: Tensor) -> Tensor:
    """Replicate the border: (c, h, w) -> (c, h + 10, w + 10)."""
    return F.pad(planes[None], (RADIUS,) * 4, mode="replicate")[0]


def _blur_valid(planes: Tensor, kernel: Tensor) -> Tensor:
    """Slide a window of 2 r + 1 taps over h, then over w, where it fits: (c, h, w) -> (c, h - 2 r, w - 2 r)."""
    return torch.stack([_slide(_slide(plane, kernel, dim=0), kernel, dim=1) for plane in planes])


def _slide(plane: Tensor, kernel: Tensor, dim: int) -> Tensor:
    """Correlate one (h, w) plane with a symmetric window where it fits; a pair of taps shares a product.

    Shifted sums over one plane stay in cache and run 5 times faster than float64 conv2d on one CPU core.
    """
    weights = kernel.tolist()
    radius = len(weights) // 2
    length = plane.shape[dim] - 2 * radius
    out = plane.narrow(dim, radius, length) * weights[radius]
    for offset in range(radius):
        out.add_(plane.narrow(dim, offset, length), alpha=weights[offset])
        out.add_(plane.narrow(dim, 2 * radius - offset, length), alpha=weights[offset])
    return out


def _blur_same(planes: Tensor, kernel: Tensor) -> Tensor:
    """Slide the window over colour, h and w with replicated borders: (c, h, w) -> (c, h, w)."""
    colours = _colour_window(planes.shape[0], kernel)
    mixed = (colours @ planes.flatten(1)).view_as(planes)
    return _blur_valid(_padded(mixed), kernel)


def _colour_window(channels: int, kernel: Tensor) -> Tensor:
    """Return the (c, c) matrix of the replicated 11-tap window over the colour axis; its rows sum to 1."""
    taps = torch.arange(WINDOW, device=kernel.device) - RADIUS
    matrix = kernel.new_zeros(channels, channels)
    for colour in range(channels):
        matrix[colour].index_add_(0, (colour + taps).clamp(0, channels - 1), kernel)
    return matrix
