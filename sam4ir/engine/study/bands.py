"""PSNR of parts of images: near the borders of regions, inside them, and by the size of the region."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from sam4ir.config.study import BandOptions
from sam4ir.data.loader import eval_sample
from sam4ir.data.masks.store import MaskStore
from sam4ir.engine.build import build_dataset
from sam4ir.engine.study.plan import StudyError
from sam4ir.engine.study.scores import RunScores
from sam4ir.metrics.psnr import psnr
from sam4ir.utils.image import read_image, to_uint8

LEAST = 64  # pixels of a part that has a PSNR
SIZES = {"small": 0.01, "medium": 0.1, "large": 1.0}  # share of the image up to which a region is called so
BORDER, INSIDE, OUTSIDE = "near borders", "inside regions", "no region"

Bands = dict[str, dict[tuple[str, str], float]]  # {part of images: {(data set, image): PSNR in dB}}


class BandReader:
    """The parts of the images of validation sets, made once for all runs."""

    def __init__(self, bands: BandOptions) -> None:
        self._width = bands.width
        self._store = MaskStore(Path(bands.store))
        self._parts: dict[tuple[str, str], tuple[np.ndarray, Mapping[str, np.ndarray]]] = {}

    def of_run(self, run: RunScores, output: str) -> Bands:
        """Return the PSNR of each part of the images that a run saved in its last validation.

        Raises StudyError where it saved none. Parts of fewer than LEAST pixels are left out.
        """
        options = run.job.options()
        bands: Bands = {}
        for key, block in options.phase("val").items():
            name = block.name or key
            data = build_dataset(key, block, options.scale)
            for index in range(len(data)):
                place = name, data.key(index)
                if place not in run.values:
                    continue
                if place not in self._parts:
                    sample = eval_sample(data, 0, index)
                    assert sample.gt is not None
                    self._parts[place] = to_uint8(sample.gt), self._parts_of(place[1], sample.gt.shape[-2:])
                restored = read_image(_saved(run, name, place[1], output))
                gt, parts = self._parts[place]
                for part, inside in parts.items():
                    if inside.sum() >= LEAST:
                        bands.setdefault(part, {})[place] = psnr(_pixels(restored[inside]), _pixels(gt[inside]))
        return bands

    def _parts_of(self, key: str, size: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Return the parts of an image as masks (h, w) of bool."""
        height, width = size
        record = self._store.read(key)
        labels = record.region_map(0, 0, height, width)
        edge = record.boundary_map(0, 0, height, width).astype(np.uint8)  # the pixels on both sides of a border
        side = 2 * self._width - 1
        near = cv2.dilate(edge, np.ones((side, side), np.uint8)).astype(bool)
        parts = {BORDER: near, INSIDE: ~near & (labels > 0), OUTSIDE: labels == 0}
        shares = np.bincount(labels.ravel())[labels] / labels.size
        least = 0.0
        for name, most in SIZES.items():
            parts[f"{name} regions"] = (labels > 0) & (shares > least) & (shares <= most)
            least = most
        return parts


def _saved(run: RunScores, dataset: str, key: str, output: str) -> Path:
    """Return the file of an image of the last validation. Raises StudyError where it is not there."""
    ending = "_refined.png" if output == "refined" else ".png"
    path = run.paths.visualization / dataset / str(run.iterations) / f"{key}{ending}"
    if not path.is_file():
        raise StudyError(f"{path}: is missing; bands need `val:save_img: true` in the study's `set`")
    return path


def _pixels(values: np.ndarray) -> Tensor:
    """Return pixels (n, c) of 8 bits as an image (c, 1, n)."""
    return torch.from_numpy(np.ascontiguousarray(values.T)[:, None])
