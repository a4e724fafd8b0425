"""Clean images with synthetic Gaussian noise, by our streams and as Restormer draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sam4ir.data.cropped import Colour
from sam4ir.data.degrade.dataset import Degrade, SyntheticDataset
from sam4ir.data.degrade.noise import GaussianNoise, checked
from sam4ir.errors import UserError
from sam4ir.registry import near_miss

SIGMA_TYPES = ("constant", "random", "choice")


@dataclass(kw_only=True, eq=False)
class GaussianDenoisingDataset(SyntheticDataset):
    """LQ = GT + noise of standard deviation sigma / 255, float32, neither clipped nor quantised.

    Args:
        sigma_range: Noise level, in units of 0 to 255; one number, or a list as sigma_type asks.
        sigma_type: How sigma is chosen. 'constant' takes the one number of sigma_range, 'random' draws uniformly from
            [low, high], 'choice' draws from the list.
        sigma_test: Noise level for validation, instead of sigma_range, in units of 0 to 255; an image has the same
            noise every time (noise_seed, 0 unless given).
        in_ch: 3 for RGB; 1 for grey, the luma of what the files hold.
    """

    sigma_range: float | list[float] | None = None
    sigma_type: Literal["constant", "random", "choice"] = "constant"
    sigma_test: float | None = None
    in_ch: Colour = 3

    def __post_init__(self) -> None:
        self.channels = self.in_ch
        if self.sigma_test is not None and self.noise_seed is None:
            self.noise_seed = 0
        self._noise = _noise(self.sigma_type, self.sigma_range, self.sigma_test)
        super().__post_init__()

    def chain(self) -> Sequence[Degrade]:
        """Return the noise as the one degradation."""
        return [self._noise]


@dataclass(kw_only=True, eq=False)
class RestormerDenoisingDataset(GaussianDenoisingDataset):
    """GaussianDenoisingDataset under Restormer's name, with Restormer's noise for sigma_test.

    Its validation calls np.random.seed(0) for every image and adds np.random.normal(0, sigma_test / 255, (h, w, c)) to
    the RGB or grey image in [0, 1], so that images of one size have the same noise. With noise_seed, and in training,
    the noise is that of GaussianDenoisingDataset.
    """

    def __post_init__(self) -> None:
        self._as_restormer = self.sigma_test is not None and self.noise_seed is None
        super().__post_init__()

    def _degrade(self, image: Tensor, rng: np.random.Generator, labels: Sequence[Tensor | None]) -> Tensor:
        """Return the noisy image (c, h, w) float32."""
        if not self._as_restormer or self.sigma_test is None:
            return super()._degrade(image, rng, labels)
        clean = image.permute(1, 2, 0).numpy()
        noise = np.random.RandomState(0).normal(0, self.sigma_test / 255.0, clean.shape)
        return torch.from_numpy((clean + noise).astype(np.float32)).permute(2, 0, 1).contiguous()


def _noise(sigma_type: str, sigma_range: float | Sequence[float] | None, sigma_test: float | None) -> GaussianNoise:
    """Return the noise that the options ask for. Raise ValueError where they contradict each other or make no sense."""
    if sigma_test is not None:
        if sigma_range is not None or sigma_type != "constant":
            raise UserError(
                f"sigma_test: {sigma_test} is one sigma for validation; leave sigma_range and sigma_type out beside it"
            )
        return GaussianNoise(checked("sigma_test", sigma_test, 0)[0])
    if sigma_range is None:
        raise UserError("sigma_range is missing (sigma_test for validation): the noise level, in units of 0..255")
    sigmas = _sigmas(sigma_type, sigma_range)
    choice = sigma_type == "choice"
    if len(sigmas) == 1:
        return GaussianNoise(sigmas[0], choice)
    return GaussianNoise(sigmas, choice)


def _sigmas(sigma_type: str, sigma_range: float | Sequence[float]) -> list[float]:
    """Return sigma_range as numbers >= 0: one for 'constant', low and high for 'random', any for 'choice'."""
    if sigma_type not in SIGMA_TYPES:
        raise UserError(
            f"sigma_type: {sigma_type!r} must be one of {', '.join(SIGMA_TYPES)}{near_miss(sigma_type, SIGMA_TYPES)}"
        )
    if isinstance(sigma_range, Sequence):
        sigmas = list(map(float, sigma_range))
    else:
        sigmas = [float(sigma_range)]
    if not sigmas or min(sigmas) < 0:
        raise UserError(f"sigma_range: {sigma_range} must hold numbers >= 0, in units of 0..255")
    count = {"constant": 1, "random": 2}.get(sigma_type, len(sigmas))
    if len(sigmas) != count:
        raise UserError(f"sigma_range: {sigma_range} must hold {count} number(s) for sigma_type: {sigma_type}")
    if sigma_type == "random" and sigmas[0] > sigmas[1]:
        raise UserError(f"sigma_range: {sigma_range} must be [low, high] for sigma_type: random")
    return sigmas
