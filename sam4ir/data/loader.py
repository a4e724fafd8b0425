"""The data stream: sample number s is a pure function of (seed, s), whatever process computes it.

So the stream is the same for any number of workers and ranks, and a run that resumes needs only the sample number.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
import torch
import torch.utils.data

from sam4ir.data.sample import Batch, Dataset, Sample, collate
from sam4ir.errors import UserError
from sam4ir.utils.processes import Caught, as_exception, begin_worker, cause_of_death, memory_hint
from sam4ir.utils.rng import generator

T = TypeVar("T")

ATTEMPTS = 10  # images that are tried in place of one that cannot be read
BadImages = Literal["stop", "skip"]


class SampleStream(torch.utils.data.Dataset[Any]):
    """An endless stream of samples by number.

    An epoch is `enlarge` rounds through the dataset (BasicSR's dataset_enlarge_ratio), shuffled as one list by
    (seed, epoch); a sample's crop, flip and noise come from (seed, number).
    bad_images: 'stop' lets an image's ValueError or OSError through; 'skip' takes another image in its place, drawn
        from (seed, number, attempt), and raises ValueError after ATTEMPTS of them. Sample.skipped lists the errors.
    """

    def __init__(
        self, dataset: Dataset, seed: int, shuffle: bool = True, enlarge: int = 1, bad_images: BadImages = "stop"
    ) -> None:
        if bad_images not in ("stop", "skip"):
            raise UserError(f"bad_images: {bad_images!r} must be 'stop' or 'skip'")
        if enlarge < 1:
            raise UserError(f"dataset_enlarge_ratio: {enlarge} must be a positive integer")
        if not len(dataset):
            raise UserError("the dataset is empty: there is nothing to train on")
        self.dataset, self.seed, self.shuffle, self.enlarge = dataset, seed, shuffle, enlarge
        self.bad_images = bad_images
        self._order: tuple[int, np.ndarray] | None = None  # the latest epoch and its order

    @property
    def epoch_length(self) -> int:
        """Samples in an epoch."""
        return len(self.dataset) * self.enlarge

    def index(self, number: int) -> int:
        """Return the dataset index of sample `number`."""
        epoch, position = divmod(number, self.epoch_length)
        if self.shuffle:
            position = int(self._epoch_order(epoch)[position])
        return position % len(self.dataset)

    def __getitem__(self, number: int) -> Sample:
        index, rng = self.index(number), generator(self.seed, "sample", number)
        if self.bad_images == "stop":
            return _get(self.dataset, index, rng)
        skipped: list[str] = []
        for attempt in range(1, ATTEMPTS + 2):
            try:
                return dataclasses.replace(_get(self.dataset, index, rng), skipped=tuple(skipped))
            except (UserError, OSError) as error:
                skipped.append(str(error))
            rng = generator(self.seed, "replacement", number, attempt)
            index = int(rng.integers(len(self.dataset)))
        raise UserError(
            f"bad_images: skip: sample {number} and {ATTEMPTS} images in its place cannot be read, the first because "
            f"of {skipped[0]}, the last of {skipped[-1]}; check the data set"
        )

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, generator(self.seed, "order", epoch).permutation(self.epoch_length)
        return self._order[1]


@dataclass(frozen=True)
class Mixup:
    """Mixup of images and their ground truth alike (Zhang et al., ICLR 2018), as Restormer's denoising recipes do it.

    Each total batch has one draw from (seed, its first sample number): with use_identity whether it is mixed,
    with probability 1/2; lam ~ Beta(beta, beta); and the partner of each sample, by a permutation of the total batch.
    A sample becomes lam * sample + (1 - lam) * partner. So it is the same for any number of ranks and workers and any
    micro-batch.
    """

    beta: float = 1.2
    use_identity: bool = True

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UserError(f"mixup_beta: {self.beta} must be positive")

    def plan(self, seed: int, first: int, total_batch: int) -> tuple[float, Sequence[int]]:
        """Return (lam, the partner's number of each sample) of the total batch that begins with sample `first`."""
        rng = generator(seed, "mixup", first)
        identity = self.use_identity and rng.random() < 0.5
        lam = float(rng.beta(self.beta, self.beta))
        partners = (first + rng.permutation(total_batch)).tolist()
        if identity:
            return 1.0, range(first, first + total_batch)
        return lam, partners


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
    mixup: Mixup | None = None,
    total_batch: int | None = None,
    bad_images: BadImages = "stop",
) -> Generator[Batch, None, None]:
    """Return batches of the samples start_sample, ..., total_samples - 1, in order.

    batch_size: samples of one batch over all ranks; rank r yields the r-th of world_size equal, contiguous shares.
    total_samples: the number at which the stream ends, counted from 0 and not from start_sample.
    num_workers: processes that prepare samples ahead, 0 for none; they change speed only.
    mixup: None leaves samples as they are. total_batch: samples of one optimiser step, a multiple of batch_size, None
        for batch_size; mixup takes its partners from these, so start_sample must be the first of one.
    bad_images: 'stop' raises an image's error, 'skip' takes another image and lists the error in Batch.skipped.
    Raises ValueError for numbers that do not divide; a sample's ValueError or OSError arrives with its own message.
    """
    if batch_size < 1 or batch_size % world_size:
        raise UserError(f"batch_size: {batch_size} is shared by {world_size} ranks; make it a positive multiple")
    if (total_samples - start_sample) % batch_size:
        raise UserError(
            f"samples {start_sample} to {total_samples} are no whole number of batches of {batch_size}; "
            "resume with a batch size that divides them"
        )
    total = total_batch or batch_size
    if total % batch_size or (mixup is not None and (total_samples - start_sample) % total):
        raise UserError(
            f"total_batch: {total} must be a multiple of the batch of {batch_size}, and with mixup samples "
            f"{start_sample} to {total_samples} a whole number of total batches"
        )
    share = batch_size // world_size
    firsts = range(start_sample + rank * share, total_samples, batch_size)
    stream = SampleStream(dataset, seed, shuffle, enlarge, bad_images)
    numbers = (range(first, first + share) for first in firsts)
    make = partial(_batch, stream)
    if mixup is not None:
        make = partial(_mixed_batch, stream, mixup, start_sample, total)
    return _load(make, numbers, num_workers, prefetch_factor, pin_memory)


def eval_samples(
    dataset: Dataset, seed: int, rank: int = 0, world_size: int = 1, num_workers: int = 0, prefetch_factor: int = 2
) -> Iterator[Sample]:
    """Return the images of a validation set in key order, each drawn from (seed, its key).

    Rank r takes every world_size-th image, from the r-th on.
    """
    indices = range(rank, len(dataset), world_size)
    return _load(partial(eval_sample, dataset, seed), indices, num_workers, prefetch_factor)


def _batch(stream: SampleStream, numbers: Sequence[int]) -> Batch:
    """Return the batch of the samples with these numbers."""
    return collate([stream[number] for number in numbers], numbers)


def _mixed_batch(stream: SampleStream, mixup: Mixup, start: int, total: int, numbers: Sequence[int]) -> Batch:
    """Return the batch of the samples with these numbers, each mixed with its partner in the total batch."""
    first = numbers[0] - (numbers[0] - start) % total
    lam, partners = mixup.plan(stream.seed, first, total)
    samples: dict[int, Sample] = {}  # each is read once, though it may be a partner too
    mixed = []
    for number in numbers:
        partner = partners[number - first]
        for needed in (number, partner):
            if needed not in samples:
                samples[needed] = stream[needed]
        mixed.append(_mixed(samples[number], samples[partner], lam))
    return collate(mixed, numbers)


def _mixed(sample: Sample, partner: Sample, lam: float) -> Sample:
    """Return lam * sample + (1 - lam) * partner, under the sample's key; raise ValueError where a sample has maps."""
    if sample is partner:
        return sample
    if sample.maps:
        raise UserError(f"{sample.key}: mixup blends two images, whose masks cannot be blended; switch one of them off")
    if sample.gt is None or partner.gt is None or sample.lq.shape != partner.lq.shape:
        raise UserError(f"{sample.key} and {partner.key}: mixup needs samples with GT and of one size; set gt_size")
    return dataclasses.replace(
        sample,
        lq=sample.lq * lam + partner.lq * (1 - lam),
        gt=sample.gt * lam + partner.gt * (1 - lam),
        skipped=sample.skipped + partner.skipped,
    )


def eval_sample(dataset: Dataset, seed: int, index: int) -> Sample:
    """Return the sample of an image, drawn from (seed, its key)."""
    return _get(dataset, index, generator(seed, "eval", dataset.key(index)))


def _load(
    make: Callable[[Any], T], items: Iterable[Any], num_workers: int, prefetch_factor: int, pin_memory: bool = False
) -> Generator[T, None, None]:
    """Yield make(item) of each item, in order, prepared ahead by num_workers processes."""
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        _Guarded(make),
        batch_size=None,  # an item is a batch already
        sampler=items,
        num_workers=num_workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        worker_init_fn=partial(_start_worker, threading.current_thread() is threading.main_thread()),
        generator=torch.Generator(),  # else each start draws from torch's global stream
        prefetch_factor=prefetch_factor if num_workers else None,
    )
    results, workers = _begin(loader)
    try:
        while True:
            result = _next(results, workers)
            if result is _END:
                return
            if isinstance(result, Caught):
                result.throw()
            yield result
    finally:
        _end(results, workers)
        del results


_END: Any = object()


def _begin(loader: torch.utils.data.DataLoader[Any]) -> tuple[Iterator[Any], set[BaseProcess]]:
    """Return the iterator of a loader and its processes."""
    others = set(multiprocessing.active_children())
    try:
        results = iter(loader)
    except RuntimeError as error:  # one has died while the next one was started
        workers = set(multiprocessing.active_children()) - others
        for worker in workers:
            worker.kill()
        died = _death(workers, error)
        if died is None:
            raise
        raise died from error
    return results, set(multiprocessing.active_children()) - others


def _next(results: Iterator[Any], workers: Collection[BaseProcess]) -> Any:
    """Return the next result, a Caught for an error of the data, or _END; raise WorkerDiedError for a lost process."""
    try:
        return next(results, _END)
    except (RuntimeError, EOFError, ConnectionError) as error:
        died = _death(workers, error)
        if died is None:
            raise
        raise died from error


def _death(workers: Collection[BaseProcess], error: Exception) -> WorkerDiedError | None:
    """Return the error for a worker that has died, None where none has."""
    cause = ""
    if workers:
        cause = cause_of_death(workers, str(error))
    if not cause and "DataLoader worker" not in str(error):
        return None
    return WorkerDiedError(str(error) or type(error).__name__, cause)


def _end(results: Iterator[Any], workers: Collection[BaseProcess]) -> None:
    """End the workers now: an error that somebody keeps would keep them to the end of this process."""
    if any(worker.exitcode for worker in workers):  # one was killed, maybe with a lock on which the others wait
        for worker in workers:
            worker.kill()
    shut_down = getattr(results, "_shutdown_workers", None)
    if shut_down is not None:
        shut_down()
    for worker in workers:
        if worker.is_alive():
            worker.kill()


class WorkerDiedError(UserError):
    """The death of a process that loads images. The message has the signal or exit code, and the likely remedy.

    reason: what torch says. cause: of cause_of_death.
    """

    def __init__(self, reason: str, cause: str = "") -> None:
        line = reason.strip().splitlines()[0]
        cause = cause or cause_of_death((), reason)
        hint = memory_hint(cause, "lower num_worker_per_gpu")
        super().__init__(f"a process that loads images has died ({cause or line}){hint or _NO_HINT}")


_NO_HINT = "; num_worker_per_gpu: 0 loads the images without such processes and shows where it happens"


def _get(dataset: Dataset, index: int, rng: np.random.Generator) -> Sample:
    """Return a sample; errors that do not name their image get its key and data set."""
    try:
        return dataset.get(index, rng)
    except (UserError, OSError, KeyboardInterrupt):
        raise
    except MemoryError as error:
        raise UserError(
            f"{_place(dataset, index)}: memory ran out ({error or type(error).__name__}); lower num_worker_per_gpu or "
            "the size of the images"
        ) from error
    except BaseException as error:  # SystemExit too, which would end the run without a message
        bug = as_exception(error)
        bug.__notes__ = [*getattr(bug, "__notes__", []), _place(dataset, index)]  # type: ignore[attr-defined]
        if bug is error:
            raise
        raise bug from error


def _place(dataset: Dataset, index: int) -> str:
    """'image 0001 of PairedImageDataset'."""
    try:
        key = dataset.key(index)
    except Exception:  # it is the data set that fails here
        key = f"number {index}"
    return f"image {key} of {type(dataset).__name__}"


class _Guarded(torch.utils.data.Dataset[Any]):
    """The items that `make` makes; an error is returned as Caught, as torch would rebuild it from its text."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __getitem__(self, item: Any) -> Any:
        try:
            return self._make(item)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and torch.utils.data.get_worker_info() is None:
                raise
            return Caught(error, ", ".join(getattr(error, "__notes__", [])))


def _unchanged(result: Any) -> Any:
    return result


def _start_worker(forked_by_main_thread: bool, _: int) -> None:
    begin_worker(forked_by_main_thread)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
