"""`sam4ir study` by its command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import World
from engine.study.small_study import STUDY, finish_all, order, small_plan, stub, write_study

from sam4ir.cli.main import main
from sam4ir.engine.study.plan import plan_of

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_the_world(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.root)


def test_check_counts_what_there_is_to_train_and_trains_nothing(world: World, capsys: Captured) -> None:
    assert main(["study", "run", str(write_study(world)), "--check"]) == 0
    said = capsys.readouterr().out
    assert "2 arms, 3 seeds: 6 trainings with 48 steps, 0 commands; 1 comparisons declared" in said
    assert not Path("studies").exists()
    assert not Path("experiments").exists()


def test_check_names_each_run_whose_options_are_wrong(world: World, capsys: Captured) -> None:
    file = write_study(world, arms={"plain": {}, "l1": {"train:totl_iter": 3}})
    assert main(["study", "run", str(file), "--check"]) == 1
    said = capsys.readouterr().out
    assert said.count("totl_iter: unknown key; did you mean 'total_iter'? (set by arm l1 of the study)") == 3
    assert "3 of them have an option file that cannot be used" in said
    assert main(["study", "run", str(file)]) == 2
    assert "set by arm l1 of the study" in capsys.readouterr().err


def test_a_report_is_written_into_the_folder_of_the_study_or_where_it_is_asked_for(
    world: World, capsys: Captured
) -> None:
    finish_all(small_plan(world), (0.3, 0.3, 0.31))
    assert main(["study", "report", "study.yml"]) == 0
    said = capsys.readouterr().out
    assert "page: studies/small_study/report.html, figures: studies/small_study/summary.json" in said
    folder = Path("studies/small_study")
    assert (folder / "report.txt").read_text() in said
    assert json.loads((folder / "summary.json").read_text())["comparisons"][0]["verdict"] == "better"
    assert main(["study", "report", "study.yml", "--output", "a folder/page.html"]) == 0
    assert Path("a folder/page.html").read_text().startswith("<!DOCTYPE html>")


def test_run_ends_with_the_report_and_the_status_of_failed_runs(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    stub(monkeypatch, {"l1_s2": "exit 5"})
    plan = small_plan(world)
    finish_all(plan, (0.3, 0.3, 0.3))
    (plan.folder / "done" / "l1_s2.json").unlink()
    assert main(["study", "run", "study.yml", "--jobs", "2", "--threads", "1"]) == 1
    captured = capsys.readouterr()
    assert "1 runs are not done yet: l1_s2" in captured.out
    assert "l1_s2 failed; its log is studies/small_study/logs/l1_s2.log" in captured.err
    assert order() == ["l1_s2"]


def test_a_pilot_trains_the_control_alone(world: World, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    stub(monkeypatch)
    write_study(world)
    plan = small_plan(world, seeds=4)
    finish_all(plan, (0, 0, 0, 0))
    for name in ("l1_s0", "plain_s3"):
        (plan.folder / "done" / f"{name}.json").unlink()
    write_study(world)
    assert main(["study", "pilot", "study.yml"]) == 0
    assert order() == ["plain_s3"]
    assert "Pilot of small_study: plain with 4 seeds: 22.0000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shard", "4/4"], "--shard 4/4: expected I/N"),
        (["--shard", "x"], "--shard x: expected I/N"),
        (["--devices", "gpu0"], "devices are auto, cpu, cuda, cuda:N and mps"),
    ],
)
def test_flags_that_mean_nothing_are_refused(words: list[str], message: str, world: World, capsys: Captured) -> None:
    write_study(world)
    try:
        code = main(["study", "run", "study.yml", *words])
    except SystemExit as done:
        code = int(str(done.code))
    assert code == 2
    assert message in capsys.readouterr().err


def test_a_step_that_is_no_command_is_refused(world: World, capsys: Captured) -> None:
    step = {"command": ["mask", "control"], "output": "x"}
    write_study(world, shared={"store": step})
    assert main(["study", "run", "study.yml", "--check"]) == 2
    assert "shared.store.command: 'mask' is no command of sam4ir; did you mean 'masks'?" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_whole_study_of_real_trainings_in_a_folder_with_spaces(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """A shared student, its masks as a command's output, and a study file in another folder than the current one."""
    here = world.root / "a folder of mine"
    here.mkdir()
    monkeypatch.chdir(here)
    store = str(world.root / "masks.lmdb")
    shared = {
        "student": {"set": {}, "every_seed": False},
        "store": {
            "command": ["masks", "control", "--kind", "shuffled", "--like", store, "--output", "{folder}/x.lmdb"],
            "output": "{folder}/x.lmdb",
            "every_seed": False,
        },
    }
    masks = {"datasets:train:masks:store": "{store}", "path:pretrain_network_g": "{student}"}
    empty = {"train:distill:masks": "empty", "datasets:train:masks": None}
    changes = {"shared": shared, "arms": {"empty": empty, "shuffled": masks}, "seeds": 2}
    comparisons = [{"better": "shuffled", "than": "empty", "matters": 0.1}]
    more = {"bands": {"store": store}, "set": {"val:save_img": True}, "score": {"output": "refined"}}
    file = write_study(world, world.values(sam=True), **changes, comparisons=comparisons, **more)
    assert main(["study", "run", str(file), "--threads", "1", "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    assert "clean image, shuffled (a control)" in said
    assert "near borders" in said
    summary = json.loads(Path("studies/small_study/summary.json").read_text())
    assert summary["missing"] == []
    assert len(summary["comparisons"][0]["seen"]["means"]) == 2
    from sam4ir.config.study import load_study

    for job in plan_of(load_study(file), file).runs():
        assert (job.paths().run / "validation.csv").is_file()
    assert main(["study", "run", str(file)]) == 0
    assert "begins" not in capsys.readouterr().out


def test_the_values_of_the_small_study_are_a_study(world: World) -> None:
    assert small_plan(world).study.name == STUDY["name"]


def test_the_study_of_the_documents_works_on_the_option_file_of_getting_started(world: World, capsys: Captured) -> None:
    """docs/studies.md: its first block beside plain.yml, and its second with the masks of my_masks.lmdb."""
    document = (Path(__file__).resolve().parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
    first, second = re.findall(r"^```yaml\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    assert len(first.splitlines()) < 10
    assert main(["options", "new", "--gt", "gt", "--noise", "25", "--no-measure", "--output", "plain.yml"]) == 0
    Path("losses.yml").write_text(first, encoding="utf-8")
    assert main(["study", "run", "losses.yml", "--check"]) == 0
    assert "2 arms, 3 seeds: 6 trainings" in capsys.readouterr().out
    write_study(world, world.values(sam=True))
    Path("shared.yml").write_text(f"name: shared\nbase: options.yml\nseeds: 2\n{second}", encoding="utf-8")
    assert main(["study", "run", "shared.yml", "--check"]) == 0
    assert "2 arms, 2 seeds: 5 trainings with 40 steps, 1 commands" in capsys.readouterr().out
