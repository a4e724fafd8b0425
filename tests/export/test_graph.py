"""The modules that become graphs compute what the restore path computes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from archs.test_networks import HI_TINY, NAF_TINY, RE_TINY, build

from sam4ir.archs.diffusion_sr import DiffSR
from sam4ir.export import verify
from sam4ir.export.graph import ConditionGraph, ExportError, RestoringGraph, StepGraph

RRDB_TINY: dict[str, Any] = {"num_feat": 8, "num_block": 1, "num_grow_ch": 4}
DIFF_TINY: dict[str, Any] = {"hidden_size": 8, "dim_mults": [1, 2], "rrdb_num_feat": 8, "rrdb_num_block": 3}
NETWORKS = [
    ("NAFNet", NAF_TINY, 1),
    ("NAFNetLocal", {"train_size": [1, 3, 16, 16], **NAF_TINY}, 1),
    ("Baseline", {"dw_expand": 2, **NAF_TINY}, 1),
    ("BaselineLocal", {"train_size": [1, 3, 16, 24], **NAF_TINY}, 1),
    ("HINet", HI_TINY, 1),
    ("Restormer", RE_TINY, 1),
    ("RRDBNet", RRDB_TINY, 4),
    ("RRDBNet", {"scale": 2, **RRDB_TINY}, 2),
]


def differences(graph, network, scale, window=1, clamp=False):
    inputs = verify.inputs_for(graph, network, 3)
    expected = verify.expected_of(graph, network, scale, window, clamp)
    with torch.no_grad():
        measured = list(verify.differences(graph.eval(), inputs, expected))
    assert len(measured) == 5
    return [difference.largest for difference in measured]


@pytest.mark.parametrize(("role", "arguments", "scale"), NETWORKS)
def test_a_graph_restores_as_the_network_does(role, arguments, scale):
    network = build(role, arguments)
    state = copy.deepcopy(network.state_dict())
    rule = getattr(network, "size", None)
    window = getattr(network, "unshuffle", 1)
    assert max(differences(RestoringGraph(network, scale), network, scale, window)) < 1e-4
    assert getattr(network, "size", None) == rule  # the network stays as it is
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name])


def test_window_size_of_an_option_file_is_padded_inside():
    network = build("NAFNet", NAF_TINY)
    assert max(differences(RestoringGraph(network, window=16), network, 1, 16)) < 1e-5
    assert max(differences(RestoringGraph(network), network, 1, 16)) > 1e-3


def test_clamped_output_is_limited():
    network = build("NAFNet", NAF_TINY)
    assert max(differences(RestoringGraph(network, clamp=True), network, 1, clamp=True)) < 1e-5
    assert max(differences(RestoringGraph(network), network, 1, clamp=True)) > 1e-3


@pytest.mark.parametrize(("role", "arguments", "scale"), NETWORKS)
def test_half_precision_is_close_and_takes_float32(role, arguments, scale):
    network = build(role, arguments)
    graph = RestoringGraph(network, scale, precision="fp16")
    worst = max(differences(graph, network, scale, getattr(network, "unshuffle", 1)))
    assert 1e-6 < worst < 5e-2  # outputs of these weights reach 7
    assert graph(torch.rand(1, 3, 9, 9)).dtype is torch.float32


def test_a_diffusion_network_has_a_graph_of_its_step_and_one_of_its_condition():
    network = build("DiffSR", DIFF_TINY)
    assert isinstance(network, DiffSR)
    assert max(differences(StepGraph(network), network, 4)) < 1e-4
    assert max(differences(ConditionGraph(network), network, 4)) < 1e-4


def test_a_fast_local_network_is_refused_with_the_reason():
    network = build("NAFNetLocal", {"train_size": [1, 3, 16, 16], "fast_imp": True, **NAF_TINY})
    with pytest.raises(ExportError, match="fast_imp: false"):
        RestoringGraph(network)


def test_a_difference_beyond_the_tolerance_is_refused():
    for wrong in (2e-4, float("nan"), float("inf")):
        measured = [verify.Difference((1, 3, 4, 4), 0.0), verify.Difference((1, 3, 1, 1), wrong)]
        with pytest.raises(ExportError, match="1 x 3 x 1 x 1"):
            verify.refuse_differing(measured, 1e-4)
    verify.refuse_differing(measured[:1], 1e-4)
