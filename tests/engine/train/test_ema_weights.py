"""EMA, and weights files into networks."""

import hashlib
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from sam4ir.config.load import load_options
from sam4ir.engine import build
from sam4ir.engine.train.ema import Ema
from sam4ir.engine.weights import WeightsFileError, load_weights, locate, network_block
from sam4ir.priors.zoo import weights as zoo
from sam4ir.priors.zoo.sources import Url
from sam4ir.priors.zoo.weights import Entry, WeightsError, ZooNetwork
from sam4ir.registry import ARCHS


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


def test_an_average_without_warm_up_has_basicsrs_decay_from_the_first_update() -> None:
    net = nn.Linear(2, 1)
    ema = Ema(net, decay=0.9, warmup=False)
    expected = net.weight.detach().clone()  # BasicSR: model_ema(0) copies the network, then decay 0.9 each iteration
    for _ in range(5):
        with torch.no_grad():
            net.weight += 1
        expected = 0.9 * expected + 0.1 * net.weight.detach()
        ema.update()
    torch.testing.assert_close(ema.module.weight, expected)


def test_the_average_is_a_copy_in_eval_mode_that_nothing_trains() -> None:
    net = nn.BatchNorm1d(2)
    ema = Ema(net, decay=0.5)
    assert ema.on
    assert not ema.module.training
    assert net.training
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())
    with torch.no_grad():
        net.weight += 1
    assert (ema.module.weight == 1).all()


def test_frozen_parameters_stay_and_buffers_of_whole_numbers_are_copied() -> None:
    net = nn.BatchNorm1d(2)
    net.bias.requires_grad_(False)
    ema = Ema(net, decay=0.5)
    with torch.no_grad():
        net.weight += 10
        net.bias += 10
        net.running_mean += 10
        net.num_batches_tracked += 10
    ema.update()
    assert ema.updates == 1
    # d = 1/10 after 0 updates
    assert ema.module.weight.tolist() == pytest.approx([1 + 0.9 * 10] * 2)
    assert ema.module.running_mean.tolist() == pytest.approx([0.9 * 10] * 2)
    assert ema.module.bias.tolist() == [0, 0]
    assert ema.module.num_batches_tracked == 10


def test_no_decay_means_the_network_itself() -> None:
    net = nn.Linear(2, 2)
    ema = Ema(net, decay=0)
    ema.update()
    assert ema.module is net
    assert not ema.on


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3))


def tiny(role: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return ARCHS.get(role)(**arguments)


NAF = {"width": 4, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [1]}
RESTORMER = {"dim": 4, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 2, 2, 4]}


def save(network: nn.Module, path: Path) -> Path:
    torch.save({"params": network.state_dict()}, path)
    return path


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y)


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
    assert_same(source, target)


def test_the_log_tells_which_entry_was_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = net().state_dict()
    torch.save({"params": state, "params_ema": state}, tmp_path / "w.pth")
    caplog.set_level(logging.INFO, "sam4ir")
    load_weights(net(), tmp_path / "w.pth")
    load_weights(net(), tmp_path / "w.pth", key="params")
    assert [m.rsplit(" of ", 1)[0] for m in caplog.messages] == [
        "Sequential loaded the weights params_ema",
        "Sequential loaded the weights params",
    ]


def test_a_file_that_does_not_fit_gives_a_short_difference(tmp_path: Path) -> None:
    state = net().state_dict()
    state["9.weight"] = state.pop("1.weight")
    state["0.bias"] = torch.zeros(7)
    torch.save({"params": state}, tmp_path / "w.pth")
    with pytest.raises(
        WeightsFileError, match=r"w.pth.*1 missing \(1.weight\); 1 unknown \(9.weight\).*0.bias \(7,\) for \(4,\)"
    ):
        load_weights(net(), tmp_path / "w.pth")


def test_many_differences_are_counted_by_their_common_beginning(tmp_path: Path) -> None:
    path = save(tiny("NAFNet", **NAF), tmp_path / "w.pth")
    deeper = tiny("NAFNet", width=4, middle_blk_num=3, enc_blk_nums=[4], dec_blk_nums=[1])
    with pytest.raises(WeightsFileError) as caught:
        load_weights(deeper, path)
    # a block has 18 tensors
    assert "90 missing (encoders.* 54, middle_blks.* 36); network_g: " in str(caught.value)
    state = {f"body.first.{i}.{part}": torch.zeros(1) for i in (0, 1) for part in "abc"}
    torch.save(state, path)
    with pytest.raises(WeightsFileError, match=r"6 unknown \(body.first.0.\* 3, body.first.1.\* 3\); network_g of the"):
        load_weights(deeper, path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("role", "arguments"),
    [
        ("NAFNet", {"img_channel": 1, **NAF}),
        ("HINet", {"in_chn": 3, "wf": 4, "depth": 2, "hin_position_left": 1, "hin_position_right": 1}),
        ("Restormer", {**RESTORMER, "bias": True, "LayerNorm_type": "BiasFree", "ffn_expansion_factor": 2.0}),
    ],
)
@pytest.mark.parametrize("asked", ["NAFNet", "NAFNetLocal", "HINet"])
def test_a_misfit_names_the_network_that_would_fit_and_it_does(
    role: str, arguments: dict[str, Any], asked: str, tmp_path: Path
) -> None:
    source = tiny(role, **arguments)
    path = save(source, tmp_path / "w.pth")
    with pytest.raises(WeightsFileError, match=f"w.pth: does not fit {asked}: .* would fit") as caught:
        load_weights(tiny(asked), path)
    found = re.search(r"network_g: (\{.*\}) would fit", str(caught.value))
    assert found is not None
    block = yaml.safe_load(found[1])
    related = {"NAFNet", "NAFNetLocal"} >= {role, asked}
    assert block.pop("type") == (asked if related else role)
    assert (f"the weights are those of {role}; " in str(caught.value)) == (asked != role and not related)
    assert ("relu_slope leaves no trace" in str(caught.value)) == (role == "HINet")
    target = tiny(role, **block)
    load_weights(target, path)
    assert_same(source, target)


def test_without_strict_what_fits_is_loaded_and_the_rest_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = net().state_dict()
    del state["1.weight"]
    torch.save(state, tmp_path / "w.pth")
    target = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3))
    load_weights(target, tmp_path / "w.pth", strict=False)
    assert torch.equal(target[0].weight, state["0.weight"])
    assert "3 of the network's 4 tensors were taken; 1 missing (1.weight)" in caplog.messages[0]


def test_without_strict_nothing_fitting_is_still_an_error(tmp_path: Path) -> None:
    path = save(tiny("NAFNet", **NAF), tmp_path / "w.pth")
    with pytest.raises(WeightsFileError, match="does not fit Sequential: the weights are those of NAFNet"):
        load_weights(net(), path, strict=False)


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


@pytest.fixture
def in_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A network whose weights are in the zoo as `tiny-0.5x`, in its cache already."""
    monkeypatch.setenv("SAM4IR_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    network = tiny("NAFNetLocal", train_size=[1, 3, 16, 16], **NAF)
    (tmp_path / "home" / "weights").mkdir(parents=True)
    file = save(network, tmp_path / "home" / "weights" / "tiny.pth")
    source = Url("http://127.0.0.1:9/tiny.pth", hashlib.sha256(file.read_bytes()).hexdigest())
    record = ZooNetwork("NAFNetLocal", {"train_size": [1, 3, 16, 16], **NAF})
    entry = Entry("tiny-0.5x", "a test", "none", (source,), network=record)
    monkeypatch.setattr(zoo, "ENTRIES", {entry.name: entry})
    return network


@pytest.mark.parametrize("name", ["zoo:tiny-0.5x", "tiny-0.5x"])
def test_a_name_of_the_zoo_stands_for_its_file(name: str, in_the_zoo: nn.Module) -> None:
    target = tiny("NAFNet", **NAF)
    load_weights(target, name)
    assert_same(in_the_zoo, target)
    assert network_block(name) == {"type": "NAFNetLocal", "train_size": [1, 3, 16, 16], **NAF}


def test_a_file_goes_before_a_bare_name_of_the_zoo(in_the_zoo: nn.Module, tmp_path: Path) -> None:
    own = save(net(), tmp_path / "tiny-0.5x")
    assert locate("tiny-0.5x") == Path("tiny-0.5x")
    assert locate("zoo:tiny-0.5x").parent.name == "weights"
    load_weights(net(), own)


def test_names_that_are_neither_file_nor_zoo_get_the_near_miss(in_the_zoo: nn.Module) -> None:
    with pytest.raises(WeightsFileError, match=r"tiny-05x: no such weights file.*did you mean 'tiny-0.5x'\?"):
        load_weights(net(), "tiny-05x")
    with pytest.raises(WeightsError, match=r"'tiny-05'; did you mean 'tiny-0.5x'\?"):
        load_weights(net(), "zoo:tiny-05")
    for path in ("nowhere.pth", "folder/tiny-0.5x"):
        with pytest.raises(WeightsFileError, match=f"{path}: no such weights file$"):
            load_weights(net(), path)


def test_the_network_of_a_file_is_told_by_its_shapes(tmp_path: Path) -> None:
    path = save(tiny("Restormer", **RESTORMER), tmp_path / "w.pth")
    block = network_block(path)
    target = tiny(block.pop("type"), **block)
    load_weights(target, path)
    with pytest.raises(WeightsFileError, match="no network that is known here; give an option file with network_g"):
        network_block(save(net(), path))


def test_an_option_file_may_name_weights_of_the_zoo(in_the_zoo: nn.Module, tmp_path: Path) -> None:
    file = tmp_path / "o.yml"
    file.write_text("name: x\nnetwork_g: {type: NAFNet, width: 4, enc_blk_nums: [1], dec_blk_nums: [1]}\n")
    target = tiny("NAFNet", **NAF)
    assert build.load_pretrained(target, load_options(file, ["path:pretrain_network_g=zoo:tiny-0.5x"]).path)
    assert_same(in_the_zoo, target)
    with pytest.raises(build.BuildError, match=r"path.pretrain_network_g: no weights are called 'tinny'"):
        build.load_pretrained(target, load_options(file, ["path:pretrain_network_g=zoo:tinny"]).path)
