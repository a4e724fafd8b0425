"""The data stream: sample number s is a pure function of (seed, s), whoever computes it.

So the stream is the same for any number of workers and ranks, and resuming takes nothing but the sample number.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
import torch.utils.data

from sam4ir.data.sample import Batch, Dataset, Sample, collate
from sam4ir.utils.rng import generator

T = TypeVar("T")


class SampleStream(torch.utils.data.Dataset[Any]):
    """Sample number -> sample, without end.

    An epoch is `enlarge` rounds through the dataset (BasicSR's dataset_enlarge_ratio), shuffled as one list by
    (seed, epoch); a sample's crop, flip and noise come from (seed, number).
    """

    def __init__(self, dataset: Dataset, seed: int, shuffle: bool = True, enlarge: int = 1) -> None:
        if enlarge < 1:
            raise ValueError(f"dataset_enlarge_ratio: {enlarge} must be a positive integer")
        if not len(dataset):
            raise ValueError("the dataset is empty: there is nothing to train on")
        self.dataset, self.seed, self.shuffle, self.enlarge = dataset, seed, shuffle, enlarge
        self._order: tuple[int, np.ndarray] | None = None  # of the epoch asked for last

    @property
    def epoch_length(self) -> int:
        """Samples in an epoch."""
        return len(self.dataset) * self.enlarge

    def index(self, number: int) -> int:
        """The dataset index of sample `number`."""
        epoch, position = divmod(number, self.epoch_length)
        if self.shuffle:
            position = int(self._epoch_order(epoch)[position])
        return position % len(self.dataset)

    def __getitem__(self, number: int) -> Sample:
        return self.dataset.get(self.index(number), generator(self.seed, "sample", number))

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, generator(self.seed, "order", epoch).permutation(self.epoch_length)
        return self._order[1]


def train_batches(
    dataset: Dataset,
    *,
    seed: int,
    batch_size: int,
    total_samples: int,
    start_sample: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
    prefetch_factor: int = 2,
    rank: int = 0,
    world_size: int = 1,
    shuffle: bool = True,
    enlarge: int = 1,
) -> Iterator[Batch]:
    """Batches of the samples start_sample, ..., total_samples - 1, in order.

    batch_size: samples of one batch over all ranks; rank r yields the r-th of world_size equal, contiguous shares.
    total_samples: the number at which the stream ends, counted from 0 and not from start_sample.
    num_workers: processes that prepare samples ahead; 0 does it here. They change speed only.
    Raises ValueError for numbers that do not divide; a sample's ValueError or OSError arrives with its own message.
    """
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(f"batch_size: {batch_size} is shared by {world_size} ranks; make it a positive multiple")
    if (total_samples - start_sample) % batch_size:
        raise ValueError(
            f"samples {start_sample} to {total_samples} are no whole number of batches of {batch_size}; "
            "resume with a batch size that divides them"
        )
    share = batch_size // world_size
    firsts = range(start_sample + rank * share, total_samples, batch_size)
    stream = SampleStream(dataset, seed, shuffle, enlarge)
    numbers = (range(first, first + share) for first in firsts)
    return _load(partial(_batch, stream), numbers, num_workers, prefetch_factor, pin_memory)


def eval_samples(
    dataset: Dataset, seed: int, rank: int = 0, world_size: int = 1, num_workers: int = 0, prefetch_factor: int = 2
) -> Iterator[Sample]:
    """The images of a validation set in key order, each drawn from (seed, its key); rank r takes every w-th from r."""
    indices = range(rank, len(dataset), world_size)
    return _load(partial(_eval_sample, dataset, seed), indices, num_workers, prefetch_factor)


def _batch(stream: SampleStream, numbers: Sequence[int]) -> Batch:
    return collate([stream[number] for number in numbers], numbers)


def _eval_sample(dataset: Dataset, seed: int, index: int) -> Sample:
    return dataset.get(index, generator(seed, "eval", dataset.key(index)))


def _load(
    make: Callable[[Any], T], items: Iterable[Any], num_workers: int, prefetch_factor: int, pin_memory: bool = False
) -> Iterator[T]:
    """make(item) of each item, in order, prepared ahead by num_workers processes."""
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        _Guarded(make),
        batch_size=None,  # an item is a batch already
        sampler=items,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else each start draws from torch's global stream
        prefetch_factor=prefetch_factor if num_workers else None,
    )
    for made in loader:
        if isinstance(made, _Failure):
            raise made.error
        yield made


class _Failure:
    """An error on its way out of a worker: raised as it is, where torch would wrap it in the worker's traceback."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Guarded(torch.utils.data.Dataset[Any]):
    """make(item), where what is wrong with the user's data is a result like any other."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __getitem__(self, item: Any) -> Any:
        try:
            return self._make(item)
        except (ValueError, OSError) as error:
            return _Failure(error)


def _as_it_is(made: Any) -> Any:
    return made


def _start_worker(_: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it may reach the whole group; the main process saves, then ends us
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
