"""logger.save_format: safetensors: the files of a checkpoint, and all that reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import NETWORK, World
from safetensors.torch import load_file

from sam4ir.engine.evaluate.candidates import checkpoints
from sam4ir.engine.restore.images import image_restorer
from sam4ir.engine.train.loop import Trainer
from sam4ir.engine.train.resume import RunExistsError
from sam4ir.engine.weights import metadata_of, network_block

SAFE = ("logger:save_format=safetensors", "val=~")


def run(world: World, *overrides: str, resume: bool = False) -> Path:
    """Train by the small option file; return the folder of the weights."""
    trainer = Trainer(world.options(False, overrides), resume)
    trainer.run()
    return trainer.paths.models


def as_pth(folder: Path, iteration: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return the weights of a checkpoint in safetensors as a .pth file holds them."""
    average = load_file(folder / f"net_g_{iteration}.safetensors")
    return {"params": load_file(folder / f"net_g_{iteration}_params.safetensors"), "params_ema": average}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_both_formats_hold_the_same_weights_and_a_resumed_run_its_bits(world: World) -> None:
    pth = run(world, "name=pth", "val=~")
    safe = run(world, "name=safe", *SAFE)
    assert sorted(path.name for path in safe.iterdir()) == [
        "net_g_4.safetensors",
        "net_g_4_params.safetensors",
        "net_g_8.safetensors",
        "net_g_8_params.safetensors",
        "net_g_latest.safetensors",
        "net_g_latest_params.safetensors",
    ]
    expected = torch.load(pth / "net_g_8.pth", weights_only=True)
    for entry, state in as_pth(safe, 8).items():
        assert same(state, expected[entry])
    (safe.parent / "training_states" / "8.state").unlink()
    assert run(world, "name=safe", *SAFE, resume=True) == safe
    for entry, state in as_pth(safe, 8).items():
        assert same(state, expected[entry])


def test_a_run_may_change_its_format(world: World) -> None:
    expected = torch.load(run(world, "name=straight", "val=~") / "net_g_8.pth", weights_only=True)
    models = run(world, "name=changed", "val=~", "train:total_iter=4")
    assert run(world, "name=changed", *SAFE, resume=True) == models
    for entry, state in as_pth(models, 8).items():
        assert same(state, expected[entry])
    assert [path.name for path in models.glob("net_g_latest*.pth")] == []
    assert [Path(path).name for path in checkpoints(models.parent)] == ["net_g_4.pth", "net_g_8.safetensors"]


def test_without_an_average_there_is_one_file(world: World) -> None:
    models = run(world, *SAFE, "train:ema_decay=0")
    assert sorted(path.name for path in models.glob("net_g_8*")) == ["net_g_8.safetensors"]
    run(world, *SAFE, "train:ema_decay=0", "train:total_iter=9", resume=True)
    assert (models / "net_g_9.safetensors").is_file()


def test_a_file_alone_names_its_network_and_restores(world: World, tmp_path: Path) -> None:
    models = run(world, *SAFE)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((models / "net_g_latest.safetensors").read_bytes())
    assert network_block(alone) == NETWORK
    assert metadata_of(alone, "network") == NETWORK
    image = (torch.rand(9, 11, 3) * 255).to(torch.uint8).numpy()
    options = world.options(False, ("val=~",))
    assert image_restorer(options, str(alone))(image).shape == (9, 11, 3)


def test_a_changed_file_is_passed_over_and_a_fresh_start_refused(world: World) -> None:
    models = run(world, *SAFE)
    for name in ("net_g_8.safetensors", "net_g_8_params.safetensors"):
        data = (models / name).read_bytes()
        (models / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        trainer = Trainer(world.options(False, SAFE), resume=True)
        trainer.close()
        assert trainer.progress.iteration == 4
        (models / name).write_bytes(data)
    for state in models.parent.glob("training_states/*"):
        state.unlink()
    with pytest.raises(RunExistsError, match="6 weight files"):
        Trainer(world.options(False, SAFE), resume=False)
