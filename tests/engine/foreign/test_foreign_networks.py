"""spandrel's networks under names of an option file: arguments, sizes, results, weights and messages."""

from __future__ import annotations

import copy
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from sam4ir.config.schema import Block, PathOptions, ValOptions
from sam4ir.config.signature import check_block
from sam4ir.engine.build import build_network, load_pretrained, measured_scale
from sam4ir.engine.foreign import library
from sam4ir.engine.foreign.network import network
from sam4ir.engine.foreign.recognise import foreign_block
from sam4ir.engine.restore.build import BuildError, RestoreRecipe, build_restorer
from sam4ir.engine.weights import WeightsFileError, load_weights, network_block
from sam4ir.errors import UserError
from sam4ir.registry import ARCHS, UnknownNameError
from sam4ir.utils.state_dicts import find_state

pytestmark = pytest.mark.slow

pytest.importorskip("spandrel")

SWIN = {"embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 8}
# small networks of each family; every one is built, recognised by its weights, and restores as in spandrel
TINY: dict[str, dict[str, Any]] = {
    "Compact": {"num_feat": 8, "num_conv": 2},
    "SPAN": {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8},
    "SwinIR": {**SWIN, "img_size": 16, "upscale": 2, "upsampler": "pixelshuffledirect"},
    "HAT": {**SWIN, "img_size": 16, "upscale": 4, "window_size": 16, "squeeze_factor": 4},
    "DAT": {"embed_dim": 16, "depth": [2], "num_heads": [2], "split_size": [4, 8], "upscale": 2},
    "DRCT": {**SWIN, "embed_dim": 12, "img_size": 16, "upscale": 4, "window_size": 16, "upsampler": "pixelshuffle"},
    "SCUNet": {"config": [1, 1, 1, 1, 1, 1, 1], "dim": 64},
    "Uformer": {"img_size": 128, "embed_dim": 8, "depths": [1] * 9, "num_heads": [1] * 9, "modulator": True},
    "FBCNN": {"nc": [8, 8, 16, 512], "nb": 2},
    "DRUNet": {"nc": [8, 8, 16, 16], "nb": 2, "in_nc": 4, "out_nc": 3},
    "DnCNN": {"nc": 8, "in_nc": 3, "out_nc": 3},
    "NAFNet": {"width": 4, "enc_blk_nums": [1], "dec_blk_nums": [1]},
    "KBNet_s": {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [1]},
    "SAFMN": {"dim": 8, "n_blocks": 1, "upscaling_factor": 2},
    "UpCunet2x": {},
    "ESRGAN": {"num_filters": 8, "num_blocks": 1, "scale": 2},
    "RealPLKSR": {"dim": 16, "n_blocks": 1, "upscaling_factor": 4},
    "PLKSR": {"dim": 16, "n_blocks": 1, "upscaling_factor": 2},
    "RetinexFormer": {"n_feat": 8, "stage": 1},
    "MixDehazeNet": {"embed_dims": [8, 16, 32, 16, 8]},
    "RCAN": {"n_resgroups": 1, "n_resblocks": 1, "n_feats": 16, "scale": 2},
    "OmniSR": {"num_feat": 16},
    "CRAFT": {"embed_dim": 12, "depths": [1], "num_heads": [6]},
    "DITN": {"dim": 8, "ITL_blocks": 1, "SAL_blocks": 1},
}


def built(name: str, arguments: dict[str, Any]) -> Any:
    block = Block(type=f"spandrel:{name}", **arguments)
    assert check_block(ARCHS, {"type": block.type, **arguments}, ("network_g",)) == []
    return build_network(block, "g", torch.device("cpu"), seed=1)


@pytest.mark.parametrize("name", TINY)
def test_it_restores_as_in_spandrel(name: str, tmp_path: Path) -> None:
    """Weights in another trainer's layout alone; the result is that of spandrel's own descriptor, for an odd size."""
    torch.manual_seed(0)
    source = built(name, TINY[name]).eval()
    state = {f"module.{key}": value.clone() for key, value in source.state_dict().items()}
    torch.save({"model": state, "optimizer": {"state": {}}}, tmp_path / "x.pth")
    block = foreign_block(find_state(torch.load(tmp_path / "x.pth", weights_only=True), tmp_path / "x.pth"))
    assert block is not None
    assert block["type"] == f"spandrel:{name}"
    restoring = built(name, {key: value for key, value in block.items() if key != "type"}).eval()
    load_weights(restoring, tmp_path / "x.pth")
    descriptor = library.descriptor_of(library.kind_called(name), source.state_dict()).eval()
    image = torch.rand(1, descriptor.input_channels, 19, 26)
    expected = descriptor(image.clone())
    with torch.no_grad():
        for layout in (torch.contiguous_format, torch.channels_last):
            torch.testing.assert_close(restoring(image.contiguous(memory_format=layout)).clamp(0, 1), expected)


@pytest.mark.parametrize("name", TINY)
def test_it_learns(name: str) -> None:
    net = built(name, TINY[name])
    image = torch.rand(2, net.traits.channels, 24, 24)
    before = image.clone()
    output = copy.deepcopy(net)(image)
    assert output.shape[-2:] == (24 * net.traits.scale, 24 * net.traits.scale)
    assert torch.equal(image, before), "the input was changed in place"
    net(image).square().mean().backward()
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("name", ["DRUNet", "SCUNet", "ESRGAN"])
def test_images_of_a_batch_are_restored_as_alone(name: str) -> None:
    net = built(name, TINY[name]).eval()
    images = torch.rand(3, net.traits.channels, 18, 18)
    with torch.no_grad():
        together, alone = net(images), [net(image) for image in images.split(1)]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"type": "spandrel:SCUnet"}, "did you mean 'SCUNet'"),
        ({"type": "spandrel:SCUNet", "dimm": 8}, "did you mean 'dim'"),
        ({"type": "spandrel:LaMa"}, "no network called 'LaMa'"),  # inpaints, so it needs a mask
        ({"type": "spandrel:SwinIR", "norm_layer": "LayerNorm"}, "norm_layer"),
        ({"type": "spandrel:GFPGAN", "decoder_load_path": "x.pth"}, "decoder_load_path"),
        ({"type": "spandrel:SPAN", "num_in_ch": 3}, "num_out_ch"),
        ({"type": "SCUNet"}, "spandrel:NAME"),
    ],
)
def test_a_wrong_block_is_named(block: dict[str, Any], words: str) -> None:
    problems = check_block(ARCHS, block, ("network_g",))
    assert words in " ".join(map(str, problems))


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("SwinIR", {"window_size": 7}, "spandrel:SwinIR refuses these arguments"),
        ("DRUNet", {"nc": [8, 8, 16, 16], "nb": 1}, "does not read the weights of a network with these arguments"),
        ("UpCunet4x", {"in_channels": 4, "out_channels": 1}, "as those of UpCunet2x_fast"),
    ],
)
def test_arguments_without_a_working_network_are_an_error_of_the_user(
    name: str, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        network(name)(**arguments)


@pytest.fixture
def no_spandrel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for package in ("spandrel", "spandrel_extra_arches"):
        monkeypatch.setitem(sys.modules, package, None)
    library.kinds.cache_clear()
    network.cache_clear()
    yield
    library.kinds.cache_clear()
    network.cache_clear()


@pytest.mark.usefixtures("no_spandrel")
def test_without_the_package_the_error_names_the_extra(tmp_path: Path) -> None:
    problems = check_block(ARCHS, {"type": "spandrel:SCUNet"}, ("network_g",))
    assert "network_g.type" in str(problems[0])
    assert "spandrel:SCUNet needs the package spandrel: pip install" in str(problems[0])
    torch.save({"m_head.0.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "x.pth")
    with pytest.raises(WeightsFileError, match=r"no network that is known here.*install spandrel"):
        network_block(tmp_path / "x.pth")


def test_a_restricted_licence_is_said(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("spandrel_extra_arches")
    with caplog.at_level(logging.WARNING):
        network("Restormer")(dim=4, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, heads=[1, 1, 1, 1])
        assert "spandrel:Restormer comes from spandrel_extra_arches: its licence" in caplog.text
        caplog.clear()
        built("Compact", TINY["Compact"])
        assert caplog.text == ""


@pytest.mark.parametrize("name", ["SwinIR", "SCUNet", "Compact"])
def test_the_scale_is_that_of_its_images(name: str) -> None:
    net = built(name, TINY[name])
    assert measured_scale(net, torch.device("cpu")) == net.traits.scale


def test_tiles_are_multiples_and_advice_against_them_is_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    scunet, craft = built("SCUNet", TINY["SCUNet"]), built("CRAFT", TINY["CRAFT"])
    tiles = RestoreRecipe(ValOptions(grids=True, crop_size=50, overlap=8))
    with caplog.at_level(logging.WARNING):
        assert build_restorer(tiles, craft).inference.tile == 48  # of 16
        assert caplog.text == ""
        build_restorer(tiles, scunet)
        assert "SCUNet looks at the whole image" in caplog.text
    with pytest.raises(BuildError, match="crop_size: tiles of 30"):
        build_restorer(RestoreRecipe(ValOptions(grids=True, crop_size=30, overlap=8)), scunet)
    enlarging = RestoreRecipe(tiles.val, scale=4)
    restored = build_restorer(enlarging, craft)(torch.rand(1, 3, 70, 61), "x")
    assert restored.shape == (1, 3, 280, 244)


def test_pretrained_weights_of_the_released_layout_load(tmp_path: Path) -> None:
    """ESRGAN of scale 2 in BasicSR's names, which spandrel translates to its own."""
    net = built("ESRGAN", TINY["ESRGAN"])
    names = {"model.0.": "conv_first.", "model.1.sub.1.": "conv_body.", "model.3.": "conv_up1.", "model.5.": "conv_hr."}
    names["model.7."] = "conv_last."
    released = {}
    for key, value in net.state_dict().items():
        name = key
        for old, new in names.items():
            if key.startswith(old):
                name = new + key.removeprefix(old)
        if key.startswith("model.1.sub.0."):
            dense, layer, _, leaf = key.removeprefix("model.1.sub.0.").split(".")
            name = f"body.0.{dense.lower()}.{layer}.{leaf}"
        released[name] = value + 1
    torch.save({"params_ema": released}, tmp_path / "x.pth")
    assert load_pretrained(net, PathOptions(pretrain_network_g=str(tmp_path / "x.pth")))
    assert torch.equal(net.state_dict()["model.0.weight"], released["conv_first.weight"])
    other = nn.Conv2d(3, 3, 3)
    with pytest.raises(WeightsFileError, match=r"those of spandrel:ESRGAN; network_g: \{type: spandrel:ESRGAN"):
        load_weights(other, tmp_path / "x.pth")


def test_the_example_of_the_documents_is_a_network() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "foreign-networks.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    block = yaml.safe_load(example)["network_g"]
    assert check_block(ARCHS, block, ("network_g",)) == []
    assert block["type"] == "spandrel:SCUNet"


def test_unknown_names_are_an_unknown_name_error() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'HAT'"):
        ARCHS.get("spandrel:HATT")
    assert "spandrel:anything" in ARCHS
    assert "other:HAT" not in ARCHS


def test_noise_that_a_network_draws_is_the_same_each_time() -> None:
    net = built("Compact", TINY["Compact"]).eval()
    net.traits = net.traits._replace(call=lambda plain, images: plain(images + torch.rand_like(images)))
    image = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert not torch.equal(net(image), net(image))
        net.kind = net.kind._replace(name="AuraSR")
        assert torch.equal(net(image), net(image))
