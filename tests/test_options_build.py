"""Every option file of the repository loads and its parts can be built, on the meta device."""

from __future__ import annotations

import inspect
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from sam4ir.config.load import load_options, notices
from sam4ir.config.schema import Block, Options
from sam4ir.config.signature import accepts, block_arguments
from sam4ir.registry import ARCHS, DATASETS, FUSIONS, LOSSES, METRICS, SCHEDULES, Registry

OPTIONS = Path(__file__).parents[1] / "options"
FILES = sorted(OPTIONS.rglob("*.yml"))
SIDE = 64


@pytest.fixture(params=FILES, ids=lambda p: str(p.relative_to(OPTIONS)))
def options(request: pytest.FixtureRequest) -> Options:
    return load_options(request.param)


def build(registry: Registry, block: Block) -> object:
    return registry.get(block.type)(**block_arguments(registry, block.type, block.arguments))


def test_there_are_option_files() -> None:
    assert len(FILES) >= 3
    assert not list(OPTIONS.rglob("*.yaml")), "an option file is called .yml"


def test_no_two_trainings_write_into_one_folder() -> None:
    names = [options.name for options in map(load_options, FILES) if options.train is not None]
    assert sorted(set(names)) == sorted(names)


def test_networks_are_built(options: Options) -> None:
    for block in (options.network_g, options.network_r):
        if block is not None:
            with torch.device("meta"):
                network = build(ARCHS, block)
            assert isinstance(network, nn.Module)
            assert {parameter.device.type for parameter in network.parameters()} == {"meta"}


def test_the_fusion_is_built(options: Options) -> None:
    if options.spf is not None:
        with torch.device("meta"):
            assert isinstance(build(FUSIONS, options.spf), nn.Module)


def test_losses_are_built_and_finite(options: Options) -> None:
    if options.train is None:
        return
    loss = build(LOSSES, options.train.pixel_opt)
    assert callable(loss)
    image = torch.linspace(0, 1, 3 * SIDE).view(1, 3, 1, SIDE).expand(1, 3, SIDE, SIDE)
    assert math.isfinite(loss(image, 1 - image))


def test_metrics_score_an_image(options: Options) -> None:
    for block in options.val.metrics.values() if options.val is not None else ():
        metric = partial(METRICS.get(block.type), **block_arguments(METRICS, block.type, block.arguments))
        image = torch.linspace(0, 1, 3 * SIDE).view(3, 1, SIDE).expand(3, SIDE, SIDE)
        assert math.isfinite(metric(image, 1 - image, data_range=1.0))


def test_schedulers_run_from_the_first_to_the_last_iteration(options: Options) -> None:
    if options.train is None:
        return
    train = options.train
    pairs = [(train.scheduler, train.optim_g), (train.scheduler_r or train.scheduler, train.optim_r or train.optim_g)]
    for block, optimiser in pairs:
        if block is None:
            continue
        rate = partial(SCHEDULES.get(block.type), **block_arguments(SCHEDULES, block.type, block.arguments))
        assert rate(iteration=0, base_lr=optimiser.lr) == pytest.approx(optimiser.lr)
        assert 0 <= rate(iteration=train.total_iter, base_lr=optimiser.lr) <= optimiser.lr


def test_data_sets_get_all_arguments_that_they_need(options: Options) -> None:
    assert options.datasets
    for block in options.datasets.values():
        target = DATASETS.get(block.type)
        handed = {name: None for name in DATASETS.handed if accepts(target, name)}
        inspect.signature(target).bind(**handed, **block_arguments(DATASETS, block.type, block.arguments))


def test_no_key_of_our_own_files_is_without_effect(options: Options) -> None:
    assert notices(options) == []


def test_the_schedule_ends_with_the_training(options: Options) -> None:
    if options.train is None or options.train.scheduler is None:
        return
    arguments = options.train.scheduler.arguments
    if "T_max" in arguments:
        assert arguments["T_max"] == options.train.total_iter
    if "periods" in arguments:
        assert sum(arguments["periods"]) == options.train.total_iter
