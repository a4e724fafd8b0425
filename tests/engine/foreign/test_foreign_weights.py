"""Which network weights belong to where ours and spandrel's both read them, and our weights in spandrel."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam4ir.config.schema import Block
from sam4ir.engine.build import build_network
from sam4ir.engine.foreign import library
from sam4ir.engine.foreign.network import network
from sam4ir.engine.weights import WeightsFileError, load_weights, network_block
from sam4ir.registry import ARCHS

spandrel = pytest.importorskip("spandrel")

NAF = {"width": 4, "enc_blk_nums": [1], "middle_blk_num": 1, "dec_blk_nums": [1]}
RRDB = {"num_feat": 8, "num_block": 1}
RESTORMER = {"dim": 4, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 1, 1, 1]}
SCUNET = {"config": [1, 1, 1, 1, 1, 1, 1], "dim": 64}

# (network, arguments) whose weights are read -> the type of network_g that is chosen
CHOSEN: list[tuple[str, dict[str, Any], str]] = [
    ("NAFNet", NAF, "NAFNet"),
    ("Baseline", NAF, "Baseline"),
    ("HINet", {"wf": 4, "depth": 2}, "HINet"),
    ("Restormer", RESTORMER, "Restormer"),
    ("RRDBNet", RRDB, "RRDBNet"),
    ("RRDBNet", {**RRDB, "scale": 2}, "RRDBNet"),
    ("RRDBNet", {**RRDB, "num_grow_ch": 8}, "RRDBNet"),
    ("DiffSRRRDBNet", {"nf": 8, "nb": 1}, "RRDBNet"),
    ("DiffSRRRDBNet", {"nf": 8, "nb": 1, "sr_scale": 8}, "spandrel:ESRGAN"),
    ("DiffSRRRDBNet", {"nf": 8, "nb": 1, "sr_scale": 8, "gc": 4}, "DiffSRRRDBNet"),  # a growth that spandrel lacks
    ("spandrel:NAFNet", NAF, "NAFNet"),
    ("spandrel:ESRGAN", {"num_filters": 8, "num_blocks": 1, "scale": 4}, "RRDBNet"),
    ("spandrel:ESRGAN", {"num_filters": 8, "num_blocks": 1, "scale": 1}, "spandrel:ESRGAN"),
    ("spandrel:ESRGAN", {"num_filters": 8, "num_blocks": 1, "scale": 2}, "spandrel:ESRGAN"),
    ("spandrel:ESRGAN", {"num_filters": 8, "num_blocks": 1, "scale": 8}, "spandrel:ESRGAN"),
    ("spandrel:ESRGAN", {"num_filters": 8, "num_blocks": 1, "plus": True}, "spandrel:ESRGAN"),
    ("spandrel:Compact", {"num_feat": 8, "num_conv": 2}, "spandrel:Compact"),
    ("spandrel:SCUNet", SCUNET, "spandrel:SCUNet"),
    ("spandrel:DnCNN", {"nc": 8, "in_nc": 3, "out_nc": 3}, "spandrel:DnCNN"),
]


def built(name: str, arguments: dict[str, Any]) -> nn.Module:
    return build_network(Block(type=name, **arguments), "g", torch.device("cpu"), seed=1).eval()


@pytest.mark.parametrize(("name", "arguments", "chosen"), CHOSEN)
def test_the_network_of_weights(name: str, arguments: dict[str, Any], chosen: str, tmp_path: Path) -> None:
    """The chosen network restores an image in [0, 1] as the one that the weights were taken from."""
    source = built(name, arguments)
    torch.save(source.state_dict(), tmp_path / "x.pth")
    block = network_block(tmp_path / "x.pth")
    assert block.pop("type") == chosen
    restoring = built(chosen, block)
    load_weights(restoring, tmp_path / "x.pth")
    image = torch.rand(1, 3, 24, 28)
    with torch.no_grad():
        if name == "DiffSRRRDBNet" and chosen != name:
            expected = (source(image * 2 - 1) + 1) / 2
        else:
            expected = source(image).clamp(0, 1) if isinstance(source(image), Tensor) else source(image)[-1].clamp(0, 1)
        output = restoring(image)
        output = output if isinstance(output, Tensor) else output[-1]
    torch.testing.assert_close(output.clamp(0, 1), expected.clamp(0, 1), atol=2e-6, rtol=1e-4)


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "a plain state dict": lambda state: state,
    "BasicSR": lambda state: {"params": zeros(state), "params_ema": state},
    "KAIR": lambda state: {f"module.{key}": value for key, value in state.items()},
    "GAN trainers": lambda state: {"g": zeros(state), "d": {"x": torch.ones(3)}, "g_ema": state},
    "model and ema": lambda state: {"model": zeros(state), "ema": state, "optimizer": {"state": {}}},
    "Lightning": lambda state: {"state_dict": {f"net_g.{key}": value for key, value in state.items()}, "epoch": 3},
    "compiled": lambda state: {"params": {f"_orig_mod.module.{key}": value for key, value in state.items()}},
}


def zeros(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.zeros_like(value) for key, value in state.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("name", "arguments"), [("Compact", {"num_feat": 8, "num_conv": 2}), ("DnCNN", {"nc": 8}), ("SAFMN", {"dim": 8})]
)
def test_weights_of_other_trainers_reach_spandrel(
    name: str, arguments: dict[str, Any], layout: str, tmp_path: Path
) -> None:
    source = built(f"spandrel:{name}", arguments)
    torch.save(LAYOUTS[layout](source.state_dict()), tmp_path / "x.pth")
    block = network_block(tmp_path / "x.pth")
    assert block.pop("type") == f"spandrel:{name}"
    restoring = built(f"spandrel:{name}", block)
    load_weights(restoring, tmp_path / "x.pth")
    for key, value in restoring.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('a pickle ran')",)


def test_no_pickle_of_a_weights_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """spandrel reads no file: only tensors that our reader has verified reach it."""

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("spandrel read a file")

    monkeypatch.setattr(spandrel.ModelLoader, "load_from_file", refused)
    torch.save({"params": {"m_head.0.weight": torch.zeros(8, 3, 3, 3)}, "more": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsFileError, match="could run code"):
        network_block(tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(WeightsFileError):
        network_block(tmp_path / "plain.pth")


def in_spandrel(state: dict[str, Tensor]) -> Any:
    """The network that spandrel's own loader makes of a state dict, for images in [0, 1]."""
    return spandrel.ModelLoader().load_from_state_dict(state).eval()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("NAFNet", NAF),
        ("NAFNet", {**NAF, "img_channel": 1}),
        ("RRDBNet", RRDB),
        ("RRDBNet", {**RRDB, "scale": 2}),
        ("RRDBNet", {**RRDB, "scale": 1}),
    ],
)
def test_our_weights_restore_the_same_in_spandrel(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    ours = built(name, arguments)
    torch.save({"params": zeros(ours.state_dict()), "params_ema": ours.state_dict()}, tmp_path / "net_g.pth")
    theirs = spandrel.ModelLoader().load_from_file(tmp_path / "net_g.pth").eval()
    image = torch.rand(1, theirs.input_channels, 24, 28)
    with torch.no_grad():
        torch.testing.assert_close(theirs(image), ours(image).clamp(0, 1), atol=2e-6, rtol=1e-4)


def test_our_restormer_restores_the_same_in_spandrel_extra_arches() -> None:
    pytest.importorskip("spandrel_extra_arches")
    ours = built("Restormer", RESTORMER)
    kind = library.kinds()["Restormer"]
    theirs = library.descriptor_of(kind, ours.state_dict()).eval()
    image = torch.rand(1, 3, 24, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(image), ours(image).clamp(0, 1), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("scale", [4, 8])
def test_spandrel_takes_diffsrs_rrdb_for_esrgan_on_images_from_0_to_1(scale: int) -> None:
    """The same function after a change of range: x in [0, 1] -> (ours(2 x - 1) + 1) / 2."""
    ours = built("DiffSRRRDBNet", {"nf": 8, "nb": 1, "sr_scale": scale})
    theirs = in_spandrel(ours.state_dict())
    image = torch.rand(1, 3, 12, 14)
    with torch.no_grad():
        torch.testing.assert_close(theirs(image), (ours(image * 2 - 1) + 1) / 2, atol=2e-6, rtol=1e-4)
        assert (theirs(image) - ours(image)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("HINet", {"wf": 4, "depth": 2}),
        ("RRDBNet", {**RRDB, "num_grow_ch": 8}),
        ("Baseline", NAF),
        ("DiffSR", {"hidden_size": 8, "rrdb_num_feat": 8, "rrdb_num_block": 2, "dim_mults": [1, 2]}),
    ],
)
def test_what_spandrel_does_not_read(name: str, arguments: dict[str, Any]) -> None:
    state = built(name, arguments).state_dict()
    with pytest.raises((spandrel.UnsupportedModelError, RuntimeError)):
        in_spandrel(state)


def test_a_network_of_spandrel_saves_what_spandrel_reads() -> None:
    source = network("SCUNet")(**SCUNET).eval()
    theirs = in_spandrel(source.state_dict())
    image = torch.rand(1, 3, 30, 40)
    with torch.no_grad():
        torch.testing.assert_close(theirs(image), source(image).clamp(0, 1))
    assert ARCHS.get("spandrel:SCUNet") is network("SCUNet")
