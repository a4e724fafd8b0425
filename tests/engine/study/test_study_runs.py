"""Working through the jobs of a study: order, failures, refusals, shards, signals. Jobs are lines of sh here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import World
from engine.study.small_study import order, record, small_plan, stub, study_of, wait_until

from sam4ir.config.load import Override
from sam4ir.engine.interrupt import PATIENT, Signals
from sam4ir.engine.study import run as running
from sam4ir.engine.study.lock import InheritedLock
from sam4ir.engine.study.plan import StudyError, StudyJob
from sam4ir.engine.study.run import RunChoice, _Work, is_done, refuse_changed, run_jobs, seconds_of

SHARED = {
    "student": {"set": {}, "every_seed": False},
    "store": {"command": ["masks", "control", "--like", "{student}"], "output": "{folder}/{seed}.lmdb"},
}
ARMS = {"plain": {}, "l1": {"datasets:val:dataroot_gt": "{store}"}}


@pytest.fixture(autouse=True)
def _in_the_world(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.root)


@pytest.fixture
def said() -> list[str]:
    return []


def test_each_job_is_done_once_and_what_it_needs_before(
    world: World, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    stub(monkeypatch)
    plan = small_plan(world, shared=SHARED, arms=ARMS)
    outcome = run_jobs(plan, RunChoice(jobs=2), said.append)
    assert sorted(outcome.done) == sorted(order()) == sorted(plan.jobs)
    for name, job in plan.jobs.items():
        assert all(order().index(needed) < order().index(name) for needed in job.needs)
        assert seconds_of(plan, job) >= 0
    again = run_jobs(plan, RunChoice(), said.append)
    assert sorted(again.done) == sorted(plan.jobs)
    assert len(order()) == len(plan.jobs)


def test_a_failed_run_leaves_the_others_and_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    stub(monkeypatch, {"l1_s1": "echo too bad; exit 3"})
    plan = small_plan(world)
    outcome = run_jobs(plan, RunChoice(), said.append)
    assert list(outcome.failed) == ["l1_s1"]
    assert len(outcome.done) == 5
    assert "too bad" in outcome.failed["l1_s1"].read_text()
    assert any(line.startswith("l1_s1: failed with exit status 3; see the end of studies") for line in said)
    stub(monkeypatch)
    assert not run_jobs(plan, RunChoice(), said.append).failed
    assert order().count("l1_s1") == 2


def test_a_failed_step_leaves_out_what_needs_it(world: World, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    stub(monkeypatch, {"student": "exit 1"})
    plan = small_plan(world, shared=SHARED, arms=ARMS, seeds=2)
    outcome = run_jobs(plan, RunChoice(jobs=2), said.append)
    assert sorted(outcome.done) == ["plain_s0", "plain_s1"]
    assert sorted(outcome.failed) == ["l1_s0", "l1_s1", "store_s0", "store_s1", "student"]
    assert set(outcome.failed.values()) == {plan.folder / "logs" / "student.log"}
    assert "l1_s0: left out, since student failed" in said
    assert "l1_s0" not in order()


def test_a_changed_study_is_refused_before_anything_begins(world: World) -> None:
    plan = small_plan(world)
    record(plan, "l1_s2")
    refuse_changed(plan)
    changed = small_plan(world, set={"train:ema_decay": 0.5})
    message = "l1_s2 was run with other options than the file has now. Give the changed study another name, or remove "
    with pytest.raises(StudyError, match=message):
        refuse_changed(changed)
    refuse_changed(changed, changed.share((0, 1), ["plain"]))
    with pytest.raises(StudyError, match=message):
        is_done(changed, changed.jobs["l1_s2"])
    more = small_plan(world, seeds=5, arms={"plain": {}, "l1": {"train:pixel_opt:type": "L1Loss"}, "third": {}})
    refuse_changed(more)


def test_a_run_that_was_begun_with_other_options_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    stub(monkeypatch, {"l1_s0": "exit 1"})
    run_jobs(small_plan(world), RunChoice(), said.append)
    changed = small_plan(world, arms={"plain": {}, "l1": {"train:pixel_opt:type": "MSELoss"}}, seeds=1)
    (changed.folder / "done" / "l1_s0.json").unlink(missing_ok=True)
    with pytest.raises(StudyError, match="l1_s0 was begun with other options"):
        refuse_changed(changed)


def test_the_run_of_another_study_is_not_taken_over(world: World) -> None:
    """Study a with arm b_c and study a_b with arm c name the same folder."""
    plan = small_plan(world)
    folder = plan.run_of("plain", 1).paths().run
    (folder / "models").mkdir(parents=True)
    with pytest.raises(StudyError, match="holds a run that this study has not begun"):
        refuse_changed(plan)
    (plan.folder / "logs").mkdir(parents=True)
    (plan.folder / "logs" / "plain_s1.log").touch()  # all that an earlier version left of a beginning
    refuse_changed(plan)


def test_a_record_that_is_not_whole_does_not_count(world: World) -> None:
    plan = small_plan(world)
    record(plan, "l1_s0")
    (plan.folder / "done" / "l1_s0.json").write_text("{")
    assert not is_done(plan, plan.jobs["l1_s0"])
    assert seconds_of(plan, plan.jobs["l1_s0"]) is None


def test_an_option_file_that_changes_while_its_run_trains_is_noticed(
    world: World, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    stub(monkeypatch, {"plain_s0": "echo >> options.yml"})
    plan = small_plan(world, seeds=1, arms={"plain": {}}, comparisons=[])
    run_jobs(plan, RunChoice(), said.append)
    with pytest.raises(StudyError, match="plain_s0 was run with other options"):
        refuse_changed(plan)


def test_shards_that_run_at_once_share_a_step_and_do_it_once(
    world: World, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    stub(monkeypatch, default="sleep 0.1")
    plan = small_plan(world, shared=SHARED, arms=ARMS)
    outcomes = []

    def work(number: int) -> None:
        outcomes.append(run_jobs(plan, RunChoice(shard=(number, 2)), said.append))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(order()) == sorted(plan.jobs)
    runs = [name for outcome in outcomes for name in outcome.done if plan.jobs[name].arm is not None]
    assert sorted(runs) == sorted(run.name for run in plan.runs())


def test_jobs_run_at_a_time_each_in_a_slot_of_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """Each of two jobs waits for the other, so they end only if they run at once."""
    other = {"plain_s0": "l1_s0", "l1_s0": "plain_s0"}
    scripts = {name: f"touch {name}.on; while [ ! -e {o}.on ]; do sleep 0.01; done" for name, o in other.items()}
    stub(monkeypatch, scripts)
    outcome = run_jobs(small_plan(world, seeds=1), RunChoice(jobs=2), said.append)
    assert sorted(outcome.done) == ["l1_s0", "plain_s0"]
    assert sorted(line.split()[1] for line in Path("order").read_text().splitlines()) == ["0", "1"]


def test_a_program_keeps_the_lock_that_it_inherited(tmp_path: Path) -> None:
    lock = InheritedLock(tmp_path / "x.lock")
    assert lock.acquire()
    assert not InheritedLock(tmp_path / "x.lock").acquire()
    with subprocess.Popen(["sleep", "60"], pass_fds=lock.descriptors) as child:
        lock.release()
        assert not InheritedLock(tmp_path / "x.lock").acquire()
        child.kill()
    again = InheritedLock(tmp_path / "x.lock")
    assert again.acquire()
    again.release()


def test_a_job_that_outlived_its_study_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    stub(monkeypatch)
    plan = small_plan(world, seeds=1)
    lock = InheritedLock(plan.folder / "locks" / "l1_s0.lock")
    (plan.folder / "locks").mkdir(parents=True)
    assert lock.acquire()
    with subprocess.Popen(["sleep", "0.5"], pass_fds=lock.descriptors) as orphan:
        lock.release()
        run_jobs(plan, RunChoice(), said.append)
        assert orphan.poll() is not None or orphan.wait(1) == 0
    assert "l1_s0: another process works on it" in said
    assert order() == ["plain_s0", "l1_s0"]


STUDY_IN_A_PROCESS = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from sam4ir.config.study import load_study
from sam4ir.engine.study import run
from sam4ir.engine.study.plan import plan_of
run._Work._words = lambda self, job, slot: ["sh", "-c", {script!r}]
plan = plan_of(load_study(Path("study.yml")), Path("study.yml"))
outcome = run.run_jobs(plan, run.RunChoice(), lambda line: print(line, flush=True))
sys.exit(128 + outcome.signal if outcome.signal else 0)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_reaches_the_training_and_ends_the_study(number: int, code: int, world: World) -> None:
    study_of(world)
    root = Path(__file__).resolve().parents[3]
    script = "trap 'echo saved >> stopped; exit 143' TERM; touch begun; while :; do sleep 0.05; done"
    text = STUDY_IN_A_PROCESS.format(root=str(root), tests=str(root / "tests"), script=script)
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.DEVNULL) as process:
        wait_until(world.root / "begun")
        process.send_signal(number)
        assert process.wait(20) == code
    assert (world.root / "stopped").read_text() == "saved\n"
    assert not list((world.root / "studies" / "small_study" / "done").iterdir())


def test_a_second_signal_after_a_second_kills_what_does_not_end(
    world: World, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    work = _Work(small_plan(world), RunChoice(), [], said.append)
    with subprocess.Popen(["sh", "-c", "trap '' TERM; touch begun; while :; do sleep 0.05; done"]) as child:
        wait_until(world.root / "begun")
        work._children.add(child)
        work._stop(signal.SIGINT, None)
        work._stop(signal.SIGINT, None)  # from the terminal and from a launcher at once
        time.sleep(0.2)
        assert child.poll() is None
        monkeypatch.setattr(running, "AGAIN", 0.0)
        work._stop(signal.SIGINT, None)
        assert child.wait(5) == -signal.SIGKILL
    assert work.outcome.signal == signal.SIGINT


def test_a_training_of_a_study_takes_a_repeated_signal_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a terminal reaches it as SIGINT, and from the study as SIGTERM."""
    monkeypatch.setenv(PATIENT, "1")
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.number() == signal.SIGINT


def words_of(choice: RunChoice, job: StudyJob, world: World, slot: int = 0) -> list[str]:
    return _Work(small_plan(world), choice, [], print)._words(job, slot)


def test_the_command_line_of_a_training(world: World) -> None:
    plan = small_plan(world, arms={"plain": {}, "l1": {"train:pixel_opt": {"type": "L1Loss"}, "path:strict": None}})
    words = words_of(RunChoice(devices=("cuda:0", "cuda:1")), plan.run_of("l1", 1), world, slot=3)
    start = [sys.executable, "-m", "sam4ir", "train", "-opt", str(world.root / "options.yml"), "--auto_resume"]
    forced = ["name=small_study_l1_s1", "manual_seed=1", "train:pixel_opt={type: L1Loss}", "path:strict=null"]
    assert words == [*start, "--force_yml", *forced, "device=cuda:1"]
    many = words_of(RunChoice(processes=2), plan.run_of("l1", 1), world)
    assert many[1:4] == ["-m", "torch.distributed.run", "--nproc_per_node=2"]
    assert many[many.index("sam4ir") + 1 :][:6] == ["train", *start[4:], "--launcher", "pytorch"]
    job = StudyJob("x", None, None, (), words=("masks", "control"))
    assert words_of(RunChoice(processes=2), job, world) == [sys.executable, "-m", "sam4ir", "masks", "control"]


def test_values_with_quotes_and_line_breaks_reach_a_training_as_they_are(world: World) -> None:
    from sam4ir.config.load import load_options

    for value in ("a b", "it's: {x}", 'say "yes" # no', "a\nb", "$$HOME", "null", "1e-3", "é"):
        job = StudyJob("x", "plain", 0, (), world.root / "options.yml", (Override(("path", "root"), value),))
        world.write(world.values())
        forced = words_of(RunChoice(), job, world)[-1]
        assert load_options(job.base, [forced]).path.root == job.options().path.root


def test_threads_are_shared_by_jobs_and_processes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_cores", lambda: 16)
    for choice, threads in (
        (RunChoice(), "16"),
        (RunChoice(jobs=2, processes=4), "2"),
        (RunChoice(jobs=99), "1"),
        (RunChoice(jobs=2, threads=3), "3"),
    ):
        environment = _Work(small_plan(world), choice, [], print)._environment()
        assert environment["OMP_NUM_THREADS"] == threads
        assert environment[PATIENT] == "1"


def test_the_seconds_of_all_starts_count(world: World, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    stub(monkeypatch, {"plain_s0": "sleep 0.3; exit 1"})
    monkeypatch.setattr(running, "BEAT", 0.05)
    plan = small_plan(world, seeds=1)
    for _ in range(2):
        run_jobs(plan, RunChoice(), said.append)
    stub(monkeypatch, {"plain_s0": "sleep 0.3"})
    run_jobs(plan, RunChoice(), said.append)
    seconds = json.loads((plan.folder / "done" / "plain_s0.json").read_text())["seconds"]
    assert 0.8 < seconds < 5
