"""The structural position encoding of SAM-DiffSR (arXiv 2402.17133) as a look-up on an image's mask record."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Mean = Literal["image", "region"]


class MaskRecordLike(Protocol):
    """What the encoding needs of an image's mask record (data.mask_record.MaskRecord)."""

    @property
    def name(self) -> str: ...  # what messages call it

    @property
    def size(self) -> tuple[int, int]: ...  # (h, w) of the image

    @property
    def areas(self) -> NDArray[np.int64]: ...  # (n,) pixels of each mask

    @property
    def spe_sum(self) -> NDArray[np.float64]: ...  # (n,) the rotary table summed over each whole mask

    def list_map(self, top: int, left: int, h: int, w: int) -> NDArray[Any]: ...  # mask number + 1, later on top


def spe_map(record: MaskRecordLike, top: int, left: int, h: int, w: int, mean: Mean = "image") -> NDArray[np.float32]:
    """SPE of a window, (h, w) float32: each mask has one value, masks later in the list lie on top, 0 where none lies.

    mean: 'image' divides a mask's sum of the rotary table by the image's pixels, as the released code does; 'region'
    by the mask's own, as the paper's Eq. 6 reads. A crop's values are those of the whole image's map.
    Raises ValueError for another `mean`, and for a window outside the image.
    """
    if mean not in ("image", "region"):
        raise ValueError(f"mean: {mean!r} must be 'image' (sum over h w) or 'region' (sum over the mask's area)")
    pixels = record.size[0] * record.size[1] if mean == "image" else np.maximum(record.areas, 1)
    values = np.concatenate(([0.0], record.spe_sum / pixels)).astype(np.float32)
    return values[record.list_map(top, left, h, w)]
