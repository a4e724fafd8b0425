"""Distillation from trained networks: a larger one, or the mean of several (ours; docs/method.md#teachers)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from sam4ir.distill.lesson import Lesson
from sam4ir.distill.spd import Criterion, Gate, SemanticPriorsDistillation
from sam4ir.errors import UserError

BuildTeacher = Callable[[str], nn.Module]  # weights file -> network (b, c, h, w) -> (b, c, h, w)


class Teachers(nn.Module):
    """Distance of the student's image to the mean of what trained networks make of the degraded image.

    The networks are frozen, see no masks, and teach from `distill.start_iter` on; 0 begins with the first step. The
    distance is SPD's, with the mean in place of the refiner's image.

    Args:
        weights: Weights files (or names of the zoo) of the networks; each is told by its shapes.
        criterion: Distance of two values, as for SPD.
        gate: Where the teachers may teach, as for SPD: none is everywhere.

    build_teacher: builds a frozen network; the engine hands it over. Raises UserError for no weights, and for another
    criterion or gate.
    """

    default_balance: ClassVar[float] = 0.3

    def __init__(
        self,
        build_teacher: BuildTeacher,
        weights: Sequence[str],
        criterion: Criterion = "l1",
        gate: Gate = "none",
    ) -> None:
        super().__init__()
        if not weights:
            raise UserError("weights: name one weights file or more")
        self.distance = SemanticPriorsDistillation(criterion, gate)
        self.networks = nn.ModuleList(build_teacher(source) for source in weights)

    def forward(self, target: Tensor, lesson: Lesson) -> Tensor:
        """Return the loss, a scalar. The target of the training, the refiner's image or the truth, is not looked at."""
        mean = self.lesson_of(lesson.lq)
        return self.distance(mean, lesson._replace(refined=mean))

    @torch.no_grad()
    def lesson_of(self, lq: Tensor) -> Tensor:
        """Return the mean of the networks' images, (b, c, h, w) float32."""
        images = [network(lq).float() for network in self.networks]
        return torch.stack(images).mean(dim=0)
