"""Masks to look at: the image, its regions, their boundaries and the SPE side by side (scripts/masks.py view)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sam4ir.data.masks.record import MaskRecord, MaskStoreError
from sam4ir.data.masks.store import MaskStore
from sam4ir.data.sources import ImageSource, listed
from sam4ir.errors import UserError
from sam4ir.utils.image import caption, eight_bits, resized

Picture = NDArray[np.uint8]  # (h, w, 3) RGB

_GREY = 128
_GOLDEN = 0.618034  # hues a golden section apart, so that neighbours in the list differ
SHEET_PANEL = 240  # pixels, width of a panel in a contact sheet
SHEET_IMAGES = 400  # a contact sheet holds at most


def panels(record: MaskRecord, image: NDArray[np.integer] | None, spe: NDArray[np.floating]) -> dict[str, Picture]:
    """image, regions, boundaries, SPE, each (h, w, 3), under the words to print above them.

    image: (h, w, 3) RGB uint8 or uint16, None leaves its panel out and draws the others on grey.
    spe: (h, w), 0 where no mask lies. Raises MaskStoreError where the image is of another size than the masks.
    """
    if image is not None and record.size != image.shape[:2]:
        raise MaskStoreError(
            f"{record.name}: the masks are of {record.size[0]}x{record.size[1]}, the image of "
            f"{image.shape[0]}x{image.shape[1]} (h x w); scripts/masks.py verify lists all such"
        )
    seen = np.full((*record.size, 3), _GREY, np.uint8) if image is None else eight_bits(image)
    whole = (0, 0, *record.size)
    region = record.region_map(*whole)
    edges = np.where(record.boundary_map(*whole)[..., None], [255, 0, 0], seen).astype(np.uint8)
    return {
        **({} if image is None else {"image": seen}),
        f"regions, {100 * (region > 0).mean():.0f} % covered": coloured(seen, region, record.count),
        "boundaries": edges,
        f"SPE {spe.min():.3g} .. {spe.max():.3g}": diverging(spe),
    }


def side_by_side(drawn: Mapping[str, Picture], title: str, panel_width: int | None = None) -> Picture:
    """(h + 2 strips, panels w, 3): the title, the panels' names, the panels. panel_width: scaled to so many pixels."""
    if panel_width is not None:
        drawn = {
            name: resized(panel, max(1, round(len(panel) * panel_width / panel.shape[1])), panel_width)
            for name, panel in drawn.items()
        }
    names = np.concatenate([caption(name, panel.shape[1]) for name, panel in drawn.items()], axis=1)
    return np.concatenate([caption(title, names.shape[1]), names, np.concatenate(list(drawn.values()), axis=1)])


def coloured(image: Picture, region: NDArray[np.int32], count: int) -> Picture:
    """A colour for each region 1..count on the image in grey, which alone is seen where the region is 0."""
    hue = (np.arange(count + 1) * _GOLDEN) % 1.0
    colours = 255 * np.clip(np.abs((hue[:, None] * 6 + [0, 4, 2]) % 6 - 3) - 1, 0, 1)
    grey = image.mean(axis=2, keepdims=True)
    return np.where(region[..., None] > 0, 0.35 * grey + 0.65 * colours[region], grey).astype(np.uint8)


def diverging(values: NDArray[np.floating]) -> Picture:
    """Blue below zero, white near it, red above, strongest at the largest magnitude; black where it is 0 (no mask).

    By the square root: the values are proportional to areas, which differ by orders of magnitude.
    """
    scaled = np.asarray(values, np.float64) / max(float(np.abs(values).max(initial=0)), 1e-30)
    faded = 1 - 0.9 * np.sqrt(np.abs(scaled))
    channels = [np.where(scaled > 0, 1.0, faded), faded, np.where(scaled < 0, 1.0, faded)]
    return np.where(values[..., None] != 0, 255 * np.stack(channels, axis=-1), 0).astype(np.uint8)


def chosen_keys(
    store: MaskStore, images: ImageSource | None, keys: Sequence[str] | None = None, number: int | None = None
) -> list[str]:
    """The keys to look at: `keys`, or `number` of those that have an image, evenly spread, or all of them (None).

    Raises ValueError where an image lacks, where there is none at all, and for a number below 1.
    """
    known = set(images.keys) if images is not None else set()
    if images is not None and keys and set(keys) - known:
        raise UserError(f"--images: {images.root} lacks {listed(set(keys) - known)}")
    if keys:
        return list(keys)
    stored = store.keys()
    there = [key for key in stored if images is None or key in known]
    if not there:
        whose = f"--images: {images.root} has none of its images" if images is not None else "the store is empty"
        raise UserError(f"{store.path}: {whose}")
    if number is not None and number < 1:
        raise UserError(f"--number: {number} must be at least 1")
    count = len(there) if number is None else min(number, len(there))
    return [there[i * len(there) // count] for i in range(count)]


def contact_sheet(thumbnails: Sequence[Picture]) -> Picture:
    """Pictures (side_by_side) of one width in one picture, row by row, in as many columns as make it nearly square."""
    width, highest = thumbnails[0].shape[1], max(len(t) for t in thumbnails)
    columns = max(1, round(np.sqrt(len(thumbnails) * highest / width)))
    columns = min(columns, len(thumbnails))
    rows = [_row(thumbnails[i : i + columns], columns * width) for i in range(0, len(thumbnails), columns)]
    return np.concatenate(rows)


def _row(thumbnails: Sequence[Picture], width: int) -> Picture:
    row = np.full((max(len(t) for t in thumbnails), width, 3), 255, np.uint8)
    for i, one in enumerate(thumbnails):
        row[: len(one), i * one.shape[1] : (i + 1) * one.shape[1]] = one
    return row
