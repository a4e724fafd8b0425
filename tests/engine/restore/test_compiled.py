"""A network compiled for inference restores as the network does, and gives up where the compiler cannot go on."""

from __future__ import annotations

import logging

import pytest
import torch
from archs.test_networks import HI_TINY, NAF_TINY, build
from torch import nn

from sam4ir.archs.size import SizeRule
from sam4ir.config.schema import DiffusionOptions, ValOptions
from sam4ir.engine.restore.build import RestoreRecipe, for_inference
from sam4ir.engine.restore.compiled import CompiledNetwork
from sam4ir.models.restoration import restore


class Counter:
    """A stand-in for the compiler: it counts the code that is made, a piece for each size, and runs the network."""

    def __init__(self, fails: bool = False) -> None:
        self.sizes: set[tuple[int, ...]] = set()
        self.settings: list[dict] = []
        self.by_code: list[list[tuple[int, ...]]] = []
        self.fails = fails

    def __call__(self, network: nn.Module, **settings):
        self.settings.append(settings)
        sizes: list[tuple[int, ...]] = []
        self.by_code.append(sizes)

        def run(image: torch.Tensor):
            if self.fails:
                raise RuntimeError("no C++ compiler\nmany lines")
            self.sizes.add(tuple(image.shape))
            sizes.append(tuple(image.shape))
            return network(image)

        return run


@pytest.mark.parametrize(("role", "arguments", "sizes"), [("NAFNet", NAF_TINY, 2), ("HINet", HI_TINY, 1)])
def test_padding_stays_outside_of_the_code(role, arguments, sizes, monkeypatch):
    compiler = Counter()
    monkeypatch.setattr(torch, "compile", compiler)
    network, compiled = build(role, arguments), CompiledNetwork(build(role, arguments), in_tiles=True)
    for h, w in ((1, 1), (5, 7), (8, 8), (7, 8), (8, 6)):
        image = torch.rand(1, 3, h, w)
        assert torch.equal(restore(compiled, image), restore(network, image))
    assert len(compiler.sizes) == sizes
    assert compiler.settings == [{"dynamic": dynamic, "options": {"freezing": True}} for dynamic in (True, False)]


def test_tiles_have_code_of_their_own_and_other_sizes_share_one(monkeypatch):
    compiler = Counter()
    monkeypatch.setattr(torch, "compile", compiler)
    compiled = CompiledNetwork(build("NAFNet", NAF_TINY), in_tiles=True)
    for batch, side in ((8, 16), (8, 16), (3, 16), (8, 16), (1, 24)):
        restore(compiled, torch.rand(batch, 3, side, side))
    any_size, tiles = compiler.by_code
    assert tiles == [(8, 3, 16, 16)] * 3
    assert any_size == [(3, 3, 16, 16), (1, 3, 24, 24)]
    whole = Counter()
    monkeypatch.setattr(torch, "compile", whole)
    restore(CompiledNetwork(build("NAFNet", NAF_TINY), in_tiles=False), torch.rand(1, 3, 16, 16))
    assert [settings["dynamic"] for settings in whole.settings] == [True]


def test_a_network_is_compiled_again_for_other_tiles(monkeypatch):
    monkeypatch.setattr(torch, "compile", Counter())
    network, image = build("NAFNet", NAF_TINY), torch.rand(1, 3, 5, 7)
    expected = restore(network, image)
    for in_tiles in (True, False):
        assert torch.equal(restore(CompiledNetwork(network, in_tiles), image), expected)
    assert torch.equal(restore(network, image), expected)


def test_a_compiler_that_fails_is_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(torch, "compile", Counter(fails=True))
    network, compiled = build("NAFNet", NAF_TINY), CompiledNetwork(build("NAFNet", NAF_TINY), in_tiles=False)
    image = torch.rand(1, 3, 5, 7)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(restore(compiled, image), restore(network, image))
    assert [record.getMessage().splitlines() for record in caplog.records] == [
        ["compile: the network runs as it is, since compiling fails: no C++ compiler"]
    ]


def test_the_recipe_says_what_is_compiled():
    network = build("NAFNet", NAF_TINY)
    assert for_inference(RestoreRecipe(ValOptions()), network) is network
    assert for_inference(RestoreRecipe(ValOptions(), 4, DiffusionOptions(), compiled=True), network) is network
    compiled = for_inference(RestoreRecipe(ValOptions(), compiled=True), network)
    assert isinstance(compiled, CompiledNetwork)
    assert compiled.rule == SizeRule(4)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("in_tiles", [False, True])
def test_real_code_is_made_a_bounded_number_of_times(in_tiles):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    network, compiled = build("NAFNet", NAF_TINY), CompiledNetwork(build("NAFNet", NAF_TINY), in_tiles)
    for side in range(17, 65, 3):
        image = torch.rand(1, 3, side, side + 9)
        assert torch.allclose(restore(compiled, image), restore(network, image), atol=1e-5)
    assert compiled.usable
    assert counters["stats"]["unique_graphs"] <= 3 + in_tiles
