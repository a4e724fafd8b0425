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
    counts: the largest label of each map of labels, 0 where none lies; plain numbers, known without the device.
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

    def key(self, index: int) -> str:
        """Return the key of an image."""

    def get(self, index: int, rng: np.random.Generator) -> Sample:
        """Return the sample of an image, with all its random numbers from rng."""


@runtime_checkable
class Multichannel(Protocol):
    """A data set that names the channels of its lq, for networks that are built to fit it."""

    @property
    def channels(self) -> int:
        """Channels of lq."""


@runtime_checkable
class Resizable(Dataset, Protocol):
    """A data set that comes in crops of another size, for the stages of progressive training."""

    def with_gt_size(self, gt_size: int | None) -> Resizable:
        """Return the same images in GT crops of that side; None gives whole images."""


@runtime_checkable
class Examinable(Dataset, Protocol):
    """A data set that compares the files of an image by headers, without decoding them."""

    def examine(self, index: int) -> bool:
        """Return whether the image is at least as large as the patch; raise ValueError where its files do not fit."""


def collate(samples: Sequence[Sample], numbers: Sequence[int] | None = None) -> Batch:
    """Stack samples with GT; `numbers` default to 0, 1, ... Raise ValueError naming images of unequal sizes."""
    keys = [sample.key for sample in samples]
    lq = _stack("lq", keys, [sample.lq for sample in samples])
    gt = _stack("gt", keys, [sample.gt for sample in samples])
    if lq is None or gt is None:
        raise UserError(f"{keys[0]}: the sample has no GT; a batch for training needs one")
    names: dict[str, None] = {}
    skipped: dict[str, None] = {}
    for sample in samples:
        names.update(dict.fromkeys(sample.maps))
        skipped.update(dict.fromkeys(sample.skipped))
    maps: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for name in names:
        stack = _stack(name, keys, [sample.maps.get(name) for sample in samples])
        assert stack is not None
        maps[name] = stack
        if not stack.is_floating_point():
            counts[name] = 0
            if stack.numel():
                counts[name] = int(stack.max())
    if numbers is None:
        numbers = range(len(samples))
    return Batch(lq, gt, keys, list(numbers), maps, counts, list(skipped))


def _stack(name: str, keys: Sequence[str], tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Return the tensors stacked, None where no sample has one.

    name, keys: of the tensors and of their samples, in messages. Raises ValueError where shapes differ or some lack.
    """
    shapes: dict[tuple[int, ...] | None, str] = {}
    present = []
    for key, tensor in zip(keys, tensors, strict=True):
        if tensor is None:
            shapes[None] = key
        else:
            shapes[tuple(tensor.shape)] = key
            present.append(tensor)
    if len(shapes) > 1:
        places = ", ".join(f"{shape} for {key}" for shape, key in shapes.items())
        raise UserError(f"a batch needs samples of one size, but {name} is {places}; set gt_size, or batches of 1")
    if not present:
        return None
    return torch.stack(present)
