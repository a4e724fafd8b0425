"""Preparation of the two images of a full-reference metric: check, crop, float64, luma."""

from __future__ import annotations

import torch
from torch import Tensor

from sam4ir.errors import UserError

# BT.601 studio swing for R, G, B in [0, 1], on the 0..255 scale: Y = 65.481 R + 128.553 G + 24.966 B + 16
LUMA_WEIGHTS = (65.481, 128.553, 24.966)
LUMA_OFFSET = 16.0


class MetricError(UserError):
    """Images or settings for which a metric is not defined; the message names sizes and values."""


def prepare(image: Tensor, reference: Tensor, crop_border: int, data_range: float) -> tuple[Tensor, Tensor]:
    """Return both images as (c, h, w) float64 on the 0..255 scale, `crop_border` pixels cut from every side.

    image, reference: (3, h, w) or (1, h, w), the same shape, values in [0, data_range]; the caller declares the range,
    and it is never guessed from the values. uint8 goes with data_range 255 only.
    Raises MetricError for other shapes, for two different ones, and for settings that leave no pixel.
    """
    check_pair(image, reference, data_range)
    _, h, w = image.shape
    if crop_border < 0 or 2 * crop_border >= min(h, w):
        raise MetricError(f"crop_border is {crop_border}, which leaves nothing of a {h} x {w} image")
    scale = 255.0 / data_range
    rows, columns = slice(crop_border, h - crop_border), slice(crop_border, w - crop_border)
    first = image[:, rows, columns].to(torch.float64) * scale
    second = reference[:, rows, columns].to(torch.float64) * scale
    return first.contiguous(), second.contiguous()  # windows slide over planes; interleaved colours take twice as long


def check_pair(image: Tensor, reference: Tensor, data_range: float) -> None:
    """Raise MetricError unless these are two images of one shape (see check_image)."""
    if image.shape != reference.shape:
        raise MetricError(f"image is {tuple(image.shape)}, reference is {tuple(reference.shape)}: they must be equal")
    check_image(image, data_range)
    _check_dtype("reference", reference, data_range)


def check_image(image: Tensor, data_range: float) -> None:
    """Raise MetricError unless this is a (3, h, w) or (1, h, w) image with a range that its type can have."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise MetricError(f"image is {tuple(image.shape)}, expected (3, h, w) or (1, h, w); call once per image")
    if not data_range > 0:
        raise MetricError(f"data_range is {data_range}, expected 255 or 1 (the value of white)")
    _check_dtype("image", image, data_range)


def _check_dtype(name: str, tensor: Tensor, data_range: float) -> None:
    if tensor.is_floating_point():
        return
    if tensor.dtype != torch.uint8:
        raise MetricError(f"{name} is {tensor.dtype}, expected uint8 or a floating type")
    if data_range != 255:
        raise MetricError(f"{name} is uint8, whose range is 255, but data_range is {data_range}")


def luma(image: Tensor) -> Tensor:
    """Return BT.601 studio-swing Y, not rounded: (3, h, w) RGB on the 0..255 scale -> (1, h, w) in [16, 235].

    A (1, h, w) image counts as luma and comes back unchanged, as in BasicSR's to_y_channel.
    """
    if image.shape[0] == 1:
        return image
    weights = image.new_tensor(LUMA_WEIGHTS).view(3, 1, 1) / 255.0
    return (image * weights).sum(dim=0, keepdim=True) + LUMA_OFFSET


def luma_rounded(image: Tensor) -> Tensor:
    """Return Y as MATLAB's rgb2ycbcr does for 8-bit images, rounded to whole levels, halves up: (1, h, w) of 16..235.

    image: (3, h, w) RGB or (1, h, w) luma on the 0..255 scale, float64. It is rounded to 8 bits first, since the
    protocols with this luma are defined for 8-bit images only, which do not change by that.
    """
    image = image.round()
    if image.shape[0] == 1:
        return image
    thousandths = image.new_tensor([round(1000 * weight) for weight in LUMA_WEIGHTS]).view(3, 1, 1)
    levels = (image * thousandths).sum(dim=0, keepdim=True)  # whole numbers, so that halves are exact
    return ((levels + 127500.0) / 255000.0).floor() + LUMA_OFFSET
