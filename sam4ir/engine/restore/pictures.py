"""Restore a picture with what belongs to it: its transparency, its channels, its colour profile and EXIF block."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from sam4ir.engine.restore.images import ImageRestorer, PictureRestorer
from sam4ir.utils.image import resize_smoothly, to_grey
from sam4ir.utils.picture import PictureFile

AlphaMode = Literal["carry", "network", "drop"]


def restore_picture(
    restorer: PictureRestorer, picture: PictureFile, key: str, sample: int = 0, alpha: AlphaMode = "carry"
) -> PictureFile:
    """Return the restored picture.

    restorer: for pixels of as many channels as the picture's. A grey file that went through a network of RGB images
    comes back as the luma of the result.
    alpha: `carry` keeps the transparency, enlarged by the network's scale; `network` restores it as a grey image, by
    the network alone; `drop` leaves it out.
    """
    pixels = restorer(picture.pixels, key, sample)
    if picture.grey and pixels.shape[2] == 3:
        pixels = to_grey(pixels)
    height, width = pixels.shape[:2]
    transparency = None
    if picture.alpha is not None and alpha == "carry":
        transparency = resize_smoothly(picture.alpha, height, width)
    elif picture.alpha is not None and alpha == "network":
        transparency = _restored_alpha(restorer.alone, picture, key, sample)
    return replace(picture, pixels=pixels, alpha=transparency)


def _restored_alpha(restorer: ImageRestorer, picture: PictureFile, key: str, sample: int) -> np.ndarray:
    """Restore the transparency as a grey image."""
    assert picture.alpha is not None
    channels = picture.pixels.shape[2]
    restored = restorer(np.repeat(picture.alpha, channels, axis=2), key, sample)
    if channels == 3:
        return to_grey(restored)
    return restored
