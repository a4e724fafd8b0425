"""What passes from datasets to models: one Sample, many of them as a Batch, and how masks come into a sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sam4ir.data.transforms import Placement, Window
from sam4ir.errors import UserError
from sam4ir.regions import densify


@dataclass
class Sample:
    """One image, or one crop of it. Images are RGB float32, in [0, 1] unless noise or blending leaves that range.

    lq: (c, h, w), c = 3, 1 for grey or 6 for the left and right view of a dual-pixel camera;
    gt: (3 or 1, h s, w s) for scale s.
    regions: (h s, w s) int64, 0 = no region, else 1..n of this sample. spe: (1, h s, w s) float32.
    skipped: what was wrong with the images that this one stands in for (loader: bad_images).
    """

    key: str
    lq: Tensor
    gt: Tensor | None = None
    regions: Tensor | None = None
    spe: Tensor | None = None
    skipped: tuple[str, ...] = ()


@dataclass
class Batch:
    """Samples of one size, stacked.

    lq: (b, c, h, w); gt: (b, 3 or 1, h s, w s); keys: the images; numbers: the sample numbers in the data stream.
    regions: (b, h s, w s) int64, 0 = no region, 1..n_i in image i; region_count: the largest n_i, 0 where none.
    spe: (b, 1, h s, w s) float32. skipped: messages of images that could not be read and were replaced, each once.
    """

    lq: Tensor
    gt: Tensor
    keys: list[str]
    numbers: list[int]
    regions: Tensor | None = None
    region_count: int = 0
    spe: Tensor | None = None
    skipped: list[str] = field(default_factory=list)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, so that `to(..., non_blocking=True)` overlaps with computing."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, move: Callable[[Tensor], Tensor]) -> Batch:
        return dataclasses.replace(
            self,
            lq=move(self.lq),
            gt=move(self.gt),
            regions=None if self.regions is None else move(self.regions),
            spe=None if self.spe is None else move(self.spe),
        )


class Dataset(Protocol):
    """Images by index. `get` is a pure function of its arguments: all randomness comes from rng.

    Ours have more (cropped.CroppedDataset): `channels` of lq, and `with_gt_size` for stages of progressive training.
    """

    def __len__(self) -> int: ...

    def key(self, index: int) -> str: ...

    def get(self, index: int, rng: np.random.Generator) -> Sample: ...


class MaskRecordLike(Protocol):
    """What a dataset knows of an image's mask record; the views know more."""

    @property
    def size(self) -> tuple[int, int]: ...  # (h, w)


class MaskStoreLike(Protocol):
    """Mask records by image key; a missing one is a ValueError that names store and key."""

    path: Path

    def read(self, key: str) -> MaskRecordLike: ...


# (record, window on the GT grid) -> (h, w): 'regions' integer labels, 0 = none; 'spe' float32
MaskViews = Mapping[str, Callable[[Any, Window], np.ndarray]]


class MaskReader:
    """Mask views of an image, cut and flipped as the image is.

    masks: the store, or None for samples without masks. mask_views: 'regions' and 'spe', either or both.
    """

    def __init__(self, masks: MaskStoreLike | None = None, mask_views: MaskViews | None = None) -> None:
        views = dict(mask_views or {})
        if not views.keys() <= {"regions", "spe"}:
            raise UserError(f"mask_views: {sorted(views)} may hold 'regions' and 'spe' only")
        if masks is not None and not views:
            raise UserError(f"masks: {masks.path} is given without mask_views; say what to read of it")
        self._masks = masks
        self._views = views

    def record(self, key: str, image: str, size: tuple[int, int]) -> MaskRecordLike | None:
        """The mask record of an image, None without masks; arguments and errors as `read`."""
        if self._masks is None:
            return None
        try:
            record = self._masks.read(key)
        except ValueError as error:
            raise UserError(f"{image}: no masks: {error}") from error
        if tuple(record.size) != size:
            raise UserError(
                f"{self._masks.path}: masks of {key!r} are {_size(record.size)}, their image {image} is {_size(size)}; "
                "make the masks from the same folder as dataroot_gt"
            )
        return record

    def read(
        self,
        key: str,
        image: str,
        size: tuple[int, int],
        placement: Placement,
        used: tuple[int, int] | None = None,
    ) -> dict[str, Tensor]:
        """The Sample fields that come from masks: regions densified, spe with a channel axis; {} without masks.

        image: what messages call the GT image; size: its (h, w); placement: on its grid, mirrored as the image is.
        used: the (h, w) of it that samples show, from its first pixel on, at whose border they are mirrored.
        Raises ValueError naming store and image where the record is missing or of another size.
        """
        record = self.record(key, image, size)
        if record is None:
            return {}
        part = placement.window.inside(used or size)
        cut = {name: view(record, part) for name, view in self._views.items()}
        if part != placement.window:
            cut = {name: placement.window.mirrored(array, part) for name, array in cut.items()}
        cut = {name: placement.flip.apply(array) for name, array in cut.items()}
        fields: dict[str, Tensor] = {}
        if "regions" in cut:
            fields["regions"] = torch.from_numpy(np.ascontiguousarray(densify(cut["regions"])[0]))
        if "spe" in cut:
            fields["spe"] = torch.from_numpy(np.ascontiguousarray(cut["spe"], dtype=np.float32))[None]
        return fields


def collate(samples: Sequence[Sample], numbers: Sequence[int] | None = None) -> Batch:
    """Stacks samples with GT; `numbers` default to 0, 1, ... Raises ValueError naming images of unequal sizes."""
    for name in ("lq", "gt", "regions", "spe"):
        shapes = {None if (x := getattr(s, name)) is None else tuple(x.shape): s.key for s in samples}
        if len(shapes) > 1:
            raise UserError(
                f"a batch needs samples of one size, but {name} is "
                f"{', '.join(f'{shape} for {key}' for shape, key in shapes.items())}; set gt_size, or batches of 1"
            )
    regions = _stack([s.regions for s in samples])
    return Batch(
        lq=torch.stack([s.lq for s in samples]),
        gt=_required(_stack([s.gt for s in samples]), samples[0].key),
        keys=[s.key for s in samples],
        numbers=list(range(len(samples)) if numbers is None else numbers),
        regions=regions,
        region_count=0 if regions is None or not regions.numel() else int(regions.max()),
        spe=_stack([s.spe for s in samples]),
        skipped=list(dict.fromkeys(message for s in samples for message in s.skipped)),
    )


def _stack(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [t for t in tensors if t is not None]
    return torch.stack(present) if present else None


def _required(gt: Tensor | None, key: str) -> Tensor:
    if gt is None:
        raise UserError(f"{key}: the sample has no GT; a batch for training needs one")
    return gt


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} (h x w)"
