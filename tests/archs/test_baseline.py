"""NAFNet's Baseline network against a plain form of the paper's Fig. 3b, and its local form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_networks import assert_close, build, uniform
from torch import Tensor

from sam4ir.archs.nafnet import Baseline, BaselineLocal, LocalMean

TINY: dict[str, Any] = {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 2], "dec_blk_nums": [1, 1]}
State = dict[str, Tensor]


def norm(x: Tensor, p: State, name: str) -> Tensor:
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    y = (x - mean) / (variance + 1e-6).sqrt()
    return y * p[f"{name}.weight"].view(-1, 1, 1) + p[f"{name}.bias"].view(-1, 1, 1)


def conv(x: Tensor, p: State, name: str, **how: Any) -> Tensor:
    return F.conv2d(x, p[f"{name}.weight"], p.get(f"{name}.bias"), **how)


def block(x: Tensor, p: State, at: str) -> Tensor:
    """Fig. 3b: x + beta conv3(y SE(y)), y = GELU(conv2(conv1(norm1 x))); then + gamma conv5(GELU(conv4(norm2 x)))."""
    y = conv(norm(x, p, f"{at}.norm1"), p, f"{at}.conv1")
    y = F.gelu(conv(y, p, f"{at}.conv2", padding=1, groups=y.shape[1]))
    squeezed = F.relu(conv(y.mean((2, 3), keepdim=True), p, f"{at}.se.1"))
    y = conv(y * torch.sigmoid(conv(squeezed, p, f"{at}.se.3")), p, f"{at}.conv3")
    x = x + y * p[f"{at}.beta"]
    y = conv(F.gelu(conv(norm(x, p, f"{at}.norm2"), p, f"{at}.conv4")), p, f"{at}.conv5")
    return x + y * p[f"{at}.gamma"]


def plain(image: Tensor, p: State) -> Tensor:
    """The whole network of TINY."""
    h, w = image.shape[-2:]
    padded = F.pad(image, (0, -w % 4, 0, -h % 4))
    x, skips = conv(padded, p, "intro", padding=1), []
    for level, number in enumerate(TINY["enc_blk_nums"]):
        for i in range(number):
            x = block(x, p, f"encoders.{level}.{i}")
        skips.append(x)
        x = conv(x, p, f"downs.{level}", stride=2)
    x = block(x, p, "middle_blks.0")
    for level, skip in enumerate(reversed(skips)):
        x = F.pixel_shuffle(conv(x, p, f"ups.{level}.0"), 2) + skip
        x = block(x, p, f"decoders.{level}.0")
    return (conv(x, p, "ending", padding=1) + padded)[..., :h, :w]


@torch.no_grad()
@pytest.mark.parametrize("expand", [(1, 2), (2, 2), (2, 3)])
@pytest.mark.parametrize("size", [(16, 24), (13, 18)])
def test_the_output_is_that_of_the_plain_form(expand: tuple[int, int], size: tuple[int, int]) -> None:
    network = build("Baseline", {"dw_expand": expand[0], "ffn_expand": expand[1], **TINY})
    image = uniform(3, *size, b=2)
    assert_close(network(image), plain(image, network.state_dict()), 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("fast", [False, True])
def test_the_local_form_has_its_weights_and_pools_in_windows(fast: bool) -> None:
    network = build("Baseline", TINY)
    local = BaselineLocal(train_size=(1, 3, 16, 16), fast_imp=fast, **TINY).eval()
    local.load_state_dict(network.state_dict(), strict=True)
    small, large = uniform(3, 24, 24), uniform(3, 40, 40)
    assert_close(local(small), network(small), 1e-5)
    assert (local(large) - network(large)).abs().max() > 1e-4
    windows = {level: block.attention[0].window for level, block in local.blocks()}
    assert windows == {0: (24, 24), 1: (12, 12), 2: (6, 6)}


@torch.no_grad()
def test_windows_of_the_attention_are_means_with_replicated_borders() -> None:
    local = build("BaselineLocal", {"train_size": [1, 3, 8, 8], "width": 4, "middle_blk_num": 1})
    ((_, block_of_all),) = local.blocks()  # type: ignore[operator]
    p, x = local.state_dict(), uniform(4, 20, 23) - 0.5
    y = conv(norm(x, p, "middle_blks.0.norm1"), p, "middle_blks.0.conv1")
    y = F.gelu(conv(y, p, "middle_blks.0.conv2", padding=1, groups=4))
    mean = F.avg_pool2d(y, 12, stride=1)  # 1.5 times 8; (20, 23) - 11
    mean = F.pad(mean, (5, 6, 5, 6), mode="replicate")
    attention = torch.sigmoid(conv(F.relu(conv(mean, p, "middle_blks.0.se.1")), p, "middle_blks.0.se.3"))
    x = x + conv(y * attention, p, "middle_blks.0.conv3") * p["middle_blks.0.beta"]
    y = conv(F.gelu(conv(norm(x, p, "middle_blks.0.norm2"), p, "middle_blks.0.conv4")), p, "middle_blks.0.conv5")
    assert_close(block_of_all(uniform(4, 20, 23) - 0.5), x + y * p["middle_blks.0.gamma"], 1e-5)
    assert isinstance(block_of_all.attention[0], LocalMean)


def test_levels_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        Baseline(enc_blk_nums=[1, 1], dec_blk_nums=[1])
    with pytest.raises(ValueError, match="train_size"):
        BaselineLocal(train_size=[256, 256])
