"""What a stage asks of the loader: which samples, for which process, in which batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from conftest import World

from sam4ir.config.schema import MixingOptions
from sam4ir.data.loader import Mixup
from sam4ir.engine.train import batches as module
from sam4ir.engine.train.batches import StageBatches
from sam4ir.engine.train.data import Sets, data_sets
from sam4ir.engine.train.stages import Stage
from sam4ir.utils.dist import World as Processes

STAGE = Stage(start=5, end=9, gt_size=16, micro_batch=2, total_batch=12, processes=3)


@pytest.fixture
def sets(world: World) -> Sets:
    return data_sets(world.options())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each call of the loader."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "train_batches", lambda dataset, **arguments: calls.append(arguments))
    return calls


def test_every_process_has_its_share_of_each_total_batch(sets: Sets) -> None:
    numbers, everything, shapes = [], [], set()
    for rank in range(3):
        batches = list(StageBatches(sets, Processes(rank, 3), seed=7).of(STAGE, sample=24, iterations=2))
        assert len(batches) == STAGE.rounds * 2
        numbers.append([batch.numbers for batch in batches])
        for batch in batches:
            everything += batch.numbers
            shapes.add(tuple(batch.lq.shape))
    assert numbers[0] == [[24, 25], [30, 31], [36, 37], [42, 43]]
    assert sorted(everything) == list(range(24, 48))
    assert shapes == {(2, 3, 16, 16)}


@pytest.mark.parametrize(
    ("cuda", "pin_memory", "pinned"),
    [(False, None, False), (False, True, False), (True, None, True), (True, True, True), (True, False, False)],
)
def test_batches_are_pinned_for_cuda_alone_unless_it_is_switched_off(
    sets: Sets, asked: list[dict[str, Any]], cuda: bool, pin_memory: bool | None, pinned: bool
) -> None:
    loader = sets.loader.model_copy(update={"pin_memory": pin_memory})
    StageBatches(replace(sets, loader=loader), Processes(), seed=0, cuda=cuda).of(STAGE, 0, 1)
    assert asked[0]["pin_memory"] is pinned


def test_a_run_on_the_cpu_pins_nothing_and_takes_the_workers_of_its_file(
    sets: Sets, asked: list[dict[str, Any]]
) -> None:
    loader = sets.loader.model_copy(update={"num_worker_per_gpu": 1})
    batches = StageBatches(replace(sets, loader=loader), Processes(), seed=0)
    batches.of(STAGE, 0, 1)
    batches.of(STAGE, 0, 1, workers=0)
    assert [call["num_workers"] for call in asked] == [1, 0]
    assert [call["pin_memory"] for call in asked] == [False, False]


@pytest.mark.parametrize(
    ("mixing", "mixup"),
    [
        (None, None),
        (MixingOptions(mixup=False), None),
        (MixingOptions(mixup=True, mixup_beta=0.7, use_identity=True), Mixup(0.7, True)),
        (MixingOptions(mixup=True, mixup_beta=1.2, use_identity=False), Mixup(1.2, False)),
    ],
)
def test_mixup_is_what_the_file_says(
    sets: Sets, asked: list[dict[str, Any]], mixing: MixingOptions | None, mixup: Mixup | None
) -> None:
    StageBatches(sets, Processes(), seed=0, mixing=mixing).of(STAGE, 0, 1)
    assert asked[0]["mixup"] == mixup
