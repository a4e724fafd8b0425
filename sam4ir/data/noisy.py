"""Clean images with synthetic Gaussian noise (Restormer's Dataset_GaussianDenoising)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sam4ir.data.cropped import Colour
from sam4ir.data.degrade.dataset import DegradedImageDataset
from sam4ir.data.degrade.noise import GaussianNoise, checked
from sam4ir.data.sample import MaskStoreLike, MaskViews
from sam4ir.data.sources import IoBackend
from sam4ir.errors import UserError
from sam4ir.registry import near_miss

SIGMA_TYPES = ("constant", "random", "choice")


class GaussianDenoisingDataset(DegradedImageDataset):
    """LQ = GT + noise of standard deviation sigma / 255, float32, neither clipped nor quantised.

    sigma_type: 'constant' takes the one sigma of sigma_range; 'random' draws it uniformly from [low, high];
        'choice' draws it from the list. sigma_range is in units of 0..255.
    sigma_test: instead of sigma_range, for validation: this sigma with the same noise for an image every time
        (noise_seed, 0 unless given).
    noise_seed: None draws noise from the sample's stream; a number makes it a function of (noise_seed, key) alone,
        whatever the order or the subset of images.
    in_ch: 3 for RGB, 1 for grey. scale: 1; noise changes no size. The other arguments are PairedImageDataset's.
    """

    def __init__(
        self,
        dataroot_gt: str,
        sigma_range: float | list[float] | None = None,
        sigma_type: Literal["constant", "random", "choice"] = "constant",
        sigma_test: float | None = None,
        noise_seed: int | None = None,
        in_ch: Colour = 3,
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
        super().__init__(
            dataroot_gt,
            [_noise(sigma_type, sigma_range, sigma_test)],
            noise_seed=0 if sigma_test is not None and noise_seed is None else noise_seed,
            io_backend=io_backend,
            meta_info_file=meta_info_file,
            gt_size=gt_size,
            use_hflip=use_hflip,
            use_flip=use_flip,
            use_rot=use_rot,
            scale=scale,
            mean=mean,
            std=std,
            channels=in_ch,
            masks=masks,
            mask_views=mask_views,
        )


def _noise(sigma_type: str, sigma_range: float | Sequence[float] | None, sigma_test: float | None) -> GaussianNoise:
    """The noise that the options ask for. Raises ValueError where they contradict each other or make no sense."""
    if sigma_test is not None:
        if sigma_range is not None or sigma_type != "constant":
            raise UserError(
                f"sigma_test: {sigma_test} is one sigma for validation; leave sigma_range and sigma_type out beside it"
            )
        return GaussianNoise(checked("sigma_test", sigma_test, 0)[0])
    if sigma_range is None:
        raise UserError("sigma_range is missing (sigma_test for validation): the noise level, in units of 0..255")
    sigmas = _sigmas(sigma_type, sigma_range)
    return GaussianNoise(sigmas if len(sigmas) > 1 else sigmas[0], choice=sigma_type == "choice")


def _sigmas(sigma_type: str, sigma_range: float | Sequence[float]) -> list[float]:
    """sigma_range as numbers >= 0: one for 'constant', low and high for 'random', any for 'choice'."""
    if sigma_type not in SIGMA_TYPES:
        raise UserError(
            f"sigma_type: {sigma_type!r} must be one of {', '.join(SIGMA_TYPES)}{near_miss(sigma_type, SIGMA_TYPES)}"
        )
    sigmas = [float(s) for s in (sigma_range if isinstance(sigma_range, Sequence) else [sigma_range])]
    if not sigmas or min(sigmas) < 0:
        raise UserError(f"sigma_range: {sigma_range} must hold numbers >= 0, in units of 0..255")
    wanted = {"constant": 1, "random": 2}.get(sigma_type, len(sigmas))
    if len(sigmas) != wanted:
        raise UserError(f"sigma_range: {sigma_range} must hold {wanted} number(s) for sigma_type: {sigma_type}")
    if sigma_type == "random" and sigmas[0] > sigmas[1]:
        raise UserError(f"sigma_range: {sigma_range} must be [low, high] for sigma_type: random")
    return sigmas
