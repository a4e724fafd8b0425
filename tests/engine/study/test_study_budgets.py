"""Budgets: equal time and equal compute change the iterations of all arms but the control."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from conftest import World
from engine.study.small_study import order, small_plan, stub, study_of

from sam4ir.config.schema import Options
from sam4ir.engine.study import budget, command
from sam4ir.engine.study.budget import is_measured, plan_as_kept, plan_with_budget
from sam4ir.engine.study.plan import StudyError
from sam4ir.engine.study.run import RunChoice

ARMS = {"plain": {}, "l1": {"train:pixel_opt:type": "L1Loss"}}


@pytest.fixture
def measured(world: World, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Let L1 take half of the time and a quarter of the compute; return the measured (run, device)."""
    monkeypatch.chdir(world.root)
    runs: list[tuple[str, str]] = []

    def estimate(options: Options, _: float) -> SimpleNamespace:
        runs.append((options.name, options.device))
        cheap = options.train is not None and options.train.pixel_opt.type == "L1Loss"
        return SimpleNamespace(training=5.0 if cheap else 10.0, multiply_adds=1e9 if cheap else 4e9)

    monkeypatch.setattr(budget, "estimate_run", estimate)
    return runs


@pytest.mark.parametrize(("rule", "iterations"), [("equal_steps", 8), ("equal_time", 16), ("equal_compute", 32)])
def test_an_arm_gets_what_the_control_has(
    rule: str, iterations: int, world: World, measured: list[tuple[str, str]]
) -> None:
    plan = plan_with_budget(*study_of(world, budget=rule))
    for seed in (0, 2):
        options = plan.run_of("l1", seed).options()
        assert options.train.total_iter == iterations
        assert options.train.scheduler.arguments["T_max"] == iterations
        assert plan.run_of("plain", seed).options().train.total_iter == 8
    equal = small_plan(world, budget=rule)
    assert plan.run_of("plain", 0).facts == equal.run_of("plain", 0).facts


def test_the_control_may_be_any_arm(world: World, measured: list[tuple[str, str]]) -> None:
    plan = plan_with_budget(*study_of(world, budget="equal_time", control="l1"))
    assert plan.run_of("plain", 0).options().train.total_iter == 4
    assert plan.run_of("l1", 0).options().train.total_iter == 8


def test_one_measurement_is_shared_and_a_report_measures_nothing(world: World, measured: list[tuple[str, str]]) -> None:
    study, file = study_of(world, budget="equal_time")
    plan = plan_as_kept(study, file)
    assert not is_measured(plan)
    assert (plan.run_of("l1", 0).options().train.total_iter, measured) == (8, [])
    plan_with_budget(study, file, "cpu")
    assert measured == [("small_study_plain_s0", "cpu"), ("small_study_l1_s0", "cpu")]
    again = plan_with_budget(*study_of(world, budget="equal_time", seeds=5))
    assert again.run_of("l1", 4).options().train.total_iter == 16
    assert plan_as_kept(study, file).run_of("l1", 0).options().train.total_iter == 16
    assert len(measured) == 2
    assert is_measured(plan)


def test_a_measurement_of_other_options_is_refused(world: World, measured: list[tuple[str, str]]) -> None:
    plan_with_budget(*study_of(world, budget="equal_time"))
    for changes in ({"budget": "equal_compute"}, {"budget": "equal_time", "set": {"train:ema_decay": 0.5}}):
        with pytest.raises(StudyError, match=r"budget\.json: was measured for other options"):
            plan_with_budget(*study_of(world, **changes))


def test_masks_cost_compute_once_for_each_image(world: World, measured: list[tuple[str, str]]) -> None:
    """5 images of 0.4e9 multiply-adds are 2e9, which the arm with masks trains less; it takes 4e9 for 8 steps."""
    values = world.values(sam=True)
    empty = {"train:distill:masks": "empty", "datasets:train:masks": None, "datasets:val:masks": None}
    changes = {"arms": {"empty": empty, "masks": {}}, "comparisons": []}
    plan = plan_with_budget(*study_of(world, values, budget="equal_compute", mask_compute=0.4, **changes))
    assert plan.run_of("masks", 0).options().train.total_iter == 4
    assert plan.run_of("empty", 0).options().train.total_iter == 8
    dear = study_of(world, values, name="dear", budget="equal_compute", mask_compute=1.0, **changes)
    with pytest.raises(StudyError, match="the masks of masks cost more than the whole training of empty"):
        plan_with_budget(*dear)


def test_shared_steps_come_before_the_measurement(
    world: World, measured: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data that they make may be what the arms train on."""
    stub(monkeypatch, {"lq": "touch made"})
    seen: list[bool] = []
    plain: Callable[[Options, float], SimpleNamespace] = budget.estimate_run

    def estimate(options: Options, patience: float) -> SimpleNamespace:
        seen.append((world.root / "made").exists())
        return plain(options, patience)

    monkeypatch.setattr(budget, "estimate_run", estimate)
    monkeypatch.setattr(command, "report_study", lambda *_: None)
    step = {"command": ["prepare", "x"], "output": str(world.root / "gt"), "every_seed": False}
    changes = {"shared": {"lq": step}, "set": {"datasets:val:dataroot_gt": "{lq}"}}
    study, file = study_of(world, budget="equal_time", **changes)
    assert command.run_study(study, file, RunChoice(), None) == 0
    assert seen == [True, True]
    assert order()[0] == "lq"
    assert len(order()) == 7
    assert json.loads((world.root / "studies/small_study/budget.json").read_text())["lengths"] == {
        "plain": 1.0,
        "l1": 2.0,
    }


def test_a_step_that_fails_leaves_out_the_measurement(
    world: World, measured: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(monkeypatch, {"lq": "exit 1"})
    step = {"command": ["prepare", "x"], "output": "made", "every_seed": False}
    changes = {"shared": {"lq": step}, "set": {"datasets:val:dataroot_gt": "{lq}"}}
    study, file = study_of(world, budget="equal_time", **changes)
    assert command.run_study(study, file, RunChoice(), None) == 1
    assert measured == []


def test_a_real_measurement_takes_real_steps(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.root)
    monkeypatch.setattr(budget, "PATIENCE", 0.2)
    arms = {"plain": {}, "wide": {"network_g:width": 8}}
    plan = plan_with_budget(*study_of(world, arms=arms, comparisons=[], budget="equal_compute"))
    assert 2 <= plan.run_of("wide", 0).options().train.total_iter <= 4  # 2 to 4 times the multiply-adds of width 4
