"""SAM-DiffSR: a diffusion network that learns residuals, with forward noise that SAM's masks shift.

Wang et al., arXiv 2402.17133; with modulation `none` it is SRDiff (Li et al., Neurocomputing 2022). Masks are read in
training alone:

    x_0 = clip(2 (HR - LR up), -1, 1)                in the [-1, 1] image scale
    (x_t, target) = process(x_0, t, noise, SPE)      t uniform, noise standard normal
    L = loss(network(x_t, t, LR), target)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sam4ir.diffusion.process import Process
from sam4ir.errors import UserError
from sam4ir.models.restoration import Loss, Losses, OneNetwork, TrainingBatch, ground_truth
from sam4ir.utils.resize import resize_to
from sam4ir.utils.rng import derived_seed, generator

RESIDUAL_SCALE = 2.0  # res_rescale of the released code


class DiffusionNetwork(Protocol):
    """A diffusion network as sampling sees it (archs.diffusion_sr.DiffSR)."""

    multiple: int  # the sides of LR are multiples of it
    smallest: int  # the least side of LR

    def condition(self, lq: Tensor) -> Tensor:
        """Return the condition of LR images (b, 3, h, w) in [0, 1] on the grid of the restored image, for all steps."""

    def denoise(self, x_t: Tensor, t: Tensor, condition: Tensor, lq_up: Tensor | None = None) -> Tensor:
        """Return the network's estimate of the target, (b, 3, h s, w s)."""


def upsampled(lq: Tensor, size: Sequence[int]) -> Tensor:
    """Enlarge LR images (b, 3, h, w) in [0, 1] to HR's grid by bicubic interpolation, in the [-1, 1] scale, unclamped.

    In a training crop the outer 6 HR pixels differ from those of the whole image, as LR is mirrored at the crop.
    """
    with torch.autocast(lq.device.type, enabled=False):
        return 2 * resize_to(lq.float(), (size[0], size[1])) - 1


def residual_of(gt: Tensor, lq_up: Tensor) -> Tensor:
    """Return x_0 = clip(2 (HR - LR up), -1, 1) of HR images in [0, 1] and up-sampled LR in [-1, 1]."""
    return (RESIDUAL_SCALE * ((2 * gt.float() - 1) - lq_up)).clamp(-1, 1)


def image_of(x_0: Tensor, lq_up: Tensor) -> Tensor:
    """Return the images of x_0, nominally in [0, 1], unclamped; x_0 is clipped as in the released code."""
    return ((x_0.clamp(-1, 1) / RESIDUAL_SCALE + lq_up) + 1) / 2


class SamDiffSR(OneNetwork):
    """The training of a diffusion network.

    network: (x_t, t, lq, lq_up) -> estimate; wrapped where several processes train it. process: the forward process.
    loss: (estimate, target) -> scalar. seed: timestep and noise of a sample are functions of it and of the sample's
    number, so they do not depend on micro-batches and processes. measure_spe: measures the RMS of the encoding over
    covered training pixels; a run whose modulation needs it calls it once and stores the result in its checkpoints.
    encoding: a name of the measured encoding; after a change of it the RMS is measured again.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        loss: Loss,
        seed: int = 0,
        measure_spe: Callable[[], float] | None = None,
        encoding: str = "",
    ) -> None:
        super().__init__(network)
        self.process = process
        self.loss = loss
        self.seed = seed
        self.measure_spe = measure_spe
        self.encoding = encoding
        self.spe_rms: float | None = None

    def losses(self, batch: TrainingBatch, iteration: int, measure: bool) -> Losses:
        """Return the loss L of a micro-batch; with `measure`, also the relative shift of x_t by the masks."""
        gt = ground_truth(batch)
        lq_up = upsampled(batch.lq, gt.shape[-2:])
        x_0 = residual_of(gt, lq_up)
        t, noise = self._draw(batch.numbers, x_0)
        x_t, target = self.process.training_pair(x_0, t, noise, self._spe(batch), self._rms())
        estimate = self.network(x_t, t, batch.lq, lq_up).float()
        measures = {}
        if measure and self.process.needs_spe:
            plain, _ = self.process.training_pair(x_0, t, noise, torch.zeros_like(x_0[:, :1]))
            measures["spe_shift"] = ((x_t - plain).norm() / plain.norm()).item()
        loss = self.loss(estimate, target)
        if not isinstance(loss, Tensor):  # a loss of images, such as PerceptualLoss, or a plugin's
            raise UserError(
                "train.pixel_opt: returns several parts; a diffusion network takes a loss of one, as L1Loss"
            )
        return Losses({"noise": loss}, measures)

    def _draw(self, numbers: Sequence[int], x_0: Tensor) -> tuple[Tensor, Tensor]:
        """Draw timesteps (b,) and noise of x_0's shape; each sample has its own streams."""
        steps = len(self.process.schedule.betas)
        t = torch.tensor([int(generator(self.seed, "t", number).integers(steps)) for number in numbers])
        noise = torch.empty(x_0.shape, device=x_0.device, dtype=torch.float32)
        stream = torch.Generator(x_0.device)
        for i, number in enumerate(numbers):
            stream.manual_seed(derived_seed(self.seed, "noise", number))
            noise[i].normal_(generator=stream)
        return t.to(x_0.device, non_blocking=True), noise

    def _spe(self, batch: TrainingBatch) -> Tensor | None:
        """Return the encoding of the batch, None for a process without modulation."""
        if not self.process.needs_spe:
            return None
        if batch.spe is None:
            raise UserError("the batch has no position encoding; name a mask store as masks.store of its data set")
        return batch.spe

    def _rms(self) -> float:
        """Return the RMS of the encoding, measured at the first call."""
        if self.process.modulation != "invertible":
            return 1.0
        if self.spe_rms is None:
            if self.measure_spe is None:
                raise UserError("modulation invertible needs the RMS of the position encoding")
            self.spe_rms = self.measure_spe()
        return self.spe_rms

    def state(self) -> dict[str, Any]:
        """Return the RMS of the encoding and the name of the encoding; {} before the RMS is measured."""
        if self.spe_rms is None:
            return {}
        return {"spe_rms": self.spe_rms, "encoding": self.encoding}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the RMS if it is of the same encoding; else it is measured again."""
        self.spe_rms = None
        if state.get("encoding") == self.encoding:
            self.spe_rms = state.get("spe_rms")
