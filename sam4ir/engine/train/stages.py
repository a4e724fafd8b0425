"""Progressive training: patches grow and batches shrink from stage to stage (Restormer, section 3.3).

Other recipes have one stage. Any number of processes reaches a stage's total batch, by rounds of micro-batches whose
gradients add up.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from sam4ir.config.schema import DatasetOptions, TrainOptions
from sam4ir.errors import UserError


@dataclass(frozen=True)
class Stage:
    """The iterations start + 1 to end, which have one patch size and one batch size.

    gt_size: side of the patches; None for that of the data set. micro_batch: images that a process computes at once.
    total_batch: images of an iteration, over all processes.
    """

    start: int
    end: int
    gt_size: int | None
    micro_batch: int
    total_batch: int
    processes: int = 1

    @property
    def rounds(self) -> int:
        """Micro-batches that each process adds up in an iteration."""
        return self.total_batch // (self.micro_batch * self.processes)

    def __str__(self) -> str:
        text = f"iterations {self.start + 1} to {self.end}: "
        if self.gt_size is not None:
            text += f"patches of {self.gt_size}, "
        text += f"batch {self.total_batch} as "
        if self.processes > 1:
            text += f"{self.processes} x "
        text += f"{self.micro_batch} images"
        if self.rounds > 1:
            text += f" in {self.rounds} rounds"
        return text


def stages(train: TrainOptions, loader: DatasetOptions, processes: int) -> list[Stage]:
    """Return the stages of a training, up to total_iter; where iters end before it, the last stage goes on.

    Raises ValueError naming the key where the processes cannot make up a stage's total batch.
    """
    sizes: Sequence[int | None] = loader.gt_sizes or (None,)
    micro = loader.mini_batch_sizes or (loader.batch_size_per_gpu,)
    ends = [min(end, train.total_iter) for end in itertools.accumulate(loader.iters or (train.total_iter,))]
    ends[-1] = train.total_iter
    totals: Sequence[int | None] = (None,) * len(sizes)
    if isinstance(train.total_batch, tuple):
        totals = train.total_batch
    elif train.total_batch is not None:
        totals = (train.total_batch,) * len(sizes)
    stages_in_order = []
    for start, end, size, batch, total in zip([0, *ends], ends, sizes, micro, totals, strict=False):
        whole = batch * processes if total is None else total
        if whole % (batch * processes):
            at = "" if size is None else f" (patches of {size})"
            raise UserError(
                f"train.total_batch: {whole}{at} is no multiple of what {processes} process(es) compute at once, "
                f"{processes} x {batch}; change total_batch, or the micro-batch (mini_batch_sizes or "
                "batch_size_per_gpu), or the number of processes"
            )
        if end > start:
            stages_in_order.append(Stage(start, end, size, batch, whole, processes))
    return stages_in_order
