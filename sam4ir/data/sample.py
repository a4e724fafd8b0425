"""Samples, batches of them, and the protocols of the data sets that they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sam4ir.errors import UserError


@dataclass
class Sample:
    """One image, or one crop of it. Images are RGB float32, in [0, 1] unless noise or blending leaves that range.

    lq: (c, h, w), c = 3, 1 for grey or 6 for the left and right view of a dual-pixel camera.
    gt: (3 or 1, h s, w s) for scale s.
    maps: by the names of their views (data.views), on the GT grid: labels (h s, w s) int64, values (c, h s, w s)
        float32. 'regions': labels, 0 = no region, else 1..n of this sample; 'spe': (1, h s, w s).
    skipped: the errors of the images that this one replaces (loader: bad_images).
    """

    key: str
    lq: Tensor
    gt: Tensor | None = None
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


@dataclass
class Batch:
    """Samples of one size, stacked.

    lq: (b, c, h, w); gt: (b, 3 or 1, h s, w s); keys: the images; numbers: the sample numbers in the data stream.
    maps: by name, the samples' maps stacked: labels (b, h s, w s) int64, values (b, c, h s, w s) float32.
    counts: the largest label of each map of labels, 0 where none lies; known without a look at the device.
    skipped: messages of images that could not be read and were replaced, each once.
    """

    lq: Tensor
    gt: Tensor
    keys: list[str]
    numbers: list[int]
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    @property
    def regions(self) -> Tensor | None:
        """Region labels, (b, h s, w s) int64: 0 = no region, 1..n_i in image i; None without masks."""
        return self.maps.get("regions")

    @property
    def region_count(self) -> int:
        """The largest n_i, 0 without regions."""
        return self.counts.get("regions", 0)

    @property
    def spe(self) -> Tensor | None:
        """Structural position encodings, (b, 1, h s, w s) float32; None without masks."""
        return self.maps.get("spe")

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, so that `to(..., non_blocking=True)` overlaps with computing."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        maps = {name: change(tensor) for name, tensor in self.maps.items()}
        return dataclasses.replace(self, lq=change(self.lq), gt=change(self.gt), maps=maps)


class Dataset(Protocol):
    """Images by index. `get` is a pure function of its arguments: all randomness comes from rng.

    Every data set has these three; the protocols below are what it may have beside them. CroppedDataset has all.
    """

    def __len__(self) -> int: ...

    def key(self, index: int) -> str: ...

    def get(self, index: int, rng: np.random.Generator) -> Sample: ...


@runtime_checkable
class Multichannel(Protocol):
    """A data set that names the channels of its lq, for networks that are built to fit it."""

    @property
    def channels(self) -> int: ...


@runtime_checkable
class Resizable(Dataset, Protocol):
    """A data set that comes in crops of another size, for the stages of progressive training."""

    def with_gt_size(self, gt_size: int | None) -> Resizable:
        """Return the same images in GT crops of that side; None gives whole images."""


@runtime_checkable
class Examinable(Dataset, Protocol):
    """A data set that compares what belongs to an image by headers, without decoding it."""

    def examine(self, index: int) -> bool:
        """Return whether the image is at least as large as the patch; raise ValueError where its files do not fit."""


def collate(samples: Sequence[Sample], numbers: Sequence[int] | None = None) -> Batch:
    """Stack samples with GT; `numbers` default to 0, 1, ... Raise ValueError naming images of unequal sizes."""
    names = list(dict.fromkeys(name for s in samples for name in s.maps))
    _check_sizes("lq", samples, [s.lq for s in samples])
    _check_sizes("gt", samples, [s.gt for s in samples])
    for name in names:
        _check_sizes(name, samples, [s.maps.get(name) for s in samples])
    gt = [s.gt for s in samples if s.gt is not None]
    if not gt:
        raise UserError(f"{samples[0].key}: the sample has no GT; a batch for training needs one")
    maps = {name: torch.stack([s.maps[name] for s in samples]) for name in names}
    return Batch(
        lq=torch.stack([s.lq for s in samples]),
        gt=torch.stack(gt),
        keys=[s.key for s in samples],
        numbers=list(range(len(samples)) if numbers is None else numbers),
        maps=maps,
        counts={name: _largest(labels) for name, labels in maps.items() if not labels.is_floating_point()},
        skipped=list(dict.fromkeys(message for s in samples for message in s.skipped)),
    )


def _check_sizes(name: str, samples: Sequence[Sample], tensors: Sequence[Tensor | None]) -> None:
    """Raise ValueError naming images where the samples' tensors called `name` are of unequal shapes, or some lack."""
    shapes: dict[tuple[int, ...] | None, str] = {}
    for sample, tensor in zip(samples, tensors, strict=True):
        shapes[None if tensor is None else tuple(tensor.shape)] = sample.key
    if len(shapes) > 1:
        places = ", ".join(f"{shape} for {key}" for shape, key in shapes.items())
        raise UserError(f"a batch needs samples of one size, but {name} is {places}; set gt_size, or batches of 1")


def _largest(labels: Tensor) -> int:
    return int(labels.max()) if labels.numel() else 0
