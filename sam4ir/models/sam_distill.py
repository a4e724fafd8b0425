"""SAM4IR: a student network learns from a refiner that sees SAM's masks.

Zhang et al., CVPR 2024 (arXiv 2403.16368) state the skeleton; shapes, weights and schedules are ours
(docs/method.md):

    Y1 = f1(X)                    student, deployed
    Y2 = f2(SPF(sg Y1, M))        refiner
    L_refine  = L_recon(Y2, Y)                                                   trains SPF and f2 only
    L_student = L_recon(Y1, Y) + lambda1 L_SPD(Y1, sg Y2) + lambda2 L_SGR(Y1, sg Y2; M)    trains f1 only
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sam4ir.distill.balance import TermWeight
from sam4ir.distill.lesson import DistillationTerm, Lesson
from sam4ir.distill.segments import own_segments
from sam4ir.errors import UserError
from sam4ir.models.restoration import (
    Average,
    Losses,
    Reconstruction,
    TrainingBatch,
    batch_psnr,
    eval_mode,
    ground_truth,
    join_terms,
    last_output,
    total,
    unwrapped,
)
from sam4ir.utils.rng import torch_stream

Target = Literal["refiner", "gt"]
Masks = Literal["store", "empty", "own"]
LIFT = 1024.0  # gradients of a mean over many pixels are lost in float16; a power of two changes no other bit


class Refiner(nn.Module):
    """SPF and the second network f2, which turn a restored image and masks into a refined image (or stage outputs)."""

    def __init__(self, spf: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.spf = spf
        self.network = network

    def forward(self, restored: Tensor, labels: Tensor, count: int, degraded: Tensor) -> Tensor | list[Tensor]:
        """Return the refined image (b, c, h, w), or the list of stage outputs.

        restored, degraded: (b, c, h, w). labels: (b, h, w) int64, dense region labels. count: the largest label.
        """
        return self.network(self.spf(restored, labels, count, degraded))


@dataclass
class Term:
    """A distillation term in use: its loss, its target, its weight, and how often it is computed.

    every: iterations between two computations, whose weight grows by the same factor. fade: (first, last) iteration
    between which the weight falls to 0 on a line; None for a weight that stays. pulls: squared gradient norms of
    reconstruction and term, one pair for each micro-batch of the current step.
    """

    loss: DistillationTerm
    target: Target = "refiner"
    weight: TermWeight = field(default_factory=TermWeight)
    every: int = 1
    fade: tuple[int, int] | None = None
    pulls: list[tuple[float, float]] = field(default_factory=list)

    def due(self, iteration: int) -> bool:
        """Return whether the term is computed in this iteration (from 1 on)."""
        return iteration % self.every == 0

    def weight_at(self, iteration: int) -> float:
        """Return the weight of the term in an iteration, without the factor of `every`."""
        if self.fade is None:
            return self.weight.value
        first, last = self.fade
        left = (last - iteration) / max(last - first, 1)
        return self.weight.value * min(max(left, 0.0), 1.0)


@dataclass(frozen=True)
class Schedule:
    """The iterations in which each network trains.

    start_iter alone (joint): both networks train in all iterations, with SPD and SGR after start_iter.
    refine_iter (two_phase): the refiner trains up to that iteration, with the student frozen; then the student trains,
    with SPD and SGR, and the refiner is frozen. A frozen network is in eval mode: no dropout, no mask dropout, no
    running statistics.
    """

    start_iter: int = 0
    refine_iter: int | None = None

    def trains_student(self, iteration: int) -> bool:
        """Return whether the student trains in this iteration."""
        return self.refine_iter is None or iteration > self.refine_iter

    def trains_refiner(self, iteration: int) -> bool:
        """Return whether the refiner trains in this iteration."""
        return self.refine_iter is None or iteration <= self.refine_iter

    def distills(self, iteration: int) -> bool:
        """Return whether the distillation terms count in this iteration."""
        if self.refine_iter is None:
            return iteration > self.start_iter
        return iteration > self.refine_iter


class SamDistill:
    """The training of student and refiner.

    student, refiner: trained networks, wrapped where several processes train them.
    reconstruction: the losses of the student's output; the shares of terms are measured against their sum.
    refinement: the losses of the refiner's output.
    terms: the distillation terms by name.
    teacher: the frozen refiner whose output is the target, such as the EMA; None for the refiner in training.
    schedule: the iterations in which each network trains.
    masks: that the refiner sees: those of the batch, none (empty), or segments of the student's output (own).
    seed: the random streams of student and refiner are functions of it and the sample number.
    """

    def __init__(
        self,
        student: nn.Module,
        refiner: nn.Module,
        reconstruction: Reconstruction,
        refinement: Reconstruction,
        terms: Mapping[str, Term] | None = None,
        teacher: nn.Module | None = None,
        schedule: Schedule | None = None,
        masks: Masks = "store",
        seed: int = 0,
    ) -> None:
        self.student = student
        self.refiner = refiner
        self.reconstruction = reconstruction
        self.refinement = refinement
        self.terms = dict(terms or {})
        self.teacher = refiner if teacher is None else teacher
        self.schedule = schedule or Schedule()
        self.masks = masks
        self.seed = seed

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The student as `g` and the refiner as `r`, without their wrappers."""
        return {"g": unwrapped(self.student), "r": unwrapped(self.refiner)}

    def active(self, iteration: int) -> tuple[str, ...]:
        """Return the labels of the networks that train in this iteration."""
        labels = []
        if self.schedule.trains_student(iteration):
            labels.append("g")
        if self.schedule.trains_refiner(iteration):
            labels.append("r")
        return tuple(labels)

    def regions(self, batch: TrainingBatch, restored: Tensor) -> tuple[Tensor, int]:
        """Return labels (b, h, w) and the number of regions; all labels are 0 where masks are left out.

        restored: the student's images (b, c, h, w), for segments of them. Raises UserError where labels are missing or
        of another size than the images.
        """
        size = batch.lq.shape[-2:]
        if self.masks == "own":
            return own_segments(restored)
        if self.masks == "empty":
            return torch.zeros(batch.lq.shape[0], *size, dtype=torch.int64, device=batch.lq.device), 0
        if batch.regions is None:
            raise UserError("the batch has no region labels; name a mask store as masks.store of its data set")
        if batch.regions.shape[-2:] != size:
            raise UserError(
                f"region labels are {tuple(batch.regions.shape[-2:])}, their images {tuple(size)}; SPF needs scale 1"
            )
        return batch.regions, batch.region_count

    def losses(self, batch: TrainingBatch, iteration: int, measure: bool) -> Losses:
        """Return the terms of L_student and L_refine for one micro-batch; a frozen network has no terms.

        measure: also return PSNR, weights and shares, and compute terms that are not due in this iteration.
        """
        gt = ground_truth(batch)
        student_learns = self.schedule.trains_student(iteration)
        refiner_learns = self.schedule.trains_refiner(iteration)
        refiner = self.refiner if refiner_learns else self.teacher

        with self._mode(self.student, "g", batch, student_learns):
            y1 = self.student(batch.lq)
        labels, count = self.regions(batch, last_output(y1).detach())
        refiner_inputs = (last_output(y1).detach(), labels, count, batch.lq)
        with self._mode(refiner, "r", batch, refiner_learns):
            y2 = refiner(*refiner_inputs)

        l_recon: dict[str, Tensor] = {}
        l_refine: dict[str, Tensor] = {}
        if student_learns:
            l_recon = self.reconstruction(y1, gt)
        if refiner_learns:
            l_refine = self.refinement(y2, gt)
        measures = {}
        if measure:
            measures = {"psnr": batch_psnr(last_output(y1), gt), "psnr_refiner": batch_psnr(last_output(y2), gt)}
        terms = dict(l_recon)
        join_terms(terms, l_refine)
        due = self._due(iteration, measure)
        if not due:
            return Losses(terms, measures)

        refined = last_output(y2).detach()
        if refiner is not self.teacher:
            refined = self._teacher_output(refiner_inputs)
        lesson = Lesson(last_output(y1), refined, gt, batch.lq, labels, count, batch.maps)
        distilled = self._distilled(due, lesson, total(l_recon), iteration, measure)
        join_terms(terms, distilled.terms)
        return Losses(terms, measures | distilled.measures)

    def _mode(self, network: nn.Module, label: str, batch: TrainingBatch, learns: bool) -> AbstractContextManager[None]:
        """Return the random stream of a network that learns, or eval mode for a frozen one."""
        if learns:
            return torch_stream(self.seed, label, batch.numbers[0])
        return eval_mode(network)

    def _due(self, iteration: int, measure: bool) -> dict[str, Term]:
        """Return the distillation terms to compute in this iteration: those that are due, and all to measure them."""
        if not self.schedule.distills(iteration):
            return {}
        return {name: term for name, term in self.terms.items() if measure or term.due(iteration)}

    def _teacher_output(self, inputs: tuple[Tensor, Tensor, int, Tensor]) -> Tensor:
        """Return the image of a teacher that is not the refiner in training, (b, c, h, w) without gradient."""
        with eval_mode(self.teacher):
            return last_output(self.teacher(*inputs))

    def _distilled(
        self, computed: Mapping[str, Term], lesson: Lesson, pix: Tensor, iteration: int, measure: bool
    ) -> Losses:
        """Return lambda1 L_SPD and lambda2 L_SGR where they are due, and their measures.

        pix: L_recon(Y1, Y). Pulls are measured while a weight is not fixed yet, and for the log. A weight follows the
        steps before this one; in the very first step it is 0. A share is that of the term's mean pull over its `every`
        iterations.
        """
        terms: dict[str, Tensor] = {}
        measures: dict[str, float] = {}
        for name, term in computed.items():
            target = lesson.gt if term.target == "gt" else lesson.refined
            loss = term.loss(target, lesson._replace(maps=_MapsOf(name, lesson.maps)))
            if loss.ndim:
                raise UserError(f"distillation term {name!r} returned {tuple(loss.shape)}; a term returns one number")
            if term.weight.measuring or measure:
                whole, pull = gradient_norm(pix, lesson.student), gradient_norm(loss, lesson.student)
                if term.due(iteration) and term.weight.measuring:
                    term.pulls.append((whole**2, pull**2))
                if measure:
                    measures[f"weight_{name}"] = term.weight_at(iteration)
                    measures[f"share_{name}"] = 0.0
                    if whole > 0:
                        measures[f"share_{name}"] = term.weight_at(iteration) * pull / whole
            if term.due(iteration):
                terms[name] = loss * (term.weight_at(iteration) * term.every)
        return Losses(terms, measures)

    def end_step(self, average: Average) -> None:
        """Give the step's pulls to the weights, as root mean squares: their ratios are those of one large batch."""
        measured = [term for term in self.terms.values() if term.pulls]
        if not measured:
            return
        squares = []
        for term in measured:
            squares.append(torch.tensor(term.pulls, dtype=torch.float64).mean(dim=0))
        roots = average(torch.stack(squares)).sqrt()
        for term, pair in zip(measured, roots.tolist(), strict=True):
            term.weight.observe(*pair)
            term.pulls.clear()

    def state(self) -> dict[str, Any]:
        """Return the state of each term's weight, by the term's name."""
        return {name: term.weight.state() for name, term in self.terms.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the weights' states; a term that `state` lacks keeps its own."""
        for name, term in self.terms.items():
            if name in state:
                term.weight.load_state(state[name])


class _MapsOf(dict[str, Tensor]):
    """The maps that a distillation term reads; a missing one is an error that names the term and the view."""

    def __init__(self, term: str, maps: Mapping[str, Tensor]) -> None:
        super().__init__(maps)
        self._term = term

    def __missing__(self, view: str) -> Tensor:
        raise UserError(
            f"distillation term {self._term!r} reads the view {view!r}, but the samples have "
            f"{', '.join(self) or 'no maps'}; name it under datasets.train.masks.views"
        )


def gradient_norm(loss: Tensor, at: Tensor) -> float:
    """Return the L2 norm of d loss / d at; 0 if the loss does not depend on it."""
    if not loss.requires_grad:
        return 0.0
    (gradient,) = torch.autograd.grad(loss * LIFT, at, retain_graph=True, allow_unused=True)
    if gradient is None:
        return 0.0
    return gradient.float().norm().item() / LIFT
