"""Views: readers of the maps that an image's mask record brings to a sample.

A map is an array with a value for each pixel of the GT image, such as region labels or SAM-DiffSR's position encoding.
A view reads one kind of map. A user's own view is a class in a plugin, registered with @VIEWS.register() and named in
the option file under datasets.<key>.masks.views; its map then stands under the view's name in Sample.maps and
Batch.maps. Nothing else knows the names: samples, batches, mixup and transfers go over the whole mapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sam4ir.data.transforms import Placement, Window
from sam4ir.errors import UserError
from sam4ir.regions import densify


class SizedRecord(Protocol):
    """The part of an image's mask record that a data set reads; the views read more."""

    @property
    def size(self) -> tuple[int, int]:
        """The (h, w) of the image."""


class MaskStoreLike(Protocol):
    """Mask records by image key."""

    path: Path

    def read(self, key: str) -> SizedRecord:
        """Return the record of an image; raise a ValueError that names store and key where it is missing."""


class View:
    """Base of the views; derive from LabelView or ValueView, which turn the array that `read` returns into a tensor.

    The data set mirrors and flips that array as it does the image, and `tensor` makes the sample's map of it.
    """

    def read(self, record: Any, window: Window) -> np.ndarray:
        """Return the map of a window of the GT image, (h, w) or (h, w, c).

        record: the image's mask record (data.masks.record.MaskRecord). window: lies inside the image.
        """
        raise NotImplementedError

    def tensor(self, array: np.ndarray) -> Tensor:
        """Return the sample's map, a contiguous tensor, of what `read` returned, mirrored and flipped."""
        raise NotImplementedError


class LabelView(View):
    """A map of labels: `read` returns (h, w) integers, 0 = none.

    The sample's map is (h, w) int64 with the labels of the crop renumbered 1..n in their order; Batch.counts holds n.
    """

    def tensor(self, array: np.ndarray) -> Tensor:
        """Return the labels, renumbered 1..n."""
        return torch.from_numpy(np.ascontiguousarray(densify(array)[0]))


class ValueView(View):
    """A map of values: `read` returns (h, w) or (h, w, c) numbers. The sample's map is (1 or c, h, w) float32."""

    def tensor(self, array: np.ndarray) -> Tensor:
        """Return the values, channels first."""
        if array.ndim == 2:
            array = array[:, :, None]
        channels = array.transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(channels, dtype=np.float32))


Views = Mapping[str, View]


class MapReader:
    """The reader of the maps of an image, which are cut, mirrored and flipped as the image is.

    masks: the mask store, or None for samples without maps. views: name -> view of each map.
    Raises ValueError where a store comes without views.
    """

    def __init__(self, masks: MaskStoreLike | None = None, views: Views | None = None) -> None:
        if masks is not None and not views:
            raise UserError(f"masks: {masks.path} is given without mask_views; say what to read of it")
        self._masks = masks
        self._views = dict(views or {})

    def record(self, key: str, image: str, size: tuple[int, int]) -> SizedRecord | None:
        """Return the mask record of an image, None without masks; arguments and errors as `read`."""
        if self._masks is None:
            return None
        try:
            record = self._masks.read(key)
        except UserError as error:
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
        """Return the maps of a sample by name; {} without masks.

        image: the GT image's name in messages; size: its (h, w); placement: on its grid.
        used: the (h, w) of it that samples show, from its first pixel on, at whose border they are mirrored.
        Raises UserError naming store and image where the record is missing or of another size, and ValueError where a
        view returns a map of another size than its window.
        """
        record = self.record(key, image, size)
        if record is None:
            return {}
        part = placement.window.inside(used or size)
        maps: dict[str, Tensor] = {}
        for name, view in self._views.items():
            array = view.read(record, part)
            if array.shape[:2] != (part.height, part.width):
                window = _size((part.height, part.width))
                raise ValueError(f"view {name} returns {array.shape} for a window of {window}")
            if part != placement.window:
                array = placement.window.mirrored(array, part)
            maps[name] = view.tensor(placement.flip.apply(array))
        return maps


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} (h x w)"
