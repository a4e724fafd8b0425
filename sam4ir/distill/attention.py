"""Attention within regions: each region is summed up by weights that its own pixels give (ours;
docs/method.md#other-fusions).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sam4ir.distill.pool import boundary_map, paint_rows, region_sums
from sam4ir.errors import UserError

_STEEPEST = 4.0  # a weight is between exp(-4) and exp(4) before it is normalised


class RegionAttention(nn.Module):
    """Fuse a restored image Y1 with regions: Z = Y1 + z(Y1, e, a, d).

    e is an embedding of Y1, d the boundary map. Each head gives every pixel a weight, and a is the weighted mean of e
    over the pixel's region, for each head; SPF's region mean is the case of equal weights. A pixel in no region gets 0.
    The cost grows with the pixels, not with their pairs. The last convolution starts at zero. Raises UserError for a
    width that the heads do not divide.

    Args:
        channels: Channels of the restored image.
        width: Channels of the embedding, heads times the channels of a head.
        heads: Number of weighted means of each region.
        with_input: Whether the degraded image joins the concatenation.
    """

    def __init__(self, channels: int = 3, width: int = 32, heads: int = 4, with_input: bool = False) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise UserError(f"width {width} must be a multiple of heads {heads}")
        self.with_input = with_input
        self.heads = heads
        self.embed = nn.Conv2d(channels, width, 3, padding=1)
        self.weigh = nn.Conv2d(width, heads, 1)
        self.mix = nn.Conv2d(channels * (2 if with_input else 1) + 2 * width + 1, 2 * width, 3, padding=1)
        self.out = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, restored: Tensor, labels: Tensor, count: int, degraded: Tensor) -> Tensor:
        """Return the input of the refiner's second network, (b, c, h, w) float32; arguments as those of SPF."""
        e = self.embed(restored)
        parts = [restored, e, self._attended(e, labels, count), boundary_map(labels)]
        if self.with_input:
            parts.append(degraded)
        left, right = self.mix(torch.cat([part.to(e.dtype) for part in parts], dim=1)).chunk(2, dim=1)
        return restored + self.out(left * right).float()

    def _attended(self, e: Tensor, labels: Tensor, count: int) -> Tensor:
        """Return the weighted mean of each pixel's region for each head, (b, width, h, w) float32."""
        weights = (self.weigh(e).float().tanh() * _STEEPEST).exp()
        channels = e.shape[1] // self.heads
        values = e.float() * weights.repeat_interleave(channels, dim=1)
        sums = region_sums(torch.cat([values, weights], dim=1), labels, count)
        totals = sums[..., e.shape[1] :].repeat_interleave(channels, dim=-1)
        table = sums[..., : e.shape[1]] / totals.clamp(min=1e-6)
        table = table * (torch.arange(count + 1, device=e.device) > 0).view(1, -1, 1)
        return paint_rows(table, labels)
