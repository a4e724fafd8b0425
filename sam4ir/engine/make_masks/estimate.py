"""Measure how long the masks of an image take, by some points of the grid."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.amg import generate_crop_boxes

from sam4ir.engine.devices import synchronize
from sam4ir.priors.sam.automatic_masks import (
    POINTS_PER_BATCH,
    AutomaticMaskGenerator,
    AutomaticMaskSettings,
    Precision,
)
from sam4ir.priors.sam.load import image_embedding

_BATCHES = 3  # of points that are timed, beside one that warms up


def seconds_per_image(sam: Sam, settings: AutomaticMaskSettings, precision: Precision, image: np.ndarray) -> float:
    """Return the seconds that the masks of images like this one take, (h, w, 3) uint8 RGB.

    The embedding is computed once, and some batches of points that are spread over the image; the others are expected
    to take as long. On a CPU that is a sixth of a grid of 12 x 12.
    """
    device = torch.device(sam.device)
    begun = time.perf_counter()
    embedding = image_embedding(sam, image, precision="bf16" if precision == "bf16" else "fp32")
    synchronize(device)
    encoding = time.perf_counter() - begun
    batch = settings.points_per_batch or POINTS_PER_BATCH.get(device.type, 64)
    grids = settings.grids()
    seconds, points = 0.0, 0
    for number in (min(batch, len(grids[0])), min(_BATCHES * batch, len(grids[0]))):
        chosen = np.linspace(0, len(grids[0]) - 1, number).round().astype(int)
        points_of_grid = [grids[0][chosen].tolist()]
        some = dataclasses.replace(settings, crop_n_layers=0, points_per_side=None, point_grids=points_of_grid)
        generator = AutomaticMaskGenerator(sam, some, precision, encoder=lambda _: embedding)
        begun = time.perf_counter()
        generator.generate(image)
        synchronize(device)
        seconds, points = time.perf_counter() - begun, number
    _, layers = generate_crop_boxes(image.shape[:2], settings.crop_n_layers, settings.crop_overlap_ratio)
    total = 0.0
    for layer in layers:
        total += encoding + seconds / points * len(grids[layer])
    return total
