"""Learning rates; the golden ones are from BasicSR 8d56e3a (lr after i scheduler steps)."""

import math

import pytest
import torch

from sam4ir.engine.optim import learning_rate
from sam4ir.engine.schedule import cosine_restart, multi_step, multi_step_restart, true_cosine

PERIODS = {"periods": [10, 10, 10, 10], "restart_weights": [1, 0.5, 0.5, 0.5], "eta_min": 1e-7}
GOLDEN = {
    1: 0.00019510809880370062,
    9: 4.991901196299404e-06,
    10: 1e-07,
    11: 9.760404940185031e-05,
    20: 1e-07,
    39: 2.545950598149702e-06,
}


@pytest.mark.parametrize(("iteration", "expected"), GOLDEN.items())
def test_cosine_restart_equals_basicsr(iteration: int, expected: float) -> None:
    assert cosine_restart(iteration, 2e-4, **PERIODS) == pytest.approx(expected, rel=1e-9)


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
        assert multi_step(i, 1e-3, milestones=[3, 5, 5], gamma=0.5) == pytest.approx(scheduler.get_last_lr()[0])
        optimiser.step()
        scheduler.step()


def test_restart_returns_to_the_weighted_base_rate() -> None:
    rates = [multi_step_restart(i, 1.0, [2, 6], 0.1, restarts=[0, 4], restart_weights=[1, 0.5]) for i in range(8)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.5, 0.5, 0.05, 0.05])


def test_warm_up_is_a_line_from_zero_and_then_the_schedule_as_if_it_had_run_all_along() -> None:
    rate = learning_rate(1.0, lambda i, base: base * math.exp(-i), warmup_iter=4)
    assert [rate(i) for i in (1, 2, 3)] == [0.25, 0.5, 0.75]
    assert rate(4) == math.exp(-3)


def test_a_second_phase_counts_from_its_own_start() -> None:
    rate = learning_rate(1.0, lambda i, base: base - i / 10, warmup_iter=-1, start=100)
    assert rate(101) == 1.0
    assert rate(103) == pytest.approx(0.8)


def test_periods_and_weights_of_different_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 periods but 1 restart_weights"):
        cosine_restart(0, 1.0, periods=[1, 2], restart_weights=[1.0])
