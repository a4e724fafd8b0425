"""The networks of SAM-DiffSR: official keys and values, what they refuse, precision, training, foreign keys."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sam4ir.archs.diffusion_sr import DiffSR
from sam4ir.archs.diffusion_unet import DiffSRUnet, LinearAttention
from sam4ir.archs.infer import infer, shapes_of
from sam4ir.archs.layers import checkpoint_blocks
from sam4ir.archs.rrdb import DiffSRRRDBNet, RRDBNet, to_basicsr_keys, to_diffsr_keys
from sam4ir.registry import ARCHS

GOLDEN = Path(__file__).parents[1] / "golden" / "golden_diffsr.npz"
SMALL: dict[str, Any] = {"dim": 16, "dim_mults": [1, 2], "cond_dim": 8, "rrdb_num_block": 5}
DEPLOYED: dict[str, Any] = {"hidden_size": 16, "dim_mults": [1, 2, 2], "rrdb_num_feat": 8, "rrdb_num_block": 5}

# sha256 of json.dumps([[key, shape], ...]) of the official networks' state dicts, in order
# (SAM-DiffSR a18eaf6, BasicSR 8d56e3a).
OFFICIAL_KEYS = [
    ("DiffSRRRDBNet", {}, "404c8a158503d1c2f6384c736f1c45ca4f73515ee7455a6520f23abe3d4a97af"),
    (
        "DiffSRRRDBNet",
        {"nf": 8, "nb": 5, "gc": 4},
        "40b338cf3b10f6286fa8cd982370f1e08e9cacb42b4fceaaad690dfabd6c3ea9",
    ),
    ("DiffSRUnet", {}, "3b7bfe3df6d9d9293eacf451f9cf42c5df88bc5c84477b1790057bd8ec79e420"),
    ("DiffSRUnet", SMALL, "5f58e8c613391895a12616e1e3ffd12bd5ead27e8137b07cf9da0ff3397c3ca2"),
    ("DiffSRUnet", {**SMALL, "use_attn": True}, "7c1f76f7f2f83c51382621cb0d9a76dadfc1c0dfc039297c5f52df71ad1b66b5"),
    ("DiffSRUnet", {**SMALL, "cond_sam": True}, "31b3210b725d2aa4b7e4cfd5e0a3ebef9cc460d6cfc71baee1ad52b2ccaa1b86"),
    ("DiffSRUnet", {**SMALL, "up_input": True}, "3c63a1406516b970af81ad733086e4a5639d6242daf482417d62c1fda245b6bd"),
    ("RRDBNet", {}, "4b5d40a11754198f9f67ffe1ed5edb2af4cc230a8e31127ff891626ee6ea1f68"),
    (
        "RRDBNet",
        {"scale": 2, "num_feat": 16, "num_block": 2, "num_grow_ch": 8},
        "0ba0d1ae8adf813ab596d167ac5ad2fddff073fd58855b24938eea7e9cf7ef7d",
    ),
    (
        "RRDBNet",
        {"scale": 1, "num_feat": 16, "num_block": 2, "num_grow_ch": 8},
        "517f9dbabed0f37bb400a727f842efb2ddb528f060c14766026a11552dcc2ed5",
    ),
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def procedural_fill(network: nn.Module, gains: Mapping[str, float] | None = None) -> Any:
    """Weights that are a function of their key, as those of the golden values; gains: key -> factor."""
    state = {}
    for key, value in network.state_dict().items():
        shape, leaf = tuple(value.shape), key.rsplit(".", 1)[-1]
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 2**32
        array = np.asarray(np.random.RandomState(seed).standard_normal(shape), np.float32)
        array = array * np.float32(1.0 / np.sqrt(int(np.prod(shape[1:]))) if leaf == "weight" else 0.1)
        state[key] = torch.from_numpy(array * np.float32((gains or {}).get(key, 1)))
    network.load_state_dict(state, strict=True)
    return network.eval()


def uniform(c: int, h: int, w: int, seed: int = 0, b: int = 1) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).uniform(0, 1, (b, c, h, w)).astype(np.float32))


def photograph(height: int, width: int) -> Tensor:
    """The top left of a piece of "astro", (1, 3, height, width) in [0, 1]."""
    piece = np.load(GOLDEN)["photo"][:height, :width]
    return torch.from_numpy(piece.astype(np.float32) / np.float32(255)).permute(2, 0, 1)[None].contiguous()


def assert_close(got: Tensor, reference: Any, tolerance: float) -> None:
    reference = torch.as_tensor(reference)
    assert got.shape == reference.shape
    assert (got - reference).abs().max() <= tolerance * (reference - reference.mean()).abs().max()


def maps(b: int, h: int, w: int, number: int = 6, channels: int = 8) -> list[Tensor]:
    return [uniform(channels, h, w, 100 + i, b) * 2 - 1 for i in range(number)]


@pytest.mark.parametrize(("role", "arguments", "digest"), OFFICIAL_KEYS)
def test_keys_and_shapes_are_official_and_in_their_order(role, arguments, digest):
    with torch.device("meta"):
        network = ARCHS.get(role)(**arguments)
    keys = [[key, list(value.shape)] for key, value in network.state_dict().items()]
    assert hashlib.sha256(json.dumps(keys).encode()).hexdigest() == digest


@torch.no_grad()
@every_layout
def test_rrdbnet_gives_the_official_image(layout):
    network = procedural_fill(RRDBNet(scale=2, num_feat=16, num_block=2, num_grow_ch=8)).to(memory_format=layout)
    assert_close(network(photograph(16, 20)), np.load(GOLDEN)["rrdbnet_x2_tiny.out"], 3e-6)


@torch.no_grad()
@every_layout
def test_the_rrdb_of_diffsr_gives_the_official_image_and_maps(layout):
    gains = {"conv_last.weight": 0.5, "conv_last.bias": -3}
    network = procedural_fill(DiffSRRRDBNet(nf=8, nb=5, gc=4), gains).to(memory_format=layout)
    golden, image = np.load(GOLDEN), photograph(9, 11) * 2 - 1
    out, features = network(image, get_fea=True)
    assert_close(out, golden["diffsr_rrdb_tiny.out"], 3e-6)
    assert torch.equal(network(image), out)
    assert len(features) == len(network.features(image)) == 6
    for i, (found, alone) in enumerate(zip(features, network.features(image), strict=True)):
        assert_close(found, golden[f"diffsr_rrdb_tiny.feat{i}"], 3e-6)
        assert torch.equal(found, alone)


@torch.no_grad()
@every_layout
def test_the_unet_gives_the_official_output(layout):
    network = procedural_fill(DiffSRUnet(**SMALL)).to(memory_format=layout)
    x, t = uniform(3, 16, 24, 5, 2) * 2 - 1, torch.tensor([99, 3])
    out = network(x, t, maps(2, 4, 6))
    assert_close(out, np.load(GOLDEN)["diffsr_unet_tiny.out"], 3e-6)
    assert torch.equal(network.denoise(x, t, network.project(maps(2, 4, 6))), out)
    assert out.is_contiguous()


@torch.no_grad()
@pytest.mark.parametrize("arguments", [{}, {"use_attn": True}, {"up_input": True}, {"cond_sam": True}])
def test_images_of_a_batch_do_not_meet(arguments):
    network = procedural_fill(DiffSRUnet(**SMALL, **arguments))
    x, t, up, mask = uniform(3, 16, 24, 5, 3), torch.tensor([99, 3, 50]), uniform(3, 16, 24, 9, 3), uniform(1, 16, 24)
    mask = torch.cat([mask, 1 - mask, mask / 2])
    together = network(x, t, maps(3, 4, 6), up, mask)
    for i in range(3):
        own = slice(i, i + 1)
        alone = network(x[own], t[own], [m[own] for m in maps(3, 4, 6)], up[own], mask[own])
        assert_close(together[own], alone, 1e-5)


@torch.no_grad()
def test_attention_is_that_of_four_heads_with_keys_spread_over_pixels():
    attention = procedural_fill(LinearAttention(6))
    x = uniform(6, 3, 5, b=2) * 4
    expected = torch.empty(2, 128, 15)
    for image in range(2):
        pixels = x[image].flatten(1)
        q, k, v = (attention.to_qkv.weight[:, :, 0, 0] @ pixels).view(3, 4, 32, 15)
        for head in range(4):
            context = sum(torch.outer(k[head].softmax(1)[:, n], v[head, :, n]) for n in range(15))
            expected[image, 32 * head : 32 * head + 32] = context.T @ q[head]
    assert_close(attention(x), attention.to_out(expected.view(2, 128, 3, 5)), 1e-5)


@torch.no_grad()
def test_attention_starts_without_effect():
    plain, attentive = DiffSRUnet(**SMALL).eval(), DiffSRUnet(**SMALL, use_attn=True).eval()
    missing, unexpected = attentive.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(key.startswith("mid_attn.") for key in missing)
    given = uniform(3, 8, 8), torch.tensor([7]), maps(1, 2, 2)
    assert torch.equal(attentive(*given), plain(*given))
    attentive.mid_attn.fn.g.fill_(1)
    assert not torch.equal(attentive(*given), plain(*given))


@torch.no_grad()
def test_more_conditions_are_needed_where_the_network_was_made_with_them():
    x, t, cond = uniform(3, 16, 24), torch.tensor([7]), maps(1, 4, 6)
    up = procedural_fill(DiffSRUnet(**SMALL, up_input=True))
    with pytest.raises(ValueError, match="img_lr_up"):
        up(x, t, cond)
    assert not torch.equal(up(x, t, cond, x), up(x, t, cond, 1 - x))
    sam = procedural_fill(DiffSRUnet(**SMALL, cond_sam=True))
    with pytest.raises(ValueError, match="sam_mask"):
        sam(x, t, cond)
    assert not torch.equal(sam(x, t, cond, sam_mask=x[:, :1]), sam(x, t, cond, sam_mask=1 - x[:, :1]))


@torch.no_grad()
def test_the_time_matters_and_is_embedded_in_float32_under_autocast():
    network = procedural_fill(DiffSRUnet(**SMALL))
    steps = torch.arange(100)
    exact = network.embedded(steps)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network.embedded(steps), exact)
    assert torch.pdist(exact).min() > 1e-3


@pytest.mark.parametrize("size", [(16, 18), (18, 16), (4, 4), (4, 16)])
def test_sizes_that_do_not_fit_are_named(size):
    network = DiffSRUnet(**{**SMALL, "dim_mults": [1, 1, 1]})
    x, condition = torch.zeros(1, 3, *size), torch.zeros(1, 16, *size)
    with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]}.*multiples of 4, 8 at least"):
        network.denoise(x, torch.tensor([0]), condition)


def test_a_condition_of_another_size_is_named():
    with pytest.raises(ValueError, match=r"16x16.*\(8, 8\)"):
        DiffSRUnet(**SMALL).denoise(torch.zeros(1, 3, 16, 16), torch.tensor([0]), torch.zeros(1, 16, 8, 8))


@pytest.mark.parametrize(
    ("kind", "arguments", "told"),
    [
        (DiffSRUnet, {"dim": 15}, "dim 15"),
        (DiffSRUnet, {"dim_mults": []}, "dim_mults"),
        (DiffSRUnet, {"rrdb_num_block": 1}, "rrdb_num_block 1"),
        (DiffSRUnet, {"sr_scale": 3}, "sr_scale 3"),
        (DiffSR, {"sr_scale": 2}, "sr_scale 2"),
        (DiffSRRRDBNet, {"sr_scale": 2}, "sr_scale 2"),
        (RRDBNet, {"scale": 8}, "scale 8"),
    ],
)
def test_arguments_that_make_no_network_are_refused(kind, arguments, told):
    with torch.device("meta"), pytest.raises(ValueError, match=told):
        kind(**arguments)


def test_an_image_that_does_not_unshuffle_is_refused():
    with pytest.raises(ValueError, match=r"7x8.*multiples of 2"):
        RRDBNet(scale=2, num_feat=4, num_block=0)(torch.zeros(1, 3, 7, 8))


@torch.no_grad()
@pytest.mark.parametrize("sr_scale", [4, 8])
@pytest.mark.parametrize("dim_mults", [[1], [1, 2], [1, 2, 3, 4], [1, 1, 1, 1, 1]])
def test_every_lr_size_of_the_multiple_gives_an_image(sr_scale, dim_mults):
    network = DiffSR(**{**DEPLOYED, "dim_mults": dim_mults}, sr_scale=sr_scale).eval()
    h, w = network.smallest, network.smallest + network.multiple
    condition = network.condition(uniform(3, h, w))
    out = network.denoise(uniform(3, h * sr_scale, w * sr_scale), torch.tensor([3]), condition)
    assert out.shape == (1, 3, h * sr_scale, w * sr_scale)
    assert out.isfinite().all()
    too_small = h - network.multiple
    if too_small:
        x, lq = uniform(3, too_small * sr_scale, w * sr_scale), uniform(3, too_small, w)
        with pytest.raises(ValueError, match="at least"):
            network(x, torch.tensor([3]), lq)


def test_the_multiple_of_the_released_network_is_two():
    with torch.device("meta"):
        network = DiffSR()
    assert (network.multiple, network.smallest) == (2, 4)


def trained(**arguments: Any) -> DiffSR:
    network: DiffSR = procedural_fill(DiffSR(**DEPLOYED, **arguments)).train()
    return network


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x_t, t, lq, lq_up) of two images of 24x32."""
    return uniform(3, 24, 32, 1, 2) * 2 - 1, torch.tensor([99, 3]), uniform(3, 6, 8, 2, 2), uniform(3, 24, 32, 3, 2)


def gradients(network: nn.Module, autocast: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """(estimate, gradient of each parameter that has one)."""
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = network(*batch())
    (out - uniform(3, 24, 32, 4, 2)).abs().mean().backward()
    return out.detach(), {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("arguments", [{}, {"use_attn": True, "up_input": True}])
def test_training_reaches_every_parameter_of_the_denoiser_and_none_of_the_rrdb(arguments):
    network = trained(**arguments)
    _, found = gradients(network)
    assert set(found) == {name for name, _ in network.named_parameters() if name.startswith("denoise_fn.")}
    assert all(gradient.abs().sum() > 0 for gradient in found.values())
    assert not any(p.requires_grad for p in network.rrdb.parameters())


def test_the_rrdb_stays_in_evaluation_mode_in_copies_too():
    for network in (trained(), copy.deepcopy(trained()).train()):
        assert network.training
        assert network.denoise_fn.training
        assert not any(module.training for module in network.rrdb.modules())
        assert not network.eval().denoise_fn.training


def test_a_condition_serves_every_step():
    network = trained().eval()
    x_t, t, lq, _ = batch()
    with torch.no_grad():
        assert torch.equal(network.denoise(x_t, t, network.condition(lq)), network(x_t, t, lq))


def test_bfloat16_is_close_with_float32_outputs_and_gradients():
    network = trained(use_attn=True, up_input=True)
    exact, expected = gradients(network)
    rounded, found = gradients(network, autocast=True)
    assert rounded.dtype is torch.float32
    assert_close(rounded, exact, 0.06)
    flat = [torch.cat([g[name].flatten() for name in expected]) for g in (found, expected)]
    assert flat[0].dtype is torch.float32
    assert nn.functional.cosine_similarity(*flat, dim=0) > 0.99


@torch.no_grad()
def test_maps_stay_bfloat16_under_autocast_with_a_condition_in_float32():
    network = trained(up_input=True).eval()
    x_t, t, lq, lq_up = batch()
    condition = network.condition(lq)
    seen = set()
    for name, module in network.denoise_fn.named_modules():
        if name.endswith(("block1", "block2", "conv", "res_conv")):
            module.register_forward_hook(lambda module, inputs, out: seen.add(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        network.denoise(x_t, t, condition, lq_up)
    assert seen == {torch.bfloat16}


@pytest.mark.parametrize("autocast", [False, True])
def test_checkpointed_blocks_give_the_same_bits(autocast):
    network = trained(use_attn=True)
    plain = gradients(network, autocast)
    assert checkpoint_blocks(network.denoise_fn) == 12
    again = gradients(network, autocast)
    assert torch.equal(again[0], plain[0])
    assert all(torch.equal(again[1][name], gradient) for name, gradient in plain[1].items())


def test_rrdb_networks_train_with_checkpointed_blocks():
    network = procedural_fill(RRDBNet(num_feat=8, num_block=2, num_grow_ch=4)).train()
    x = uniform(3, 6, 5)
    network(x).square().mean().backward()
    plain = [p.grad.clone() for p in network.parameters()]
    assert checkpoint_blocks(network) == 2
    network.zero_grad()
    network(x).square().mean().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(network.parameters(), plain, strict=True))


def test_rrdb_keys_of_both_families_mean_the_same_network():
    basicsr = procedural_fill(RRDBNet(num_feat=8, num_block=2, num_grow_ch=4))
    diffsr = DiffSRRRDBNet(nf=8, nb=2, gc=4).eval()
    state = basicsr.state_dict()
    assert to_basicsr_keys(to_diffsr_keys(state)).keys() == state.keys()
    diffsr.load_state_dict(DiffSRRRDBNet.adapted(state), strict=True)
    assert RRDBNet.adapted(diffsr.state_dict()).keys() == state.keys()
    for network in (basicsr, diffsr):
        own = network.state_dict()
        assert list(network.adapted(own)) == list(own)
    image = uniform(3, 5, 6)
    with torch.no_grad():
        assert_close(diffsr(image * 2 - 1), basicsr(image).clamp(0, 1) * 2 - 1, 1e-5)


def test_a_released_state_loads_without_the_tables_of_its_schedule():
    network = trained()
    own = network.state_dict()
    tables = ("betas", "alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_mean_coef2", "ssim_loss.window")
    released = {**{name: torch.zeros(100) for name in tables}, **own}
    assert list(DiffSR.adapted(released)) == list(DiffSR.adapted(own)) == list(own)
    network.load_state_dict(DiffSR.adapted(released), strict=True)
    assert "denoise_fn.betas" in DiffSR.adapted({**own, "denoise_fn.betas": torch.zeros(1)})
    fit = infer(shapes_of(released))
    assert fit is not None
    assert (fit.network, fit.arguments["dim_mults"]) == (DiffSR, [1, 2, 2])


def test_an_rrdb_with_basicsr_keys_is_understood_inside_the_whole_network():
    network = trained()
    state = network.state_dict()
    inside = {k.removeprefix("rrdb."): v for k, v in state.items() if k.startswith("rrdb.")}
    foreign = {k: v for k, v in state.items() if not k.startswith("rrdb.")}
    foreign |= {f"rrdb.{k}": v for k, v in to_basicsr_keys(inside).items()}
    assert foreign.keys() != state.keys()
    assert DiffSR.adapted(foreign).keys() == state.keys()


@pytest.mark.slow
def test_the_whole_network_is_one_graph_for_a_compiler_whatever_the_size():
    network = DiffSR(hidden_size=4, dim_mults=[1, 2], rrdb_num_feat=4, rrdb_num_block=2, use_attn=True)
    exact, expected = gradients(network)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=True)
    out, found = gradients(compiled)
    assert_close(out, exact, 1e-5)
    for name, gradient in expected.items():
        assert torch.allclose(found[f"_orig_mod.{name}"], gradient, rtol=1e-3, atol=1e-5), name
    x_t, t, lq, lq_up = batch()
    smaller = x_t[..., :16, :].contiguous(), t, lq[..., :4, :].contiguous(), lq_up[..., :16, :].contiguous()
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_close(compiled(*smaller).detach(), network(*smaller).detach(), 1e-5)
