"""Trackers: TensorBoard holds curves and pictures of a run, and no tracker stops one."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import numpy as np
import pytest
from conftest import World

from sam4ir.config.paths import RunPaths
from sam4ir.config.schema import LoggerOptions
from sam4ir.engine.trackers import build, tracker
from sam4ir.engine.trackers.tensorboard import TensorBoardTracker
from sam4ir.engine.trackers.tracker import Guarded
from sam4ir.engine.train.loop import Trainer


class Failing:
    """A tracker that fails at its third call."""

    def __init__(self) -> None:
        self.calls = 0

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        self.calls += 1
        if self.calls == 3:
            raise ConnectionError("the service is away\nsecond line")

    def pictures(self, iteration: int, pictures: Mapping[str, np.ndarray]) -> None:
        self.scalars(iteration, {})

    def flush(self) -> None:
        pass

    def close(self) -> None:
        raise AssertionError("not called after a failure")


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    given: list[str] = []
    monkeypatch.setattr(tracker.log, "warning", lambda text, *values: given.append(text % values))
    return given


def test_a_tracker_that_fails_is_a_warning_once(warnings: list[str]) -> None:
    failing = Failing()
    guarded = Guarded("Tracker X", lambda: failing)
    for iteration in range(5):
        guarded.scalars(iteration, {"a": 1.0})
    guarded.pictures(5, {})
    guarded.flush()
    guarded.close()
    assert failing.calls == 3
    assert warnings == ["Tracker X fails, and takes nothing more of this run: the service is away"]


def test_a_tracker_that_cannot_begin_is_a_warning(warnings: list[str]) -> None:

    def make() -> Failing:
        raise OSError("no space")

    guarded = Guarded("Tracker X", make)
    guarded.scalars(1, {"a": 1.0})
    guarded.flush()
    guarded.close()
    assert warnings == ["Tracker X fails, and takes nothing more of this run: no space"]


def test_a_service_that_hangs_delays_no_step_and_no_end(warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "FLUSH_SECONDS", 0.3)
    monkeypatch.setattr(tracker, "CLOSE_SECONDS", 0.3)
    monkeypatch.setattr(tracker, "_MOST_WAITING", 5)
    release = threading.Event()

    class Hanging(Failing):
        def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
            release.wait(20)

    begun = time.monotonic()
    guarded = Guarded("Tracker X", Hanging)
    guarded.scalars(1, {})
    guarded.flush()
    guarded.close()
    assert warnings == ["Tracker X fails, and takes nothing more of this run: it is still busy after 0 seconds"]
    full = Guarded("Tracker Y", Hanging)
    for iteration in range(20):
        full.scalars(iteration, {})
    assert warnings[1] == "Tracker Y fails, and takes nothing more of this run: it does not answer"
    full.flush()
    full.close()
    assert time.monotonic() - begun < 5
    release.set()


def test_what_was_given_before_a_flush_is_taken_after_it() -> None:
    taken: list[int] = []

    class Slow(Failing):
        def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
            time.sleep(0.02)
            taken.append(iteration)

        def flush(self) -> None:
            taken.append(-1)

        def close(self) -> None:
            taken.append(-2)

    guarded = Guarded("Tracker X", Slow)
    for iteration in range(5):
        guarded.scalars(iteration, {})
    guarded.flush()
    assert taken == [0, 1, 2, 3, 4, -1]
    guarded.close()
    assert taken[-1] == -2


@pytest.mark.parametrize(
    ("wanted", "installed", "written"), [(None, True, True), (None, False, False), (False, True, False)]
)
def test_tensorboard_is_on_where_it_is_installed(
    tmp_path, monkeypatch: pytest.MonkeyPatch, wanted: bool | None, installed: bool, written: bool
) -> None:
    monkeypatch.setattr(build, "tensorboard_is_installed", lambda: installed)
    trackers = build.build_trackers(LoggerOptions(use_tb_logger=wanted), RunPaths(tmp_path, "run"), 0, "name: run")
    assert [type(each) for each in trackers] == [TensorBoardTracker] * written
    for each in trackers:
        each.close()


def test_a_run_is_seen_in_tensorboard(world: World) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    overrides = ("logger:use_tb_logger=~", "val:panel=2", "val:save_best=psnr")
    trainer = Trainer(world.options(True, overrides), False)
    trainer.run()
    held = events.EventAccumulator(str(trainer.paths.tensorboard), size_guidance={"images": 0, "scalars": 0})
    held.Reload()
    tags = held.Tags()
    expected = {"losses/l_pix", "lr", "lr_r", "gradient_norm/g", "gradient_norm/r", "metrics/small_val/psnr"}
    expected |= {"metrics/small_val/psnr_refiner", "psnr", "psnr_refiner"}
    assert expected <= set(tags["scalars"])
    assert [event.step for event in held.Scalars("metrics/small_val/psnr")] == [4, 8]
    assert [event.step for event in held.Scalars("losses/l_pix")] == [2, 4, 6, 8]
    assert len(tags["images"]) == 2
    for tag in tags["images"]:
        assert tag.startswith("panel/small_val/")
        assert [event.step for event in held.Images(tag)] == [4, 8]


def test_a_run_goes_on_where_every_tracker_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing()
    monkeypatch.setattr("sam4ir.engine.train.loop.build_trackers", lambda *_: [Guarded("Tracker X", lambda: failing)])
    trainer = Trainer(world.options(), False)
    trainer.run()
    assert trainer.progress.iteration == 8
    assert failing.calls == 3
    assert "Tracker X fails" in (trainer.paths.run / "train_small.log").read_text()
