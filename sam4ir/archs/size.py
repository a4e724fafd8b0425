"""What image sizes a network takes, as data, and the one way images are brought to such a size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class SizeRule:
    """The sizes a network takes.

    multiple: both sides are a multiple of it.
    minimum: the longer side is at least this; an image that is padded at all gets both sides to it.
    mode: 'zeros', or 'reflect' (edge not repeated; replication along a side too short to reflect).
    """

    multiple: int = 1
    minimum: int = 1
    mode: Literal["zeros", "reflect"] = "zeros"

    def fits(self, h: int, w: int) -> bool:
        """Whether an image of h x w needs no padding."""
        return h % self.multiple == 0 and w % self.multiple == 0 and max(h, w) >= self.minimum

    def padded(self, h: int, w: int) -> tuple[int, int]:
        """The size that an image of h x w is padded to: the same where it fits."""
        if self.fits(h, w):
            return h, w
        return self._up(h), self._up(w)

    def _up(self, side: int) -> int:
        side = max(side, self.minimum)
        return side + -side % self.multiple


def pad(image: Tensor, rule: SizeRule) -> Tensor:
    """Pad at the bottom and the right to a size that `rule` takes; undone by `crop`.

    image: (b, c, h, w), h and w at least 1. Raises ValueError on any other shape.
    """
    if image.dim() != 4 or 0 in image.shape[-2:]:
        raise ValueError(f"a network takes images of shape (b, c, h, w) with pixels, got {tuple(image.shape)}")
    h, w = image.shape[-2:]
    bottom, right = (p - side for p, side in zip(rule.padded(h, w), (h, w), strict=True))
    if rule.mode == "zeros":
        return F.pad(image, (0, right, 0, bottom)) if bottom or right else image
    image = F.pad(image, (0, right, 0, 0), mode=_reflect_or_replicate(w, right)) if right else image
    return F.pad(image, (0, 0, 0, bottom), mode=_reflect_or_replicate(h, bottom)) if bottom else image


def crop(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The top left h x w of (b, c, >= h, >= w), as a view."""
    h, w = size
    return image[..., :h, :w]


def _reflect_or_replicate(side: int, extra: int) -> str:
    return "reflect" if extra < side else "replicate"
