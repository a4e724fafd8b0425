"""Draw masks for people: the image, its regions, their boundaries and the SPE side by side (sam4ir masks view)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sam4ir.data.masks.record import MaskRecord, MaskStoreError
from sam4ir.data.masks.store import MaskStore
from sam4ir.data.sources import ImageSource, listed
from sam4ir.errors import UserError
from sam4ir.utils.image import eight_bits

Picture = NDArray[np.uint8]  # (h, w, 3) RGB

_GREY = 128
_LARGEST_WITHOUT_IMAGE = 1 << 26  # pixels: nothing but the record says that the image is so large
_GOLDEN = 0.618034  # hues a golden section apart, so that neighbours in the list differ
SHEET_PANEL = 240  # pixels, width of a panel in a contact sheet
SHEET_IMAGES = 400  # the most that a contact sheet holds


def draw_panels(record: MaskRecord, image: NDArray[np.integer] | None, spe: NDArray[np.floating]) -> dict[str, Picture]:
    """Return the panels image, regions, boundaries and SPE, each (h, w, 3), by the caption to print above them.

    image: (h, w, 3) RGB uint8 or uint16; None leaves its panel out and draws the others on grey. spe: (h, w), 0 where
    no mask lies. Raises MaskStoreError where the image is of another size than the masks.
    """
    refuse_to_draw(record, image)
    drawn = {}
    if image is None:
        base = np.full((*record.size, 3), _GREY, np.uint8)
    else:
        base = drawn["image"] = eight_bits(image)
    region = record.region_map(0, 0, *record.size)
    boundaries = record.boundary_map(0, 0, *record.size)
    drawn[f"regions, {100 * (region > 0).mean():.0f} % covered"] = colour_regions(base, region, record.count)
    drawn["boundaries"] = np.where(boundaries[..., None], [255, 0, 0], base).astype(np.uint8)
    drawn[f"SPE {spe.min():.3g} .. {spe.max():.3g}"] = colour_spe(spe)
    return drawn


def refuse_to_draw(record: MaskRecord, image: NDArray[np.integer] | None) -> None:
    """Raise MaskStoreError where the image is of another size than the masks, or masks without one are too large."""
    h, w = record.size
    if image is not None and record.size != image.shape[:2]:
        raise MaskStoreError(
            f"{record.name}: the masks are of {h}x{w}, the image of "
            f"{image.shape[0]}x{image.shape[1]} (h x w); sam4ir masks verify lists all such"
        )
    if image is None and h * w > _LARGEST_WITHOUT_IMAGE:
        raise MaskStoreError(f"{record.name}: states an image of {h}x{w}; to draw masks of that size name its --images")


def colour_regions(image: Picture, region: NDArray[np.int32], count: int) -> Picture:
    """Return the image in grey with a colour for each region 1..count, and without colour where the region is 0."""
    hue = (np.arange(count + 1) * _GOLDEN) % 1.0
    colours = 255 * np.clip(np.abs((hue[:, None] * 6 + [0, 4, 2]) % 6 - 3) - 1, 0, 1)
    grey = image.mean(axis=2, keepdims=True)
    return np.where(region[..., None] > 0, 0.35 * grey + 0.65 * colours[region], grey).astype(np.uint8)


def colour_spe(values: NDArray[np.floating]) -> Picture:
    """Return a picture of an SPE map: blue below zero, white near it, red above; black where it is 0 (no mask).

    The colour is strongest at the largest magnitude and follows the square root, because the values are proportional to
    areas, which differ by orders of magnitude.
    """
    scaled = np.asarray(values, np.float64) / max(float(np.abs(values).max(initial=0)), 1e-30)
    faded = 1 - 0.9 * np.sqrt(np.abs(scaled))
    channels = [np.where(scaled > 0, 1.0, faded), faded, np.where(scaled < 0, 1.0, faded)]
    return np.where(values[..., None] != 0, 255 * np.stack(channels, axis=-1), 0).astype(np.uint8)


def choose_keys(
    store: MaskStore, images: ImageSource | None, keys: Sequence[str] | None = None, number: int | None = None
) -> list[str]:
    """Return the keys to draw: `keys`, or `number` of the keys with an image, evenly spread, or all of them (None).

    Raises UserError where an image is missing, where no key has an image, and for a number below 1.
    """
    image_keys = set(images.keys) if images is not None else set()
    if keys:
        missing = set(keys) - image_keys
        if images is not None and missing:
            raise UserError(f"--images: {images.root} lacks {listed(missing)}")
        return list(keys)
    candidates = store.keys()
    if images is not None:
        candidates = [key for key in candidates if key in image_keys]
    if not candidates:
        reason = f"--images: {images.root} has none of its images" if images is not None else "the store is empty"
        raise UserError(f"{store.path}: {reason}")
    if number is not None and number < 1:
        raise UserError(f"--number: {number} must be at least 1")
    count = len(candidates) if number is None else min(number, len(candidates))
    return [candidates[index * len(candidates) // count] for index in range(count)]


def contact_sheet(thumbnails: Sequence[Picture]) -> Picture:
    """Return pictures of one width (side_by_side) as one nearly square picture, row by row."""
    width, height = thumbnails[0].shape[1], max(map(len, thumbnails))
    columns = max(1, round(np.sqrt(len(thumbnails) * height / width)))
    columns = min(columns, len(thumbnails))
    rows = []
    for start in range(0, len(thumbnails), columns):
        rows.append(_row(thumbnails[start : start + columns], columns * width))
    return np.concatenate(rows)


def _row(thumbnails: Sequence[Picture], width: int) -> Picture:
    row = np.full((max(map(len, thumbnails)), width, 3), 255, np.uint8)
    for number, picture in enumerate(thumbnails):
        left = number * picture.shape[1]
        row[: len(picture), left : left + picture.shape[1]] = picture
    return row
