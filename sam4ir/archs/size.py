"""Image sizes that a network takes, as data, and the padding that brings images to such a size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SizeRule:
    """The image sizes that a network takes.

    multiple: a number that divides both sides.
    minimum: the least length of the longer side; an image that is padded at all gets both sides to it.
    mode: 'zeros', or 'reflect' (the edge is not repeated; a side too short to reflect is replicated).
    """

    multiple: int = 1
    minimum: int = 1
    mode: Literal["zeros", "reflect"] = "zeros"

    def fits(self, h: int, w: int) -> bool:
        """Return whether an image of h x w needs no padding."""
        return h % self.multiple == 0 and w % self.multiple == 0 and max(h, w) >= self.minimum

    def padded(self, h: int, w: int) -> tuple[int, int]:
        """Return the size that an image of h x w is padded to: the same size if it fits."""
        if self.fits(h, w):
            return h, w
        return self._up(h), self._up(w)

    def _up(self, side: int) -> int:
        side = max(side, self.minimum)
        return side + -side % self.multiple


def pad(image: Tensor, rule: SizeRule) -> Tensor:
    """Pad at the bottom and the right to a size that fits the rule; `unpad` undoes it.

    image: (b, c, h, w), h and w at least 1. Raises ValueError for any other shape.
    """
    if image.dim() != 4 or 0 in image.shape[-2:]:
        raise ValueError(f"a network takes images of shape (b, c, h, w) with pixels, got {tuple(image.shape)}")
    h, w = image.shape[-2:]
    height, width = rule.padded(h, w)
    bottom, right = height - h, width - w
    if not bottom and not right:
        return image
    if rule.mode == "zeros":
        return F.pad(image, (0, right, 0, bottom))
    if right:
        image = F.pad(image, (0, right, 0, 0), mode=_reflect_or_replicate(w, right))
    if bottom:
        image = F.pad(image, (0, 0, 0, bottom), mode=_reflect_or_replicate(h, bottom))
    return image


def unpad(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the top left h x w of (b, c, >= h, >= w) as a view."""
    h, w = size
    return image[..., :h, :w]


def _reflect_or_replicate(side: int, extra: int) -> str:
    """Return the mode that adds `extra` pixels to a side: reflection needs a side that is longer."""
    if extra < side:
        return "reflect"
    return "replicate"
