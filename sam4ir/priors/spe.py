"""The structural position encoding (SPE) of SAM-DiffSR (arXiv 2402.17133), section 3.2.

Each mask has one value: the sum of the rotary table R (regions.rotary_table) over the mask, divided by the image's
pixels or by the mask's own. The map is painted in list order, later masks on top; it is 0 where no mask lies. spe_map
looks up a window of it in an image's mask record; spe_of_runs computes the whole map of masks that are in no store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sam4ir import regions
from sam4ir.errors import UserError

Mean = Literal["image", "region"]


class SpeRecord(Protocol):
    """A mask record as the encoding needs it (data.masks.record.MaskRecord)."""

    @property
    def name(self) -> str: ...  # name for messages

    @property
    def size(self) -> tuple[int, int]: ...  # (h, w) of the image

    @property
    def areas(self) -> NDArray[np.int64]: ...  # (n,) pixels of each mask

    @property
    def spe_sum(self) -> NDArray[np.float64]: ...  # (n,) the rotary table summed over each whole mask

    def list_map(self, top: int, left: int, h: int, w: int) -> NDArray[Any]: ...  # mask number + 1, later on top


def spe_map(
    record: SpeRecord, top: int, left: int, h: int, w: int, mean: Mean = "image", scale: float = 1.0
) -> NDArray[np.float32]:
    """Return the SPE of a window, (h, w) float32, of an image whose masks are in a record.

    mean: 'image' divides a mask's sum of the rotary table by the image's pixels, as the released code does; 'region'
    by the mask's own, as the paper's Eq. 6 reads. A crop's values are those of the whole image's map.
    scale: a plain factor of all values, for encodings stronger than the released one (ours: docs/method.md#spe). It
    does not divide by the encoding's RMS over the training set; the model does that.
    Raises ValueError for another `mean`, and for a window outside the image.
    """
    values = _values(record.spe_sum, record.areas, record.size, mean, scale)
    return values[record.list_map(top, left, h, w)]


def spe_of_runs(
    masks: Sequence[regions.Runs], size: regions.Size, mean: Mean = "image", scale: float = 1.0
) -> NDArray[np.float32]:
    """Return the SPE of a whole image, (h, w) float32, straight from its masks' runs; other arguments as in spe_map.

    masks: COCO's run lengths of each, in list order (regions.parse_counts makes them of RLE). No mask is decoded.
    Raises ValueError for another `mean`, and naming the mask whose runs do not cover the size.
    """
    for number, runs in enumerate(masks):
        if int(np.sum(runs)) != size[0] * size[1]:
            raise UserError(
                f"mask {number}: its runs cover {int(np.sum(runs))} pixels, the size {list(size)} has "
                f"{size[0] * size[1]}"
            )
    areas = np.array([regions.area(runs) for runs in masks], np.int64)
    return regions.paint_runs(masks, _values(regions.spe_sums(masks, size), areas, size, mean, scale), size)


def _values(
    sums: NDArray[np.float64], areas: NDArray[Any], size: regions.Size, mean: Mean, scale: float
) -> NDArray[np.float32]:
    """Return the values (n + 1,): 0 for no mask, then each mask's."""
    if mean not in ("image", "region"):
        raise UserError(f"mean: {mean!r} must be 'image' (sum over h w) or 'region' (sum over the mask's area)")
    pixels: Any = np.maximum(areas, 1)
    if mean == "image":
        pixels = size[0] * size[1]
    return np.concatenate(([0.0], scale * (sums / pixels))).astype(np.float32)
