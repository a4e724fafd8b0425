"""The jobs of a study: their names, needs, options and order."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import World
from engine.study.small_study import small_plan, study_of

from sam4ir.cli.main import COMMANDS
from sam4ir.config.load import OptionsError
from sam4ir.config.recipes import study_files
from sam4ir.config.study import load_study
from sam4ir.engine.study.plan import StudyError, StudyPlan, longer, plan_of

SHARED = {
    "student": {"set": {"train:total_iter": 4}, "every_seed": False},
    "tuned": {"set": {"path:pretrain_network_g": "{student}"}},
    "store": {"command": ["masks", "control", "--like", "{tuned}"], "output": "{folder}/{seed}.lmdb"},
}


@pytest.fixture(autouse=True)
def _in_the_world(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.root)


def shared_plan(world: World) -> StudyPlan:
    arms = {"plain": {}, "l1": {"datasets:val:dataroot_gt": "{store}"}}
    return small_plan(world, shared=SHARED, arms=arms, seeds=[7, 2])


def test_runs_differ_in_their_arm_and_seed(world: World) -> None:
    plan = small_plan(world)
    assert set(plan.jobs) == {f"{arm}_s{seed}" for arm in ("plain", "l1") for seed in (0, 1, 2)}
    options = plan.run_of("l1", 2).options()
    assert (options.name, options.manual_seed, options.train.pixel_opt.type) == ("small_study_l1_s2", 2, "L1Loss")
    assert plan.run_of("plain", 0).options().train.pixel_opt.type == "PSNRLoss"
    assert plan.run_of("l1", 2).paths().run == world.root / "experiments" / "small_study_l1_s2"


def test_the_order_is_a_function_of_the_name_and_not_of_the_arms(world: World) -> None:
    many = {"seeds": 8}
    order = [run.name for run in small_plan(world, **many).runs()]
    assert order == [run.name for run in small_plan(world, **many).runs()]
    assert sorted(order) == sorted(small_plan(world, **many).jobs)
    assert order != list(small_plan(world, **many).jobs)
    assert order != [run.name for run in small_plan(world, name="another", **many).runs()]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_disjoint_and_complete(count: int, world: World) -> None:
    plan = small_plan(world)
    names: list[str] = []
    for number in range(count):
        names += [job.name for job in plan.share((number, count))]
    assert sorted(names) == sorted(plan.jobs)


def test_what_a_run_needs_comes_before_it_in_every_shard(world: World) -> None:
    plan = shared_plan(world)
    assert plan.run_of("l1", 2).needs == ("student", "tuned_s2", "store_s2")
    assert plan.run_of("plain", 2).needs == ()
    for number in range(2):
        jobs = plan.share((number, 2))
        before: set[str] = set()
        for job in jobs:
            assert set(job.needs) <= before
            before.add(job.name)
    assert [job.name for job in plan.share((0, 1), ["plain"]) if job.arm != "plain"] == []


def test_shared_steps_are_done_for_each_seed_or_once(world: World) -> None:
    plan = shared_plan(world)
    shared = sorted(name for name, job in plan.jobs.items() if job.arm is None)
    assert shared == ["store_s2", "store_s7", "student", "tuned_s2", "tuned_s7"]
    student, tuned = plan.jobs["student"].options(), plan.jobs["tuned_s7"].options()
    assert (student.manual_seed, student.train.total_iter) == (0, 4)
    weights = world.root / "experiments" / "small_study_student" / "models" / "net_g_latest.pth"
    assert (tuned.manual_seed, tuned.path.pretrain_network_g) == (7, str(weights))
    own = world.root / "experiments" / "small_study_tuned_s2" / "models" / "net_g_latest.pth"
    assert plan.jobs["store_s2"].words == ("masks", "control", "--like", str(own))
    store = plan.run_of("l1", 2).options().datasets["val"].arguments["dataroot_gt"]
    assert store == "studies/small_study/2.lmdb"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"command": ["masks", "{tuned}"], "output": "x", "every_seed": False}, "it needs tuned, which each seed has"),
        ({"command": ["masks"], "output": "x/{seed}", "every_seed": False}, "it names {seed}, which differs"),
    ],
)
def test_a_step_for_all_seeds_needs_nothing_of_one_seed(step: dict, message: str, world: World) -> None:
    with pytest.raises(StudyError, match=message):
        small_plan(world, shared={**SHARED, "once": step})


def test_a_shared_training_with_a_file_of_its_own_has_none_of_the_studys_keys(world: World) -> None:
    world.write(world.values(), "other.yml")
    shared = {"own": {"base": "other.yml", "set": {}}, "same": {"set": {}}}
    plan = small_plan(world, shared=shared, set={"train:ema_decay": 0.5})
    assert plan.jobs["own_s0"].options().train.ema_decay == 0.9
    assert plan.jobs["same_s0"].options().train.ema_decay == 0.5


def test_a_wrong_key_names_its_arm(world: World) -> None:
    plan = small_plan(world, arms={"plain": {}, "l1": {"train:pixel_opts:type": "L1Loss"}})
    with pytest.raises(OptionsError, match=r"pixel_opts: unknown key.*\(set by arm l1 of the study\)"):
        plan.run_of("l1", 0).options()
    with pytest.raises(OptionsError, match=r"\(set by `set` of the study\)"):
        small_plan(world, set={"trains:x": 1}).run_of("l1", 0).options()
    with pytest.raises(OptionsError, match=r"\(set by shared\.student of the study\)"):
        small_plan(world, shared={"student": {"set": {"train:total_iter": "x"}}}).jobs["student_s0"].options()


def test_the_option_file_lies_beside_the_study_file_or_comes_with_sam4ir(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, file = study_of(world)
    folder = world.root / "another folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert plan_of(study, file).run_of("plain", 0).base == world.root / "options.yml"
    shipped = plan_of(study.model_copy(update={"base": "own/clean", "arms": {"plain": {}}}), file)
    assert shipped.run_of("plain", 0).options().name == "small_study_plain_s0"
    with pytest.raises(StudyError, match=r"base: nowhere\.yml: no such file beside the study file"):
        plan_of(study.model_copy(update={"base": "nowhere.yml"}), file)


def test_the_facts_of_a_job_are_its_option_file_and_its_keys(world: World) -> None:
    facts = small_plan(world).run_of("l1", 0).facts
    assert small_plan(world).run_of("l1", 0).facts == facts
    assert small_plan(world, note="another").run_of("l1", 0).facts == facts
    assert small_plan(world, seeds=9).run_of("l1", 0).facts == facts
    assert small_plan(world, set={"train:ema_decay": 0.5}).run_of("l1", 0).facts != facts
    assert small_plan(world, arms={"plain": {}, "l1": {}}).run_of("l1", 0).facts != facts
    assert small_plan(world, set={"device": "cpu"}).run_of("l1", 0).facts == facts
    values = world.values()
    values["train"]["total_iter"] = 16
    assert small_plan(world, values).run_of("l1", 0).facts != facts


def test_the_facts_are_those_of_another_installation(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = {"store": {"command": ["prepare", "{options}/x.yml"], "output": "x"}}
    facts = small_plan(world, shared=shared).jobs["store_s0"].facts
    monkeypatch.setattr("sam4ir.engine.study.plan.shipped", lambda _: Path('/else where/"q"/options'))
    plan = small_plan(world, shared=shared)
    assert plan.jobs["store_s0"].words == ("prepare", '/else where/"q"/options/x.yml')
    assert plan.jobs["store_s0"].facts == facts


def test_a_longer_training_has_all_that_counts_iterations_longer(world: World) -> None:
    values = world.values(sam=True)
    values["train"]["total_iter"] = 100
    values["train"]["warmup_iter"] = 10
    values["train"]["distill"] = {"schedule": "two_phase", "refine_iter": 40}
    values["path"]["pretrain_network_g"] = "student.pth"
    values["train"]["scheduler"] = {"type": "TrueCosineAnnealingLR", "T_max": 100, "eta_min": 1e-7}
    values["train"]["scheduler_r"] = {
        "type": "MultiStepRestartLR",
        "milestones": [30, 61],
        "restarts": [0, 50],
        "restart_weights": [1, 0.5],
    }
    values["datasets"]["train"] |= {"gt_sizes": [16, 24], "iters": [60, 40], "mini_batch_sizes": [2, 2]}
    plan = small_plan(world, values, arms={"plain": {}, "l1": {}})
    options = plan_of(plan.study, plan.file, {"l1": 1.5}).run_of("l1", 0).options()
    assert options.train.total_iter == 150
    assert options.train.warmup_iter == 15
    assert options.train.distill.refine_iter == 60
    assert options.train.scheduler.arguments["T_max"] == 150
    assert options.train.scheduler_r.arguments["milestones"] == [45, 92]
    assert options.train.scheduler_r.arguments["restarts"] == [0, 75]
    assert options.datasets["train"].iters == (90, 60)
    assert plan.run_of("plain", 0).options().train.total_iter == 100


def test_zero_and_none_stay_what_they_are_in_a_longer_training(world: World) -> None:
    values = world.values(sam=True)
    values["train"]["distill"] = {"start_iter": 0}
    values["train"]["scheduler"] = {"type": "CosineAnnealingRestartLR", "periods": [3, 5], "restart_weights": [1, 1]}
    options = small_plan(world, values, arms={"plain": {}}, comparisons=[]).run_of("plain", 0).options()
    changes = {each.keys: each.value for each in longer(options, 0.01)}
    assert changes == {
        ("train", "total_iter"): 1,
        ("train", "distill", "start_iter"): 0,
        ("train", "scheduler", "periods"): [1, 1],
    }


@pytest.mark.parametrize("file", study_files(), ids=lambda file: file.name)
def test_the_study_files_that_come_with_sam4ir_are_in_order(file) -> None:  # type: ignore[no-untyped-def]
    plan = plan_of(load_study(file.path), file.path)
    for job in plan.firsts():
        if job.base is not None:
            assert job.options().train is not None
        else:
            assert job.words[0] in COMMANDS
    assert len(file.comment) > 10
