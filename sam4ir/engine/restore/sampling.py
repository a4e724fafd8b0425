"""How a diffusion network makes an image: the whole canvas denoised step by step, in tiles where it is large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sam4ir.diffusion.noise import SeededNoise
from sam4ir.diffusion.process import Process
from sam4ir.diffusion.samplers import Spacing
from sam4ir.diffusion.samplers import sample as draw
from sam4ir.engine.restore.one_pass import Area, blended, padded
from sam4ir.models.sam_diffsr import image_of, upsampled
from sam4ir.utils.rng import derived_seed

DEFAULT_STEPS = {"ddpm": 20, "ddim": 20, "dpm_solver_2m": 15}
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Sampling:
    """How the noise is taken away, and in which pieces.

    sampler: a name of diffusion.samplers. steps: at most the process's; spacing: of their times. eta: of ddim. seed: of
    the noise.
    tile: side of a tile in LR pixels, a multiple of the network's, None for the whole image at once; overlap: LR pixels
    that neighbouring tiles share; batch: tiles at once.
    """

    sampler: str = "ddpm"
    steps: int = 20
    spacing: Spacing = "logsnr"
    eta: float = 0.0
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    tile: int | None = None
    overlap: int = 8
    batch: int = 8


@dataclass(frozen=True)
class DiffusionRestorer:
    """Images by sampling. network: archs.diffusion_sr.DiffSR or one like it. scale: output pixels per input pixel.
    on_step: told (done, of how many) after each step.

    The noise is drawn for the whole canvas, from (seed, key, sample) alone: it does not depend on other images, on the
    processes that share a data set, or on tiles. Tiles are blended at each step, before the sampler sees the estimate,
    so neighbours follow one trajectory; the condition is made of the whole image, without tiles.
    """

    network: nn.Module
    process: Process
    scale: int
    how: Sampling
    on_step: OnStep | None = None

    @torch.no_grad()
    def __call__(self, lq: Tensor, key: str, sample: int = 0) -> Tensor:
        height, width = lq.shape[-2:]
        whole = padded(lq, self.network.multiple, self.network.smallest)  # type: ignore[arg-type]
        size = (whole.shape[-2] * self.scale, whole.shape[-1] * self.scale)
        lq_up = upsampled(whole, size)
        with self._autocast(lq.device):
            condition = self.network.condition(whole)  # type: ignore[operator]
        noise = SeededNoise([derived_seed(self.how.seed, "sampling", key, sample)], (3, *size), lq.device)
        x_0 = draw(
            self.process,
            self._denoise(condition, lq_up),
            noise.start(),
            noise,
            self.how.sampler,
            self.how.steps,
            eta=self.how.eta,
            on_step=self.on_step,
            spacing=self.how.spacing,
        )
        return image_of(x_0, lq_up)[..., : height * self.scale, : width * self.scale]

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.how.precision == "bf16")

    def _denoise(self, condition: Tensor, lq_up: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """(x, t) -> the network's estimate for the whole canvas, float32."""
        denoise: Callable[..., Tensor] = self.network.denoise  # type: ignore[assignment]
        device = condition.device

        def whole(x: Tensor, t: Tensor) -> Tensor:
            with self._autocast(device):
                estimate: Tensor = denoise(x, t, condition, lq_up)
            return estimate.float()

        height, width = (side // self.scale for side in lq_up.shape[-2:])
        if self.how.tile is None or max(height, width) <= self.how.tile:
            return whole

        def tiled(x: Tensor, t: Tensor) -> Tensor:
            assert self.how.tile is not None

            def compute(areas: list[Area]) -> Tensor:
                fine = [self._fine(area) for area in areas]
                cut = [torch.cat([canvas[..., r, c] for r, c in fine]) for canvas in (x, condition, lq_up)]
                with self._autocast(device):
                    estimate: Tensor = denoise(cut[0], t.expand(len(areas)), cut[1], cut[2])
                return estimate

            return blended(
                compute, (height, width), self.how.tile, self.how.overlap, self.how.batch, device, self.scale
            )

        return tiled

    def _fine(self, area: Area) -> Area:
        """An area of the LR grid on the canvas."""
        rows, columns = (slice(side.start * self.scale, side.stop * self.scale) for side in area)
        return rows, columns
