"""Fusion with the signed distance to the nearest border of a region (ours; docs/method.md#other-fusions)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sam4ir.distill.pool import boundary_map
from sam4ir.errors import UserError


class SignedDistanceFusion(nn.Module):
    """Fuse a restored image Y1 with regions: Z = Y1 + z(Y1, e, s).

    e is an embedding of Y1, s the signed distance. It says how far the nearest border is, but no longer which pixels
    belong together. The last convolution starts at zero. Raises UserError for a reach below 1.

    Args:
        channels: Channels of the restored image.
        width: Channels of the embedding.
        with_input: Whether the degraded image joins the concatenation.
        reach: Largest distance in pixels that is told from larger ones.
    """

    def __init__(self, channels: int = 3, width: int = 44, with_input: bool = False, reach: int = 16) -> None:
        super().__init__()
        if reach < 1:
            raise UserError(f"reach is {reach}; a number of pixels from 1 on would do")
        self.with_input = with_input
        self.reach = reach
        self.embed = nn.Conv2d(channels, width, 3, padding=1)
        self.mix = nn.Conv2d(channels * (2 if with_input else 1) + width + 1, 2 * width, 3, padding=1)
        self.out = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, restored: Tensor, labels: Tensor, count: int, degraded: Tensor) -> Tensor:
        """Return the input of the refiner's second network, (b, c, h, w) float32; arguments as those of SPF."""
        parts = [restored, self.embed(restored), signed_distance(labels, self.reach)]
        if self.with_input:
            parts.append(degraded)
        kind = parts[1].dtype
        left, right = self.mix(torch.cat([part.to(kind) for part in parts], dim=1)).chunk(2, dim=1)
        return restored + self.out(left * right).float()


def signed_distance(labels: Tensor, reach: int) -> Tensor:
    """Return the chessboard distance to the nearest border as a share of `reach`, at most 1: (b, 1, h, w) float32.

    It is positive within regions, negative outside of all, and 0 on borders, which are two pixels wide.
    """
    near = boundary_map(labels)
    distance = torch.zeros_like(near)
    for _ in range(reach):
        distance += 1 - near
        near = functional.max_pool2d(near, 3, stride=1, padding=1)
    sign = (labels > 0).unsqueeze(1).float() * 2 - 1
    return sign * distance / reach
