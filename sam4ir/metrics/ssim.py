"""Structural similarity in the field's two definitions, which give very different numbers on one pair.

`ssim` and `ssim_y` (BasicSR, super-resolution tables): 2-D window, valid region, mean over channels.
`ssim3d` (NAFNet, HINet, Restormer RGB tables): 3-D window that reaches across colour, replicated border.
Wang, Bovik, Sheikh, Simoncelli: Image quality assessment, TIP 2004, eq. 13.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sam4ir.metrics.inputs import MetricError, luma, prepared

WINDOW = 11
SIGMA = 1.5
RADIUS = WINDOW // 2


def ssim(image: Tensor, reference: Tensor, crop_border: int = 0, data_range: float = 255.0) -> float:
    """SSIM with an 11 x 11 Gaussian window (sigma 1.5) on the valid region, mean over channels; 1 for equal images.

    image, reference: (3, h, w) or (1, h, w), RGB, values in [0, data_range]; uint8 goes with 255.
    crop_border: pixels cut from every side first.
    Raises MetricError (a ValueError) for different shapes and where less than 11 x 11 pixels are left.
    """
    return _valid_ssim(*prepared(image, reference, crop_border, data_range), crop_border)


def ssim_y(image: Tensor, reference: Tensor, crop_border: int = 0, data_range: float = 255.0) -> float:
    """`ssim` of luma (BT.601 studio swing, not rounded). A (1, h, w) image is taken as luma already."""
    first, second = prepared(image, reference, crop_border, data_range)
    return _valid_ssim(luma(first), luma(second), crop_border)


def ssim3d(image: Tensor, reference: Tensor, crop_border: int = 0, data_range: float = 255.0) -> float:
    """SSIM with an 11 x 11 x 11 Gaussian window over (colour, h, w) and replicated borders; 1 for equal images.

    The definition behind the RGB columns of NAFNet, HINet and Restormer. Their code computes it in float32 and
    this one in float64: photographs differ by less than 1e-4, a flat bright image with faint noise by up to 2e-3.
    Arguments as `ssim`; any size is large enough.
    """
    first, second = prepared(image, reference, crop_border, data_range)
    kernel = _gaussian(first)
    similarity = _similarity(*(_blur_same(moment, kernel) for moment in _moments(first, second)))
    return similarity.mean().item()


def _valid_ssim(image: Tensor, reference: Tensor, crop_border: int) -> float:
    h, w = image.shape[-2:]
    if min(h, w) < WINDOW:
        raise MetricError(
            f"image is {h} x {w} after crop_border {crop_border}, smaller than the {WINDOW} x {WINDOW} window of ssim"
        )
    kernel = _gaussian(image)
    similarity = _similarity(*(_blur_valid(moment, kernel) for moment in _moments(image, reference)))
    return similarity.mean().item()


def _moments(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, y, x^2 + y^2 and x y: SSIM needs the two variances only as their sum."""
    return x, y, x.square().addcmul_(y, y), x * y


def _similarity(mean_x: Tensor, mean_y: Tensor, mean_squares: Tensor, mean_product: Tensor) -> Tensor:
    """The SSIM map (2 mx my + c1)(2 sxy + c2) / ((mx^2 + my^2 + c1)(sx^2 + sy^2 + c2)) on the 0..255 scale."""
    c1, c2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
    product = mean_x * mean_y
    squares = mean_x.square().addcmul_(mean_y, mean_y)
    covariance, variances = mean_product - product, mean_squares - squares
    return (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))


def _gaussian(like: Tensor) -> Tensor:
    """(11,) Gaussian window of sum 1, in `like`'s dtype and on its device."""
    offsets = torch.arange(-RADIUS, RADIUS + 1, dtype=like.dtype, device=like.device)
    window = torch.exp(-offsets.square() / (2 * SIGMA**2))
    return window / window.sum()


def _blur_valid(planes: Tensor, kernel: Tensor) -> Tensor:
    """(c, h, w) -> (c, h - 10, w - 10): the window over h, then over w, where it fits."""
    return torch.stack([_slide(_slide(plane, kernel, dim=0), kernel, dim=1) for plane in planes])


def _slide(plane: Tensor, kernel: Tensor, dim: int) -> Tensor:
    """Valid 1-D correlation of one (h, w) plane; symmetric, so a pair of taps shares a product.

    Shifted sums over one plane stay in cache and run 5 times faster than float64 conv2d on one CPU core.
    """
    length = plane.shape[dim] - 2 * RADIUS
    weights = kernel.tolist()
    out = plane.narrow(dim, RADIUS, length) * weights[RADIUS]
    for offset in range(RADIUS):
        out.add_(plane.narrow(dim, offset, length), alpha=weights[offset])
        out.add_(plane.narrow(dim, 2 * RADIUS - offset, length), alpha=weights[offset])
    return out


def _blur_same(planes: Tensor, kernel: Tensor) -> Tensor:
    """(c, h, w) -> (c, h, w): the window over colour, h and w with replicated borders."""
    colours = _colour_window(planes.shape[0], kernel)
    mixed = (colours @ planes.flatten(1)).view_as(planes)
    return _blur_valid(F.pad(mixed[None], (RADIUS,) * 4, mode="replicate")[0], kernel)


def _colour_window(channels: int, kernel: Tensor) -> Tensor:
    """(c, c) matrix of the replicated 11-tap window over the colour axis; its rows sum to 1."""
    taps = torch.arange(WINDOW, device=kernel.device) - RADIUS
    matrix = kernel.new_zeros(channels, channels)
    for colour in range(channels):
        matrix[colour].index_add_(0, (colour + taps).clamp(0, channels - 1), kernel)
    return matrix
