"""The network that a state dict's keys and shapes belong to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam4ir.archs.infer import Fit, built_shapes, infer, restoring, shapes_of
from sam4ir.registry import ARCHS

SIDD: dict[str, Any] = {"middle_blk_num": 12, "enc_blk_nums": [2, 2, 4, 8], "dec_blk_nums": [2, 2, 2, 2]}
GOPRO: dict[str, Any] = {"middle_blk_num": 1, "enc_blk_nums": [1, 1, 1, 28], "dec_blk_nums": [1, 1, 1, 1]}
HINET: dict[str, Any] = {"in_chn": 3, "wf": 64, "depth": 5, "hin_position_left": 0, "hin_position_right": 4}
RESTORMER: dict[str, Any] = {
    "inp_channels": 3,
    "out_channels": 3,
    "dim": 48,
    "num_blocks": [4, 6, 6, 8],
    "num_refinement_blocks": 4,
    "heads": [1, 2, 4, 8],
    "ffn_expansion_factor": 2.66,
    "bias": False,
    "LayerNorm_type": "WithBias",
    "dual_pixel_task": False,
}

RRDB: dict[str, Any] = {"num_in_ch": 3, "num_out_ch": 3, "scale": 4, "num_feat": 64, "num_block": 23, "num_grow_ch": 32}
DIFFSR_RRDB: dict[str, Any] = {"in_nc": 3, "out_nc": 3, "nf": 64, "nb": 17, "gc": 32, "sr_scale": 4}
DIFFSR_UNET: dict[str, Any] = {
    "dim": 64,
    "out_dim": 3,
    "dim_mults": [1, 2, 3, 4],
    "cond_dim": 64,
    "rrdb_num_block": 17,
    "sr_scale": 4,
    "use_attn": False,
    "up_input": False,
    "cond_sam": False,
}
DIFFSR: dict[str, Any] = {
    "hidden_size": 64,
    "dim_mults": [1, 2, 3, 4],
    "rrdb_num_feat": 64,
    "rrdb_num_block": 17,
    "sr_scale": 4,
    "use_attn": False,
    "up_input": False,
}

# the official configurations (keys and shapes are pinned in test_networks.py and test_diffusion_networks.py)
OFFICIAL: list[tuple[str, dict[str, Any]]] = [
    *[("NAFNet", {"img_channel": 3, "width": width, **blocks}) for width in (32, 64) for blocks in (SIDD, GOPRO)],
    *[("Baseline", {"img_channel": 3, "width": 32, **SIDD, "dw_expand": dw, "ffn_expand": 2}) for dw in (1, 2)],
    ("HINet", HINET),
    ("HINet", {**HINET, "hin_position_left": 3}),
    ("HINet", {**HINET, "wf": 32}),
    ("Restormer", RESTORMER),
    ("Restormer", {**RESTORMER, "LayerNorm_type": "BiasFree"}),
    ("Restormer", {**RESTORMER, "LayerNorm_type": "BiasFree", "inp_channels": 1, "out_channels": 1}),
    ("Restormer", {**RESTORMER, "inp_channels": 6, "dual_pixel_task": True}),
    *[("RRDBNet", {**RRDB, "scale": scale}) for scale in (4, 2, 1)],
    *[("DiffSRRRDBNet", {**DIFFSR_RRDB, "sr_scale": scale}) for scale in (4, 8)],
    *[("DiffSRUnet", {**DIFFSR_UNET, part: True}) for part in ("use_attn", "up_input", "cond_sam")],
    ("DiffSR", DIFFSR),
]


def told(role: str, arguments: dict[str, Any]) -> Fit:
    fit = infer(built_shapes(ARCHS.get(role), arguments))
    assert fit is not None
    return fit


@pytest.mark.parametrize(("role", "arguments"), OFFICIAL, ids=lambda v: v if isinstance(v, str) else "")
def test_official_networks_get_their_own_arguments_back(role: str, arguments: dict[str, Any]) -> None:
    fit = told(role, arguments)
    assert fit.network is ARCHS.get(role)
    assert fit.arguments == arguments


def test_the_local_form_is_told_as_the_network_whose_weights_it_has() -> None:
    arguments = {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [2]}
    fit = told("NAFNetLocal", {"train_size": (1, 3, 64, 64), **arguments})
    assert fit.network is ARCHS.get("NAFNet")
    assert fit.arguments == {"img_channel": 3, **arguments}


def test_what_leaves_no_trace_is_said() -> None:
    assert told("HINet", {"wf": 4, "depth": 2, "relu_slope": 0.1}).undetermined == ("relu_slope",)


def assert_reproduced(role: str, arguments: dict[str, Any]) -> None:
    shapes = built_shapes(ARCHS.get(role), arguments)
    fit = infer(shapes)
    assert fit is not None
    assert fit.network is ARCHS.get(role)
    assert list(built_shapes(fit.network, fit.arguments).items()) == list(shapes.items())


few = st.integers(0, 2)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), few, st.lists(st.tuples(few, few), max_size=3))
def test_every_nafnet_is_told(channels: int, width: int, middle: int, levels: list[tuple[int, int]]) -> None:
    encoders, decoders = [e for e, _ in levels], [d for _, d in levels]
    arguments = {"img_channel": channels, "width": width, "middle_blk_num": middle}
    fit = told("NAFNet", {**arguments, "enc_blk_nums": encoders, "dec_blk_nums": decoders})
    assert fit.arguments == {**arguments, "enc_blk_nums": encoders, "dec_blk_nums": decoders}


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.sampled_from([2, 4, 6]), st.integers(1, 4), st.integers(0, 5), st.integers(0, 5))
def test_every_hinet_is_told(channels: int, width: int, depth: int, left: int, right: int) -> None:
    arguments = {"in_chn": channels, "wf": width, "depth": depth}
    assert_reproduced("HINet", {**arguments, "hin_position_left": left, "hin_position_right": right})


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_every_restormer_is_told(data: st.DataObject) -> None:
    dim = data.draw(st.sampled_from([4, 6, 8]), "dim")
    dual = data.draw(st.booleans(), "dual")
    out = data.draw(st.integers(1, 4), "out")
    heads = [data.draw(st.sampled_from([h for h in (1, 2, 4) if dim * 2**k % h == 0]), "heads") for k in range(4)]
    arguments = {
        "inp_channels": data.draw(st.integers(1, 6) if dual else st.sampled_from([1, out]), "in"),
        "out_channels": out,
        "dim": dim,
        "num_blocks": data.draw(st.lists(few, min_size=4, max_size=4), "blocks"),
        "num_refinement_blocks": data.draw(few, "refinement"),
        "heads": heads,
        "ffn_expansion_factor": data.draw(st.floats(0.5, 4), "expansion"),
        "bias": data.draw(st.booleans(), "bias"),
        "LayerNorm_type": data.draw(st.sampled_from(["WithBias", "BiasFree"]), "norm"),
        "dual_pixel_task": dual,
    }
    assert_reproduced("Restormer", arguments)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), few, st.integers(1, 4), st.sampled_from([1, 2, 4]), st.integers(1, 4))
def test_every_rrdbnet_with_as_many_channels_out_as_in_is_told(
    width: int, blocks: int, growth: int, scale: int, channels: int
) -> None:
    arguments = {"num_in_ch": channels, "num_out_ch": channels, "scale": scale}
    assert_reproduced("RRDBNet", {**arguments, "num_feat": width, "num_block": blocks, "num_grow_ch": growth})


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_every_diffusion_network_is_told(data: st.DataObject) -> None:
    arguments = {
        "hidden_size": data.draw(st.sampled_from([4, 6, 8]), "hidden_size"),
        "dim_mults": data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3), "dim_mults"),
        "rrdb_num_feat": data.draw(st.sampled_from([4, 6]), "features"),
        "rrdb_num_block": data.draw(st.integers(2, 6), "blocks"),
        "sr_scale": data.draw(st.sampled_from([4, 8]), "scale"),
        "use_attn": data.draw(st.booleans(), "attention"),
        "up_input": data.draw(st.booleans(), "up_input"),
    }
    assert told("DiffSR", arguments).arguments == arguments


@pytest.mark.parametrize(("dim", "cond_dim", "blocks"), [(8, 8, 5), (8, 4, 5), (8, 6, 2), (4, 8, 8)])
def test_the_unet_alone_does_not_tell_how_its_condition_is_made_up(dim: int, cond_dim: int, blocks: int) -> None:
    arguments = {"dim": dim, "dim_mults": [1, 2], "cond_dim": cond_dim, "rrdb_num_block": blocks}
    assert_reproduced("DiffSRUnet", arguments)
    assert told("DiffSRUnet", arguments).undetermined == ("cond_dim", "rrdb_num_block")


@pytest.mark.parametrize(
    ("given_", "expected"), [(2.66, 2.66), (2.67, 2.66), (2.0, 2.0), (2.5, 2.5), (3.25, 3.3), (1.0, 1.0)]
)
def test_the_expansion_is_the_plainest_factor_of_the_same_network(given_: float, expected: float) -> None:
    arguments = {"dim": 8, "num_blocks": [1, 0, 0, 0], "num_refinement_blocks": 0, "heads": [1, 1, 1, 1]}
    factor = told("Restormer", {**arguments, "ffn_expansion_factor": given_}).arguments["ffn_expansion_factor"]
    assert int(8 * factor) == int(8 * given_)
    assert factor == expected


TINY = {"width": 4, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [1]}


@pytest.mark.parametrize(
    "change",
    [
        lambda shapes: shapes.pop("middle_blks.0.beta"),
        lambda shapes: shapes.update({"head.weight": (3, 3)}),
        lambda shapes: shapes.update({"ending.bias": (4,)}),
        lambda shapes: shapes.update({"encoders.0.7.beta": (1, 4, 1, 1)}),
        lambda shapes: shapes.update({"intro.weight": (0, 3, 3, 3)}),
        lambda shapes: shapes.update({"encoders.999999999.0.beta": (1, 4, 1, 1)}),
    ],
    ids=["one less", "one more", "another shape", "a gap", "no width", "a huge number"],
)
def test_a_network_that_is_nearly_ours_is_not_told(change: Any) -> None:
    shapes = built_shapes(ARCHS.get("NAFNet"), TINY)
    assert infer(shapes) is not None
    change(shapes)
    assert infer(shapes) is None


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"weight": (3,)},
        {"intro.weight": (8, 3, 3, 3)},
        {"conv_01.weight": (8, 3, 3, 3)},
        {"patch_embed.proj.weight": (8, 3, 3, 3)},
        {"conv_first.weight": (8, 3, 3, 3)},
        {"cond_proj.weight": (8, 8, 8, 8)},
        {"denoise_fn.cond_proj.weight": (8, 8, 8, 8), "rrdb.conv_first.weight": ()},
        {"patch_embed.proj.weight": (0, 0, 0, 0), "output.weight": ()},
        {"patch_embed.proj.weight": (8, 3, 3, 3), "output.weight": (3,), "latent.0.ffn.project_out.weight": (0, 1)},
        {"patch_embed.proj.weight": (8, 3, 3, 3), "output.weight": (3,), "latent.0.attn.temperature": ()},
    ],
)
def test_other_state_dicts_are_not_told(shapes: dict[str, tuple[int, ...]]) -> None:
    assert infer(shapes) is None


def test_telling_draws_no_random_number() -> None:
    shapes = shapes_of(ARCHS.get("NAFNet")(**TINY).state_dict())
    before = torch.get_rng_state()
    infer(shapes)
    assert torch.equal(torch.get_rng_state(), before)


def numbered(key: str, blocks: int) -> str:
    """A key of RRDBNet as ESRGAN's first models have it: layers by their numbers."""
    layers = {"conv_first": "0", "conv_body": f"1.sub.{blocks}", "conv_up1": "3", "conv_up2": "6", "conv_hr": "8"}
    name, rest = key.split(".", 1)
    if name == "body":
        block, dense, layer, leaf = rest.split(".")
        return f"model.1.sub.{block}.{dense.upper()}.{layer}.0.{leaf}"
    return f"model.{({**layers, 'conv_last': '10'})[name]}.{rest}"


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_esrgans_first_models_are_rrdbnet(prefix: str) -> None:
    arguments = {**RRDB, "num_feat": 8, "num_block": 3, "num_grow_ch": 4}
    network = ARCHS.get("RRDBNet")(**arguments)
    old = {prefix + numbered(key, 3).removeprefix("model."): value for key, value in network.state_dict().items()}
    fit = infer(shapes_of(old))
    assert fit is not None
    assert (fit.network, fit.arguments) == (ARCHS.get("RRDBNet"), arguments)
    adapted = network.adapted(old)
    assert adapted.keys() == network.state_dict().keys()
    assert all(torch.equal(adapted[key], value) for key, value in network.state_dict().items())


@torch.no_grad()
def test_weights_of_esrgans_release_restore_images_from_0_to_1() -> None:
    released = ARCHS.get("DiffSRRRDBNet")(nf=8, nb=2, gc=4)
    fit = infer(shapes_of(released.state_dict()))
    assert fit is not None
    network = restoring(fit).network(**restoring(fit).arguments)
    network.load_state_dict(network.adapted(released.state_dict()), strict=True)
    image = torch.rand(1, 3, 12, 14)
    expected = (released(image * 2 - 1) + 1) / 2
    torch.testing.assert_close(network(image).clamp(0, 1), expected, atol=1e-6, rtol=1e-5)
