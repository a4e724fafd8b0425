"""SPD: semantic priors distillation (SAM4IR, arXiv 2403.16368).

The paper distils the refined image back into the first network; criterion and gates are ours ([D]).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from sam4ir.distill.pool import paint, region_sums
from sam4ir.errors import UserError

CRITERIA = ("l1", "charbonnier", "psnr")
GATES = ("none", "region", "pixel")
CHARBONNIER_EPS = 1e-2
PSNR_EPS = 1e-4  # without it the pull grows as 8.7 / RMSE near equality


class SemanticPriorsDistillation(nn.Module):
    """Distance of the student's image to sg(target), counted where the refiner is the better of the two.

    criterion: 'l1', 'charbonnier' (sqrt(d^2 + 1e-4)), or 'psnr' (10 log10 of the gated MSE + 1e-4, mean over images).
    gate: 'none'; 'region': a region, and the rest as one more, counts where the refiner's squared error
    to the ground truth, summed over channels, is smaller than the student's; 'pixel': the same pixel by
    pixel (take 'charbonnier' then: a pixel-gated L1 has the gradient of a gated L1 to the ground truth).
    Raises ValueError for another criterion or gate.
    """

    def __init__(
        self,
        criterion: Literal["l1", "charbonnier", "psnr"] = "l1",
        gate: Literal["none", "region", "pixel"] = "region",
    ) -> None:
        super().__init__()
        _known("criterion", criterion, CRITERIA)
        _known("gate", gate, GATES)
        self.criterion = criterion
        self.gate = gate

    def forward(
        self, student: Tensor, target: Tensor, *, refined: Tensor, gt: Tensor, labels: Tensor, count: int
    ) -> Tensor:
        """Scalar loss; the sum over what the gate lets through is divided by all pixels and channels.

        student, target, refined, gt: (b, c, h, w); labels: (b, h, w) int64; count: regions at most.
        Gradient flows to `student` alone.
        """
        with torch.autocast(student.device.type, enabled=False):
            gate = self.open_gate(student, refined, gt, labels, count)
            difference = student.float() - target.detach().float()
            if self.criterion == "psnr":
                mse = (gate * difference.square()).mean(dim=(1, 2, 3))
                return 10 / math.log(10) * torch.log(mse + PSNR_EPS).mean()
            if self.criterion == "charbonnier":
                return (gate * torch.sqrt(difference.square() + CHARBONNIER_EPS**2)).mean()
            return (gate * difference.abs()).mean()

    @torch.no_grad()
    def open_gate(self, student: Tensor, refined: Tensor, gt: Tensor, labels: Tensor, count: int) -> Tensor:
        """(b, 1, h, w) float32, 1 where the refiner may teach."""
        if self.gate == "none":
            return torch.ones_like(student[:, :1], dtype=torch.float32)
        gain = _squared_error(student, gt) - _squared_error(refined, gt)
        if self.gate == "pixel":
            return (gain > 0).float()
        return paint((region_sums(gain, labels, count) > 0).float(), labels)


def _squared_error(image: Tensor, gt: Tensor) -> Tensor:
    """Summed over channels: (b, 1, h, w) float32."""
    return (image.float() - gt.float()).square().sum(1, keepdim=True)


def _known(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{name} is {value!r}; one of {', '.join(known)} would do")
