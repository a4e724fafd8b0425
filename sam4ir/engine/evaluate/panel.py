"""A panel of crops of validation images, the same at each validation: what the network makes of them as it trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from sam4ir.data.sample import Dataset, Sample
from sam4ir.utils.dist import World
from sam4ir.utils.files import write_bytes
from sam4ir.utils.image import side_by_side, to_uint8
from sam4ir.utils.rng import generator

Picture = np.ndarray  # (h, w, 3) uint8 RGB

SIDE = 160  # pixels of the ground truth that a crop shows
ERROR_FACTOR = 5
TITLES = {
    "lq": "input",
    "restored": "restored",
    "refined": "refined",
    "gt": "ground truth",
    "error": f"error x {ERROR_FACTOR}",
    "regions": "regions",
}
_QUALITY = 92


class Panel:
    """Crops of some images of the validation sets, chosen by a seed; `evaluate` hands over every restored image.

    Each crop becomes a row: input, restored, refined (where there is a refiner), ground truth, error x 5 and regions
    (where the data set has masks).
    """

    def __init__(self, sets: Mapping[str, Dataset], count: int, seed: int) -> None:
        images = []
        for name, data in sets.items():
            for index in range(len(data)):
                images.append((name, index))
        chosen = generator(seed, "panel").permutation(len(images))[:count]
        self._seed = seed
        self._chosen = [images[number] for number in sorted(chosen)]
        self._rows: dict[tuple[str, int], Picture] = {}

    def add(self, name: str, index: int, sample: Sample, outputs: Mapping[str, Tensor]) -> None:
        """Draw the row of an image, if it is one of those chosen."""
        if (name, index) in self._chosen:
            self._rows[name, index] = _row(sample, outputs, generator(self._seed, "panel", sample.key))

    def take(self, world: World) -> dict[str, Picture]:
        """Return the rows of all processes, (h, w, 3) uint8 RGB, by DATA SET/number; the panel is empty afterwards."""
        gathered: dict[tuple[str, int], Picture] = {}
        for rows in world.gather(list(self._rows.items())):
            gathered.update(rows)
        self._rows = {}
        return {f"{name}/{index}": gathered[name, index] for name, index in self._chosen if (name, index) in gathered}


def write_panel(rows: Mapping[str, Picture], path: Path) -> None:
    """Write rows below each other as a JPEG file."""
    width = max(row.shape[1] for row in rows.values())
    padded = []
    for row in rows.values():
        padded.append(np.pad(row, ((0, 6), (0, width - row.shape[1]), (0, 0)), constant_values=255))
    sheet = cv2.cvtColor(np.concatenate(padded), cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert done
    write_bytes(path, data.tobytes())


def whole_views(sample: Sample, outputs: Mapping[str, Tensor]) -> dict[str, Picture]:
    """Return the views of a whole image that are there, by their names in TITLES.

    outputs: {'restored': (c, h, w), 'refined': ...} in [0, 1]. An input that is smaller is enlarged without smoothing.
    """
    return _views(sample, outputs, 0, 0, max(sample.lq.shape[-2:]))


def _views(sample: Sample, outputs: Mapping[str, Tensor], top: int, left: int, side: int) -> dict[str, Picture]:
    """Return the views of the window of at most side x side pixels of the input at (top, left)."""
    restored = outputs["restored"]
    scale = max(restored.shape[-1] // sample.lq.shape[-1], 1)

    def crop(image: Tensor, factor: int = scale) -> Tensor:
        return image[..., top * factor : (top + side) * factor, left * factor : (left + side) * factor]

    views = {"lq": _pixels(crop(sample.lq[:3], 1)).repeat(scale, axis=0).repeat(scale, axis=1)}
    for name, image in outputs.items():
        views[name] = _pixels(crop(image))
    if sample.gt is not None:
        views["gt"] = _pixels(crop(sample.gt))
        views["error"] = _pixels((crop(restored) - crop(sample.gt)).abs() * ERROR_FACTOR)
    if "regions" in sample.maps:
        from sam4ir.data.masks.pictures import colour_regions  # a run without masks needs no module of masks

        regions = sample.maps["regions"]
        base = views.get("gt", views["restored"])
        views["regions"] = colour_regions(base, crop(regions).numpy().astype(np.int32), int(regions.max()))
    return views


def _row(sample: Sample, outputs: Mapping[str, Tensor], rng: np.random.Generator) -> Picture:
    """Return the row of an image: one crop of all its views."""
    scale = max(outputs["restored"].shape[-1] // sample.lq.shape[-1], 1)
    side = max(SIDE // scale, 1)
    height, width = sample.lq.shape[-2:]
    top = int(rng.integers(max(height - side, 0) + 1))
    left = int(rng.integers(max(width - side, 0) + 1))
    views = _views(sample, outputs, top, left, side)
    return side_by_side({TITLES[name]: picture for name, picture in views.items()}, sample.key)


def _pixels(image: Tensor) -> Picture:
    """Return an image (1 or 3, h, w) in [0, 1] as (h, w, 3) uint8."""
    pixels = to_uint8(image.nan_to_num())
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    return pixels
