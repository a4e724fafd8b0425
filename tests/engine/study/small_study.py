"""A small study for tests: two losses, three seeds, and folders of runs that nobody had to train."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import World

from sam4ir.config.study import StudyOptions, load_study
from sam4ir.engine.study.plan import StudyPlan, plan_of
from sam4ir.engine.study.run import _Work

STUDY: dict[str, Any] = {
    "name": "small_study",
    "base": "options.yml",
    "seeds": 3,
    "arms": {"plain": {}, "l1": {"train:pixel_opt:type": "L1Loss"}},
    "comparisons": [{"better": "l1", "than": "plain", "matters": 0.1}],
}
IMAGES = [f"photo_{i}" for i in range(5)]


def write_study(world: World, values: Mapping[str, Any] | None = None, **changes: Any) -> Path:
    """Write a study file and its option file. values: of the option file; changes: of the study."""
    world.write(dict(values or world.values()))
    file = world.root / "study.yml"
    file.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False), encoding="utf-8")
    return file


def study_of(world: World, values: Mapping[str, Any] | None = None, **changes: Any) -> tuple[StudyOptions, Path]:
    """The study and its file."""
    file = write_study(world, values, **changes)
    return load_study(file), file


def small_plan(world: World, values: Mapping[str, Any] | None = None, **changes: Any) -> StudyPlan:
    return plan_of(*study_of(world, values, **changes))


def finish(plan: StudyPlan, name: str, scores: Mapping[str, float], refined: Mapping[str, float] | None = None) -> Path:
    """Make the folder of a run that is done: its log, its last validation and the study's record of it.

    scores: {image: PSNR} of the restored images.
    """
    job = plan.jobs[name]
    run, options = job.paths().run, job.options()
    assert options.train is not None
    run.mkdir(parents=True)
    total = options.train.total_iter
    rows = [f"{total},small_val,restored,{image},{value!r},0.5" for image, value in scores.items()]
    metrics = {"metrics/small_val/psnr": sum(scores.values()) / len(scores)}
    if refined is not None:
        rows += [f"{total},small_val,refined,{image},{value!r},0.5" for image, value in refined.items()]
        metrics["metrics/small_val/psnr_refiner"] = sum(refined.values()) / len(refined)
    (run / "validation.csv").write_text("\n".join(["iter,dataset,stage,image,psnr,ssim", *rows, ""]))
    lines = [{"iter": total // 2, **metrics}, {"iter": total, **metrics}]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record(plan, name)
    return run


def record(plan: StudyPlan, name: str, seconds: float = 8.0) -> None:
    """Write the study's record of a job that is done."""
    done = plan.folder / "done" / f"{name}.json"
    done.parent.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps({"facts": plan.jobs[name].facts, "seconds": seconds}))


def finish_all(plan: StudyPlan, gains: Sequence[float]) -> None:
    """Finish all runs: arm `plain` scores 20 to 24 dB, arm `l1` more by the gain of its seed."""
    for job in plan.runs():
        assert job.seed is not None
        more = 0.0 if job.arm == "plain" else gains[job.seed]
        finish(plan, job.name, {image: 20.0 + i + more for i, image in enumerate(IMAGES)})


def stub(monkeypatch: pytest.MonkeyPatch, scripts: Mapping[str, str] | None = None, default: str = "true") -> None:
    """Let each job run a line of sh in place of its command; the names of begun jobs are in the file `order`."""

    def words(_: _Work, job: Any, slot: int) -> list[str]:
        name = shlex.quote(job.name)
        return ["sh", "-c", f"echo {name} {slot} >> order\n{(scripts or {}).get(job.name, default)}"]

    monkeypatch.setattr(_Work, "_words", words)
    monkeypatch.setattr("sam4ir.engine.study.run.POLL", 0.02)


def order() -> list[str]:
    """The jobs that have begun, one after the other."""
    file = Path("order")
    if not file.is_file():
        return []
    return [line.split()[0] for line in file.read_text().splitlines()]


def wait_until(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.01)
