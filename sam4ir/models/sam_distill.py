"""SAM4IR: a student network, a refiner that sees SAM's masks, and what the one learns from the other.

Zhang et al., CVPR 2024 (arXiv 2403.16368) state the skeleton; shapes, weights and schedules are ours
(docs/method.md):

    Y1 = f1(X)                    student, deployed
    Y2 = f2(SPF(sg Y1, M))        refiner
    L_refine  = L_recon(Y2, Y)                                                   trains SPF and f2 only
    L_student = L_recon(Y1, Y) + lambda1 L_SPD(Y1, sg Y2) + lambda2 L_SGR(Y1, sg Y2; M)    trains f1 only
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sam4ir.distill.balance import TermWeight
from sam4ir.distill.lesson import DistillationTerm, Lesson
from sam4ir.errors import UserError
from sam4ir.models.restoration import (
    Losses,
    Mean,
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
LIFT = 1024.0  # gradients of a mean over many pixels are lost in float16; a power of two changes no other bit


class Refiner(nn.Module):
    """SPF and the second network f2: restored image and masks -> refined image (or stage outputs)."""

    def __init__(self, spf: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.spf = spf
        self.network = network

    def forward(self, restored: Tensor, labels: Tensor, count: int, degraded: Tensor) -> Tensor | list[Tensor]:
        """restored, degraded: (b, c, h, w); labels: (b, h, w) int64 dense region labels; count: regions at most."""
        return self.network(self.spf(restored, labels, count, degraded))


@dataclass
class Term:
    """A distillation term in use: its loss, its target, its weight, and how often it is computed.

    every: iterations between two computations, whose weight grows by the same factor. pulls: squared gradient norms of
    reconstruction and term, one pair for each micro-batch of the current step.
    """

    loss: DistillationTerm
    target: Target = "refiner"
    weight: TermWeight = field(default_factory=TermWeight)
    every: int = 1
    pulls: list[tuple[float, float]] = field(default_factory=list)

    def due(self, iteration: int) -> bool:
        return iteration % self.every == 0


@dataclass(frozen=True)
class Schedule:
    """Who trains when. start_iter alone (joint): both networks, with SPD and SGR after that iteration.

    refine_iter (two_phase): the refiner up to that iteration, with the student frozen; then the student, taught by
    the frozen refiner. A frozen network is in eval mode: no dropout, no mask dropout, no running statistics.
    """

    start_iter: int = 0
    refine_iter: int | None = None

    def trains_student(self, iteration: int) -> bool:
        return self.refine_iter is None or iteration > self.refine_iter

    def trains_refiner(self, iteration: int) -> bool:
        return self.refine_iter is None or iteration <= self.refine_iter

    def distills(self, iteration: int) -> bool:
        return iteration > (self.start_iter if self.refine_iter is None else self.refine_iter)


class SamDistill:
    """Training of student and refiner.

    student, refiner: trained networks, wrapped where several processes train them.
    reconstruction: the losses of the student's output; the shares of terms are measured against their sum.
    refinement: the losses of the refiner's output.
    terms: the distillation terms by name.
    teacher: the refiner whose output is the target, run frozen; by default the trained one, else its EMA.
    schedule: the iterations that train each network.
    masks: False trains the control with empty masks.
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
        masks: bool = True,
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
        return {"g": unwrapped(self.student), "r": unwrapped(self.refiner)}

    def active(self, iteration: int) -> tuple[str, ...]:
        student = ("g",) if self.schedule.trains_student(iteration) else ()
        return student + (("r",) if self.schedule.trains_refiner(iteration) else ())

    def regions(self, batch: TrainingBatch) -> tuple[Tensor, int]:
        """Labels (b, h, w) and the number of regions; all "no region" where masks are left out.

        Raises ValueError where labels are missing or of another size than the images.
        """
        size = batch.lq.shape[-2:]
        if not self.masks:
            return torch.zeros(batch.lq.shape[0], *size, dtype=torch.int64, device=batch.lq.device), 0
        if batch.regions is None:
            raise UserError("the batch has no region labels; name a mask store as masks.store of its data set")
        if batch.regions.shape[-2:] != size:
            raise UserError(
                f"region labels are {tuple(batch.regions.shape[-2:])}, their images {tuple(size)}; SPF needs scale 1"
            )
        return batch.regions, batch.region_count

    def losses(self, batch: TrainingBatch, iteration: int, measure: bool) -> Losses:
        gt = ground_truth(batch)
        labels, count = self.regions(batch)
        student_learns = self.schedule.trains_student(iteration)
        refiner_learns = self.schedule.trains_refiner(iteration)
        with torch_stream(self.seed, "g", batch.numbers[0]) if student_learns else eval_mode(self.student):
            y1 = self.student(batch.lq)
        seen = (last_output(y1).detach(), labels, count, batch.lq)
        second = self.refiner if refiner_learns else self.teacher
        with torch_stream(self.seed, "r", batch.numbers[0]) if refiner_learns else eval_mode(second):
            y2 = second(*seen)
        measures = {}
        reconstruction = self.reconstruction(y1, gt) if student_learns else {}
        refinement = self.refinement(y2, gt) if refiner_learns else {}
        terms = dict(reconstruction)
        join_terms(terms, refinement)
        if measure:
            measures = {"psnr": batch_psnr(last_output(y1), gt), "psnr_refiner": batch_psnr(last_output(y2), gt)}
        computed = {name: term for name, term in self.terms.items() if measure or term.due(iteration)}
        if computed and self.schedule.distills(iteration):
            refined = last_output(y2).detach() if second is self.teacher else self._taught(seen)
            lesson = Lesson(last_output(y1), refined, gt, batch.lq, labels, count, batch.maps)
            taught = self._distil(computed, lesson, total(reconstruction), iteration, measure)
            join_terms(terms, taught.terms)
            measures |= taught.measures
        return Losses(terms, measures)

    def _taught(self, seen: tuple[Tensor, Tensor, int, Tensor]) -> Tensor:
        """The image of the teacher that is not the raw refiner, (b, c, h, w) without gradient."""
        with eval_mode(self.teacher):
            return last_output(self.teacher(*seen))

    def _distil(
        self, computed: Mapping[str, Term], lesson: Lesson, pix: Tensor, iteration: int, measure: bool
    ) -> Losses:
        """Return the weighted terms that are due. Pulls are measured while a weight is not fixed yet, and for the log.

        A weight follows the steps before this one; in the very first step it is 0. A share is that of the term's mean
        pull over its `every` iterations.
        """
        terms: dict[str, Tensor] = {}
        measures: dict[str, float] = {}
        for name, term in computed.items():
            target = lesson.gt if term.target == "gt" else lesson.refined
            loss = term.loss(target, lesson)
            if term.weight.measuring or measure:
                whole, pull = gradient_norm(pix, lesson.student), gradient_norm(loss, lesson.student)
                if term.due(iteration) and term.weight.measuring:
                    term.pulls.append((whole**2, pull**2))
                if measure:
                    measures[f"weight_{name}"] = term.weight.value
                    measures[f"share_{name}"] = term.weight.value * pull / whole if whole > 0 else 0.0
            if term.due(iteration):
                terms[name] = loss * (term.weight.value * term.every)
        return Losses(terms, measures)

    def end_step(self, mean: Mean) -> None:
        """Give the step's pulls to the weights, as root mean squares: their ratios are those of one large batch."""
        pulling = [term for term in self.terms.values() if term.pulls]
        if not pulling:
            return
        squares = mean(torch.stack([torch.tensor(t.pulls, dtype=torch.float64).mean(dim=0) for t in pulling]))
        for term, pair in zip(pulling, squares.sqrt().tolist(), strict=True):
            term.weight.observe(*pair)
            term.pulls.clear()

    def state(self) -> dict[str, Any]:
        return {name: term.weight.state() for name, term in self.terms.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        for name, term in self.terms.items():
            if name in state:
                term.weight.load_state(state[name])


def gradient_norm(loss: Tensor, at: Tensor) -> float:
    """Return the L2 norm of d loss / d at; 0 if the loss does not depend on it."""
    if not loss.requires_grad:
        return 0.0
    (gradient,) = torch.autograd.grad(loss * LIFT, at, retain_graph=True, allow_unused=True)
    if gradient is None:
        return 0.0
    return gradient.float().norm().item() / LIFT
