"""EMA, and weights files of every layout."""

from pathlib import Path

import pytest
import torch
from torch import nn

from sam4ir.engine.ema import Ema
from sam4ir.engine.weights import WeightsFileError, load_weights


def test_ema_follows_parameters_and_buffers_with_a_decay_that_warms_up() -> None:
    net = nn.BatchNorm1d(2)
    ema = Ema(net, decay=0.5)
    expected = net.weight.detach().clone()
    for k in range(12):
        with torch.no_grad():
            net.weight += 1
            net.running_mean += 2
            net.num_batches_tracked += 1
        d = min(0.5, (1 + k) / (10 + k))
        expected = d * expected + (1 - d) * net.weight.detach()
        ema.update()
    torch.testing.assert_close(ema.module.weight, expected)
    assert 0 < ema.module.running_mean[0] < net.running_mean[0]
    assert ema.module.num_batches_tracked == 12


def test_no_decay_means_the_network_itself() -> None:
    net = nn.Linear(2, 2)
    ema = Ema(net, decay=0)
    ema.update()
    assert ema.module is net
    assert not ema.on


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3))


LAYOUTS = {
    "params": lambda s: {"params": s},
    "params_ema": lambda s: {"params": {k: v * 0 for k, v in s.items()}, "params_ema": s},
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "bare": lambda s: s,
    "module.": lambda s: {"params": {f"module.{k}": v for k, v in s.items()}},
    "_orig_mod.": lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_official_layouts_load_without_being_told_the_key(layout: str, tmp_path: Path) -> None:
    source, target = net(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3))
    torch.save(LAYOUTS[layout](source.state_dict()), tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth")
    for a, b in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(a, b)


def test_safetensors_load(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source, target = net(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3))
    save_file(source.state_dict(), str(tmp_path / "w.safetensors"))
    load_weights(target, tmp_path / "w.safetensors")
    assert torch.equal(source[0].weight, target[0].weight)


def test_a_file_that_does_not_fit_gives_a_short_difference(tmp_path: Path) -> None:
    state = net().state_dict()
    state["9.weight"] = state.pop("1.weight")
    state["0.bias"] = torch.zeros(7)
    torch.save({"params": state}, tmp_path / "w.pth")
    with pytest.raises(
        WeightsFileError, match=r"w.pth.*1 missing \(1.weight\); 1 unknown \(9.weight\).*0.bias \(7,\) for \(4,\)"
    ):
        load_weights(net(), tmp_path / "w.pth")


def test_without_strict_what_fits_is_loaded(tmp_path: Path) -> None:
    state = net().state_dict()
    del state["1.weight"]
    torch.save(state, tmp_path / "w.pth")
    target = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3))
    load_weights(target, tmp_path / "w.pth", strict=False)
    assert torch.equal(target[0].weight, state["0.weight"])


@pytest.mark.parametrize("name", ["cut.pth", "text.pth", "code.pth", "cut.safetensors"])
def test_a_file_that_is_no_weights_file_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    torch.save(net().state_dict(), path)
    if name.startswith("cut"):
        path.write_bytes(path.read_bytes()[:500])
    elif name == "text.pth":
        path.write_text("hello")
    else:
        torch.save({"params": nn.Linear(1, 1)}, path)  # a pickled object: code would have to run
    with pytest.raises(WeightsFileError, match=name):
        load_weights(net(), path)


def test_an_entry_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    torch.save({"params": net().state_dict()}, tmp_path / "w.pth")
    with pytest.raises(WeightsFileError, match=r"no entry 'params_ema' \(it has params\)"):
        load_weights(net(), tmp_path / "w.pth", key="params_ema")
