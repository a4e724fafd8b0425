"""HINet: half instance normalisation and the sizes it needs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sam4ir.archs.hinet import HalfInstanceNorm, HINet
from sam4ir.archs.size import SizeRule


def test_half_instance_norm_is_instance_norm_of_the_first_half():
    norm = HalfInstanceNorm(6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 5, 7) + 3
    out = norm(x)
    assert torch.allclose(out[:, :3], F.instance_norm(x[:, :3], weight=norm.weight, bias=norm.bias), atol=1e-5)
    assert torch.equal(out[:, 3:], x[:, 3:])


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({}, SizeRule(16, 32, "reflect")),
        ({"hin_position_left": 3, "hin_position_right": 3}, SizeRule(16, 16, "reflect")),
        ({"hin_position_left": 9, "hin_position_right": 9}, SizeRule(16, 16, "reflect")),
        ({"depth": 1}, SizeRule(1, 2, "reflect")),
    ],
)
def test_the_minimum_is_where_the_deepest_normalised_map_has_two_pixels(arguments, rule):
    assert HINet(wf=2, **arguments).size == rule


def test_small_images_are_reflected_to_the_size_the_network_takes():
    torch.manual_seed(0)
    network = HINet(wf=4).eval()
    image = torch.rand(1, 3, 20, 30)
    padded = F.pad(image, (0, 2, 0, 12), mode="reflect")
    for got, expected in zip(network(image), network(padded), strict=True):
        assert torch.allclose(got, expected[..., :20, :30], atol=1e-6)


def test_both_stages_come_back_and_the_second_depends_on_the_first():
    torch.manual_seed(0)
    network = HINet(wf=4, depth=2)
    first, second = network(torch.rand(1, 3, 8, 8))
    second.sum().backward()
    assert first.shape == second.shape == (1, 3, 8, 8)
    assert network.conv_01.weight.grad.abs().sum() > 0


def test_arguments_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="depth 0"):
        HINet(depth=0)
    with pytest.raises(ValueError, match="wf 5"):
        HINet(wf=5)
