"""The micro-batches that one process computes in a stage of the training."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from sam4ir.config.schema import MixingOptions
from sam4ir.data.loader import Mixup, train_batches
from sam4ir.data.sample import Batch
from sam4ir.engine.train.build import worker_count
from sam4ir.engine.train.data import Sets
from sam4ir.engine.train.stages import Stage
from sam4ir.utils.dist import World


@dataclass(frozen=True)
class StageBatches:
    """The loader of this process's micro-batches, for any stage.

    sets: the training set with its loading keys. world: the processes that share each total batch. seed: fixes order,
    crops, flips and noise of all samples. mixing: train.mixing_augs. cuda: whether batches go to a CUDA device; they
    are pinned then, unless pin_memory is false.
    """

    sets: Sets
    world: World
    seed: int
    mixing: MixingOptions | None = None
    cuda: bool = False

    def of(
        self, stage: Stage, sample: int, iterations: int, workers: int | None = None
    ) -> Generator[Batch, None, None]:
        """Yield the micro-batches of so many iterations from sample number `sample` on, stage.rounds an iteration.

        workers: processes that load ahead; None takes num_worker_per_gpu.
        """
        loader, mixing = self.sets.loader, self.mixing
        mixup = None
        if mixing is not None and mixing.mixup:
            mixup = Mixup(mixing.mixup_beta, mixing.use_identity)
        return train_batches(
            self.sets.of(stage),
            seed=self.seed,
            batch_size=stage.micro_batch * self.world.size,
            start_sample=sample,
            total_samples=sample + iterations * stage.total_batch,
            num_workers=worker_count(loader) if workers is None else workers,
            pin_memory=self.cuda and loader.pin_memory is not False,
            rank=self.world.rank,
            world_size=self.world.size,
            shuffle=loader.use_shuffle,
            enlarge=loader.dataset_enlarge_ratio,
            mixup=mixup,
            total_batch=stage.total_batch,
            bad_images=loader.bad_images,
        )
