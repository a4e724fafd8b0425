"""Progressive stages, and batches that any number of processes make up."""

from __future__ import annotations

import itertools

import pytest

from sam4ir.config.schema import Block, DatasetOptions, OptimOptions, TrainOptions
from sam4ir.engine.train.stages import Stage, stages

# (iteration, patch, batch) as Restormer's training loop chooses them for its deraining recipe
RESTORMER = [
    (1, 128, 8),
    (2, 128, 8),
    (91999, 128, 8),
    (92000, 128, 8),
    (92001, 160, 5),
    (156000, 160, 5),
    (156001, 192, 4),
    (204000, 192, 4),
    (204001, 256, 2),
    (240000, 256, 2),
    (240001, 320, 1),
    (276000, 320, 1),
    (276001, 384, 1),
    (300000, 384, 1),
]


def recipe(**changes) -> TrainOptions:
    return TrainOptions(
        **{"total_iter": 300_000, "optim_g": OptimOptions(), "pixel_opt": Block(type="L1Loss"), **changes}
    )


def loader(**changes) -> DatasetOptions:
    progressive = {
        "iters": (92000, 64000, 48000, 36000, 36000, 24000),
        "gt_sizes": (128, 160, 192, 256, 320, 384),
        "mini_batch_sizes": (8, 5, 4, 2, 1, 1),
    }
    return DatasetOptions(type="Dataset_PairedImage", batch_size_per_gpu=8, **{**progressive, **changes})


def at(found: list[Stage], iteration: int) -> Stage:
    (stage,) = (s for s in found if s.start < iteration <= s.end)
    return stage


@pytest.mark.parametrize(("iteration", "patch", "batch"), RESTORMER)
def test_the_stages_are_restormers(iteration: int, patch: int, batch: int) -> None:
    stage = at(stages(recipe(), loader(), 1), iteration)
    assert (stage.gt_size, stage.micro_batch, stage.total_batch) == (patch, batch, batch)


@pytest.mark.parametrize(("processes", "rounds"), [(1, [8] * 6), (2, [4] * 6), (4, [2] * 6), (8, [1] * 6)])
def test_the_recipes_batch_is_reached_by_any_number_of_processes(processes: int, rounds: list[int]) -> None:
    found = stages(recipe(total_batch=(64, 40, 32, 16, 8, 8)), loader(), processes)
    assert [s.rounds for s in found] == rounds
    assert [s.total_batch for s in found] == [64, 40, 32, 16, 8, 8]


def test_without_a_total_batch_more_processes_mean_a_larger_one() -> None:
    assert [s.total_batch for s in stages(recipe(), loader(), 4)] == [32, 20, 16, 8, 4, 4]
    assert [s.rounds for s in stages(recipe(), loader(), 4)] == [1] * 6


def test_one_total_batch_holds_in_every_stage() -> None:
    found = stages(recipe(total_batch=40), loader(mini_batch_sizes=(8, 5, 4, 2, 1, 1)), 1)
    assert [s.rounds for s in found] == [5, 8, 10, 20, 40, 40]


def test_processes_that_cannot_make_up_the_batch_are_told_what_would_do() -> None:
    with pytest.raises(ValueError, match=r"train.total_batch: 64 \(patches of 128\).*3 process.*3 x 8.*micro-batch"):
        stages(recipe(total_batch=(64, 40, 32, 16, 8, 8)), loader(), 3)


@pytest.mark.parametrize(
    ("total", "ends"), [(400_000, 400_000), (280_000, 280_000), (276_000, 276_000), (100_000, 100_000)]
)
def test_the_last_stage_goes_on_and_later_ones_fall_away(total: int, ends: int) -> None:
    found = stages(recipe(total_iter=total), loader(), 1)
    assert found[-1].end == ends
    assert all(a.end == b.start for a, b in itertools.pairwise(found))
    assert all(s.end > s.start for s in found)


def test_without_stages_there_is_one() -> None:
    (stage,) = stages(recipe(total_batch=32), loader(iters=None, gt_sizes=None, mini_batch_sizes=None), 2)
    assert (stage.start, stage.end, stage.gt_size, stage.rounds) == (0, 300_000, None, 2)
    assert str(stage) == "iterations 1 to 300000: batch 32 as 2 x 8 images in 2 rounds"
