"""One image of a part: read, checked, cut, packed. Nothing here writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sam4ir.data.lmdb_io import Encoding, Packed, pack
from sam4ir.data.prepare_parts import Item, Job
from sam4ir.data.prepare_sharpness import sharpest
from sam4ir.data.prepare_windows import Crop, Cut, SubImage, whole
from sam4ir.utils.image import encode_png

_PAGE = 4096
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Plan:
    """What making an item needs to know of its part; goes to the worker processes."""

    crop: Crop | None
    divisors: tuple[int, ...]
    encoding: Encoding

    @classmethod
    def of(cls, job: Job) -> Plan:
        divisors = tuple(store.divisor for store in job.part.stores)
        crop = job.part.crop
        for divisor in divisors:
            if crop and (crop.size % divisor or crop.step % divisor):
                raise ValueError(
                    f"crop size {crop.size} and step {crop.step} must be multiples of the scale {divisor}, so that LQ "
                    "can be cut alike"
                )
        return cls(crop, divisors, job.encoding)


@dataclass(frozen=True)
class Made:
    """An item's values: for each sub-image one for each store."""

    cut: Cut
    values: list[list[Packed]]


def load(item: Item, plan: Plan) -> tuple[list[np.ndarray], list[SubImage]]:
    """The images of an item, GT first, each (h, w, 3) RGB uint8 or uint16, and where GT is cut.

    Raises ValueError naming the file that cannot be read, or the two whose sizes do not fit.
    """
    images = [file.image() for file in item.files]
    h, w = images[0].shape[:2]
    for file, image, divisor in zip(item.files, images, plan.divisors, strict=True):
        if (image.shape[0] * divisor, image.shape[1] * divisor) != (h, w):
            times = f", which times {divisor} is not that size" if divisor != 1 else ""
            raise ValueError(
                f"{item.files[0]} is {h}x{w} (h x w), but {file} is {image.shape[0]}x{image.shape[1]}{times}; "
                "they cannot be a pair"
            )
    try:
        windows = plan.crop.windows((h, w)) if plan.crop else whole((h, w))
    except ValueError as error:
        raise ValueError(f"{item.files[0]}: {error}") from None
    if plan.crop and plan.crop.blunt and len(windows) > 1:
        windows = [windows[i] for i in sharpest([window.cut(images[0]) for window in windows], plan.crop.blunt)]
    return images, windows


def make(item: Item, plan: Plan) -> Made:
    """An item's sub-images, cut and packed."""
    images, windows = load(item, plan)
    values = [
        [
            _packed(item, i, window.cut(image, divisor), plan)
            for i, (image, divisor) in enumerate(zip(images, plan.divisors, strict=True))
        ]
        for window in windows
    ]
    h, w = images[0].shape[:2]
    return Made(Cut(item.key, (h, w), windows), values)


def _packed(item: Item, number: int, pixels: np.ndarray, plan: Plan) -> Packed:
    """A whole image that is a PNG already keeps its bytes."""
    file = item.files[number]
    if plan.encoding == "png" and plan.crop is None and file.block is None:
        data = file.read()
        if data.startswith(_PNG_MAGIC):
            h, w, c = pixels.shape
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
        images, windows = load(item, plan)
    except ValueError:
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
