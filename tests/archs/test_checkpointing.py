"""Activation checkpointing: the same bits with less memory, for every network."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam4ir.archs.layers import NetworkBlock, checkpoint_blocks, run_block
from sam4ir.registry import ARCHS

NETWORKS = [
    ("NAFNet", {"width": 8, "middle_blk_num": 2, "enc_blk_nums": [2, 2], "dec_blk_nums": [2, 2]}, 10),
    ("HINet", {"wf": 8, "depth": 3}, 10),
    ("Restormer", {"dim": 8, "num_blocks": [2, 1, 1, 2], "num_refinement_blocks": 2, "heads": [1, 2, 2, 4]}, 12),
]
every_network = pytest.mark.parametrize(("role", "arguments", "blocks"), NETWORKS)


def build(role: str, arguments: dict[str, Any]) -> nn.Module:
    """A network whose NAFNet scales are not zero, so that its blocks take part."""
    torch.manual_seed(0)
    network = ARCHS.get(role)(**arguments)
    for name, parameter in network.named_parameters():
        if name.endswith(("beta", "gamma")):
            nn.init.normal_(parameter, std=0.3)
    return network


def image(side: int = 32) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def loss(network: nn.Module, x: Tensor) -> Tensor:
    out = network(x)
    return sum(o.float().square().mean() for o in (out if isinstance(out, list) else [out]))


def gradients(network: nn.Module, dtype: torch.dtype | None) -> list[Tensor]:
    network.zero_grad()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        value = loss(network, image())
    value.backward()
    return [value.detach(), *(p.grad.clone() for p in network.parameters())]


def kept_bytes(network: nn.Module) -> int:
    """Memory of all tensors that a forward pass keeps for the backward one, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(network, image())
    held = sum(kept.values())
    value.backward()
    return held


@every_network
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_loss_and_gradients_are_the_same_bits(role, arguments, blocks, dtype):
    network = build(role, arguments)
    plain = gradients(network, dtype)
    assert checkpoint_blocks(network) == blocks
    for again, first in zip(gradients(network, dtype), plain, strict=True):
        assert torch.equal(again, first)


@every_network
def test_much_less_is_kept_for_the_backward_pass(role, arguments, blocks):
    network = build(role, arguments)
    plain = kept_bytes(network)
    checkpoint_blocks(network)
    assert kept_bytes(network) < (0.5 if role == "HINet" else 0.25) * plain


@every_network
def test_keys_stay_and_copies_keep_the_setting(role, arguments, blocks):
    network = build(role, arguments)
    keys = list(network.state_dict())
    checkpoint_blocks(network)
    average = copy.deepcopy(network)
    assert list(average.state_dict()) == list(network.state_dict()) == keys
    assert checkpoint_blocks(average) == blocks
    assert kept_bytes(average) == kept_bytes(network)


class Counting(NetworkBlock):
    """Counts its forward passes; with dropout, whose draw must be the same when it is computed again."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.dropout(x * self.weight, 0.5, self.training)


def test_a_block_is_computed_again_only_where_it_trains():
    block = Counting()
    assert checkpoint_blocks(nn.Sequential(block)) == 1
    run_block(block, torch.ones(3)).sum().backward()
    assert block.calls == 2
    with torch.no_grad():
        run_block(block, torch.ones(3))
    run_block(block.eval(), torch.ones(3)).sum().backward()
    assert block.calls == 4


def test_random_draws_are_repeated():
    block = Counting()
    block.checkpointed = True
    x = torch.ones(64, 3)
    out = run_block(block, x)
    out.sum().backward()
    assert torch.equal(block.weight.grad, out.detach().sum(0))


def test_a_network_without_blocks_says_so():
    assert checkpoint_blocks(nn.Sequential(nn.Conv2d(3, 3, 1))) == 0


def test_blocks_inside_blocks_are_not_computed_three_times():
    outer = Counting()
    outer.inner = Counting()
    assert checkpoint_blocks(nn.ModuleList([outer])) == 1
    assert not outer.inner.checkpointed


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:Grad strides do not match bucket view strides")
@every_network
def test_works_under_distributed_data_parallel(role, arguments, blocks, process_group):
    network = build(role, arguments)
    plain = gradients(network, None)
    checkpoint_blocks(network)
    wrapped = nn.parallel.DistributedDataParallel(network)
    for again, first in zip(gradients(wrapped, None), plain, strict=True):
        assert torch.equal(again, first)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None, reason="torch.compile needs a compiler"
)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_compiled_nafnet_gives_the_same(checkpointed):
    network = build("NAFNet", {"width": 4, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [1]})
    plain = gradients(network, None)
    if checkpointed:
        assert checkpoint_blocks(network) == 3
    network.compile()
    for compiled, eager in zip(gradients(network, None), plain, strict=True):
        assert torch.allclose(compiled, eager, rtol=1e-4, atol=1e-6)
