"""Restore an image by forward passes: whole or in blended tiles, with self-ensemble.

Validation, sam4ir test and sam4ir restore all restore through this module, so their numbers agree.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam4ir.errors import UserError
from sam4ir.models.restoration import restore

Forward = Callable[[Tensor], Tensor]
Area = tuple[slice, slice]
OnTile = Callable[[int, int], None]  # (tiles done, all tiles)

_FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Restorer(Protocol):
    """A network that restores images, in one pass or by sampling."""

    @property
    def network(self) -> nn.Module:
        """The network, which is set to eval mode while images are restored."""

    def __call__(self, lq: Tensor, key: str, sample: int = 0) -> Tensor:
        """Restore lq (1, c, h, w) in [0, 1], on the network's device, to (1, c, h scale, w scale) float32, unclamped.

        key: the image's name. A diffusion network draws its noise from the key and the sample number.
        """


@dataclass(frozen=True)
class PlainRestorer:
    """A Restorer by one forward pass of a network, or one for each tile.

    precision: the number format of the passes, fp32, bf16 or fp16; tiles are blended in fp32.
    """

    network: nn.Module
    inference: Inference
    precision: str = "fp32"

    @property
    def tile(self) -> int | None:
        """The side of its tiles, None for the whole image."""
        return self.inference.tile

    def in_tiles(self, tile: int) -> PlainRestorer | None:
        """Return a Restorer in tiles of this side, one at a time."""
        side = tile // self.inference.multiple * self.inference.multiple
        if not side:
            return None
        overlap = smaller_overlap(self.tile, self.inference.overlap, side)
        return replace(self, inference=replace(self.inference, tile=side, overlap=overlap, batch=1))

    def takes_batch(self, height: int, width: int) -> bool:
        """Return whether several images of this size may be given at once: they are not cut into tiles."""
        multiple = self.inference.multiple
        side = -(-max(height, width) // multiple) * multiple
        return not self.tile or side <= self.tile

    def __call__(self, lq: Tensor, key: str, sample: int = 0) -> Tensor:
        """Restore lq (1, c, h, w), or (b, c, h, w) where takes_batch says so; see Restorer.

        key and sample change nothing here.
        """
        return self.inference(self._pass, lq)

    def _pass(self, lq: Tensor) -> Tensor:
        with in_format(self.precision, lq.device):
            return restore(self.network, lq)


def in_format(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a network computes in a number format: fp32, bf16 or fp16."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, _FORMATS[precision])


def smaller_overlap(tile: int | None, overlap: int, smaller: int) -> int:
    """Return the overlap of smaller tiles: an eighth, or the overlap of the tiles that were asked for."""
    if tile is None and not overlap:
        return smaller // 8
    return min(overlap, smaller // 2)


@dataclass(frozen=True)
class Inference:
    """The tiles, padding and self-ensemble of a forward pass.

    tile: side of a tile in pixels of the input, None for the whole image at once. overlap: pixels that neighbouring
    tiles share at least; they are blended linearly. 0 gives the tiles of HINet and NAFNet: as few as cover the image,
    with the plain mean where they overlap. batch: tiles that the network takes at once. multiple: the image is padded
    by reflection to a multiple of it. self_ensemble: take the mean over the eight flips and rotations, of each tile
    where overlap is 0, otherwise of the whole image. scale: output pixels per input pixel. on_tile: called after each
    pass over tiles, from the first to the last of each run over the image.
    """

    tile: int | None = None
    overlap: int = 32
    batch: int = 8
    multiple: int = 1
    self_ensemble: bool = False
    scale: int = 1
    on_tile: OnTile | None = None

    @torch.no_grad()
    def __call__(self, forward: Forward, image: Tensor) -> Tensor:
        """Restore image (1, c, h, w) in [0, 1] to (1, c, h scale, w scale) float32, unclamped.

        An image that needs no tiles may be a batch (b, c, h, w).
        """
        height, width = image.shape[-2:]
        whole = padded(image, self.multiple)
        forward = self._of_full_size(forward)
        if self.self_ensemble and self.tile and self.overlap == 0:
            restored = self._tiled(_ensembled(forward))(whole)
        elif self.self_ensemble:
            restored = ensemble(self._tiled(forward), whole)
        else:
            restored = self._tiled(forward)(whole)
        return restored[..., : height * self.scale, : width * self.scale].float()

    def _of_full_size(self, forward: Forward) -> Forward:
        """Return the pass without padding that a network has left; a UserError where its images are too small."""

        def run(image: Tensor) -> Tensor:
            restored = forward(image)
            height, width = image.shape[-2] * self.scale, image.shape[-1] * self.scale
            if restored.shape[-2] < height or restored.shape[-1] < width:
                raise UserError(
                    f"the network turns {tuple(image.shape[-2:])} pixels into {tuple(restored.shape[-2:])}, which is "
                    f"smaller than scale {self.scale} says"
                )
            return restored[..., :height, :width]

        return run

    def _tiled(self, forward: Forward) -> Forward:
        """Return the pass over an image in tiles; an image of the size of a tile goes through whole."""
        tile = self.tile
        if not tile:
            return forward

        def run(image: Tensor) -> Tensor:
            if max(image.shape[-2:]) <= tile:
                return forward(image)
            return blend_tiles(forward, image, tile, self.overlap, self.batch, self.scale, self.on_tile)

        return run


def padded(image: Tensor, multiple: int, least: int = 0) -> Tensor:
    """Add rows and columns at the bottom and right by reflection, up to a multiple and to the side `least`."""
    height, width = image.shape[-2:]
    bottom = max(-(-height // multiple) * multiple, least) - height
    right = max(-(-width // multiple) * multiple, least) - width
    if not bottom and not right:
        return image
    mode = "reflect" if bottom < height and right < width else "replicate"
    return F.pad(image, (0, right, 0, bottom), mode=mode)


def starts(length: int, tile: int, overlap: int, scale: int = 1) -> list[int]:
    """Return the first pixels of tiles that cover `length`, evenly spread; neighbours share at least `overlap`.

    With overlap 0 they are those of HINet (and of NAFNet, whose tiles begin at multiples of `scale` in the output).
    """
    if length <= tile:
        return [0]
    if overlap == 0:
        return _official_starts(length, tile, scale)
    count = -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _official_starts(length: int, tile: int, scale: int) -> list[int]:
    """Return the first pixels of the tiles of `grids` in HINet and NAFNet: equal steps, rounded up; the last is cut."""
    gaps = (length - 1) // tile
    step = max(1, math.ceil((length - tile) * scale / gaps - 1e-8) // scale)
    return [*range(0, length - tile, step), length - tile]


def _ramp(length: int, overlap: int, device: torch.device) -> Tensor:
    """Return the blending weight along one side, which rises and falls linearly over the overlap."""
    position = torch.arange(1, length + 1, device=device, dtype=torch.float32)
    return torch.minimum(position, length + 1 - position).clamp(max=overlap + 1)


def blend_tiles(
    forward: Forward,
    image: Tensor,
    tile: int,
    overlap: int,
    batch: int,
    scale: int = 1,
    on_tile: OnTile | None = None,
) -> Tensor:
    """Restore (1, c, h, w) tile by tile, blended linearly in float32 where tiles overlap."""

    def restored(areas: list[Area]) -> Tensor:
        return forward(torch.cat([image[..., rows, columns] for rows, columns in areas]))

    return blended(restored, (image.shape[-2], image.shape[-1]), tile, overlap, batch, image.device, scale, on_tile)


def blended(
    compute: Callable[[list[Area]], Tensor],
    size: tuple[int, int],
    tile: int,
    overlap: int,
    batch: int,
    device: torch.device,
    scale: int = 1,
    on_tile: OnTile | None = None,
) -> Tensor:
    """Compute (1, c, h scale, w scale) float32 from tiles of (h, w), blended linearly where they overlap.

    compute: n areas of the grid (h, w), all of one size -> (n, c, their height scale, their width scale). tile, overlap
    in pixels of that grid; batch: areas at once. on_tile: called after each of these.
    """
    height, width = size
    side = (min(tile, height), min(tile, width))
    rows_of, columns_of = starts(height, tile, overlap, scale), starts(width, tile, overlap, scale)
    corners = list(itertools.product(rows_of, columns_of))
    window = _ramp(side[0] * scale, overlap * scale, device).view(-1, 1) * _ramp(
        side[1] * scale, overlap * scale, device
    )
    total: Tensor | None = None
    weight = torch.zeros(height * scale, width * scale, dtype=torch.float32, device=device)
    done = 0
    for group in _groups(corners, batch):
        areas = [(slice(y, y + side[0]), slice(x, x + side[1])) for y, x in group]
        for area, values in zip(areas, compute(areas), strict=True):
            if total is None:
                total = torch.zeros(1, values.shape[0], *weight.shape, dtype=torch.float32, device=device)
            rows, columns = enlarged(area, scale)
            total[0, :, rows, columns] += values.float() * window
            weight[rows, columns] += window
        done += len(areas)
        if on_tile is not None:
            on_tile(done, len(corners))
    assert total is not None
    return total.div_(weight)  # a second canvas might be more than the memory holds


def enlarged(area: Area, scale: int) -> Area:
    """Return the area of the restored image that an area of the input covers."""
    rows, columns = area
    return slice(rows.start * scale, rows.stop * scale), slice(columns.start * scale, columns.stop * scale)


def _groups(items: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    for i in range(0, len(items), size):
        yield items[i : i + size]


def _ensembled(forward: Forward) -> Forward:
    """Return the pass over images with self-ensemble."""
    return lambda images: ensemble(forward, images)


def ensemble(forward: Forward, image: Tensor) -> Tensor:
    """Return the mean over the eight flips and rotations of the image, each turned back (self-ensemble of EDSR)."""
    total: Tensor | None = None
    for flip, turns in itertools.product((False, True), range(4)):
        turned = image.flip(-1) if flip else image
        restored = forward(torch.rot90(turned, turns, (-2, -1)))
        back = torch.rot90(restored, -turns, (-2, -1))
        if flip:
            back = back.flip(-1)
        if total is None:
            total = back.float()
        else:
            total = total + back.float()
    assert total is not None
    return total / 8
