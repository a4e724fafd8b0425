"""Padding by arithmetic alone, so that one exported graph pads images of every size.

`sam4ir.archs.size.pad` and `sam4ir.engine.restore.one_pass.padded` choose by `if`, and an exporter would keep the
branch of its example image. Here every choice is a number: a side is a function of the sizes, and reflection is a
table of rows and columns to copy. The pixels are the same.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sam4ir.archs.size import SizeRule

Size = tuple[int, int]  # (h, w); symbolic numbers while a graph is recorded


class Padding(NamedTuple):
    """The sizes to which images are padded at the bottom and the right, and the values that are added.

    multiple: a number that divides both sides. minimum: the least length of the longer side, a multiple of `multiple`;
    an image that is padded at all gets both sides to it. least: the least length of both sides, a multiple of
    `multiple`. mode: zeros; reflect, where a side that is too short is replicated; together, where both sides are
    replicated if one of them is too short.
    """

    multiple: int = 1
    minimum: int = 1
    least: int = 1
    mode: Literal["zeros", "reflect", "together"] = "zeros"

    @classmethod
    def of_rule(cls, rule: SizeRule) -> Padding:
        """Return the padding that a network of this rule does itself."""
        return cls(rule.multiple, rule.minimum, 1, rule.mode)

    def __call__(self, image: Tensor) -> Tensor:
        """Return the padded image; (b, c, h, w) -> (b, c, H, W)."""
        if max(self.multiple, self.minimum, self.least) == 1:
            return image
        size = (image.shape[-2], image.shape[-1])
        height, width = self.target(*size)
        if self.mode == "zeros":
            return F.pad(image, (0, width - size[1], 0, height - size[0]))
        rows, columns = _positions(image, height), _positions(image, width)
        mirrored = [2 * (size[0] - 1) - rows, 2 * (size[1] - 1) - columns]
        short = [mirrored[0][-1:] < 0, mirrored[1][-1:] < 0]
        if self.mode == "together":
            short = [short[0] | short[1]] * 2
        image = image.index_select(2, _sources(rows, size[0], mirrored[0], short[0]))
        return image.index_select(3, _sources(columns, size[1], mirrored[1], short[1]))

    def target(self, h: int, w: int) -> Size:
        """Return the size to which an image of h x w is padded."""
        multiple = self.multiple
        rows, columns = (h + multiple - 1) // multiple, (w + multiple - 1) // multiple
        if self.least > multiple:
            units = self.least // multiple
            rows, columns = _larger(rows, units), _larger(columns, units)
        if self.minimum > multiple:
            units = self.minimum // multiple
            lacking = multiple * rows - h + multiple * columns - w
            lacking = lacking + _larger(self.minimum - _larger(h, w), 0)
            units = units * smaller(lacking, 1)  # 0 where the image fits as it is
            rows, columns = _larger(rows, units), _larger(columns, units)
        return multiple * rows, multiple * columns


def smaller(a: int, b: int) -> int:
    """Return the smaller of two sides, which may be symbolic."""
    return torch.sym_min(a, b)  # type: ignore[return-value]


def _larger(a: int, b: int) -> int:
    """Return the larger of two sides, which may be symbolic."""
    return torch.sym_max(a, b)  # type: ignore[return-value]


def _positions(image: Tensor, padded_side: int) -> Tensor:
    """Return 0, 1 ... to the padded side, (padded_side,) int64."""
    return torch.arange(padded_side, device=image.device)


def _sources(positions: Tensor, side: int, mirrored: Tensor, short: Tensor) -> Tensor:
    """Return the row (or column) that each position copies, (padded_side,) int64.

    short: whether the side is too short to be mirrored, (1,) bool; its last row is then repeated.
    """
    inside = positions < side
    repeated = torch.clamp(positions, max=side - 1)
    return torch.where(short, repeated, torch.where(inside, positions, mirrored))
