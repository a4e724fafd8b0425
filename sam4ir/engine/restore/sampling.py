"""Sample an image with a diffusion network: the whole canvas is denoised step by step, in tiles where it is large."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sam4ir.diffusion.noise import SeededNoise
from sam4ir.diffusion.process import Process
from sam4ir.diffusion.samplers import OnStep, Spacing, run_sampler
from sam4ir.engine.restore.one_pass import Area, blended, enlarged, padded, smaller_overlap
from sam4ir.models.sam_diffsr import image_of, upsampled
from sam4ir.utils.precision import number_format
from sam4ir.utils.rng import derived_seed

DEFAULT_STEPS = {"ddpm": 20, "ddim": 20, "dpm_solver_2m": 15}


@dataclass(frozen=True)
class Sampling:
    """The sampler of a diffusion network, its steps, and its tiles.

    sampler: a name of diffusion.samplers. steps: passes through the network, at most the process's timesteps.
    spacing: how their times are spread. eta: noise that ddim adds, from 0 (none) to 1 (as much as ddpm).
    seed: fixes the noise, together with the key and the sample number of an image.
    tile: side of a tile in LR pixels, a multiple of the network's; None for the whole image at once. overlap: LR pixels
    that neighbouring tiles share. batch: tiles that the network takes at once.
    """

    sampler: str = "ddpm"
    steps: int = 20
    spacing: Spacing = "logsnr"
    eta: float = 0.0
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    tile: int | None = None
    overlap: int = 8
    batch: int = 8


@dataclass(frozen=True)
class DiffusionRestorer:
    """A Restorer that samples its images.

    network: archs.diffusion_sr.DiffSR or one like it. scale: output pixels per input pixel.
    on_step: called with (steps done, all steps) after each step.

    The noise is drawn for the whole canvas, from (seed, key, sample) alone: it does not depend on other images, on the
    processes that share a data set, or on tiles. Tiles are blended at each step, before the sampler reads the estimate,
    so neighbours follow one trajectory. The condition is computed from the whole image, without tiles.
    """

    network: nn.Module
    process: Process
    scale: int
    sampling: Sampling
    on_step: OnStep | None = None

    @property
    def tile(self) -> int | None:
        """The side of its tiles in LR pixels, None for the whole image."""
        return self.sampling.tile

    def in_tiles(self, tile: int) -> DiffusionRestorer | None:
        """Return a Restorer in tiles of this side at most, one at a time; None where the network needs larger ones."""
        multiple, smallest = int(self.network.multiple), int(self.network.smallest)  # type: ignore[arg-type]
        side = tile // multiple * multiple
        overlap = smaller_overlap(self.tile, self.sampling.overlap, side)
        if side < smallest or overlap >= side:
            return None
        return dataclasses.replace(
            self, sampling=dataclasses.replace(self.sampling, tile=side, overlap=overlap, batch=1)
        )

    @torch.no_grad()
    def __call__(self, lq: Tensor, key: str, sample: int = 0) -> Tensor:
        """Restore lq (1, c, h, w) in [0, 1] to (1, c, h scale, w scale) float32, unclamped; see Restorer."""
        height, width = lq.shape[-2:]
        whole = padded(lq, self.network.multiple, self.network.smallest)  # type: ignore[arg-type]
        size = (whole.shape[-2] * self.scale, whole.shape[-1] * self.scale)
        lq_up = upsampled(whole, size)
        with self._autocast(lq.device):
            condition = self.network.condition(whole)  # type: ignore[operator]
        noise = SeededNoise([derived_seed(self.sampling.seed, "sampling", key, sample)], (3, *size), lq.device)
        x_0 = run_sampler(
            self.process,
            self._denoise(condition, lq_up),
            noise.start(),
            noise,
            self.sampling.sampler,
            self.sampling.steps,
            eta=self.sampling.eta,
            on_step=self.on_step,
            spacing=self.sampling.spacing,
        )
        return image_of(x_0, lq_up)[..., : height * self.scale, : width * self.scale]

    def _autocast(self, device: torch.device) -> torch.autocast:
        in_bf16 = number_format(self.sampling.precision, device) == "bf16"
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=in_bf16)

    def _denoise(self, condition: Tensor, lq_up: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function (x, t) -> the network's estimate for the whole canvas, float32."""
        denoise: Callable[..., Tensor] = self.network.denoise  # type: ignore[assignment]
        device = condition.device

        def whole(x: Tensor, t: Tensor) -> Tensor:
            with self._autocast(device):
                estimate: Tensor = denoise(x, t, condition, lq_up)
            return estimate.float()

        height, width = lq_up.shape[-2] // self.scale, lq_up.shape[-1] // self.scale
        if self.sampling.tile is None or max(height, width) <= self.sampling.tile:
            return whole

        def tiled(x: Tensor, t: Tensor) -> Tensor:
            assert self.sampling.tile is not None

            def compute(areas: list[Area]) -> Tensor:
                fine = [enlarged(area, self.scale) for area in areas]
                crops = (_crops(x, fine), t.expand(len(areas)), _crops(condition, fine), _crops(lq_up, fine))
                with self._autocast(device):
                    estimate: Tensor = denoise(*crops)
                return estimate

            return blended(
                compute,
                (height, width),
                self.sampling.tile,
                self.sampling.overlap,
                self.sampling.batch,
                device,
                self.scale,
            )

        return tiled


def _crops(canvas: Tensor, areas: list[Area]) -> Tensor:
    """Return the pixels of n areas of a canvas (1, c, h, w), as (n, c, their height, their width)."""
    return torch.cat([canvas[..., rows, columns] for rows, columns in areas])
