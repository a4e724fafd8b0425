"""Sums and means over the regions of a batch, without a loop over regions or images.

Labels are (b, h, w) int64, dense in each image: 0 is no region, 1..n are regions. An image with fewer than n regions
leaves the rest empty. All sums are float32, also under autocast.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Up to here a one-hot matmul is faster than scatter-add and fits into memory; it is deterministic on CUDA too.
MATMUL_LIMIT = 2**26
# Partial sums of an image in scatter-add: one running fp32 sum over 2^20 equal pixels comes out 1 % off.
BANDS = 64


def one_hot(labels: Tensor, count: int) -> Tensor:
    """Return (b, count + 1, h w) float32 of labels (b, h, w); row 0 holds the pixels of no region."""
    rows = torch.arange(count + 1, device=labels.device).view(1, -1, 1)
    return (labels.flatten(1).unsqueeze(1) == rows).float()


def _by_matmul(labels: Tensor, count: int) -> bool:
    """Return whether a one-hot product serves better than scatter-add."""
    return labels.numel() * (count + 1) <= MATMUL_LIMIT or torch.are_deterministic_algorithms_enabled()


def _rows(labels: Tensor, count: int) -> Tensor:
    """Return each pixel's row in a flat (b (count + 1), c) table."""
    first = torch.arange(labels.shape[0], device=labels.device).view(-1, 1) * (count + 1)
    return (labels.flatten(1) + first).flatten()


def _pixels_last(values: Tensor) -> Tensor:
    """Turn (b, c, h, w) into (b, h w, c) float32; a view if values is channels_last."""
    return values.float().permute(0, 2, 3, 1).flatten(1, 2)


def region_sums(values: Tensor, labels: Tensor, count: int) -> Tensor:
    """Sum values (b, c, h, w) over each region: (b, count + 1, c) float32; row 0 is the rest."""
    with torch.autocast(values.device.type, enabled=False):
        pixels = _pixels_last(values)
        if _by_matmul(labels, count):
            return one_hot(labels, count) @ pixels
        return _sums_by_index(pixels, labels, count)


def _sums_by_index(pixels: Tensor, labels: Tensor, count: int) -> Tensor:
    """Sum pixels (b, h w, c) float32 by scatter-add, first within each of BANDS bands of an image."""
    images, size = pixels.shape[:2]
    band = torch.arange(size, device=labels.device) * BANDS // max(size, 1)
    first = torch.arange(images, device=labels.device).view(-1, 1) * BANDS + band
    rows = first * (count + 1) + labels.flatten(1)
    table = pixels.new_zeros(images * BANDS * (count + 1), pixels.shape[-1])
    return table.index_add(0, rows.flatten(), pixels.flatten(0, 1)).view(images, BANDS, count + 1, -1).sum(1)


def region_areas(labels: Tensor, count: int) -> Tensor:
    """Count the pixels of each region: (b, count + 1) float32; column 0 is the rest."""
    table = torch.zeros(labels.shape[0] * (count + 1), dtype=torch.int64, device=labels.device)
    rows = _rows(labels, count)  # counted in integers: fp32 stops at 2^24 pixels
    return table.index_add(0, rows, torch.ones_like(rows)).unflatten(0, (-1, count + 1)).float()


def paint_rows(table: Tensor, labels: Tensor) -> Tensor:
    """Give every pixel the row of its label: (b, count + 1, c) and (b, h, w) -> (b, c, h, w), channels_last."""
    count = table.shape[1] - 1
    with torch.autocast(table.device.type, enabled=False):
        if _by_matmul(labels, count):
            pixels = one_hot(labels, count).transpose(1, 2) @ table
        else:
            pixels = table.flatten(0, 1).index_select(0, _rows(labels, count)).unflatten(0, (labels.shape[0], -1))
    return pixels.unflatten(1, labels.shape[-2:]).permute(0, 3, 1, 2)


def region_means_painted(values: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return each region's mean at all of its pixels, and 0 outside of regions: (b, c, h, w) float32."""
    if count == 0:
        return torch.zeros_like(values, dtype=torch.float32)
    areas = region_areas(labels, count)
    areas[:, 0] = torch.inf  # the mean over the rest counts as 0
    return paint_rows(region_sums(values, labels, count) / areas.clamp(min=1).unsqueeze(-1), labels)


def boundary_map(labels: Tensor) -> Tensor:
    """Return (b, 1, h, w) float32: 1 where a label differs from a 4-neighbour in the crop (docs/method.md#spf)."""
    edge = torch.zeros_like(labels, dtype=torch.bool)
    rows = labels[:, 1:, :] != labels[:, :-1, :]
    columns = labels[:, :, 1:] != labels[:, :, :-1]
    edge[:, 1:, :] |= rows
    edge[:, :-1, :] |= rows
    edge[:, :, 1:] |= columns
    edge[:, :, :-1] |= columns
    return edge.float().unsqueeze(1)


def cell_coverage(labels: Tensor, count: int, size: tuple[int, int], stride: int) -> Tensor:
    """Return the share of each feature cell that each region covers: (b, count, h_f w_f) float32 in [0, 1].

    size: (h_f, w_f) of a feature map whose cells are stride x stride pixels. Pixels right of and below the last whole
    cell are left out, as in the pooling of the feature network.
    """
    height, width = size
    labels = labels[:, : height * stride, : width * stride]
    y = torch.arange(height * stride, device=labels.device).div(stride, rounding_mode="floor")
    x = torch.arange(width * stride, device=labels.device).div(stride, rounding_mode="floor")
    cell = (y.view(-1, 1) * width + x.view(1, -1)).flatten()
    place = _rows(labels, count).unflatten(0, (labels.shape[0], -1)) * (height * width) + cell
    table = torch.zeros(labels.shape[0] * (count + 1) * height * width, device=labels.device)
    table = table.index_add(0, place.flatten(), torch.ones_like(place.flatten(), dtype=torch.float32))
    return table.view(labels.shape[0], count + 1, height * width)[:, 1:] / stride**2
