"""The places of sub-images in their image: the rule of BasicSR, and the table windows.jsonl that records them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam4ir.errors import UserError
from sam4ir.utils.files import read_text

TABLE = "windows.jsonl"


@dataclass(frozen=True)
class SubImage:
    """One sub-image: the suffix that follows the image's key in its own key, and its rectangle in pixels.

    suffix: e.g. '_s001'; '' where the sub-image has the image's key.
    """

    suffix: str
    top: int
    left: int
    height: int
    width: int

    def cut(self, image: np.ndarray, divisor: int = 1) -> np.ndarray:
        """Return the crop of an (h, w, ...) array that is `divisor` times smaller than the image of the rectangle."""
        top, left = self.top // divisor, self.left // divisor
        return image[top : top + self.height // divisor, left : left + self.width // divisor]


@dataclass(frozen=True)
class Crop:
    """The rule by which images are cut into sub-images.

    size, step, thresh: side of the square sub-images, distance of their starts, and the largest remainder at the border
        that gets no sub-image of its own, all in pixels of GT.
    whole_up_to: an image with a side of at most this many pixels stays whole.
    blunt: share of the sub-images to drop, the least sharp ones first, 0 to 1 (prepare.sharpness).
    centre: cut one sub-image from the middle instead; it has the image's key.
    Raises UserError for a size or step below 1 or a thresh below 0.
    """

    size: int
    step: int
    thresh: int = 0
    whole_up_to: int = 0
    blunt: float = 0.0
    centre: bool = False

    def __post_init__(self) -> None:
        if self.size < 1 or self.step < 1 or self.thresh < 0:
            raise UserError(
                f"crop size {self.size}, step {self.step}, thresh {self.thresh}: size and step must be at least 1, "
                "thresh at least 0"
            )

    def windows(self, size: tuple[int, int]) -> list[SubImage]:
        """Return the sub-images of an image of size (h, w). Raises UserError where it is smaller than one of them."""
        if min(size) <= self.whole_up_to:
            return whole(size)
        if self.centre:
            return centre(size, self.size)
        return windows(size, self.size, self.step, self.thresh)

    def settings(self) -> dict[str, Any]:
        """Return the size and all other fields that differ from their defaults, for prepared.json."""
        return {name: value for name, value in asdict(self).items() if name == "size" or value}


def windows(size: tuple[int, int], crop: int, step: int, thresh: int = 0) -> list[SubImage]:
    """Return the crop x crop sub-images of an image of size (h, w), row by row, numbered from _s001.

    The rule of BasicSR's extract_subimages.py, which NAFNet and HINet share: starts at 0, step, 2 step, ... while the
    sub-image fits; where more than thresh pixels remain, one more flush with the border. Restormer's patches (step =
    patch - overlap) lie in the same places.
    The number has three digits, or more where there are more than 999, so that the keys sort in the windows' order.
    Raises UserError for an image smaller than crop.
    """
    _check_fits(size, crop)
    tops, lefts = _starts(size[0], crop, step, thresh), _starts(size[1], crop, step, thresh)
    corners = list(itertools.product(tops, lefts))
    digits = max(3, len(str(len(corners))))
    return [SubImage(f"_s{i:0{digits}d}", top, left, crop, crop) for i, (top, left) in enumerate(corners, 1)]


def whole(size: tuple[int, int]) -> list[SubImage]:
    """Return one sub-image that covers the whole image of size (h, w), under the image's key."""
    return [SubImage("", 0, 0, *size)]


def centre(size: tuple[int, int], crop: int) -> list[SubImage]:
    """Return one crop x crop sub-image from the middle, rounded towards the top left (Restormer's validation patches).

    Raises UserError for an image smaller than crop.
    """
    _check_fits(size, crop)
    return [SubImage("", (size[0] - crop) // 2, (size[1] - crop) // 2, crop, crop)]


def _starts(side: int, crop: int, step: int, thresh: int) -> list[int]:
    """Return the first rows (or columns) of the sub-images along one side."""
    starts = list(range(0, side - crop + 1, step))
    if side - (starts[-1] + crop) > thresh:
        starts.append(side - crop)
    return starts


def _check_fits(size: tuple[int, int], crop: int) -> None:
    if min(size) < crop:
        raise UserError(
            f"the image of {size[0]}x{size[1]} (h x w) is smaller than a sub-image of {crop}x{crop}; "
            "give a smaller --crop-size, or --no-crop"
        )


@dataclass(frozen=True)
class Cut:
    """One image of a prepared set: its key, (h, w) of its GT, and its sub-images, whose keys are key + suffix."""

    key: str
    size: tuple[int, int]
    windows: Sequence[SubImage]

    @property
    def keys(self) -> list[str]:
        """The keys of the sub-images."""
        return [self.key + window.suffix for window in self.windows]

    def line(self) -> str:
        """Return the image's line of the table, as read_table reads it."""
        windows = [[w.suffix, w.top, w.left, w.height, w.width] for w in self.windows]
        return json.dumps({"key": self.key, "size": self.size, "windows": windows}, ensure_ascii=False) + "\n"


def read_table(path: Path) -> Iterator[Cut]:
    """Yield the images of a table in its order, without a last line that a killed writer did not end.

    path: windows.jsonl beside a prepared LMDB. A line is {"key": ..., "size": [h, w], "windows": [[suffix, top, left,
    height, width], ...]}: the sub-image key + suffix shows that rectangle of the image `key`.
    Raises UserError naming the path and the line that is damaged.
    """
    for number, line in enumerate(read_text(path).split("\n")[:-1], 1):
        try:
            record = json.loads(line)
            h, w = record["size"]
            yield Cut(record["key"], (h, w), [SubImage(*window) for window in record["windows"]])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path}: line {number} is damaged ({error}); remove the folder and make it again"
            ) from None
