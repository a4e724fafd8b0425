"""Learning rates as closed forms of the iteration, so that resuming needs no scheduler state.

Every schedule is a function (iteration, base_lr, ...) -> lr, where `iteration` counts the steps
already taken; the arguments after these carry BasicSR's names and are checked by the option file.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence


def constant(iteration: int, base_lr: float) -> float:
    """The base rate throughout."""
    return base_lr


def true_cosine(iteration: int, base_lr: float, T_max: int, eta_min: float = 0.0) -> float:
    """Half a cosine from base_lr to eta_min at T_max (torch's CosineAnnealingLR in closed form; NAFNet's recipes)."""
    return eta_min + (base_lr - eta_min) * (1 + math.cos(math.pi * iteration / T_max)) / 2


def cosine_restart(
    iteration: int,
    base_lr: float,
    periods: Sequence[int],
    restart_weights: Sequence[float] = (1.0,),
    eta_min: float = 0.0,
) -> float:
    """Cosines of the given periods one after the other, the k-th scaled by restart_weights[k] (BasicSR).

    The last period goes on after its end. Raises ValueError where the two lists differ in length.
    """
    if len(periods) != len(restart_weights):
        raise ValueError(f"{len(periods)} periods but {len(restart_weights)} restart_weights; give one weight a period")
    start, index = 0, 0
    while index < len(periods) - 1 and iteration > start + periods[index]:
        start += periods[index]
        index += 1
    cosine = 1 + math.cos(math.pi * (iteration - start) / periods[index])
    return eta_min + restart_weights[index] * 0.5 * (base_lr - eta_min) * cosine


def multi_step(iteration: int, base_lr: float, milestones: Sequence[int], gamma: float = 0.1) -> float:
    """base_lr times gamma for every milestone reached."""
    return base_lr * gamma ** bisect_right(sorted(milestones), iteration)


def multi_step_restart(
    iteration: int,
    base_lr: float,
    milestones: Sequence[int],
    gamma: float = 0.1,
    restarts: Sequence[int] = (0,),
    restart_weights: Sequence[float] = (1.0,),
) -> float:
    """multi_step that returns to base_lr times a weight at each restart (BasicSR)."""
    if len(restarts) != len(restart_weights):
        raise ValueError(
            f"{len(restarts)} restarts but {len(restart_weights)} restart_weights; give one weight a restart"
        )
    begun = [(r, w) for r, w in zip(restarts, restart_weights, strict=True) if r <= iteration]
    start, weight = max(begun, default=(0, 1.0))
    passed = sum(start < m <= iteration for m in milestones)
    return base_lr * weight * gamma**passed
