"""Learning rates as closed forms of the iteration, so that resuming needs no scheduler state.

Every schedule is a function (iteration, base_lr, ...) -> lr, where `iteration` is the number of steps before this one.
The arguments after these have BasicSR's names, and option files give them. Option files call the schedules by the names
that BasicSR, NAFNet, HINet and Restormer dispatch on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sam4ir.errors import UserError


def constant(iteration: int, base_lr: float) -> float:
    """Keep the base rate throughout."""
    return base_lr


def true_cosine(iteration: int, base_lr: float, T_max: int, eta_min: float = 0.0) -> float:
    """Follow half a cosine from base_lr to eta_min at T_max (torch's CosineAnnealingLR; NAFNet's recipes).

    Args:
        T_max: Iterations of half a cosine, usually the whole training.
        eta_min: Learning rate at the end of the half cosine.
    """
    _positive(T_max=[T_max])
    return _cosine(base_lr, eta_min, iteration / T_max)


def cosine_restart(
    iteration: int,
    base_lr: float,
    periods: Sequence[int],
    restart_weights: Sequence[float] = (1.0,),
    eta_min: float = 0.0,
) -> float:
    """Follow one half cosine after the other, each with its own period and scale (BasicSR).

    The end of a period belongs to it; after the last period its final rate stays. Raises UserError if the lists differ
    in length.

    Args:
        periods: Iterations of each half cosine.
        restart_weights: Factor of the rate in each period; as long as periods.
        eta_min: Learning rate at the end of each period.
    """
    _same_length("periods", periods, restart_weights=restart_weights)
    _positive(periods=periods)
    index, progress = _period(iteration, periods)
    return _cosine(base_lr, eta_min, progress, restart_weights[index])


def cosine_restart_cyclic(
    iteration: int,
    base_lr: float,
    periods: Sequence[int],
    restart_weights: Sequence[float] = (1.0,),
    eta_mins: Sequence[float] = (0.0,),
) -> float:
    """Follow one half cosine after the other, each with its own period, scale and final rate (Restormer).

    Restormer's recipes have periods of 92k and 208k, and eta_mins of 3e-4 (the base rate, so constant) and 1e-6.
    Raises UserError if the lists differ in length.

    Args:
        periods: Iterations of each half cosine.
        restart_weights: Factor of the rate in each period; as long as periods.
        eta_mins: Learning rate at the end of each period; as long as periods.
    """
    _same_length("periods", periods, restart_weights=restart_weights, eta_mins=eta_mins)
    _positive(periods=periods)
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
    """Multiply the rate by gamma at each milestone, and set it back to a share of base_lr at each restart (BasicSR).

    A milestone at a restart does not count. Raises UserError if restarts and their weights differ in number.

    Args:
        milestones: Iterations at which the rate is multiplied by gamma.
        gamma: Factor of the rate at a milestone.
        restarts: Iterations at which the rate starts anew.
        restart_weights: Factor of base_lr after each restart; as long as restarts.
    """
    _same_length("restarts", restarts, restart_weights=restart_weights)
    start, weight = _last_restart(iteration, restarts, restart_weights)
    passed = sum(start < milestone <= iteration for milestone in milestones)
    return base_lr * weight * gamma**passed


def _last_restart(iteration: int, restarts: Sequence[int], weights: Sequence[float]) -> tuple[int, float]:
    """Return the last restart up to an iteration and its weight; (0, 1) before the first."""
    reached = []
    for restart, weight in zip(restarts, weights, strict=True):
        if restart <= iteration:
            reached.append((restart, weight))
    return max(reached, default=(0, 1.0))


def linear(iteration: int, base_lr: float, total_iter: int) -> float:
    """Fall on a line from base_lr to 0 at total_iter, and stay there (NAFNet and HINet).

    Args:
        total_iter: Iterations until the rate is 0; an option file may leave it to train.total_iter.
    """
    _positive(total_iter=[total_iter])
    return base_lr * max(1 - iteration / total_iter, 0.0)


def vibrate(iteration: int, base_lr: float, total_iter: int) -> float:
    """Rise and fall in eighty triangles between 0 and an envelope (NAFNet and HINet).

    The envelope falls from base_lr on a line that would reach 0 at 3/8 of total_iter, then is 0.2 of base_lr, and from
    5/8 on 0.1. The first rise starts at 0.1 of base_lr. Raises UserError if total_iter is under 160, since a triangle
    needs two iterations.

    Args:
        total_iter: Iterations of the eighty triangles, 160 at least; an option file may leave it to train.total_iter.
    """
    period = total_iter // 80
    half = period // 2
    if half < 1:
        raise UserError(f"total_iter {total_iter} is under 160, so that its eighty triangles have no iteration each")
    envelope = _envelope(iteration / total_iter)
    rise = iteration % period / half
    if rise >= 1:
        rise = 2 - rise
    height = envelope * rise
    if iteration < half:
        height = max(0.1, height)
    return base_lr * height


def _envelope(progress: float) -> float:
    """Return the height of vibrate's triangles after a share of the training, over base_lr."""
    if progress < 3 / 8:
        return 1 - progress * 8 / 3
    if progress < 5 / 8:
        return 0.2
    return 0.1


def _cosine(base_lr: float, eta_min: float, progress: float, weight: float = 1.0) -> float:
    """Return eta_min + weight (base_lr - eta_min) (1 + cos(pi progress)) / 2."""
    return eta_min + weight * (base_lr - eta_min) * (1 + math.cos(math.pi * progress)) / 2


def _period(iteration: int, periods: Sequence[int]) -> tuple[int, float]:
    """Return (index of the period of an iteration, share of the period that has passed, at most 1)."""
    start, index = 0, 0
    while index < len(periods) - 1 and iteration > start + periods[index]:
        start += periods[index]
        index += 1
    return index, min((iteration - start) / periods[index], 1.0)


def _positive(**arguments: Sequence[float]) -> None:
    for name, values in arguments.items():
        if not values or min(values) <= 0:
            raise UserError(f"{name} {', '.join(map(str, values)) or '[]'}: must be above 0")


def _same_length(name: str, values: Sequence[float], **others: Sequence[float]) -> None:
    """Raise UserError naming a list that is not as long as `values`."""
    for other, entries in others.items():
        if len(entries) != len(values):
            raise UserError(f"{len(values)} {name} but {len(entries)} {other}; give one of {other} for each of {name}")
