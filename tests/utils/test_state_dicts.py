"""The state dict is found in files of every tool: averages, wrappers, counters; what cannot be used is named."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam4ir.engine.weights import load_weights, network_block
from sam4ir.utils.state_dicts import find_state
from sam4ir.utils.weights import WeightsFileError, read_weights

RAW = {"0.weight": torch.zeros(2, 3), "0.bias": torch.zeros(2)}
EMA = {"0.weight": torch.ones(2, 3), "0.bias": torch.ones(2)}
FILE = Path("w.pth")


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


AVERAGES: dict[str, tuple[Any, str]] = {
    "BasicSR": ({"params": RAW, "params_ema": EMA}, "params_ema"),
    "model, ema": ({"model": RAW, "ema": EMA, "epoch": 3}, "ema"),
    "model, model_ema": ({"model": RAW, "model_ema": EMA}, "model_ema"),
    "timm": ({"state_dict": RAW, "state_dict_ema": EMA, "arch": "x"}, "state_dict_ema"),
    "StyleGAN": ({"g": RAW, "d": RAW, "g_ema": EMA, "g_optim": {"state": {0: {"step": torch.ones(1)}}}}, "g_ema"),
    "net_g": ({"net_g": RAW, "net_g_ema": EMA}, "net_g_ema"),
    "two averages": ({"generator": RAW, "generator_ema": EMA, "discriminator_ema": RAW}, "generator_ema"),
    "inside": ({"state_dict": {"model": RAW, "model_ema": EMA}}, "state_dict.model_ema"),
    "deeper": ({"model": {"params": RAW, "params_ema": EMA}, "optimizer": {"params": RAW}}, "model.params_ema"),
    "average with a wrapper": ({"model": RAW, "ema": {"module": EMA, "decay": 0.9}}, "ema.module"),
    "a class of averages": ({"model": RAW, "ema": {"decay": 0.9, "shadow": EMA, "backup": {}}}, "ema.shadow"),
    "any name in an average": ({"net": RAW, "model_ema": {"averaged_weights": EMA}}, "model_ema.averaged_weights"),
    "below a prefix": ({"state_dict": under("model.", RAW) | under("model_ema.", EMA)}, "state_dict"),
    "SWA": ({"swa_model": {"n_averaged": torch.tensor(3), **under("module.", EMA)}}, "swa_model"),
}


@pytest.mark.parametrize("tool", AVERAGES)
def test_the_average_is_taken_and_named(tool: str) -> None:
    content, entry = AVERAGES[tool]
    weights = find_state(content, FILE)
    assert weights.entry == entry
    assert weights.average
    assert "their average" in weights.description
    assert weights.state.keys() == EMA.keys()
    assert all(torch.equal(weights.state[key], EMA[key]) for key in EMA)


@pytest.mark.parametrize("tool", ["BasicSR", "model, ema", "model, model_ema", "timm", "net_g", "inside", "deeper"])
def test_the_weights_themselves_are_taken_where_they_are_wanted(tool: str) -> None:
    weights = find_state(AVERAGES[tool][0], FILE, average=False)
    assert not weights.average
    assert all(torch.equal(weights.state[key], RAW[key]) for key in RAW)


@pytest.mark.parametrize(
    "content",
    [
        {"params": EMA, "params_ema": {}},
        {"params": EMA, "params_ema": None},
        {"model": EMA, "ema": {"shadow_params": [torch.zeros(2, 3)], "num_updates": torch.tensor(3)}},
        {"net_g": EMA, "net_d": RAW, "iteration": 3},
        {"generator": EMA, "discriminator": RAW},
        {"checkpoint": {"state_dict": EMA}},
    ],
    ids=["empty average", "no average", "average without names", "net_d", "discriminator", "another name around"],
)
def test_weights_without_an_average_that_can_be_read(content: Any) -> None:
    weights = find_state(content, FILE)
    assert all(torch.equal(weights.state[key], EMA[key]) for key in EMA)
    assert not weights.average


FLAT: dict[str, dict[str, Tensor]] = {
    "model": under("model.", EMA),
    "nested": under("module.model.net_g.", EMA),
    "compiled generator": under("generator._orig_mod.", EMA),
    "some keys alone": {"module.0.weight": EMA["0.weight"], "0.bias": EMA["0.bias"]},
    "Lightning": {**under("net_g.", EMA), **under("net_d.", RAW), **under("loss.vgg.", RAW)},
    "GAN": {**under("generator.", EMA), **under("discriminator.", RAW)},
    "ema-pytorch": {
        **under("online_model.", RAW),
        **under("ema_model.", EMA),
        "initted": torch.tensor(True),
        "step": torch.tensor(9),
    },
    "latent diffusion": {
        **under("model.", RAW),
        "model_ema.decay": torch.tensor(0.9),
        "model_ema.num_updates": torch.tensor(4),
        "model_ema.0weight": EMA["0.weight"],
        "model_ema.0bias": EMA["0.bias"],
    },
    "thop": {
        **under("module.", EMA),
        "total_ops": torch.zeros(1, dtype=torch.float64),
        "module.0.total_params": torch.zeros(1, dtype=torch.float64),
    },
}


@pytest.mark.parametrize("tool", FLAT)
@pytest.mark.parametrize("entry", [None, "state_dict"])
def test_wrappers_and_counters_leave_no_trace(tool: str, entry: str | None) -> None:
    content = {entry: FLAT[tool]} if entry else FLAT[tool]
    state = find_state(content, FILE).state
    assert state.keys() == EMA.keys()
    assert all(torch.equal(state[key], EMA[key]) for key in EMA)


class Wrapped(nn.Module):
    """A network whose own keys begin with `model.`."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(3, 2)


@pytest.mark.parametrize("prefix", ["", "module.", "net_g.", "module.generator."])
def test_a_network_whose_keys_begin_like_a_wrapper_loads_its_own_files(prefix: str, tmp_path: Path) -> None:
    state = {"model.weight": EMA["0.weight"], "model.bias": EMA["0.bias"]}
    torch.save({"params": under(prefix, state)}, tmp_path / "w.pth")
    network = Wrapped()
    load_weights(network, tmp_path / "w.pth")
    assert torch.equal(network.model.weight, EMA["0.weight"])


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"a": torch.zeros(2, 3, device="meta")}, "a has a shape and no values .meta device"),
        (
            {"a": torch.ones(3, dtype=torch.int8), "b": torch.ones(2, dtype=torch.int64)},
            "whole numbers alone .int64, int8",
        ),
        ({"a": torch.eye(3).to_sparse()}, "a is sparse or quantised"),
        ({"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, "a is sparse or quantised"),
        ({"a": torch.ones(3, dtype=torch.complex64)}, "a holds complex numbers"),
    ],
    ids=["meta", "integers", "sparse", "quantised", "complex"],
)
@pytest.mark.parametrize("entry", ["params", None])
def test_tensors_that_no_network_loads_are_named(state: Any, words: str, entry: str | None, tmp_path: Path) -> None:
    torch.save({entry: state} if entry else state, tmp_path / "w.pth")
    with pytest.raises(WeightsFileError, match=rf"w\.pth: .*{words}"):
        read_weights(tmp_path / "w.pth")


def test_whole_numbers_do_not_become_the_values_of_a_layer(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2, 3, dtype=torch.int8), "bias": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(WeightsFileError, match=r"w\.pth: weight holds int8 numbers.*quantised"):
        load_weights(nn.Linear(3, 2), tmp_path / "w.pth")


@pytest.mark.parametrize(("key", "expected"), [("model.net_g", RAW), ("model.net_g_ema", EMA), ("a.b", EMA)])
def test_an_entry_that_was_left_aside_can_be_named_as_the_message_spells_it(key: str, expected: Any) -> None:
    content = {"epoch": 3, "model": {"net_g": RAW, "net_g_ema": EMA}, "a.b": EMA}
    weights = find_state(content, FILE, key)
    assert weights.entry == key
    assert all(torch.equal(weights.state[name], expected[name]) for name in expected)
    with pytest.raises(WeightsFileError, match=r"has no entry 'model\.net_d' \(it has epoch, model, a\.b\)"):
        find_state(content, FILE, "model.net_d")


def test_several_networks_of_unusual_names_are_listed() -> None:
    with pytest.raises(WeightsFileError, match=r"several networks \(left, right\); name one in param_key_g"):
        find_state({"left": RAW, "right": EMA}, FILE)


def test_the_log_names_the_entry_and_what_was_left_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"model": {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}}, tmp_path / "one.pth")
    torch.save(
        {name: {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)} for name in ("g", "g_ema")}, tmp_path / "b.pth"
    )
    with caplog.at_level(logging.INFO, "sam4ir"):
        logging.getLogger("sam4ir").propagate = True
        load_weights(nn.Linear(3, 2), tmp_path / "one.pth")
        load_weights(nn.Linear(3, 2), tmp_path / "b.pth")
    assert "model of " in caplog.messages[0]
    assert "g_ema of " in caplog.messages[-1]
    assert "their average; g left aside" in caplog.messages[-1]


def expanded(*shape: int) -> Tensor:
    return torch.zeros(1).expand(*shape)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_small_file_does_not_claim_a_large_network(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "huge.pth"
    torch.save(
        {"intro.weight": expanded(100_000, 3, 3, 3), "intro.bias": expanded(100_000)},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    assert path.stat().st_size < 5000
    with pytest.raises(WeightsFileError, match=r"huge\.pth: its tensors claim 11,200,000 bytes, the file has"):
        network_block(path)


def test_many_names_of_the_same_values_are_bounded(tmp_path: Path) -> None:
    values = torch.zeros(1 << 20)
    torch.save({str(number): values for number in range(40)}, tmp_path / "shared.pth")
    with pytest.raises(WeightsFileError, match="claim 167,772,160 bytes"):
        read_weights(tmp_path / "shared.pth")


def test_a_tensor_deep_inside_is_bounded_too(tmp_path: Path) -> None:
    content = {"a": [{"b": (expanded(10**9),)}], "params": RAW}
    torch.save(content, tmp_path / "deep.pth")
    with pytest.raises(WeightsFileError, match="claim 4,000,000"):
        read_weights(tmp_path / "deep.pth")


def test_tied_weights_and_views_are_read(tmp_path: Path) -> None:
    flat = torch.arange(12.0)
    state = {"a": flat[:6].view(2, 3), "b": flat[6:], "tied": flat[:6].view(2, 3), "once": torch.zeros(1).expand(64)}
    torch.save({"params": state}, tmp_path / "w.pth")
    read = read_weights(tmp_path / "w.pth").state
    assert all(torch.equal(read[key], state[key]) for key in state)
