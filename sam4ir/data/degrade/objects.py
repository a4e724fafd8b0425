"""Blur of objects that move by themselves: regions of a mask store are blurred one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam4ir.data.degrade.blur import MotionBlur, convolve
from sam4ir.data.degrade.noise import Range, checked
from sam4ir.data.transforms import Window
from sam4ir.data.views import MapReader, View
from sam4ir.utils.rng import generator


class ObjectMotionBlur:
    """Blur by objects that move: each region of a mask store moves with a probability, by a path of its own (ours).

    A moving region is cut out, blurred with its mask, and laid over the image, regions of later numbers on top; the
    rest stays sharp. Which regions move and how is a function of the sample's stream and of the region's number in the
    store, so a patch equals the same place of the whole image. For dynamic scenes out of the training domain: it says
    nothing about how real objects move, or about what they uncover.

    Args:
        store: Mask store of the clean images, with a record for each.
        share: Probability from 0 to 1 that a region moves.
        length: Length of the paths in pixels, from 0 to 500; a number or [low, high].
        anxiety: Bending of the paths, as of MotionBlur.
        angle: Direction of the paths, as of MotionBlur.
    """

    def __init__(
        self,
        store: str,
        share: float = 0.5,
        length: Range = (5.0, 25.0),
        anxiety: Range = (0.0, 0.005),
        angle: Range = (0.0, 360.0),
    ) -> None:
        from sam4ir.data.masks.store import MaskStore  # a run without masks needs no module of them

        self._motion = MotionBlur(length, anxiety, angle)
        self._share = checked("share", share, 0, 1)[0]
        self.margin = self._motion.margin
        self.reader = MapReader(MaskStore(store), {"labels": _StoreNumbers()})

    def __call__(self, image: Tensor, rng: np.random.Generator, labels: Tensor) -> Tensor:
        """Return the image with moving regions. image: (c, h, w); labels: (h, w) int64, the store's numbers."""
        seed = int(rng.integers(1 << 62))
        image = image.clone()
        for label in labels.unique().tolist():
            own = generator(seed, "object", label)
            if label == 0 or own.random() >= self._share:
                continue
            kernel = self._motion.kernel(own)
            rows, columns = _around(labels == label, len(kernel) // 2)
            inside = (labels[rows, columns] == label).to(image.dtype)
            part = image[:, rows, columns]
            layers = convolve(torch.cat([part * inside, inside.unsqueeze(0)]), kernel)
            image[:, rows, columns] = part * (1 - layers[-1:].clamp(0, 1)) + layers[:-1]
        return image


def _around(inside: Tensor, margin: int) -> tuple[slice, slice]:
    """Return the rows and columns of a region (h, w), with a margin as far as the image has one."""
    sides = []
    for axis in (1, 0):
        places = inside.any(dim=axis).nonzero().flatten()
        sides.append(slice(max(int(places[0]) - margin, 0), int(places[-1]) + margin + 1))
    return sides[0], sides[1]


class _StoreNumbers(View):
    """The numbers of the masks in their store, small masks on top; 0 where no mask lies."""

    def read(self, record: Any, window: Window) -> np.ndarray:
        """Return (h, w) int32."""
        labels: np.ndarray = record.region_map(window.top, window.left, window.height, window.width)
        return labels

    def tensor(self, array: np.ndarray) -> Tensor:
        """Return (h, w) int64."""
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
