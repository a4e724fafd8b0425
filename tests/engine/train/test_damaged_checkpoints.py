"""A checkpoint is verified before it is used: damaged or exchanged files are named, and the one before is taken."""

from __future__ import annotations

import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import World

from sam4ir.engine.train.checkpoint import CheckpointError, DamagedCheckpointError
from sam4ir.engine.train.loop import Trainer
from sam4ir.errors import UserError
from sam4ir.utils.weights import WeightsFileError, read_file

AVERAGED = "train:ema_decay=0.5"  # of the options of `trained`


@pytest.fixture(scope="module")
def whole_run() -> list[Path]:
    """The folder of a whole run, once the first test has trained it; the others copy it."""
    return []


@pytest.fixture
def trained(world: World, whole_run: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with checkpoints of iterations 4 and 8."""
    folder = world.root / "experiments" / "small"
    if not whole_run:
        Trainer(world.options(False, (AVERAGED, "val=~")), resume=False).run()
        whole_run.append(tmp_path_factory.mktemp("whole") / "small")
        shutil.copytree(folder, whole_run[0])
    else:
        shutil.copytree(whole_run[0], folder)
    return folder


def resumed_from(world: World) -> int:
    """Resume the run, and return the iteration that it goes on from."""
    trainer = Trainer(world.options(False, (AVERAGED, "val=~")), resume=True)
    trainer.close()
    return trainer.progress.iteration


def turn_a_bit(path: Path) -> None:
    """Turn a bit of the largest tensor of a file of torch.save."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size * ("/data/" in entry.filename))
    data[largest.header_offset + 200] ^= 8
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["models/net_g_8.pth", "training_states/8.state"])
def test_a_changed_bit_is_named_and_the_checkpoint_before_is_taken(
    world: World, trained: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    turn_a_bit(trained / file)
    assert resumed_from(world) == 4
    assert f"{trained / file}: is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["models/net_g_8.pth", "training_states/8.state"])
def test_with_resume_state_it_is_refused_by_name(world: World, trained: Path, file: str) -> None:
    turn_a_bit(trained / file)
    state = trained / "training_states" / "8.state"
    options = world.options(False, (AVERAGED, f"path:resume_state={state}"))
    with pytest.raises(UserError, match=rf"{Path(file).name}: is damaged"):
        Trainer(options, resume=False)


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("models/net_g_4.pth", "models/net_g_8.pth", "not the one that was written with 8.state"),
        ("training_states/4.state", "training_states/8.state", "8.state: holds iteration 4"),
        ("models/net_g_4.pth", "training_states/8.state", "8.state: is no training state"),
        ("training_states/4.state", "models/net_g_8.pth", "net_g_8.pth: holds no params"),
        ("train_small.log", "models/net_g_8.pth", "net_g_8.pth: is a text"),
    ],
)
def test_exchanged_files_are_named(
    world: World, trained: Path, source: str, target: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if source.endswith(".log"):
        source = next(trained.glob("train_*.log")).name
    shutil.copyfile(trained / source, trained / target)
    assert resumed_from(world) == 4
    assert words in capsys.readouterr().out


def test_a_copy_of_the_run_goes_on(world: World, trained: Path) -> None:
    weights = trained / "models" / "net_g_8.pth"
    data = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(data)
    assert resumed_from(world) == 8


def drop(key: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        del state[key]

    return change


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        state[key] = value

    return change


MISSHAPED = {
    "no progress": drop("progress"),
    "no options": drop("options"),
    "no rng": drop("rng"),
    "no optimizers": drop("optimizers"),
    "no averages": drop("ema_updates"),
    "no digests": drop("weights"),
    "progress is a list": put("progress", [1, 2]),
    "progress of other names": put("progress", {"iteration": 8, "mood": 1}),
    "iteration is a text": put("progress", {"iteration": "8"}),
    "iteration is a list": put("progress", {"iteration": [8]}),
    "optimizers are a number": put("optimizers", 3),
    "optimizers of nothing": put("optimizers", {"g": {}}),
    "groups of another number": put("optimizers", {"g": {"state": {}, "param_groups": []}}),
    "rng is short": put("rng", torch.zeros(3, dtype=torch.uint8)),
    "rng is no bytes": put("rng", torch.zeros(3)),
}


@pytest.mark.parametrize("damage", MISSHAPED)
def test_a_state_of_another_shape_is_named_and_passed_over(
    world: World, trained: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checksums are right, as those of a file that a faulty program wrote."""
    path = trained / "training_states" / "8.state"
    state = torch.load(path, weights_only=True)
    MISSHAPED[damage](state)
    torch.save(state, path)
    assert resumed_from(world) == 4
    assert str(path) in capsys.readouterr().out


def test_where_all_are_damaged_nothing_is_trained(world: World, trained: Path) -> None:
    for iteration in (4, 8):
        turn_a_bit(trained / "models" / f"net_g_{iteration}.pth")
    with pytest.raises(CheckpointError, match="none of 2 checkpoints can be read"):
        resumed_from(world)


def test_the_published_weights_are_verified(trained: Path) -> None:
    turn_a_bit(trained / "models" / "net_g_latest.pth")
    with pytest.raises(WeightsFileError, match=r"net_g_latest\.pth: is damaged"):
        read_file(trained / "models" / "net_g_latest.pth")


def test_states_before_the_digests_are_read(world: World, trained: Path) -> None:
    path = trained / "training_states" / "8.state"
    state = torch.load(path, weights_only=True)
    state["format"] = 1
    del state["weights"]
    torch.save(state, path)
    assert resumed_from(world) == 8


def test_a_state_of_a_later_version_is_not_passed_over(world: World, trained: Path) -> None:
    path = trained / "training_states" / "8.state"
    state = torch.load(path, weights_only=True)
    state["format"] = 99
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="of this version") as caught:
        resumed_from(world)
    assert not isinstance(caught.value, DamagedCheckpointError)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["models/net_g_8.pth", "training_states/8.state"])
def test_of_three_thousand_changed_bits_none_is_used(trained: Path, file: str) -> None:
    path, draw = trained / file, random.Random(0)
    whole = path.read_bytes()
    torch.set_printoptions(threshold=10**9)
    try:
        expected = repr(read_file(path))
        for _ in range(3000):
            changed = bytearray(whole)
            changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            path.write_bytes(changed)
            try:
                content = read_file(path)
            except WeightsFileError:
                continue
            assert repr(content) == expected
    finally:
        torch.set_printoptions(profile="default")
