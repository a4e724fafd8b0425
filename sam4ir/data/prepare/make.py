"""One image of a part: read, checked, cut, packed. Nothing here writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sam4ir.data.lmdb_io import Encoding, Packed, pack
from sam4ir.data.prepare.parts import Item, Job
from sam4ir.data.prepare.sharpness import sharpest
from sam4ir.data.prepare.tree import File
from sam4ir.data.windows import Crop, Cut, SubImage, whole
from sam4ir.errors import UserError
from sam4ir.utils.image import encode_png, size_of
from sam4ir.utils.resize import shrunk_pixels

_PAGE = 4096
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Plan:
    """What making an item needs to know of its part; goes to the worker processes."""

    crop: Crop | None
    divisors: tuple[int, ...]
    made: tuple[bool, ...]
    encoding: Encoding

    @classmethod
    def of(cls, job: Job) -> Plan:
        divisors = tuple(store.divisor for store in job.part.stores)
        crop = job.part.crop
        for divisor in divisors:
            if crop and (crop.size % divisor or crop.step % divisor):
                raise UserError(
                    f"crop size {crop.size} and step {crop.step} must be multiples of the scale {divisor}, so that LQ "
                    "can be cut alike"
                )
        return cls(crop, divisors, tuple(store.made for store in job.part.stores), job.encoding)

    @property
    def multiple(self) -> int:
        """What the sides of GT are cut to a multiple of, so that what is made of it has whole pixels."""
        return math.lcm(*(divisor for divisor, made in zip(self.divisors, self.made, strict=True) if made))

    def files(self, item: Item) -> list[File | None]:
        """The file of each store, None for those that are made."""
        files = iter(item.files)
        return [None if made else next(files) for made in self.made]


@dataclass(frozen=True)
class PreparedImages:
    """An item's values: for each sub-image one for each store."""

    cut: Cut
    values: list[list[Packed]]


class Loaded(NamedTuple):
    """The images of an item for each store, GT first, each (h, w, 3) RGB uint8 or uint16; where GT is cut; (h, w) of
    GT's file, of which `images` and `windows` may leave out a little at the bottom and right (Plan.multiple)."""

    images: list[np.ndarray]
    windows: list[SubImage]
    size: tuple[int, int]


def load(item: Item, plan: Plan) -> Loaded:
    """What an item's images are and where they are cut.

    Raises ValueError naming the file that cannot be read or is too small, or the two whose sizes do not fit.
    """
    whole_gt = item.files[0].image()
    h, w = (side // plan.multiple * plan.multiple for side in whole_gt.shape[:2])
    if min(h, w) < 1:
        raise UserError(f"{item.files[0]} is {_times(whole_gt)} (h x w), too small to be shrunk by {plan.multiple}")
    gt = whole_gt[:h, :w]
    images = [gt]
    for file, divisor in list(zip(plan.files(item), plan.divisors, strict=True))[1:]:
        images.append(shrunk_pixels(gt, divisor) if file is None else _partner(file, divisor, item.files[0], whole_gt))
    try:
        windows = plan.crop.windows((h, w)) if plan.crop else whole((h, w))
    except UserError as error:
        raise UserError(f"{item.files[0]}: {error}") from None
    if plan.crop and plan.crop.blunt and len(windows) > 1:
        windows = [windows[i] for i in sharpest([window.cut(gt) for window in windows], plan.crop.blunt)]
    return Loaded(images, windows, (whole_gt.shape[0], whole_gt.shape[1]))


def _partner(file: File, divisor: int, gt_file: File, gt: np.ndarray) -> np.ndarray:
    """The image of a file that belongs to the GT, `divisor` times smaller."""
    image = file.image()
    if (image.shape[0] * divisor, image.shape[1] * divisor) != gt.shape[:2]:
        times = f", which times {divisor} is not that size" if divisor != 1 else ""
        raise UserError(
            f"{gt_file} is {_times(gt)} (h x w), but {file} is {_times(image)}{times}; they cannot be a pair"
        )
    return image


def _times(image: np.ndarray) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"


def make(item: Item, plan: Plan) -> PreparedImages:
    """An item's sub-images, cut and packed."""
    images, windows, size = load(item, plan)
    files = plan.files(item)
    values = [
        [
            _packed(file, window.cut(image, divisor), plan)
            for file, image, divisor in zip(files, images, plan.divisors, strict=True)
        ]
        for window in windows
    ]
    return PreparedImages(Cut(item.key, size, windows), values)


def _packed(file: File | None, pixels: np.ndarray, plan: Plan) -> Packed:
    """A whole image that is a PNG already keeps its bytes."""
    if plan.encoding == "png" and plan.crop is None and file is not None and file.block is None:
        data = file.read()
        h, w, c = pixels.shape
        if data.startswith(_PNG_MAGIC) and size_of(data, str(file)) == (h, w):
            return Packed(data, (h, w, c), level=1)
    return pack(pixels, plan.encoding)


@dataclass(frozen=True)
class Estimate:
    """What a part will take, from a few of its images: sub-images and bytes in both encodings."""

    sub_images: int = 0
    raw: int = 0
    png: int = 0

    def bytes(self, encoding: Encoding) -> int:
        return self.raw if encoding == "raw" else self.png


def estimate(items: Sequence[Item], plan: Plan, looks: int = 4) -> Estimate:
    """What the items will take, from `looks` of them, evenly spread; images that cannot be read do not count."""
    chosen = [items[i * len(items) // looks] for i in range(looks)] if len(items) > looks else items
    seen = [one for one in (_estimate_one(item, plan) for item in chosen) if one is not None]
    if not seen:
        return Estimate()
    factor = len(items) / len(seen)
    return Estimate(*(round(factor * sum(getattr(one, name) for one in seen)) for name in ("sub_images", "raw", "png")))


def _estimate_one(item: Item, plan: Plan) -> Estimate | None:
    try:
        images, windows, _ = load(item, plan)
    except UserError:
        return None  # told when it is its turn
    raw = png = 0
    for image, divisor in zip(images, plan.divisors, strict=True):
        for window in windows:
            raw += _pages(16 + window.cut(image, divisor).nbytes)
        tried = windows[:: max(1, len(windows) // 4)]
        png += sum(_pages(len(encode_png(window.cut(image, divisor)))) for window in tried) * len(windows) // len(tried)
    return Estimate(len(windows), raw, png)


def _pages(size: int) -> int:
    """Bytes that LMDB takes for a value: whole pages with a header of 16."""
    return -(-(size + 16) // _PAGE) * _PAGE
