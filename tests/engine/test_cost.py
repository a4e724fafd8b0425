"""Parameters and multiply-adds of networks, against published figures and a count by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sam4ir.config.schema import Block
from sam4ir.engine.cost import MultiplyAdds, in_giga, measured_pass, multiply_adds, network_line, parameter_count
from sam4ir.registry import ARCHS

NAFNET = {"type": "NAFNet", "enc_blk_nums": [2, 2, 4, 8], "middle_blk_num": 12, "dec_blk_nums": [2, 2, 2, 2]}


class ModuleCount:
    """Multiply-adds of convolutions, counted at each module by its definition.

    transposed_by_output: count a transposed convolution at each pixel that it writes, not at each that it reads.
    """

    def __init__(self, network: nn.Module, transposed_by_output: bool = False) -> None:
        self.total = 0
        self.by_output = transposed_by_output
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                module.register_forward_hook(self._add)

    def _add(self, module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        places = output
        if isinstance(module, nn.ConvTranspose2d) and not self.by_output:
            places = inputs[0]
        self.total += module.weight.numel() * places.shape[-2] * places.shape[-1]


@pytest.mark.parametrize(("width", "published"), [(32, 16.25e9), (64, 63.33e9)])
def test_nafnet_costs_what_its_authors_publish(width: int, published: float) -> None:
    """Table 6 of the paper, SIDD's networks at 256 x 256; it counts element-wise operations too."""
    count = multiply_adds(Block(**NAFNET, width=width), 256, 256).macs
    assert count == pytest.approx(published, rel=0.015)


def test_restormer_costs_what_its_authors_publish_and_the_products_of_attention() -> None:
    """140.99 G without the products q k and a v, which the count by modules leaves out.

    Here a v goes into the projection behind it, so that one of both products is left: c^2 / heads for each pixel.
    """
    products = 0
    for channels, heads, pixels, blocks in (
        (48, 1, 256**2, 4),
        (96, 2, 128**2, 6 + 6),
        (192, 4, 64**2, 6 + 6),
        (384, 8, 32**2, 8),
        (96, 1, 256**2, 4 + 4),
    ):
        products += channels**2 // heads * pixels * blocks
    count = multiply_adds(Block(type="Restormer"), 256, 256).macs
    assert count is not None
    assert count - products == pytest.approx(140.99e9, rel=0.005)


@pytest.mark.parametrize(("width", "published"), [(64, 170.71e9), (32, 42.9e9)])
def test_hinet_costs_what_its_authors_publish_where_up_sampling_is_counted_once(width: int, published: float) -> None:
    """Its authors count a transposed convolution of 2 x 2 at each of the four pixels that it writes.

    Four of them in each of two U-Nets have the same cost, since width doubles where the side halves.
    """
    up_sampling = 2 * 4 * (16 * width * 8 * width * 4) * 16**2
    count = multiply_adds(Block(type="HINet", wf=width), 256, 256).macs
    assert count is not None
    assert count + 3 * up_sampling == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    "arguments",
    [
        {"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "num_grow_ch": 4},
        {"type": "HINet", "wf": 4, "depth": 3},
    ],
)
def test_a_network_of_convolutions_has_the_count_of_its_modules(arguments: dict[str, Any]) -> None:
    block = Block(**arguments)
    with torch.device("meta"):
        network = ARCHS.get(block.type)(**block.arguments).train()  # in training no convolutions are joined
        by_modules = ModuleCount(network)
        network(torch.zeros(1, 3, 64, 64))
    assert multiply_adds(block, 64, 64).macs == pytest.approx(by_modules.total, rel=0.02)


def test_the_count_is_proportional_to_the_pixels() -> None:
    block = Block(type="HINet", wf=4, depth=2)
    small, large = multiply_adds(block, 32, 48), multiply_adds(block, 64, 96)
    assert small.macs is not None
    assert large.macs == 4 * small.macs


def test_a_diffusion_network_has_a_condition_and_steps() -> None:
    block = Block(type="DiffSR", hidden_size=8, dim_mults=[1, 2], rrdb_num_feat=8, rrdb_num_block=3)
    cost = multiply_adds(block, 30, 30, diffusion=True)
    assert cost.macs
    assert cost.condition
    assert "a step" in str(cost)


def test_a_network_that_reads_values_has_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reading(nn.Module):
        """A network that looks at its images."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(x.mean().item())

    monkeypatch.setitem(ARCHS._entries, "Reading", Reading)
    cost = multiply_adds(Block(type="Reading"), 8, 8)
    assert cost.macs is None
    assert "does not run without values" in str(cost)


def test_sizes_go_up_to_what_the_network_takes() -> None:
    cost = multiply_adds(Block(type="RRDBNet", num_in_ch=3, num_out_ch=3, scale=2, num_block=1), 31, 33)
    assert (cost.height, cost.width) == (32, 34)


def test_the_line_of_the_log() -> None:
    line = network_line(Block(type="NAFNet"), 29159715, MultiplyAdds(256, 256, 16_045_035_520))
    assert line == "Network NAFNet: 29,159,715 parameters, 16.05 G multiply-adds at 256 x 256."
    assert in_giga(49_021_024) == "0.04902 G"


def test_a_pass_is_timed_and_leaves_the_network_as_it_was() -> None:
    network = nn.Conv2d(3, 3, 3, padding=1).train()
    cost = measured_pass(network, torch.zeros(1, 3, 32, 32))
    assert network.training
    assert cost.seconds > 0
    assert 1 <= cost.runs <= 5
    assert parameter_count(network) == 3 * 3 * 9 + 3
