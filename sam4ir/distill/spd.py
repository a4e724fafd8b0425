"""SPD: semantic priors distillation (SAM4IR, arXiv 2403.16368).

The paper distils the refined image back into the first network. Criterion and gates are ours (docs/method.md#spd).
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from sam4ir.distill.lesson import Lesson
from sam4ir.distill.pool import paint_rows, region_sums
from sam4ir.errors import UserError

Criterion = Literal["l1", "charbonnier", "psnr"]
Gate = Literal["none", "region", "pixel"]
CRITERIA: tuple[str, ...] = get_args(Criterion)
GATES: tuple[str, ...] = get_args(Gate)
CHARBONNIER_EPS = 1e-2
PSNR_EPS = 1e-4  # without it the pull grows as 8.7 / RMSE near equality


class SemanticPriorsDistillation(nn.Module):
    """Distance of the student's image to the target, counted where the refiner is better than the student.

    Args:
        criterion: Distance of two values: l1; charbonnier, sqrt(d^2 + 1e-4); or psnr, 10 log10 of the gated MSE + 1e-4.
        gate: Where the refiner may teach: none is everywhere; region is in the regions, and in the rest as one more,
            where its squared error to the ground truth, summed over channels, is smaller than the student's; pixel is
            the same pixel by pixel and needs another criterion than l1.

    Raises UserError for another criterion or gate, and `check_options` for gate pixel with criterion l1.
    """

    default_balance: ClassVar[float] = 0.3

    def __init__(self, criterion: Criterion = "l1", gate: Gate = "region") -> None:
        super().__init__()
        _require("criterion", criterion, CRITERIA)
        _require("gate", gate, GATES)
        self.criterion = criterion
        self.gate = gate

    @staticmethod
    def check_options(criterion: Criterion, gate: Gate) -> None:
        """Raise UserError where an option file asks for gate pixel with criterion l1."""
        if gate == "pixel" and criterion == "l1":
            raise UserError(
                "has gate pixel with criterion l1, whose gradient equals that of a gated L1 to the ground truth; "
                "take criterion charbonnier"
            )

    def forward(self, target: Tensor, lesson: Lesson) -> Tensor:
        """Return the loss, a scalar: the sum over what the gate lets through, divided by all pixels and channels."""
        student, refined, gt = lesson.student, lesson.refined, lesson.gt
        with torch.autocast(student.device.type, enabled=False):
            gate = self.open_gate(student, refined, gt, lesson.labels, lesson.region_count)
            difference = student.float() - target.detach().float()
            if self.criterion == "psnr":
                mse = (gate * difference.square()).mean(dim=(1, 2, 3))
                return 10 / math.log(10) * torch.log(mse + PSNR_EPS).mean()
            if self.criterion == "charbonnier":
                return (gate * torch.sqrt(difference.square() + CHARBONNIER_EPS**2)).mean()
            return (gate * difference.abs()).mean()

    @torch.no_grad()
    def open_gate(self, student: Tensor, refined: Tensor, gt: Tensor, labels: Tensor, count: int) -> Tensor:
        """Return (b, 1, h, w) float32: 1 where the refiner may teach, else 0.

        student, refined, gt: (b, c, h, w); labels: (b, h, w) int64; count: the largest label.
        """
        if self.gate == "none":
            return torch.ones_like(student[:, :1], dtype=torch.float32)
        gain = _squared_error(student, gt) - _squared_error(refined, gt)
        if self.gate == "pixel":
            return (gain > 0).float()
        return paint_rows((region_sums(gain, labels, count) > 0).float(), labels)


def _squared_error(image: Tensor, gt: Tensor) -> Tensor:
    """Return the squared error, summed over channels: (b, 1, h, w) float32."""
    return (image.float() - gt.float()).square().sum(1, keepdim=True)


def _require(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name} is {value!r}; one of {', '.join(choices)} would do")
