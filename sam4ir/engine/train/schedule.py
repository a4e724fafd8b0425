"""Learning rates as closed forms of the iteration, so that resuming needs no scheduler state.

Every schedule is a function (iteration, base_lr, ...) -> lr, where `iteration` counts the steps
already taken; the arguments after these carry BasicSR's names and are checked by the option file.
The names are those that BasicSR, NAFNet, HINet and Restormer dispatch on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sam4ir.errors import UserError


def constant(iteration: int, base_lr: float) -> float:
    """The base rate throughout."""
    return base_lr


def true_cosine(iteration: int, base_lr: float, T_max: int, eta_min: float = 0.0) -> float:
    """Half a cosine from base_lr to eta_min at T_max (torch's CosineAnnealingLR in closed form; NAFNet's recipes)."""
    return _cosine(base_lr, eta_min, iteration / T_max)


def cosine_restart(
    iteration: int,
    base_lr: float,
    periods: Sequence[int],
    restart_weights: Sequence[float] = (1.0,),
    eta_min: float = 0.0,
) -> float:
    """Cosines of the given periods one after the other, the k-th scaled by restart_weights[k] (BasicSR).

    The end of a period belongs to it; after the last one its final rate stays.
    Raises ValueError where the two lists differ in length.
    """
    _same_length("periods", periods, restart_weights=restart_weights)
    index, progress = _period(iteration, periods)
    return _cosine(base_lr, eta_min, progress, restart_weights[index])


def cosine_restart_cyclic(
    iteration: int,
    base_lr: float,
    periods: Sequence[int],
    restart_weights: Sequence[float] = (1.0,),
    eta_mins: Sequence[float] = (0.0,),
) -> float:
    """cosine_restart with a lowest rate of its own for each period (Restormer).

    Restormer's recipes: periods 92k and 208k, eta_mins 3e-4 (the base rate, so constant) and 1e-6.
    Raises ValueError where the lists differ in length.
    """
    _same_length("periods", periods, restart_weights=restart_weights, eta_mins=eta_mins)
    index, progress = _period(iteration, periods)
    return _cosine(base_lr, eta_mins[index], progress, restart_weights[index])


def multi_step_restart(
    iteration: int,
    base_lr: float,
    milestones: Sequence[int],
    gamma: float = 0.1,
    restarts: Sequence[int] = (0,),
    restart_weights: Sequence[float] = (1.0,),
) -> float:
    """base_lr times gamma for every milestone reached; back to base_lr times a weight at each restart (BasicSR).

    A milestone at a restart does not count. Raises ValueError where restarts and their weights differ in number.
    """
    _same_length("restarts", restarts, restart_weights=restart_weights)
    begun = [(r, w) for r, w in zip(restarts, restart_weights, strict=True) if r <= iteration]
    start, weight = max(begun, default=(0, 1.0))
    passed = sum(start < m <= iteration for m in milestones)
    return base_lr * weight * gamma**passed


def linear(iteration: int, base_lr: float, total_iter: int) -> float:
    """A line from base_lr to 0 at total_iter, where it stays (NAFNet and HINet)."""
    return base_lr * max(1 - iteration / total_iter, 0.0)


def vibrate(iteration: int, base_lr: float, total_iter: int) -> float:
    """Eighty triangles from 0 to an envelope and back (NAFNet and HINet).

    The envelope falls from base_lr on a line that would reach 0 at 3/8 of total_iter, then is 0.2 of base_lr, from
    5/8 on 0.1. The first rise starts at 0.1 of base_lr. Raises ValueError where total_iter is under 160, for a
    triangle needs two iterations.
    """
    period = total_iter // 80
    half = period // 2
    if half < 1:
        raise UserError(f"total_iter {total_iter} is under 160, so that its eighty triangles have no iteration each")
    progress = iteration / total_iter
    envelope = 1 - progress * 8 / 3 if progress < 3 / 8 else 0.2 if progress < 5 / 8 else 0.1
    rise = iteration % period / half
    height = rise if rise < 1 else 2 - rise
    return base_lr * (max(0.1, envelope * height) if iteration < half else envelope * height)


def _cosine(base_lr: float, eta_min: float, progress: float, weight: float = 1.0) -> float:
    """eta_min + weight (base_lr - eta_min) (1 + cos(pi progress)) / 2"""
    return eta_min + weight * (base_lr - eta_min) * (1 + math.cos(math.pi * progress)) / 2


def _period(iteration: int, periods: Sequence[int]) -> tuple[int, float]:
    """(index of the period that an iteration lies in, share of it that has passed, at most 1)."""
    start, index = 0, 0
    while index < len(periods) - 1 and iteration > start + periods[index]:
        start += periods[index]
        index += 1
    return index, min((iteration - start) / periods[index], 1.0)


def _same_length(name: str, values: Sequence[float], **others: Sequence[float]) -> None:
    for other, belonging in others.items():
        if len(belonging) != len(values):
            raise UserError(
                f"{len(values)} {name} but {len(belonging)} {other}; give one of {other} for each of {name}"
            )
