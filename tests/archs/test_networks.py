"""What holds for every network: official keys and values, any size, batches, layouts, bfloat16."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sam4ir.registry import ARCHS

GOLDEN = Path(__file__).parents[1] / "golden" / "golden_archs.npz"
SIDD: dict[str, Any] = {"middle_blk_num": 12, "enc_blk_nums": [2, 2, 4, 8], "dec_blk_nums": [2, 2, 2, 2]}
GOPRO: dict[str, Any] = {"middle_blk_num": 1, "enc_blk_nums": [1, 1, 1, 28], "dec_blk_nums": [1, 1, 1, 1]}
NAF_TINY: dict[str, Any] = {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}
HI_TINY: dict[str, Any] = {"wf": 8, "depth": 3}
RE_TINY: dict[str, Any] = {"dim": 8, "num_blocks": [1, 2, 1, 1], "num_refinement_blocks": 1, "heads": [1, 2, 2, 4]}
DUAL: dict[str, Any] = {"inp_channels": 6, "dual_pixel_task": True}
GREY: dict[str, Any] = {"inp_channels": 1, "out_channels": 1, "LayerNorm_type": "BiasFree"}

# sha256 of json.dumps([[key, shape], ...]) of the official networks' state dicts, in order
# (NAFNet 2b4af71, HINet 4e72315, Restormer df766d5).
OFFICIAL_KEYS = [
    ("NAFNet", {"width": 32, **SIDD}, "b95f41c4f56a251d052876c63876ea47653d5c4010e3d4668befcb9b0a4b0672"),
    ("NAFNet", {"width": 64, **GOPRO}, "4e809ae60bfd87e10b89027e3467e5e60713038d0d8823737df43368c413728a"),
    ("NAFNet", {"img_channel": 1, **NAF_TINY}, "8052c0fb9e11b1f8328d5d86f1659abc24f92b47a9e6a1e6a3cf2cb01c81e621"),
    ("NAFNetLocal", {"width": 32, **GOPRO}, "0c65a73ef7e5615a3e8ecb0c32fa5833f559a62265c17b13eed0d9cdd8f17f0f"),
    ("Baseline", {"dw_expand": 2, **NAF_TINY}, "486dfd02f471bdd2c82bdad8441f019e056d2644d532b837afa2763014a90791"),
    ("Baseline", {"width": 32, **SIDD}, "d1381dd55c5be66deb7ab5de89dee40cb5d3b4cebcd0d6ad2d2e6da602c1aabb"),
    ("HINet", {"hin_position_left": 3}, "df39a4d5a6ca36e766b51318ddda17cf6b3e4bfbd588675adb202ecbaae428f0"),
    ("HINet", {}, "a07a2a576d73f5cb9fd86ee543b0ec7adc7badf607fc0a834e1ea2a5f5fff057"),
    ("HINet", {"wf": 32}, "b92e1a8de0229bb6f21087aee9a8eb7f824739ebe6123893202df55eac7f84b1"),
    (
        "HINet",
        {"hin_position_left": 1, "hin_position_right": 1, **HI_TINY},
        "5751067696e6c3a00a8838b2fc9f373c97b2ef101c05810aa5db31a4dc10e2be",
    ),
    (
        "HINet",
        {"hin_position_left": 5, "hin_position_right": 5, **HI_TINY},
        "03c69615f02d730e0f8b89e4346feb2f045d3f8aac48309f482eb9ee906c60af",
    ),
    ("Restormer", {}, "dd1b9f35fd3d281c88e8e16c0e680a284a8c06543e4a2dfc87e987c085ae457b"),
    ("Restormer", {"LayerNorm_type": "BiasFree"}, "aaedd452b2ecaab264290417e3817c6a0e75636d62193b6e5970c84bcb4c9f90"),
    ("Restormer", GREY, "8bf31260c6319306b6b65aebe9376c67056270464420f4c5386eaf9c61db666e"),
    ("Restormer", DUAL, "c462a2587519a1a567e57f603cc7d7afbb6324c76116e931231892ce1a3a4445"),
    ("Restormer", {"bias": True, **RE_TINY}, "6a7662a23012ea1be2cbb5a5016b5822724c359200a2988ff52f59c4c4b8db0b"),
]

# tiny networks of the official values in golden_archs.npz: every 7th value of each output, its range
# max|ref - mean(ref)|, and a piece of the photograph "astro" (all from the official code, fp32, CPU).
CASES = {
    "nafnet_tiny": ("NAFNet", NAF_TINY, (61, 83)),
    "nafnetlocal_tiny_ts64": ("NAFNetLocal", {"train_size": [1, 3, 64, 64], **NAF_TINY}, None),
    "hinet_tiny": ("HINet", {"hin_position_right": 2, **HI_TINY}, (20, 28)),
    "restormer_tiny": ("Restormer", RE_TINY, (24, 40)),
    "restormer_tiny_biasfree": ("Restormer", {"LayerNorm_type": "BiasFree", **RE_TINY}, (24, 40)),
}
NETWORKS = [
    ("NAFNet", NAF_TINY),
    ("NAFNetLocal", {"train_size": [1, 3, 16, 16], **NAF_TINY}),
    ("NAFNetLocal", {"train_size": [1, 3, 16, 16], "fast_imp": True, **NAF_TINY}),
    ("Baseline", {"dw_expand": 2, **NAF_TINY}),
    ("BaselineLocal", {"train_size": [1, 3, 16, 16], **NAF_TINY}),
    ("HINet", HI_TINY),
    ("Restormer", {"LayerNorm_type": "WithBias", **RE_TINY}),
    ("Restormer", {"LayerNorm_type": "BiasFree", "bias": True, **RE_TINY, **DUAL}),
]
every_network = pytest.mark.parametrize(("role", "arguments"), NETWORKS)


def procedural_fill(network: nn.Module) -> nn.Module:
    """Weights that are a function of their key, as those of the golden values; beta and gamma are not zero."""
    state = {}
    for key, value in network.state_dict().items():
        shape, leaf = tuple(value.shape), key.rsplit(".", 1)[-1]
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 2**32
        array = np.asarray(np.random.RandomState(seed).standard_normal(shape), np.float32)
        if leaf == "temperature" or (leaf == "weight" and len(shape) <= 1):
            array = 1 + np.float32(0.1) * array
        elif leaf == "weight":
            array = array * np.float32(1.0 / np.sqrt(int(np.prod(shape[1:]))))
        else:
            array = np.float32(0.1) * array
        state[key] = torch.from_numpy(array)
    network.load_state_dict(state, strict=True)
    return network


def build(role: str, arguments: dict[str, Any]) -> nn.Module:
    return procedural_fill(ARCHS.get(role)(**arguments)).eval()


def uniform(c: int, h: int, w: int, seed: int = 0, b: int = 1) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).uniform(0, 1, (b, c, h, w)).astype(np.float32))


def channels(arguments: dict[str, Any]) -> int:
    return arguments.get("inp_channels", 3)


def outputs(network: nn.Module, image: Tensor) -> list[Tensor]:
    with torch.no_grad():
        out = network(image)
    return out if isinstance(out, list) else [out]


def assert_close(got: Tensor, reference: Tensor, tolerance: float) -> None:
    difference = (got - reference).abs().max() / (reference - reference.mean()).abs().max()
    assert difference <= tolerance


@contextmanager
def bfloat16() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16):
        yield


@pytest.mark.parametrize(("role", "arguments", "digest"), OFFICIAL_KEYS)
def test_keys_and_shapes_are_official_without_memory_for_weights(role, arguments, digest):
    with torch.device("meta"):
        network = ARCHS.get(role)(**arguments)
    keys = [[key, list(value.shape)] for key, value in network.state_dict().items()]
    assert hashlib.sha256(json.dumps(keys).encode()).hexdigest() == digest


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", CASES)
def test_outputs_are_official(case, layout):
    role, arguments, size = CASES[case]
    golden = np.load(GOLDEN)
    photo = torch.from_numpy(golden["photo"].astype(np.float32) / np.float32(255)).permute(2, 0, 1)[None]
    image = (photo if size is None else uniform(3, *size)).contiguous(memory_format=layout)
    for i, got in enumerate(outputs(build(role, arguments).to(memory_format=layout), image)):
        error = np.abs(got.numpy().reshape(-1)[::7] - golden[f"{case}.out{i}"]).max()
        assert error <= 1e-4 * golden[f"{case}.out{i}.range"]


@every_network
def test_size_is_kept(role, arguments):
    network = build(role, arguments)

    @settings(max_examples=12, deadline=None)
    @given(h=st.integers(1, 65), w=st.integers(1, 65))
    def kept(h, w):
        for out in outputs(network, uniform(channels(arguments), h, w)):
            assert out.shape == (1, 3, h, w)
            assert out.isfinite().all()

    kept()
    for h, w in ((1, 1), (1, 65), (65, 1), (4, 4), (33, 64)):
        assert outputs(network, uniform(channels(arguments), h, w))[-1].shape == (1, 3, h, w)


@every_network
def test_images_of_a_batch_do_not_meet(role, arguments):
    network = build(role, arguments)
    batch = uniform(channels(arguments), 37, 50, b=3)
    for i in range(3):
        alone = outputs(network, batch[i : i + 1])
        for together, single in zip(outputs(network, batch), alone, strict=True):
            assert_close(together[i : i + 1], single, 1e-5)


@every_network
def test_bfloat16_is_close_and_ends_in_float32(role, arguments):
    network = build(role, arguments)
    image = uniform(channels(arguments), 40, 48, b=2)
    exact = outputs(network, image)
    with bfloat16():
        rounded = outputs(network, image)
    for got, reference in zip(rounded, exact, strict=True):
        assert got.dtype is torch.float32
        assert_close(got, reference, 0.06)


@every_network
def test_float16_is_finite_and_close(role, arguments):
    network = build(role, arguments)
    image = uniform(channels(arguments), 32, 32, b=1)
    exact = outputs(network, image)
    with torch.autocast("cpu", torch.float16):
        rounded = network(image)
    rounded = rounded if isinstance(rounded, list) else [rounded]
    for got, reference in zip(rounded, exact, strict=True):
        assert got.dtype is torch.float32
        assert_close(got.detach(), reference, 0.01)
    sum(y.square().mean() for y in rounded).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@every_network
def test_activations_stay_bfloat16_under_autocast(role, arguments):
    network = build(role, arguments)
    seen = set()

    def record(module: nn.Module, inputs: Any, out: Tensor) -> None:
        seen.add(out.dtype)

    for module in network.modules():
        if type(module).__name__ in ("NAFBlock", "ConvBlock", "TransformerBlock", "LayerNorm2d", "Norm"):
            module.register_forward_hook(record)
    with bfloat16():
        outputs(network, uniform(channels(arguments), 32, 32))
    assert seen == {torch.bfloat16}


@every_network
def test_gradients_reach_every_parameter_in_both_precisions(role, arguments):
    network = build(role, arguments)
    image = uniform(channels(arguments), 24, 32, b=2)
    target = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    for autocast in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = network(image)
        sum(((y - target) ** 2).mean() for y in (out if isinstance(out, list) else [out])).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
        assert all(p.grad.dtype is torch.float32 for p in network.parameters())
    exact, rounded = gradients
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.99
