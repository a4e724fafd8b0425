"""Learning rates; golden ones are from BasicSR 8d56e3a (lr after i scheduler steps), the others worked out by hand."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch

from sam4ir.engine.train.optim import learning_rate
from sam4ir.engine.train.schedule import (
    cosine_restart,
    cosine_restart_cyclic,
    linear,
    multi_step_restart,
    true_cosine,
    vibrate,
)
from sam4ir.registry import SCHEDULES

PERIODS = {"periods": [10, 10, 10, 10], "restart_weights": [1, 0.5, 0.5, 0.5], "eta_min": 1e-7}
GOLDEN = {
    1: 0.00019510809880370062,
    9: 4.991901196299404e-06,
    10: 1e-07,
    11: 9.760404940185031e-05,
    20: 1e-07,
    39: 2.545950598149702e-06,
}
UNEVEN = {"periods": [7, 13], "restart_weights": [1, 0.25]}
GOLDEN_UNEVEN = {3: 0.0006112604669781572, 7: 0.0, 8: 0.0002463677271782565, 19: 3.6322728217434988e-06}
RESTORMER = {"periods": [92_000, 208_000], "restart_weights": [1, 1], "eta_mins": [3e-4, 1e-6]}


@pytest.mark.parametrize(("iteration", "expected"), GOLDEN.items())
def test_cosine_restart_equals_basicsr(iteration: int, expected: float) -> None:
    assert cosine_restart(iteration, 2e-4, **PERIODS) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("iteration", "expected"), GOLDEN_UNEVEN.items())
def test_cosine_restart_of_uneven_periods_equals_basicsr(iteration: int, expected: float) -> None:
    assert cosine_restart(iteration, 1e-3, **UNEVEN) == pytest.approx(expected, rel=1e-9, abs=1e-18)


def test_the_cyclic_cosine_with_one_lowest_rate_is_the_cosine_restart() -> None:
    for i in range(41):
        cyclic = cosine_restart_cyclic(i, 2e-4, PERIODS["periods"], PERIODS["restart_weights"], [1e-7] * 4)
        assert cyclic == cosine_restart(i, 2e-4, **PERIODS)


@pytest.mark.parametrize(
    ("iteration", "expected"),
    [
        (0, 3e-4),
        (50_000, 3e-4),
        (92_000, 3e-4),
        (92_000 + 52_000, 1e-6 + 2.99e-4 * (2 + math.sqrt(2)) / 4),  # a quarter of the second period: cos(pi/4)
        (92_000 + 104_000, (3e-4 + 1e-6) / 2),
        (300_000, 1e-6),
        (310_000, 1e-6),
    ],
)
def test_restormer_holds_the_base_rate_and_then_falls_to_the_second_lowest_one(iteration: int, expected: float) -> None:
    assert cosine_restart_cyclic(iteration, 3e-4, **RESTORMER) == pytest.approx(expected, rel=1e-12)


def test_after_the_last_period_its_final_rate_stays() -> None:
    assert cosine_restart(60, 1.0, [10, 20], [1, 0.5], 0.125) == cosine_restart(30, 1.0, [10, 20], [1, 0.5], 0.125)


def test_true_cosine_equals_torch() -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=20, eta_min=1e-7)
    for i in range(21):
        assert true_cosine(i, 1e-3, T_max=20, eta_min=1e-7) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6)
        optimiser.step()
        scheduler.step()


def test_multi_step_equals_torch() -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones=[3, 5, 5], gamma=0.5)
    for i in range(9):
        rate = multi_step_restart(i, 1e-3, milestones=[3, 5, 5], gamma=0.5)
        assert rate == pytest.approx(scheduler.get_last_lr()[0])
        optimiser.step()
        scheduler.step()


def test_restart_returns_to_the_weighted_base_rate() -> None:
    rates = [multi_step_restart(i, 1.0, [2, 6], 0.1, restarts=[0, 4], restart_weights=[1, 0.5]) for i in range(8)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.5, 0.5, 0.05, 0.05])


def test_a_milestone_at_a_restart_does_not_count() -> None:
    rates = [multi_step_restart(i, 1.0, [2, 4], 0.1, restarts=[0, 4], restart_weights=[1, 0.5]) for i in (3, 4, 5)]
    assert rates == pytest.approx([0.1, 0.5, 0.5])


def test_linear_falls_to_zero_and_stays() -> None:
    rates = [linear(i, 2.0, total_iter=4) for i in (0, 1, 2, 4, 9)]
    assert rates == [2.0, 1.5, 1.0, 0.0, 0.0]


def test_vibrate_is_triangles_under_a_falling_envelope() -> None:
    """total_iter 800: triangles of 10, 5 up and 5 down; the envelope is 1 - i/300 to 300, 0.2 to 500, then 0.1."""
    found = {i: vibrate(i, 2.0, total_iter=800) / 2 for i in (0, 1, 5, 9, 10, 12, 155, 305, 308, 499, 505, 800)}
    assert found == pytest.approx(
        {
            0: 0.1,  # the first rise does not start at 0
            1: (1 - 1 / 300) * 0.2,
            5: 1 - 5 / 300,
            9: (1 - 9 / 300) * 0.2,
            10: 0.0,
            12: (1 - 12 / 300) * 0.4,
            155: 1 - 155 / 300,
            305: 0.2,
            308: 0.2 * 0.4,
            499: 0.2 * 0.2,
            505: 0.1,
            800: 0.0,
        }
    )


def test_vibrate_with_triangles_of_an_odd_length() -> None:
    """total_iter 400: 5 iterations a triangle, the way up is 2 long, so the last iteration of a triangle is at 0."""
    envelope = [1 - i / 150 for i in range(5)]
    assert [vibrate(i, 1.0, total_iter=400) for i in range(5)] == pytest.approx(
        [0.1, envelope[1] / 2, envelope[2], envelope[3] / 2, 0.0]
    )


def test_vibrate_needs_two_iterations_a_triangle() -> None:
    with pytest.raises(ValueError, match="total_iter 159 is under 160"):
        vibrate(0, 1.0, total_iter=159)
    assert vibrate(1, 1.0, total_iter=160) > 0.9


def test_every_scheduler_of_the_three_code_bases_has_its_name() -> None:
    dispatched = (
        *("MultiStepLR", "MultiStepRestartLR", "CosineAnnealingRestartLR", "CosineAnnealingRestartCyclicLR"),
        *("TrueCosineAnnealingLR", "LinearLR", "VibrateLR"),
    )
    assert set(dispatched) <= set(SCHEDULES.names())
    assert SCHEDULES.get("MultiStepLR") is SCHEDULES.get("MultiStepRestartLR")  # as in BasicSR's setup_schedulers


def test_warm_up_is_a_line_from_zero_and_then_the_schedule_as_if_it_had_run_all_along() -> None:
    rate = learning_rate(1.0, lambda i, base: base * math.exp(-i), warmup_iter=4)
    assert [rate(i) for i in (1, 2, 3)] == [0.25, 0.5, 0.75]
    assert rate(4) == math.exp(-3)


def basicsr(scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler], warmup: int, last: int) -> list[float]:
    """lr of iterations 1 to `last` by BasicSR's rule: step the scheduler, then overwrite the rate while warming up."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    schedule, rates = scheduler(optimiser), []
    for iteration in range(1, last + 1):
        optimiser.step()
        if iteration > 1:
            schedule.step()
        if iteration < warmup:
            optimiser.param_groups[0]["lr"] = 2e-4 / warmup * iteration
        rates.append(optimiser.param_groups[0]["lr"])
    return rates


def test_the_warm_up_of_hinet_on_rain13k_is_that_of_basicsr() -> None:
    """10k of 400k iterations.

    After them torch's CosineAnnealingLR, which multiplies the last rate instead of computing it anew, stays 0.14 %
    above the cosine, for it has taken up the last rate of the warm-up; ours is the cosine.
    """
    cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=400_000, eta_min=1e-7)
    expected = basicsr(cosine, warmup=10_000, last=10_200)
    rate = learning_rate(2e-4, partial(true_cosine, T_max=400_000, eta_min=1e-7), warmup_iter=10_000)
    found = [rate(i) for i in range(1, 10_201)]
    assert found[:9999] == pytest.approx(expected[:9999], rel=1e-12)
    assert found[9998:10_000] == pytest.approx([2e-4 * 0.9999, true_cosine(9999, 2e-4, 400_000, 1e-7)], rel=1e-12)
    above = [theirs / ours for theirs, ours in zip(expected[9999:], found[9999:], strict=True)]
    assert above == pytest.approx([1.00144] * len(above), abs=1e-5)


def test_warm_up_with_a_scheduler_that_computes_its_rate_anew_is_exactly_basicsrs() -> None:
    constant = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda i: 0.5 ** (i // 20))
    expected = basicsr(constant, warmup=30, last=60)
    rate = learning_rate(2e-4, partial(multi_step_restart, milestones=[20, 40], gamma=0.5), warmup_iter=30)
    assert [rate(i) for i in range(1, 61)] == pytest.approx(expected, rel=1e-12)


def test_a_second_phase_counts_from_its_own_start() -> None:
    rate = learning_rate(1.0, lambda i, base: base - i / 10, warmup_iter=-1, start=100)
    assert rate(101) == 1.0
    assert rate(103) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cosine_restart(0, 1.0, [1, 2], [1.0]), "2 periods but 1 restart_weights"),
        (lambda: cosine_restart_cyclic(0, 1.0, [1, 2], [1.0, 1.0], [0.0]), "2 periods but 1 eta_mins"),
        (lambda: multi_step_restart(0, 1.0, [1], restarts=[0, 5]), "2 restarts but 1 restart_weights"),
        (lambda: true_cosine(0, 1.0, T_max=0), "T_max 0: must be above 0"),
        (lambda: cosine_restart(0, 1.0, [5, -1], [1.0, 1.0]), "periods 5, -1: must be above 0"),
        (lambda: cosine_restart_cyclic(0, 1.0, [0]), "periods 0: must be above 0"),
        (lambda: cosine_restart(0, 1.0, [], []), r"periods \[\]: must be above 0"),
        (lambda: linear(0, 1.0, total_iter=0), "total_iter 0: must be above 0"),
    ],
)
def test_lists_and_lengths_that_cannot_be_are_an_error(call: Callable[[], float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
