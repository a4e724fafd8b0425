"""Graphs hold convolutions, where PyTorch runs products over pixels."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from archs.test_networks import HI_TINY, NAF_TINY, RE_TINY, build
from torch import nn

from sam4ir.archs.layers import LayerNorm2d, Pointwise, UpConvolution
from sam4ir.export import formats
from sam4ir.export.convolutions import as_convolutions
from sam4ir.export.graph import RestoringGraph
from sam4ir.models.restoration import restore

NETWORKS = [
    ("NAFNet", NAF_TINY),
    ("Baseline", {"dw_expand": 2, "ffn_expand": 1, **NAF_TINY}),
    ("HINet", HI_TINY),
    ("Restormer", {**RE_TINY, "LayerNorm_type": "WithBias"}),
    ("Restormer", {**RE_TINY, "LayerNorm_type": "BiasFree", "bias": True}),
]


def any_network(role: str, arguments: dict) -> nn.Module:
    """Return a network all of whose weights matter, scales and shifts of normalisations too."""
    network = build(role, arguments).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.rand_like(parameter))
    return network


@pytest.mark.parametrize(("role", "arguments"), NETWORKS)
def test_convolutions_compute_what_the_network_computes(role: str, arguments: dict) -> None:
    network = any_network(role, arguments)
    image = torch.rand(2, 3, 32, 48)
    expected = restore(network, image)
    as_convolutions(network)
    restored = restore(network, image)
    assert (restored - expected).abs().max() < 1e-5 * expected.abs().max()
    for module in network.modules():
        assert not isinstance(module, (Pointwise, UpConvolution, LayerNorm2d))


def test_a_graph_of_nafnet_neither_transposes_nor_cuts_maps() -> None:
    graph = RestoringGraph(any_network("NAFNet", NAF_TINY))
    program = formats.recorded(graph, formats.example_inputs(graph, channels=3))
    operations = Counter(str(node.target) for node in program.graph.nodes)
    assert operations["aten.conv2d.default"] > 10
    for name in ("aten.linear.default", "aten.permute.default", "aten.transpose.int", "aten.chunk.default"):
        assert operations[name] == 0
