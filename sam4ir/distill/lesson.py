"""What a distillation term compares, and what a term is.

A term pulls the student's image to a target: the refiner's image, or the ground truth as a control. SPD and SGR are the
two of the paper; a plugin adds its own with ``@TERMS.register()`` (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor


class Lesson(NamedTuple):
    """The images and masks of one micro-batch. The student is taught through `student` alone: only it has a gradient.

    student, refined: restored images (b, c, h, w) of the student and of the teacher, unclamped. gt: ground truth,
    (b, c, h, w). lq: degraded images, (b, c', h, w), nominally in [0, 1]. labels: dense region labels (b, h, w) int64,
    0 = no region. region_count: the largest label of the micro-batch. maps: all maps of the samples by the names of
    their views (data.views), also those of a plugin.
    """

    student: Tensor
    refined: Tensor
    gt: Tensor
    lq: Tensor
    labels: Tensor
    region_count: int
    maps: Mapping[str, Tensor]


class DistillationTerm(Protocol):
    """A loss between the student's image and a target.

    Option files set its constructor's arguments. `loss_weight`, `balance`, `every` and `target` belong to all terms and
    to no constructor. A class attribute `default_balance` is the share of the reconstruction's gradient that holds
    where an option file gives neither loss_weight nor balance.
    """

    def __call__(self, target: Tensor, lesson: Lesson) -> Tensor:
        """Return the unweighted loss, a scalar. target: lesson.refined or lesson.gt, (b, c, h, w)."""
