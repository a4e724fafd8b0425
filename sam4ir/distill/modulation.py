"""Region modulation: statistics of each region scale and shift its features (ours; docs/method.md#other-fusions)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sam4ir.distill.pool import paint_rows, region_areas, region_sums

_LEAST = 1e-4  # of a variance


class RegionModulation(nn.Module):
    """Fuse a restored image Y1 with regions: Z = Y1 + z(Y1, n), n the features of Y1, modulated region by region.

    Features are brought to mean 0 and variance 1 within each region, then scaled and shifted by a linear map of the
    region's means and deviations. What lies in no region is one region more. The last convolution starts at zero.

    Args:
        channels: Channels of the restored image.
        width: Channels of the features.
        with_input: Whether the degraded image joins the features' input.
    """

    def __init__(self, channels: int = 3, width: int = 48, with_input: bool = False) -> None:
        super().__init__()
        self.with_input = with_input
        self.embed = nn.Conv2d(channels * (2 if with_input else 1), width, 3, padding=1)
        self.modulate = nn.Linear(2 * width, 2 * width)
        self.mix = nn.Conv2d(width + channels, 2 * (width // 2 + 8), 3, padding=1)
        self.out = nn.Conv2d(width // 2 + 8, channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, restored: Tensor, labels: Tensor, count: int, degraded: Tensor) -> Tensor:
        """Return the input of the refiner's second network, (b, c, h, w) float32; arguments as those of SPF."""
        images = [restored, degraded] if self.with_input else [restored]
        e = self.embed(torch.cat([image.to(restored.dtype) for image in images], dim=1))
        areas = region_areas(labels, count).clamp(min=1).unsqueeze(-1)
        mean = region_sums(e, labels, count) / areas
        centred = e.float() - paint_rows(mean, labels)
        deviation = (region_sums(centred.square(), labels, count) / areas).clamp(min=_LEAST).sqrt()
        scale, shift = self.modulate(torch.cat([mean, deviation], dim=-1).to(e.dtype)).float().chunk(2, dim=-1)
        table = torch.cat([(1 + scale) / deviation, shift], dim=-1)
        factor, offset = paint_rows(table, labels).chunk(2, dim=1)
        features = torch.cat([(centred * factor + offset).to(e.dtype), restored.to(e.dtype)], dim=1)
        left, right = self.mix(features).chunk(2, dim=1)
        return restored + self.out(left * right).float()
