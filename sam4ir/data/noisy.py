"""Clean images with synthetic Gaussian noise (Restormer's Dataset_GaussianDenoising)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from sam4ir.data.sample import MaskReader, MaskStoreLike, MaskViews, Sample
from sam4ir.data.sources import IoBackend, open_source, select_keys
from sam4ir.data.transforms import augmentation, refuse_normalization
from sam4ir.registry import near_miss
from sam4ir.utils.image import to_float_tensor
from sam4ir.utils.rng import generator

SIGMA_TYPES = ("constant", "random", "choice")


class GaussianDenoisingDataset:
    """LQ = GT + noise of standard deviation sigma / 255, float32, neither clipped nor quantised.

    sigma_type: 'constant' takes the one sigma of sigma_range; 'random' draws it uniformly from [low, high];
        'choice' draws it from the list. sigma_range is in units of 0..255.
    noise_seed: None draws noise from the sample's stream; a number makes it a function of (noise_seed, key) alone,
        whatever the order or the subset of images: for validation.
    scale: 1; noise changes no size. The other arguments are PairedImageDataset's.
    """

    def __init__(
        self,
        dataroot_gt: str,
        sigma_range: float | list[float],
        sigma_type: Literal["constant", "random", "choice"] = "constant",
        noise_seed: int | None = None,
        io_backend: IoBackend | None = None,
        meta_info_file: str | None = None,
        gt_size: int | None = None,
        use_hflip: bool = False,
        use_flip: bool | None = None,
        use_rot: bool = False,
        scale: int = 1,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        masks: MaskStoreLike | None = None,
        mask_views: MaskViews | None = None,
    ) -> None:
        if scale != 1:
            raise ValueError(f"scale: {scale} must be 1 for denoising")
        self._sigmas = _sigmas(sigma_type, sigma_range)
        self._sigma_type = sigma_type
        self._noise_seed = noise_seed
        self._augmentation = augmentation(gt_size, use_hflip, use_flip, use_rot)
        refuse_normalization(mean, std)
        self._masks = MaskReader(masks, mask_views)
        self._gt = open_source(dataroot_gt, io_backend, "dataroot_gt")
        self._keys = select_keys(self._gt, meta_info_file)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """The key of image `index`; images are sorted by it."""
        return self._keys[index]

    def get(self, index: int, rng: np.random.Generator) -> Sample:
        """One sample; window, flip and (without noise_seed) noise are drawn from rng, in this order."""
        key = self._keys[index]
        name = self._gt.where(key)
        with self._gt.open(key) as image:
            size = (image.shape[0], image.shape[1])
            try:
                placement = self._augmentation.draw(size, rng)
            except ValueError as error:
                raise ValueError(f"{name}: {error}; make gt_size smaller") from error
            gt = to_float_tensor(placement.take(image))
        fields = self._masks.read(key, name, size, placement)
        noise_rng = rng if self._noise_seed is None else generator(self._noise_seed, "noise", key)
        sigma = self._draw_sigma(noise_rng)
        noise = torch.from_numpy(noise_rng.standard_normal(tuple(gt.shape), dtype=np.float32))
        lq = gt + noise * (sigma / 255.0)
        return Sample(key, lq, gt, **fields)

    def _draw_sigma(self, rng: np.random.Generator) -> float:
        if self._sigma_type == "random":
            return float(rng.uniform(self._sigmas[0], self._sigmas[1]))
        if self._sigma_type == "choice":
            return self._sigmas[int(rng.integers(len(self._sigmas)))]
        return self._sigmas[0]


def _sigmas(sigma_type: str, sigma_range: float | Sequence[float]) -> tuple[float, ...]:
    """sigma_range as numbers >= 0: one for 'constant', low and high for 'random', any for 'choice'."""
    if sigma_type not in SIGMA_TYPES:
        raise ValueError(
            f"sigma_type: {sigma_type!r} must be one of {', '.join(SIGMA_TYPES)}{near_miss(sigma_type, SIGMA_TYPES)}"
        )
    sigmas = tuple(float(s) for s in (sigma_range if isinstance(sigma_range, Sequence) else [sigma_range]))
    if not sigmas or min(sigmas) < 0:
        raise ValueError(f"sigma_range: {sigma_range} must hold numbers >= 0, in units of 0..255")
    wanted = {"constant": 1, "random": 2}.get(sigma_type, len(sigmas))
    if len(sigmas) != wanted:
        raise ValueError(f"sigma_range: {sigma_range} must hold {wanted} number(s) for sigma_type: {sigma_type}")
    if sigma_type == "random" and sigmas[0] > sigmas[1]:
        raise ValueError(f"sigma_range: {sigma_range} must be [low, high] for sigma_type: random")
    return sigmas
