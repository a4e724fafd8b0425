"""Models of what spoils an image: noise, JPEG, quantisation. Blur and rain: blur.py, rain.py.

Each is called with (c, h, w) float32, nominally in [0, 1], and a random stream, and returns a new tensor of the same
shape. `margin`: how many pixels beyond a pixel's place its result depends on; a data set hands a crop over with so many
real neighbours on each side and cuts the result. A parameter is a number, or [low, high] to be drawn from uniformly
for each image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sam4ir.errors import UserError
from sam4ir.utils.image import jpeg

Range = float | tuple[float, float]


def checked(
    name: str, value: float | Sequence[float], low: float = -math.inf, high: float = math.inf
) -> tuple[float, float]:
    """A parameter as (lowest, highest). Raises ValueError naming it unless low <= lowest <= highest <= high."""
    ends = tuple(float(v) for v in value) if isinstance(value, Sequence) else (float(value),) * 2
    if len(ends) != 2 or not low <= ends[0] <= ends[1] <= high:
        limits = f", from {low:g}" * math.isfinite(low) + f", up to {high:g}" * math.isfinite(high)
        raise UserError(f"{name}: {value} must be a number or [low, high]{limits}")
    return ends[0], ends[1]


def drawn(ends: tuple[float, float], rng: np.random.Generator) -> float:
    """A number uniformly from (lowest, highest); nothing is drawn where the two are equal."""
    return ends[0] if ends[0] == ends[1] else float(rng.uniform(*ends))


def _listed(sigma: float | Sequence[float]) -> list[float]:
    """A list of sigmas to choose from."""
    if not isinstance(sigma, Sequence) or not sigma:
        raise UserError(f"sigma: {sigma} must be a list of numbers for choice: true")
    return [checked("sigma", s, 0)[0] for s in sigma]


def _normal(image: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32))


class GaussianNoise:
    """x + n, n ~ N(0, (sigma / 255)^2) for each value; neither clipped nor quantised.

    sigma: in units of 0..255; a number, [low, high], or with choice=True a list to choose from.
    """

    margin = 0

    def __init__(self, sigma: float | list[float], choice: bool = False) -> None:
        self._choices = _listed(sigma) if choice else []
        self._range = (0.0, 0.0) if choice else checked("sigma", sigma, 0)

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        sigma = self._choices[int(rng.integers(len(self._choices)))] if self._choices else drawn(self._range, rng)
        return _normal(image, rng).mul_(sigma / 255.0).add_(image)


class PoissonGaussianNoise:
    """x + sqrt(gain max(x, 0) + (sigma / 255)^2) n, n ~ N(0, 1): photon and read-out noise of a sensor.

    The normal approximation of Foi, Trimeche, Katkovnik and Egiazarian, Practical Poissonian-Gaussian noise modeling
    and fitting for single-image raw-data (IEEE TIP 2008). Neither clipped nor quantised.
    gain: variance over signal, both in [0, 1]; the reciprocal is the photon count of white. sigma: in units of 0..255.
    """

    margin = 0

    def __init__(self, gain: Range = (0.001, 0.01), sigma: Range = (0.0, 10.0)) -> None:
        self._gain, self._sigma = checked("gain", gain, 0), checked("sigma", sigma, 0)

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        gain, sigma = drawn(self._gain, rng), drawn(self._sigma, rng)
        deviation = image.clamp(min=0).mul_(gain).add_((sigma / 255.0) ** 2).sqrt_()
        return deviation.mul_(_normal(image, rng)).add_(image)


class Jpeg:
    """What a JPEG file keeps (ITU T.81, baseline, colour at half resolution): clipped to [0, 1], in steps of 1/255.

    quality: 1..100, or [low, high], both ends among what is drawn. The 8x8 blocks begin at the image's corner; in
    training that is the patch's, as a whole file's blocks begin at the corner of the image that a network restores.
    """

    margin = 0

    def __init__(self, quality: int | tuple[int, int] = (30, 95)) -> None:
        low, high = checked("quality", quality, 1, 100)
        self._quality = int(low), int(high)
        if self._quality != (low, high):
            raise UserError(f"quality: {quality} must be whole numbers")

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        return jpeg(image, int(rng.integers(self._quality[0], self._quality[1] + 1)))


class Quantize:
    """A sensor or a file of `bits` bits: clipped to [0, 1], then rounded to multiples of 1 / (2^bits - 1)."""

    margin = 0

    def __init__(self, bits: int = 8) -> None:
        if not 1 <= bits <= 16:
            raise UserError(f"bits: {bits} must be 1 to 16")
        self._steps = float(2**bits - 1)

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        return image.clamp(0, 1).mul_(self._steps).round_().div_(self._steps)
