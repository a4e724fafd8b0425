"""Restormer: attention and normalisation by their definitions, and its errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sam4ir.archs.layers import channel_scale_norm
from sam4ir.archs.restormer import ChannelAttention, Restormer

TINY = {"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 2, 2, 4]}


def transposed_attention(layer: ChannelAttention, x: Tensor) -> Tensor:
    """Eq. 1 of the paper, head by head, with normalised queries and keys (section 3.1)."""
    b, c, h, w = x.shape
    heads = layer.temperature.shape[0]
    q, k, v = layer.qkv_dwconv(layer.qkv(x)).reshape(b, 3, heads, c // heads, h * w).unbind(1)
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * layer.temperature
    return layer.project_out((scores.softmax(-1) @ v).reshape(b, c, h, w))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (5, 7)])
def test_attention_is_the_papers(size, bias):
    torch.manual_seed(0)
    layer = ChannelAttention(8, heads=2, bias=bias)
    torch.nn.init.normal_(layer.temperature)
    x = torch.randn(2, 8, *size)
    assert torch.allclose(layer(x), transposed_attention(layer, x), atol=1e-5)


def test_attention_of_a_black_map_is_finite_with_its_gradients():
    layer = ChannelAttention(8, heads=2, bias=False)
    x = torch.zeros(1, 8, 4, 4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_bias_free_norm_does_not_centre():
    x = torch.randn(2, 6, 3, 4) + 5
    weight = torch.randn(6)
    expected = x / torch.sqrt(x.var(1, keepdim=True, correction=0) + 1e-5) * weight.view(-1, 1, 1)
    assert torch.allclose(channel_scale_norm(x, weight, 1e-5), expected, atol=1e-4)


def test_the_image_is_added_except_for_dual_pixels():
    image = torch.rand(1, 3, 11, 16)
    plain = Restormer(**TINY)
    torch.nn.init.zeros_(plain.output.weight)
    assert torch.equal(plain(image), image)
    dual = Restormer(inp_channels=6, dual_pixel_task=True, **TINY)
    torch.nn.init.zeros_(dual.output.weight)
    assert not dual(torch.cat([image, image], dim=1)).any()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"num_blocks": [1, 1, 1]}, "num_blocks"),
        ({"heads": [3, 2, 2, 4]}, "heads"),
        ({"LayerNorm_type": "Biasfree"}, "Biasfree"),
        ({"inp_channels": 6}, "dual_pixel_task"),
    ],
)
def test_arguments_that_cannot_be_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        Restormer(**{**TINY, **arguments})
