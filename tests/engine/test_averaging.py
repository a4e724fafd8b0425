"""Averages of checkpoints: their numbers, what their files say, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from archs.test_networks import build
from safetensors.torch import load_file

from sam4ir.cli.average import main
from sam4ir.engine.averaging import averaged, sources_of
from sam4ir.engine.weights import metadata_of, network_block
from sam4ir.errors import UserError
from sam4ir.utils.weights import safetensors_bytes

SMALL = {"width": 2, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [1]}


def states(count: int) -> list[dict[str, torch.Tensor]]:
    made = []
    for number in range(count):
        torch.manual_seed(number)
        state = build("NAFNet", SMALL).state_dict()
        made.append({name: torch.randn_like(tensor) for name, tensor in state.items()})
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run with checkpoints 2, 4, ... 12."""
    models = tmp_path / "experiments" / "run" / "models"
    models.mkdir(parents=True)
    for number, state in enumerate(states(6), 1):
        average = {name: -tensor for name, tensor in state.items()}
        torch.save({"params": state, "params_ema": average}, models / f"net_g_{2 * number}.pth")
    return models.parent


def held(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)["params"]


def test_the_mean_of_the_last_checkpoints(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--last", "3"]) == 0
    file = run / "models" / "net_g_12_average_of_3.pth"
    assert "the average of 3 files, net_g_8.pth to net_g_12.pth" in capsys.readouterr().out
    for name, tensor in held(file).items():
        expected = -torch.stack([state[name] for state in states(6)[3:]]).mean(0)  # of params_ema
        assert torch.allclose(tensor, expected, atol=1e-6)
        assert tensor.dtype is torch.float32
    assert metadata_of(file, "run")["averaged"] == ["net_g_8.pth", "net_g_10.pth", "net_g_12.pth"]
    assert network_block(file) == {"type": "NAFNet", "img_channel": 3, **SMALL}


def test_an_exponential_average_after_the_fact_is_that_of_a_training(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "ema.pth"
    assert main([str(run), "--ema", "0.9", "--param-key", "params", "--output", str(output)]) == 0
    expected = states(6)[0]
    for state in states(6)[1:]:
        expected = {name: 0.9 * expected[name] + 0.1 * state[name] for name in state}
    for name, tensor in held(output).items():
        assert torch.allclose(tensor, expected[name], atol=1e-6)
    assert metadata_of(output, "run")["decay"] == 0.9


def test_safetensors_keep_the_description_of_their_network(tmp_path: Path) -> None:
    files = []
    for number, state in enumerate(states(2)):
        files.append(tmp_path / f"{number}.safetensors")
        description = {"network": {"type": "NAFNet", **SMALL}, "iteration": number}
        files[-1].write_bytes(safetensors_bytes(state, description))
    output = tmp_path / "mean.safetensors"
    assert main([*map(str, files), "--output", str(output)]) == 0
    assert network_block(output) == {"type": "NAFNet", **SMALL}
    first, second = states(2)
    for name, tensor in load_file(output).items():
        assert torch.allclose(tensor, (first[name] + second[name]) / 2, atol=1e-6)


def test_counters_are_those_of_the_last_file_and_types_stay(tmp_path: Path) -> None:
    for number in range(2):
        torch.save(
            {"w": torch.full((2,), number, dtype=torch.float16), "n": torch.tensor(number)}, tmp_path / f"{number}.pt"
        )
    state = averaged([tmp_path / "0.pt", tmp_path / "1.pt"])
    assert state["w"].tolist() == [0.5, 0.5]
    assert state["w"].dtype is torch.float16
    assert state["n"].item() == 1


def test_what_cannot_be_averaged_is_refused_and_nothing_is_written(run: Path, tmp_path: Path) -> None:
    files = [str(run / "models" / f"net_g_{number}.pth") for number in (2, 4)]
    other = tmp_path / "other.pth"
    torch.save({"params": build("NAFNet", {**SMALL, "width": 4}).state_dict()}, other)
    plain = tmp_path / "plain.pth"
    torch.save({"params": states(1)[0]}, plain)
    for words, message in (
        ([files[0]], "at least two"),
        ([str(run), "--last", "9"], "--last 9: there are 6"),
        ([files[0], str(other)], "other.pth: holds another network than"),
        ([files[0], str(plain)], "name one entry with --param-key"),
        ([*files, "--output", str(tmp_path / "x.txt")], "must end with"),
        ([*files, "--output", files[0], "--overwrite"], "is one of the files"),
        ([*files, "--output", str(other)], "exists; give --overwrite"),
    ):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match=message):
            main(words)
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(SystemExit):
        main([*files, "--ema", "1.5"])
    assert len(sources_of(files, None)) == 2
