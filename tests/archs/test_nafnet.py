"""NAFNet's local form, its merged weights, and its errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sam4ir.archs.layers import LayerNorm2d, Pointwise, replicate_to, window_mean
from sam4ir.archs.nafnet import NAFNet, NAFNetLocal

TINY = {"width": 4, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}


def awake(network: NAFNet) -> NAFNet:
    """Random scales instead of zeros, so that the blocks take part."""
    for block in network.blocks():
        torch.nn.init.normal_(block[1].beta)
        torch.nn.init.normal_(block[1].gamma)
    return network.eval()


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("size", [(24, 24), (23, 17), (5, 8), (1, 1)])
def test_local_form_equals_global_pooling_where_the_window_covers_the_image(size, fast):
    torch.manual_seed(0)
    plain = awake(NAFNet(**TINY))
    local = NAFNetLocal(train_size=(1, 3, 16, 16), fast_imp=fast, **TINY).eval()
    local.load_state_dict(plain.state_dict(), strict=True)
    image = torch.rand(1, 3, *size)
    assert torch.allclose(local(image), plain(image), atol=1e-5)
    larger = torch.rand(1, 3, 28, 28)
    assert not torch.allclose(local(larger), plain(larger), atol=1e-3)


def test_windows_are_one_and_a_half_times_the_padded_training_size_of_their_level():
    local = NAFNetLocal(train_size=(1, 3, 30, 50), **TINY)  # padded to 32 x 52, base size 45 x 75
    windows = {level: block.sca[0].window for level, block in local.blocks()}
    assert windows == {0: (48, 78), 1: (24, 39), 2: (12, 19)}
    assert [level for level, _ in local.blocks()] == [0, 1, 2, 1, 0]


@pytest.mark.parametrize("window", [(3, 4), (7, 2), (7, 9), (1, 9), (20, 3)])
def test_window_mean_is_the_mean_of_each_window(window):
    x = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    kernel = min(window[0], 7), min(window[1], 9)
    assert torch.allclose(window_mean(x, window), F.avg_pool2d(x, kernel, stride=1), atol=1e-6)


def test_replication_puts_the_odd_pixel_behind():
    padded = replicate_to(torch.arange(4.0).view(1, 1, 2, 2), (2, 5))
    assert padded[0, 0].tolist() == [[0, 0, 1, 1, 1], [2, 2, 3, 3, 3]]


def test_layer_norm_is_over_channels_with_eps_1e_6_in_any_layout():
    norm = LayerNorm2d(5)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = 1e-3 * torch.randn(2, 5, 6, 7)
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    expected = (x - mean) / (variance + 1e-6).sqrt() * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    assert torch.allclose(norm(x), expected, atol=1e-5)
    last = norm(x.contiguous(memory_format=torch.channels_last))
    assert torch.equal(last, norm(x))
    assert last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("side", [1, 3, 16])
@pytest.mark.parametrize("b", [1, 3])
def test_merged_weights_equal_the_products_they_replace(side, b):
    torch.manual_seed(0)
    conv = Pointwise(6, 4)
    x, attention, scale = torch.randn(b, 6, side, side), torch.randn(b, 6, 1, 1), torch.randn(1, 4, 1, 1)

    def plain(y: Tensor) -> Tensor:
        return scale * F.conv2d(y, conv.weight, conv.bias)

    assert torch.allclose(conv.scaled(x, scale), plain(x), atol=1e-5)
    assert torch.allclose(conv.attended(x, attention, scale), plain(attention * x), atol=1e-5)


def test_arguments_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="dec_blk_nums"):
        NAFNet(enc_blk_nums=[1, 1], dec_blk_nums=[1])
    with pytest.raises(ValueError, match="train_size"):
        NAFNetLocal(train_size=[256, 256], **TINY)
