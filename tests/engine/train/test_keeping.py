"""What stays of a run's checkpoints, its best weights, and the end of a run that gets no better."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import World

from sam4ir.config.load import OptionsError, load_options
from sam4ir.config.paths import RunPaths
from sam4ir.engine.train import milestones
from sam4ir.engine.train.keeping import Keeping
from sam4ir.engine.train.loop import Trainer
from sam4ir.engine.weights import metadata_of, network_block


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def touched(paths: RunPaths, iterations: list[int]) -> None:
    paths.models.mkdir(parents=True)
    paths.states.mkdir(parents=True)
    for iteration in iterations:
        paths.state(iteration).touch()
        for name in (
            f"net_g_{iteration}.pth",
            f"net_r_{iteration}.safetensors",
            f"net_g_{iteration}_params.safetensors",
        ):
            (paths.models / name).touch()
    for name in ("net_g_latest.pth", "net_g_best.pth", "net_g_5.txt", "other_5.pth"):
        (paths.models / name).touch()


def test_all_checkpoints_stay_by_default(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path, "run")
    touched(paths, [5, 10, 15])
    before = names(paths.models)
    Keeping().remove_older(paths, 15)
    assert names(paths.models) == before
    assert paths.saved_iterations() == [15, 10, 5]


def test_old_states_go_and_their_weights_stay(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path, "run")
    touched(paths, [5, 10, 15])
    before = names(paths.models)
    Keeping(states=1).remove_older(paths, 15)
    assert paths.saved_iterations() == [15]
    assert names(paths.models) == before


def test_old_weights_go_with_all_files_of_their_iteration(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path, "run")
    touched(paths, [5, 10, 15, 20])
    Keeping(states=1, weights=2).remove_older(paths, 20)
    left = names(paths.models)
    for iteration, stays in ((5, False), (10, False), (15, True), (20, True)):
        assert (f"net_g_{iteration}.pth" in left) is stays
        assert (f"net_r_{iteration}.safetensors" in left) is stays
        assert (f"net_g_{iteration}_params.safetensors" in left) is stays
    assert {"net_g_latest.pth", "net_g_best.pth", "net_g_5.txt", "other_5.pth"} <= set(left)


def test_averages_of_checkpoints_stay(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path, "run")
    touched(paths, [5, 10, 15])
    average = paths.models / "net_g_10_average_of_2.pth"  # as sam4ir average names it
    average.touch()
    Keeping(states=1, weights=1).remove_older(paths, 15)
    assert average.is_file()
    assert "net_g_10.pth" not in names(paths.models)


def test_a_checkpoint_of_later_iterations_is_not_counted_and_stays(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path, "run")  # path.resume_state may name an older state of the run
    touched(paths, [5, 10, 15, 20])
    Keeping(states=1, weights=1).remove_older(paths, 10)
    assert paths.saved_iterations() == [20, 15, 10]
    assert "net_g_10.pth" in names(paths.models)
    assert "net_g_5.pth" not in names(paths.models)


SAVING = ("val:save_best=psnr", "val:val_freq=2", "logger:save_checkpoint_freq=4")


def scored(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Let the validations of a run, every two iterations, have these scores."""

    def score(self: milestones.Milestones, name: str) -> float:
        assert name == "psnr"
        return values[self.progress.iteration // 2 - 1]

    monkeypatch.setattr(milestones.Milestones, "_score_of", score)


def train(world: World, *overrides: str, resume: bool = False, sam: bool = False) -> Trainer:
    trainer = Trainer(world.options(sam, (*SAVING, *overrides)), resume)
    trainer.run()
    return trainer


def best(paths: RunPaths) -> tuple[int, float]:
    run = metadata_of(paths.network("g", "best"), "run")
    assert run["best"]["metric"] == "psnr"
    return run["iteration"], run["best"]["value"]


def params(path: Path, key: str = "params_ema") -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)[key]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_best_weights_are_those_of_the_best_score(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, 20.0, 30.0, 25.0, math.nan)
    paths = train(world).paths
    assert best(paths) == (4, 30.0)
    for key in ("params", "params_ema"):
        assert equal(params(paths.network("g", "best"), key), params(paths.network("g", 4), key))
    assert not equal(params(paths.network("g", "best")), params(paths.network("g", 8)))
    assert network_block(paths.network("g", "best"))["type"] == "NAFNet"
    assert not paths.network("r", "best").exists()


def test_the_score_of_a_run_is_the_mean_of_its_sets(world: World) -> None:
    values = world.values()
    values["datasets"]["val_2"] = {**values["datasets"]["val"], "name": "second", "noise_seed": 2}
    values["val"] |= {"save_best": "psnr", "val_freq": 8}
    trainer = Trainer(load_options(world.write(values)), False)
    trainer.run()
    of_sets = [trainer.milestones.means[name, "restored"]["psnr"].value for name in ("small_val", "second")]
    assert best(trainer.paths) == (8, sum(of_sets) / 2)
    values |= {"name": "one"}
    values["val"]["save_best"] = "second/psnr"
    one = Trainer(load_options(world.write(values)), False)
    one.run()
    assert metadata_of(one.paths.network("g", "best"), "run")["best"] == {"metric": "second/psnr", "value": of_sets[1]}


def test_a_lower_score_may_be_the_better_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, 0.5, 0.2, 0.3, 0.4)
    monkeypatch.setattr(milestones.Milestones, "_lower_is_better", lambda self: True)
    assert best(train(world).paths) == (4, 0.2)


def test_a_safetensors_run_keeps_its_best_weights(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, 20.0, 30.0, 25.0, 26.0)
    paths = train(world, "logger:save_format=safetensors").paths
    file = paths.network("g", "best", "safetensors")
    assert metadata_of(file, "run")["best"] == {"metric": "psnr", "value": 30.0}
    assert file.read_bytes() != paths.network("g", 8, "safetensors").read_bytes()


@pytest.mark.parametrize(
    ("again", "expected"),
    [((20, 22, 23, 29), (8, 29)), ((20, 22, 21, 25), (6, 30)), ((20, 22, 30, 25), (6, 30))],
)
def test_a_run_that_was_killed_after_a_record_keeps_the_better_file(
    world: World, monkeypatch: pytest.MonkeyPatch, again: tuple[float, ...], expected: tuple[int, float]
) -> None:
    scored(monkeypatch, 20.0, 22.0, 30.0, 25.0)
    paths = train(world, "logger:save_checkpoint_freq=2").paths
    for iteration in (6, 8):
        paths.state(iteration).unlink()
    scored(monkeypatch, *again)  # the same course as before on a CPU, perhaps another one on CUDA
    train(world, "logger:save_checkpoint_freq=2", resume=True)
    assert best(paths) == expected
    assert equal(params(paths.network("g", "best")), params(paths.network("g", expected[0])))


def test_a_best_file_that_cannot_be_read_is_replaced(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, 20.0, 22.0, 30.0, 25.0)
    paths = train(world, "train:total_iter=4").paths
    paths.network("g", "best").write_bytes(b"torn")
    train(world, resume=True)
    assert best(paths) == (6, 30.0)


def test_a_run_that_gets_no_better_ends(world: World, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    scored(monkeypatch, 20.0, 30.0, 25.0, 30.0, 28.0, 27.0, 31.0)
    trainer = train(world, "train:total_iter=14", "val:patience=3", "logger:save_checkpoint_freq=100")
    paths = trainer.paths
    assert trainer.progress.iteration == 10
    assert paths.saved_iterations() == [10]
    assert best(paths) == (4, 30.0)
    assert equal(params(paths.network("g", "latest")), params(paths.network("g", 10)))
    log = (paths.run / f"train_{paths.name}.log").read_text()
    assert "psnr has not become better than 30.0000 (iteration 4) for val.patience validations" in log
    again = train(world, "train:total_iter=14", "val:patience=3", "logger:save_checkpoint_freq=100", resume=True)
    assert again.progress.iteration == 10
    longer = train(world, "train:total_iter=14", "val:patience=6", resume=True)
    assert longer.progress.iteration == 14


def test_the_latest_weights_are_those_of_each_save(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(world.options(False, ("logger:save_checkpoint_freq=3",)), False)
    saved = []
    plain = milestones.publish_latest

    def publish(paths: RunPaths, parts: object, iteration: int) -> None:
        plain(paths, parts, iteration)
        saved.append((iteration, metadata_of(paths.network("g", "latest"), "run")["iteration"]))

    monkeypatch.setattr(milestones, "publish_latest", publish)
    trainer.run()
    assert saved == [(3, 3), (6, 6), (8, 8), (8, 8)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("val:save_best=psnrs",), "'psnrs' is none of val.metrics: psnr, ssim"),
        (("val:save_best=other/psnr",), "'other' is no validation set: small_val"),
        (("val:save_best=psnr", "val:val_freq=~"), "needs val.val_freq"),
        (("val:patience=3",), "needs val.save_best"),
        (("logger:keep_last_weights=3",), "keep_last_weights needs keep_last"),
        (("logger:keep_last_weights=3", "logger:keep_last=4"), "keep_last_weights needs keep_last"),
    ],
)
def test_what_cannot_be_kept_is_refused(world: World, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        world.options(False, overrides)
