"""sam4ir.train and sam4ir.score: the runs of train.py and test.py, inside a program of one's own."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import World, photograph

import sam4ir
from sam4ir.engine.train import milestones

SHORT = {"total_iter": 4}


@pytest.fixture
def options(world: World) -> Path:
    return world.write(world.values())


def test_a_training_returns_its_scores_and_weights(options: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = sam4ir.train(options, train=SHORT, **{"val:val_freq": 2, "logger:print_freq": 1})
    assert result.iteration == 4
    assert result.run == options.parent / "experiments" / "small"
    assert result.weights.is_file()
    lines = (result.run / "log.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in lines if '"metrics/' in line][-1]
    assert result.scores["small_val"]["restored"]["psnr"] == last["metrics/small_val/psnr"]
    assert set(result.best) == {"small_val/psnr", "small_val/ssim"}
    assert capfd.readouterr().out == ""  # nobody set a log up
    assert "Saved checkpoint of iteration 4" in (result.run / "train_small.log").read_text()
    image = photograph(1)
    assert sam4ir.load(result.run, device="cpu")(image).shape == image.shape


def test_two_trainings_in_one_process_equal_each_other(options: Path) -> None:
    sam4ir.train(options, name="one", train=SHORT, deterministic=True)
    sam4ir.train(options, name="two", train=SHORT, deterministic=True)
    one, two = (
        torch.load(options.parent / "experiments" / name / "models" / "net_g_latest.pth")["params"]
        for name in ("one", "two")
    )
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(sam4ir.UserError, match="one"):
        sam4ir.train(options, name="one", train=SHORT)
    assert sam4ir.train(options, name="one", train={"total_iter": 6}, deterministic=True, resume=True).iteration == 6


def test_the_state_of_the_process_is_given_back(options: Path) -> None:
    logger = logging.getLogger("sam4ir")
    random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
    before = (random.random(), np.random.rand(), torch.rand(1))  # noqa: NPY002
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    environment = dict(os.environ)
    tensorboard = {"use_tb_logger": True}
    sam4ir.train(options, train=SHORT, deterministic=True, device=torch.device("cpu"), logger=tensorboard)
    assert (random.random(), np.random.rand(), torch.rand(1)) == before  # noqa: NPY002
    assert (logger.handlers, logger.level, logger.propagate) == (handlers, level, propagate)
    assert not torch.are_deterministic_algorithms_enabled()
    for name in ("CUBLAS_WORKSPACE_CONFIG", "TF_CPP_MIN_LOG_LEVEL"):
        assert os.environ.get(name) == environment.get(name)
    assert torch.get_num_threads() == threads
    assert signal.getsignal(signal.SIGTERM) == handler


def test_the_log_follows_the_programs_own_set_up(options: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "sam4ir")
    sam4ir.train(options, name="quiet", train=SHORT)
    assert "Saved checkpoint" not in caplog.text
    with caplog.at_level(logging.INFO, "sam4ir"):
        sam4ir.train(options, name="loud", train=SHORT)
    assert "Saved checkpoint of iteration 4" in caplog.text


def test_a_training_that_cannot_begin_leaves_no_lock(options: Path) -> None:
    with pytest.raises(sam4ir.UserError, match=r"path.resume_state|nowhere") as caught:
        sam4ir.train(options, train=SHORT, path={"resume_state": str(options.parent / "nowhere.state")})
    assert caught.value is not None  # its traceback holds the frames of the training
    assert sam4ir.train(options, train=SHORT, resume=True).iteration == 4


def test_a_signal_saves_a_checkpoint_and_goes_on_to_the_program(options: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = milestones.Milestones.reach

    def reach(self: milestones.Milestones) -> None:
        original(self)
        if self.progress.iteration == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(milestones.Milestones, "reach", reach)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs without one
    try:
        with pytest.raises(KeyboardInterrupt):
            sam4ir.train(options)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (options.parent / "experiments" / "small" / "models" / "net_g_3.pth").is_file()


def test_a_training_may_run_in_a_thread(options: Path) -> None:
    results = []
    thread = threading.Thread(target=lambda: results.append(sam4ir.train(options, train=SHORT)))
    thread.start()
    thread.join()
    assert results[0].iteration == 4


def test_overrides_that_are_wrong_are_named(options: Path) -> None:
    with pytest.raises(sam4ir.UserError, match=r"train.totl_iter: .*total_iter.*\(set by the call\)"):
        sam4ir.train(options, train={"totl_iter": 10})
    for value in (object(), torch.tensor(4), b"4", {4}, 1j, "\ud800"):
        with pytest.raises(sam4ir.UserError, match="is nothing that an option file can hold"):
            sam4ir.train(options, train={"total_iter": value})
    with pytest.raises(sam4ir.UserError, match="'train:' is no path of a key"):
        sam4ir.train(options, **{"train:": 10})


def test_a_block_with_a_type_replaces_the_block(options: Path) -> None:
    network = {"type": "HINet", "wf": 4, "depth": 2, "hin_position_left": 0, "hin_position_right": 1}
    result = sam4ir.train(options, train=SHORT, network_g=network, logger={"save_checkpoint_freq": np.int64(4)})
    assert sam4ir.load(result.run, device="cpu").architecture == "HINet"


def test_scores_are_those_of_the_result_folder(world: World) -> None:
    weights = sam4ir.train(world.write(world.values()), train=SHORT).weights
    values = world.values()
    values["datasets"] = {"test": {**values["datasets"]["val"], "name": "small_test"}}
    del values["train"]
    path = world.write(values, "test.yml")
    scores = sam4ir.score(path, weights=weights, name="scored")
    assert scores.folder == world.root / "results" / "scored"
    assert set(scores.mean["small_test"]["restored"]) == {"psnr", "ssim"}
    of_images = [row["restored"]["psnr"] for row in scores.images["small_test"].values()]
    assert np.mean(of_images) == pytest.approx(scores.mean["small_test"]["restored"]["psnr"])
    assert len(of_images) == 5
    assert scores.faults == ()
    assert (scores.folder / "summary.txt").read_text() in scores.text
    with pytest.raises(sam4ir.UserError, match="from Python overwrite=True"):
        sam4ir.score(path, weights=weights, name="scored", val={"use_image": False})
    again = sam4ir.score(path, weights=weights, name="scored", val={"use_image": False}, overwrite=True)
    of_run = sam4ir.score(path, weights=weights.parents[1], name="of_run", val={"use_image": False})
    assert of_run.mean == again.mean
    assert again.mean["small_test"]["restored"]["psnr"] != scores.mean["small_test"]["restored"]["psnr"]
