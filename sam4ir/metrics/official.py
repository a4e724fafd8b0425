"""The metric names of official option files, and the protocol of ours that each of them means.

BasicSR, NAFNet, HINet and Restormer all write `calculate_psnr` and `calculate_ssim`, and their `calculate_ssim`s have
three different definitions. `protocol_of` returns the one that a file means, so that a report prints its name.

| option file                        | BasicSR (SRModel) | NAFNet, HINet, Restormer |
|------------------------------------|-------------------|--------------------------|
| calculate_psnr                     | psnr              | psnr                     |
| calculate_psnr, test_y_channel     | psnr_y            | psnr_y                   |
| calculate_ssim                     | ssim              | ssim3d                   |
| calculate_ssim, ssim3d: false      | ssim              | ssim (NAFNet only)       |
| calculate_ssim, test_y_channel     | ssim_y            | ssim_y_replicate         |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from sam4ir.metrics.inputs import MetricError
from sam4ir.metrics.psnr import psnr, psnr_y
from sam4ir.metrics.ssim import ssim, ssim3d, ssim_y_replicate

OFFICIAL = ("calculate_psnr", "calculate_ssim")


def protocol_of(type_name: str, arguments: Mapping[str, Any], *, basicsr: bool) -> tuple[str, dict[str, Any]]:
    """Return (name, arguments) of our metric that `type: type_name` with these arguments means.

    Names of our own come back unchanged. arguments: those of the option file's block without `type`, checked against
    the signature of `type_name`. basicsr: whether the file is BasicSR's (model_type SRModel), not NAFNet's, HINet's or
    Restormer's. Raises MetricError for ssim3d in a BasicSR file, since BasicSR has no such argument.
    """
    if type_name not in OFFICIAL:
        return type_name, dict(arguments)
    ours = {"crop_border": arguments.get("crop_border", 0)}
    luma = arguments.get("test_y_channel", False)
    if type_name == "calculate_psnr":
        name = "psnr_y" if luma else "psnr"
        return name, ours
    return _similarity_of(luma, arguments.get("ssim3d"), basicsr), ours


def _similarity_of(luma: bool, across_colour: bool | None, basicsr: bool) -> str:
    """Return the name of our SSIM. across_colour: the argument ssim3d, None where the file leaves it out."""
    if basicsr:
        if across_colour:
            raise MetricError(
                "ssim3d: BasicSR's calculate_ssim has no such argument; for that metric write type: ssim3d"
            )
        return "ssim_y" if luma else "ssim"
    if luma:
        return "ssim_y_replicate"
    if across_colour is False:
        return "ssim"
    return "ssim3d"


def calculate_psnr(
    image: Tensor,
    reference: Tensor,
    crop_border: int = 0,
    test_y_channel: bool = False,
    input_order: Literal["HWC", "CHW"] = "HWC",
    better: Literal["higher"] = "higher",
    data_range: float = 255.0,
) -> float:
    """Return `psnr`, or `psnr_y` with test_y_channel; images and errors as there.

    Args:
        crop_border: Pixels cut from every side before scoring.
        test_y_channel: Whether luma is scored instead of RGB.
        input_order: Order of axes in BasicSR's files, without effect; images here are (c, h, w).
        better: Direction in which BasicSR looks for its best checkpoint, without effect.
    """
    del input_order, better
    if test_y_channel:
        return psnr_y(image, reference, crop_border, data_range)
    return psnr(image, reference, crop_border, data_range)


def calculate_ssim(
    image: Tensor,
    reference: Tensor,
    crop_border: int = 0,
    test_y_channel: bool = False,
    ssim3d: bool = True,
    input_order: Literal["HWC", "CHW"] = "HWC",
    better: Literal["higher"] = "higher",
    data_range: float = 255.0,
) -> float:
    """Return the SSIM of NAFNet, HINet and Restormer: `ssim3d`, `ssim` without ssim3d, or `ssim_y_replicate` of luma.

    An option file with model_type SRModel means BasicSR's definition, see `protocol_of`.

    Args:
        crop_border: Pixels cut from every side before scoring.
        test_y_channel: Whether luma is scored instead of RGB.
        ssim3d: Whether the window reaches across colours, as in NAFNet; test_y_channel switches it off.
        input_order: Order of axes in BasicSR's files, without effect; images here are (c, h, w).
        better: Direction in which BasicSR looks for its best checkpoint, without effect.
    """
    del input_order, better
    name = _similarity_of(test_y_channel, ssim3d, basicsr=False)
    return _SIMILARITIES[name](image, reference, crop_border, data_range)


_SIMILARITIES = {"ssim": ssim, "ssim3d": ssim3d, "ssim_y_replicate": ssim_y_replicate}
