"""Rain: layers of streaks over an image, and the veil of distant rain."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sam4ir.data.degrade.blur import circular_convolutions, transform_size, turned_grid
from sam4ir.data.degrade.noise import Range, checked, draw_between
from sam4ir.errors import UserError


class RainStreaks:
    """Add rain: O = (1 - veil) blend(B, S_1, ..., S_n) + veil * light, with grey layers S_t of parallel streaks.

    This is the model of Yang et al., Deep joint rain detection and removal from a single image (CVPR 2017):
    overlapping layers, one for light rain as in Rain100L, five for heavy rain as in Rain100H, and rain accumulation.
    Layers are made as in image editors: sparse noise, blurred along a line. The result is not clipped.

    Args:
        density: Share of pixels at which a streak of a layer begins, from 0 to 1; a number or [low, high].
        length: Length of a streak in pixels, from 1 to 500; a number or [low, high].
        angle: Direction of a layer in degrees from the vertical, positive where the lower end lies to the right; a
            number or [low, high].
        width: Width of a streak in pixels between its points of half brightness, from 0.5 to 50; a number or
            [low, high].
        strength: Brightness of a layer's streaks, from 0 to 1; each streak has half of it at least. A number or
            [low, high].
        layers: Number of layers of streaks, at least 1.
        blend: How a layer covers the image: add is the paper's B + S, which exceeds 1; screen is
            1 - (1 - B)(1 - S), which leaves bright parts bright.
        veil: Share of distant rain in the result, from 0 to 1; a number or [low, high].
        light: Brightness of the veil in each channel, from 0 to 1; a number or [low, high].
    """

    margin = 0  # a layer is larger than the image, so streaks from outside reach into it

    def __init__(
        self,
        density: Range = (0.001, 0.005),
        length: Range = (10.0, 40.0),
        angle: Range = (-30.0, 30.0),
        width: Range = (1.0, 2.0),
        strength: Range = (0.2, 0.8),
        layers: int = 1,
        blend: Literal["screen", "add"] = "screen",
        veil: Range = 0.0,
        light: Range = 0.8,
    ) -> None:
        if layers < 1:
            raise UserError(f"layers: {layers} must be at least 1")
        if blend not in ("screen", "add"):
            raise UserError(f"blend: {blend!r} must be 'screen' or 'add'")
        self._density, self._strength = checked("density", density, 0, 1), checked("strength", strength, 0, 1)
        self._length, self._width = checked("length", length, 1, 500), checked("width", width, 0.5, 50)
        self._angle, self._layers, self._blend = checked("angle", angle), layers, blend
        self._veil, self._light = checked("veil", veil, 0, 1), checked("light", light, 0, 1)

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        rained = image.clone()
        for _ in range(self._layers):
            streaks = torch.from_numpy(self.layer((image.shape[1], image.shape[2]), rng))
            if self._blend == "screen":
                streaks = streaks * (1 - rained)
            rained.add_(streaks)
        veil, light = draw_between(self._veil, rng), draw_between(self._light, rng)
        if veil:
            rained.mul_(1 - veil).add_(veil * light)
        return rained

    def layer(self, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Draw one layer of streaks, (h, w) float32 in [0, 1]."""
        length, width = draw_between(self._length, rng), draw_between(self._width, rng)
        kernel = streak(length, width, math.radians(90 - draw_between(self._angle, rng)))
        ring = len(kernel) - 1
        seeds = np.zeros(transform_size((size[0] + ring, size[1] + ring)), np.float32)
        count = int(rng.poisson(draw_between(self._density, rng) * seeds.size))
        seeds.reshape(-1)[rng.integers(seeds.size, size=count)] = rng.uniform(0.5, 1, count)
        (light,) = circular_convolutions([seeds], kernel, seeds.shape)
        return np.clip(light[: size[0], : size[1]], 0, 1) * np.float32(draw_between(self._strength, rng))


def streak(length: float, width: float, angle: float) -> np.ndarray:
    """Return a bright line through the middle of a (2 r + 1)-square of float32: 1 on its axis, Gaussian across it.

    width: distance of the points of half brightness; angle: in radians from x towards y.
    """
    along, across = turned_grid(math.ceil(length / 2 + width) + 1, angle)
    inside = np.clip(length / 2 + 0.5 - np.abs(along), 0, 1)
    return (inside * np.exp(-4 * math.log(2) * (across / width) ** 2)).astype(np.float32)
