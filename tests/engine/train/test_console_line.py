"""The console line of an iteration, and that a slow run is seen to go on."""

from __future__ import annotations

import pytest
from conftest import World

from sam4ir.engine.cost import parameter_count
from sam4ir.engine.evaluate import progress as set_progress
from sam4ir.engine.evaluate.progress import SetProgress
from sam4ir.engine.train import console_line, step_log
from sam4ir.engine.train.console_line import STAMP, WIDTH, IterationLine, Pace, once, wrapped
from sam4ir.engine.train.loop import Trainer


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console_line, "time", clock)
    monkeypatch.setattr(set_progress, "time", clock)
    return clock


def line(values: dict[str, float], name: str = "denoising_nafnet_width32") -> str:
    return str(IterationLine(name, 3, 1200, [1e-3, 2e-4], "1 day, 0:00:05", (0.25, 0.01), 31.86, "1.5 GiB", values))


def test_a_line_says_everything_in_basicsrs_form() -> None:
    text = line({"l_pix": -27.3104, "psnr": 27.31, "l_spd": 0.0123})
    assert text == (
        "[denoising_nafnet_width32][epoch:  3, iter:   1,200, lr:(1.000e-03,2.000e-04,)]\n"
        "    [eta: 1 day, 0:00:05, time (data): 0.250 (0.010), 31.9 images/s] psnr: 27.31 l_spd: 1.2300e-02 "
        "peak memory: 1.5 GiB"
    )


def test_no_line_is_longer_than_a_terminal() -> None:
    values = {f"l_term_{i}": 0.1 * i for i in range(40)}
    lines = line(values).split("\n")
    assert len(lines[0]) + STAMP <= WIDTH
    assert all(len(one) <= WIDTH for one in lines[1:])
    words = " ".join(one.strip() for one in lines)
    for name, value in values.items():
        assert f"{name}: {value:.4e}" in words


def test_a_part_that_fits_nowhere_stays_whole() -> None:
    assert wrapped(["a" * 300, "b"]) == "a" * 300 + "\n    b"


def test_a_loss_that_repeats_a_measure_is_left_out() -> None:
    assert once({"l_pix": -30.0, "psnr": 30.0}) == {"psnr": 30.0}
    assert once({"l_pix": -15.0, "psnr": 30.0}) == {"l_pix": -15.0, "psnr": 30.0}
    assert once({"l_pix": 0.1, "l_other": 0.1}) == {"l_pix": 0.1, "l_other": 0.1}


def test_the_rate_is_that_since_the_last_line_and_the_time_left_that_of_the_run(clock: Clock) -> None:
    pace = Pace(10, 110)
    for _ in range(10):
        pace.add(4)
    clock.now += 20
    assert pace.rate() == 2.0
    assert pace.left(20) == "0:03:00"
    pace.add(4)
    clock.now += 1
    assert pace.since_line() == 1
    assert pace.rate() == 4.0


def test_a_slow_run_says_something_each_minute(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def lines(name: str) -> int:
        trainer = Trainer(world.options(False, (f"name={name}", "logger:print_freq=100")), False)
        trainer.run()
        return (trainer.paths.run / f"train_{name}.log").read_text().count(f"[{name}][epoch:")

    assert lines("quick") == 0
    monkeypatch.setattr(step_log, "PATIENCE", -1.0)
    assert lines("slow") == 8


def test_a_slow_validation_says_something_each_minute(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(set_progress.log, "info", lambda text, *values: said.append(text % values))
    progress = SetProgress()
    progress.begin("photos", 10)
    clock.now += 70
    progress.inside(3, 9)
    clock.now += 10
    progress.inside(4, 9)
    progress.add()
    clock.now += 60
    progress.add()
    for _ in range(8):
        clock.now += 60
        progress.add()
    progress.end()
    assert said[0] == "photos: 0 of 10 images are scored, part 3 of 9 of the next one"
    assert said[1] == "photos: 2 of 10 images are scored; about 0:09:20 left"
    assert len(said) == 9  # the last image is the end, and says nothing
    said.clear()
    silent = SetProgress(shown=False)
    silent.begin("photos", 10)
    clock.now += 500
    silent.add()
    assert not said


def test_a_run_begins_with_its_networks_images_and_places(world: World) -> None:
    changes = ("logger:use_tb_logger=true", "datasets:train:dataset_enlarge_ratio=2")
    trainer = Trainer(world.options(True, changes), False)
    trainer.close()
    text = (trainer.paths.run / "train_small.log").read_text()
    refiner = f"{parameter_count(trainer.parts.model.networks['r']):,}"
    assert f"Network net_r: {refiner} parameters, in training only." in text
    assert "Training on 5 images: 10 samples an epoch, 2 a step, 8 steps; number format fp32." in text
    assert "Validation on small_val: 5 images, every 4 steps." in text
    assert f"Weights and pictures go to {trainer.paths.run}, curves to {trainer.paths.tensorboard}." in text
