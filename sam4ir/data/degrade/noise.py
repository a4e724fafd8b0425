"""Degradations of an image by noise, JPEG and quantisation; blur.py and rain.py have the others.

Each is called with (c, h, w) float32, nominally in [0, 1], and a random stream, and returns a new tensor of the same
shape. `margin` is the distance in pixels over which its result depends on the image: a data set passes a crop with so
many real neighbours on each side and cuts the result. A parameter is a number, or [low, high], from which each image
draws uniformly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sam4ir.errors import UserError
from sam4ir.utils.image import jpeg_round_trip

Range = float | tuple[float, float]


def checked(
    name: str, value: float | Sequence[float], low: float = -math.inf, high: float = math.inf
) -> tuple[float, float]:
    """Return a parameter as (lowest, highest); raises UserError unless low <= lowest <= highest <= high."""
    ends: tuple[float, ...]
    if isinstance(value, Sequence):
        ends = tuple(map(float, value))
    else:
        ends = (float(value), float(value))
    if len(ends) != 2 or not low <= ends[0] <= ends[1] <= high:
        limits = f", from {low:g}" * math.isfinite(low) + f", up to {high:g}" * math.isfinite(high)
        raise UserError(f"{name}: {value} must be a number or [low, high]{limits}")
    return ends[0], ends[1]


def draw_between(ends: tuple[float, float], rng: np.random.Generator) -> float:
    """Draw a number uniformly from (lowest, highest); equal ends leave the random stream untouched."""
    if ends[0] == ends[1]:
        return ends[0]
    return float(rng.uniform(*ends))


def _listed(sigma: float | Sequence[float]) -> list[float]:
    """Return the list of sigmas to choose from; raises UserError for anything else."""
    if not isinstance(sigma, Sequence) or not sigma:
        raise UserError(f"sigma: {sigma} must be a list of numbers for choice: true")
    return [checked("sigma", s, 0)[0] for s in sigma]


def _normal(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Draw standard normal numbers in the shape of an image."""
    return torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32))


class GaussianNoise:
    """Add Gaussian noise: x + n, n ~ N(0, (sigma / 255)^2) for each value, neither clipped nor quantised.

    Args:
        sigma: Standard deviation in units of 0 to 255: a number, [low, high], or with choice a list of levels.
        choice: Whether sigma is a list from which each image takes one level.
    """

    margin = 0

    def __init__(self, sigma: float | list[float], choice: bool = False) -> None:
        self._choices: list[float] = []
        self._range = (0.0, 0.0)
        if choice:
            self._choices = _listed(sigma)
        else:
            self._range = checked("sigma", sigma, 0)

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        if self._choices:
            sigma = self._choices[int(rng.integers(len(self._choices)))]
        else:
            sigma = draw_between(self._range, rng)
        return _normal(image, rng).mul_(sigma / 255.0).add_(image)


class PoissonGaussianNoise:
    """Add photon and read-out noise of a sensor: x + sqrt(gain max(x, 0) + (sigma / 255)^2) n, n ~ N(0, 1).

    This is the normal approximation of Foi, Trimeche, Katkovnik and Egiazarian, Practical Poissonian-Gaussian noise
    modeling and fitting for single-image raw-data (IEEE TIP 2008). The result is neither clipped nor quantised.

    Args:
        gain: Variance of photon noise over signal in [0, 1]; 1 / gain is the photon count of white. A number or
            [low, high].
        sigma: Standard deviation of read-out noise in units of 0 to 255; a number or [low, high].
    """

    margin = 0

    def __init__(self, gain: Range = (0.001, 0.01), sigma: Range = (0.0, 10.0)) -> None:
        self._gain, self._sigma = checked("gain", gain, 0), checked("sigma", sigma, 0)

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        gain, sigma = draw_between(self._gain, rng), draw_between(self._sigma, rng)
        deviation = image.clamp(min=0).mul_(gain).add_((sigma / 255.0) ** 2).sqrt_()
        return deviation.mul_(_normal(image, rng)).add_(image)


class Jpeg:
    """Compress as a JPEG file (ITU T.81, baseline, colour at half resolution); clips to [0, 1], in steps of 1/255.

    The 8x8 blocks begin at the image's corner. In training that is the patch's corner, as the blocks of a whole file
    begin at the corner of the image that a network restores.

    Args:
        quality: JPEG quality, a whole number from 1 to 100, or [low, high], both of which can be drawn.
    """

    margin = 0

    def __init__(self, quality: int | tuple[int, int] = (30, 95)) -> None:
        low, high = checked("quality", quality, 1, 100)
        self._quality = int(low), int(high)
        if self._quality != (low, high):
            raise UserError(f"quality: {quality} must be whole numbers")

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        return jpeg_round_trip(image, int(rng.integers(self._quality[0], self._quality[1] + 1)))


class Quantize:
    """Quantise as a sensor or a file does: clip to [0, 1], then round to multiples of 1 / (2^bits - 1).

    Args:
        bits: Bits of a value, from 1 to 16.
    """

    margin = 0

    def __init__(self, bits: int = 8) -> None:
        if not 1 <= bits <= 16:
            raise UserError(f"bits: {bits} must be 1 to 16")
        self._steps = float(2**bits - 1)

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        return image.clamp(0, 1).mul_(self._steps).round_().div_(self._steps)
