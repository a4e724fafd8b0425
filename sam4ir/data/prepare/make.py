"""The work on one image: read it, check it, cut it into sub-images and pack them. Nothing here writes to disk."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sam4ir.data.lmdb_io import Encoding, Packed, pack, raw_length
from sam4ir.data.prepare.parts import Item, Job
from sam4ir.data.prepare.sharpness import sharpest
from sam4ir.data.prepare.tree import File
from sam4ir.data.windows import Crop, Cut, SubImage, whole
from sam4ir.errors import UserError
from sam4ir.utils.faults import fault_of_item
from sam4ir.utils.image import encode_png, size_of
from sam4ir.utils.resize import shrunk_pixels

_PAGE = 4096
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Plan:
    """The settings of a part that its items need; small, because it goes to every worker process.

    crop: None keeps images whole. divisors: for each store, GT size over its images' size. shrunk: for each store,
    whether its images are shrunk from the GT. encoding: of all values.
    """

    crop: Crop | None
    divisors: tuple[int, ...]
    shrunk: tuple[bool, ...]
    encoding: Encoding

    @classmethod
    def of(cls, job: Job) -> Plan:
        """Return the plan of a job. Raises UserError where the crop's size or step is no multiple of a scale."""
        divisors = tuple(store.divisor for store in job.part.stores)
        crop = job.part.crop
        for divisor in divisors:
            if crop and (crop.size % divisor or crop.step % divisor):
                raise UserError(
                    f"crop size {crop.size} and step {crop.step} must be multiples of the scale {divisor}, so that LQ "
                    "can be cut alike"
                )
        return cls(crop, divisors, tuple(store.shrunk for store in job.part.stores), job.encoding)

    @property
    def multiple(self) -> int:
        """The sides of GT are cut to a multiple of this number, so that images shrunk from it have whole pixels."""
        return math.lcm(*itertools.compress(self.divisors, self.shrunk))

    def files(self, item: Item) -> list[File | None]:
        """Return the item's file for each store, None for stores whose images are shrunk from the GT."""
        files = iter(item.files)
        return [None if shrunk else next(files) for shrunk in self.shrunk]


@dataclass(frozen=True)
class PreparedImages:
    """What the LMDB folders get of one item.

    cut: where each sub-image lies in the image. values: for each sub-image, one value for each store.
    """

    cut: Cut
    values: list[list[Packed]]

    @property
    def bytes(self) -> int:
        """The bytes of all values."""
        return sum(len(packed.value) for packed in itertools.chain.from_iterable(self.values))


class LoadedItem(NamedTuple):
    """The images of an item and the sub-images they are cut into.

    images: one for each store, GT first, each (h, w, 3) RGB uint8 or uint16. windows: where GT is cut. size: (h, w) of
    GT's file; `images` and `windows` may lack a few pixels of it at the bottom and right (Plan.multiple).
    """

    images: list[np.ndarray]
    windows: list[SubImage]
    size: tuple[int, int]


def load_item(item: Item, plan: Plan) -> LoadedItem:
    """Read an item's images and choose the sub-images to cut.

    Raises UserError naming the file that cannot be read or is too small, or the two files whose sizes do not fit.
    """
    whole_gt = item.files[0].image()
    h, w = (side // plan.multiple * plan.multiple for side in whole_gt.shape[:2])
    if min(h, w) < 1:
        raise UserError(f"{item.files[0]} is {_size_text(whole_gt)} (h x w), too small to be shrunk by {plan.multiple}")
    gt = whole_gt[:h, :w]
    images = [gt]
    for file, divisor in list(zip(plan.files(item), plan.divisors, strict=True))[1:]:
        if file is None:
            images.append(shrunk_pixels(gt, divisor))
        else:
            images.append(_read_partner(file, divisor, item.files[0], whole_gt))
    try:
        windows = plan.crop.windows((h, w)) if plan.crop else whole((h, w))
    except UserError as error:
        raise UserError(f"{item.files[0]}: {error}") from None
    if plan.crop and plan.crop.blunt and len(windows) > 1:
        patches = [window.cut(gt) for window in windows]
        windows = [windows[i] for i in sharpest(patches, plan.crop.blunt)]
    return LoadedItem(images, windows, (whole_gt.shape[0], whole_gt.shape[1]))


def _read_partner(file: File, divisor: int, gt_file: File, gt: np.ndarray) -> np.ndarray:
    """Read the image that forms a pair with the GT. Raises UserError if it is not `divisor` times smaller."""
    image = file.image()
    if (image.shape[0] * divisor, image.shape[1] * divisor) != gt.shape[:2]:
        reason = f", which times {divisor} is not that size" if divisor != 1 else ""
        raise UserError(
            f"{gt_file} is {_size_text(gt)} (h x w), but {file} is {_size_text(image)}{reason}; they cannot be a pair"
        )
    return image


def _size_text(image: np.ndarray) -> str:
    """Return the size as '480x640', height first."""
    return f"{image.shape[0]}x{image.shape[1]}"


def prepare_item(item: Item, plan: Plan) -> PreparedImages:
    """Read an item's images, cut them and pack the sub-images. Raises UserError as load_item does."""
    images, windows, size = load_item(item, plan)
    stores = list(zip(plan.files(item), images, plan.divisors, strict=True))
    values = []
    for window in windows:
        values.append([_pack(file, window.cut(image, divisor), plan) for file, image, divisor in stores])
    return PreparedImages(Cut(item.key, size, windows), values)


def _pack(file: File | None, pixels: np.ndarray, plan: Plan) -> Packed:
    """Encode pixels for an LMDB; a whole image whose file is a PNG keeps its bytes."""
    if plan.encoding == "png" and plan.crop is None and file is not None and file.block is None:
        data = file.read()
        h, w, c = pixels.shape
        if data.startswith(_PNG_MAGIC) and size_of(data, str(file)) == (h, w):
            return Packed(data, (h, w, c), level=1)
    return pack(pixels, plan.encoding)


@dataclass(frozen=True)
class Estimate:
    """The expected number of sub-images of a part, and the bytes that its LMDB folders take in each encoding."""

    sub_images: int = 0
    raw: int = 0
    png: int = 0

    def bytes(self, encoding: Encoding) -> int:
        """Return the bytes in one of the encodings."""
        return self.raw if encoding == "raw" else self.png


def estimate(items: Sequence[Item], plan: Plan, looks: int = 4) -> Estimate:
    """Estimate the size of the items from `looks` of them, evenly spread; images that cannot be read do not count."""
    probes = items
    if len(items) > looks:
        probes = [items[i * len(items) // looks] for i in range(looks)]
    readable = sub_images = raw = png = 0
    for item in probes:
        one = _estimate_one(item, plan)
        if one is not None:
            readable += 1
            sub_images += one.sub_images
            raw += one.raw
            png += one.png
    if not readable:
        return Estimate()
    factor = len(items) / readable
    return Estimate(round(factor * sub_images), round(factor * raw), round(factor * png))


def _estimate_one(item: Item, plan: Plan) -> Estimate | None:
    """Return the exact raw size of an item and its PNG size from a few sub-images; None if it cannot be read."""
    try:
        images, windows, _ = load_item(item, plan)
    except Exception as error:
        if fault_of_item(error) is None:
            raise
        return None  # reported when the job reaches it
    raw = png = 0
    for image, divisor in zip(images, plan.divisors, strict=True):
        for window in windows:
            cut = window.cut(image, divisor)
            h, w, c = cut.shape
            raw += _pages(raw_length(h, w, c, cut.itemsize))
        probes = windows[:: max(1, len(windows) // 4)]
        probe_bytes = sum(_pages(len(encode_png(window.cut(image, divisor)))) for window in probes)
        png += probe_bytes * len(windows) // len(probes)
    return Estimate(len(windows), raw, png)


def _pages(size: int) -> int:
    """Return the bytes that LMDB takes for a value of `size` bytes: whole pages, with a header of 16 bytes."""
    return -(-(size + 16) // _PAGE) * _PAGE
