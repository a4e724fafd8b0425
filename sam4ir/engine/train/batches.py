"""The micro-batches that one process computes in a stage of the training."""

from __future__ import annotations

from collections.abc import Generator

from sam4ir.config.schema import Options
from sam4ir.data.loader import Mixup, train_batches
from sam4ir.data.sample import Batch
from sam4ir.engine import build
from sam4ir.engine.train.build import worker_count
from sam4ir.engine.train.data import Sets
from sam4ir.engine.train.stages import Stage
from sam4ir.utils.dist import World


def stage_batches(
    sets: Sets, stage: Stage, options: Options, world: World, sample: int, iterations: int, workers: int | None = None
) -> Generator[Batch, None, None]:
    """Micro-batches of so many iterations from sample number `sample` on, stage.rounds for each iteration.

    workers: processes that load ahead; None goes by the options.
    """
    loader = sets.loader
    assert options.train is not None
    mixing = options.train.mixing_augs
    pin = loader.pin_memory if loader.pin_memory is not None else True
    return train_batches(
        sets.of(stage),
        seed=options.manual_seed,
        batch_size=stage.micro_batch * world.size,
        start_sample=sample,
        total_samples=sample + iterations * stage.total_batch,
        num_workers=worker_count(loader) if workers is None else workers,
        pin_memory=pin and build.wants_cuda(options),
        rank=world.rank,
        world_size=world.size,
        shuffle=loader.use_shuffle,
        enlarge=loader.dataset_enlarge_ratio,
        mixup=Mixup(mixing.mixup_beta, mixing.use_identity) if mixing is not None and mixing.mixup else None,
        total_batch=stage.total_batch,
        bad_images=loader.bad_images,
    )
