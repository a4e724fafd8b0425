"""Restore images that are too large for the memory: in smaller and smaller tiles."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from sam4ir.engine.restore.one_pass import Restorer
from sam4ir.errors import UserError, first_line
from sam4ir.utils.memory import out_of_memory, release

log = logging.getLogger(__name__)

LARGEST_TILE, SMALLEST_TILE = 1024, 16  # sides that are tried, in pixels of the input; each half of the one before
_OF_THE_DEVICE = ("CUDA", "cuDNN", "NCCL")  # in RuntimeErrors that are no fault of an image


@runtime_checkable
class Tileable(Restorer, Protocol):
    """A Restorer that can also restore in tiles."""

    @property
    def tile(self) -> int | None:
        """The side of its tiles in pixels of the input; None where it takes the whole image at once."""

    def in_tiles(self, tile: int) -> Tileable | None:
        """Return a Restorer that takes one tile of this side at a time; None where the network needs larger tiles."""


class ImageTooLargeError(UserError):
    """An image that does not fit into memory, in small tiles either; the message names --tile."""


@dataclass
class WithinMemory:
    """The way in which images of a run are restored: as asked for, or in smaller tiles where memory runs out.

    pixels, tile: the size (height times width) of the smallest image for which memory ran out, and the side of the
    tiles in which it was restored. Images of at least that size begin with such tiles. None: all have fitted so far.
    """

    pixels: int | None = None
    tile: int | None = None

    def __call__(self, restorer: Restorer, lq: Tensor, key: str, sample: int = 0) -> Tensor:
        """Restore lq (1, c, h, w); see Restorer.

        Raises ImageTooLargeError where memory does not suffice for small tiles either, and UserError where the network
        refuses an image of this size.
        """
        height, width = lq.shape[-2:]
        reason, tried = "", None
        for attempt in self._attempts(restorer, height, width):
            tile = attempt.tile if isinstance(attempt, Tileable) else None
            try:
                restored = attempt(lq, key, sample)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise _refusal(error, attempt, lq) from error
                reason = first_line(error)
            except MemoryError as error:
                reason = first_line(error)
            else:
                if attempt is not restorer:
                    self._remember(tile, height, width, key, reason)
                return restored
            tried = tile
            release()
        size = "the whole image"
        if tried:
            size = f"tiles of {tried} pixels (--tile {tried})"
        raise ImageTooLargeError(
            f"memory ran out for an image of {height}x{width} pixels in {size} ({reason}); give the process more "
            "memory, cut the image, or name smaller tiles with --tile (val.grids: true and val.crop_size)"
        )

    def _attempts(self, restorer: Restorer, height: int, width: int) -> Iterator[Restorer]:
        """Yield Restorers that need less and less memory."""
        known = self.tile is not None and self.pixels is not None and height * width >= self.pixels
        if not known or not isinstance(restorer, Tileable):
            yield restorer
        if not isinstance(restorer, Tileable):
            return
        side = min(restorer.tile or max(height, width), 2 * LARGEST_TILE)
        if restorer.tile is not None:
            side = 2 * restorer.tile  # one tile at a time comes first
        if known and self.tile is not None:
            side = min(side, 2 * self.tile)
        side = _largest_power(side)
        while side >= SMALLEST_TILE:
            smaller = restorer.in_tiles(min(side, restorer.tile or side))
            if smaller is None:
                return
            yield smaller
            side //= 2

    def _remember(self, tile: int | None, height: int, width: int, key: str, reason: str) -> None:
        """Begin with these tiles from now on, and log it where that is new."""
        if self.tile == tile:
            return
        self.tile = tile
        if self.pixels is None or height * width < self.pixels:
            self.pixels = height * width
        log.warning(
            "%s: memory ran out for %dx%d pixels (%s); this image and others of its size are restored in tiles of %d, "
            "one at a time, whose seams may differ slightly; --tile %d (val.grids: true, val.crop_size: %d) does so "
            "from the start",
            key,
            height,
            width,
            reason,
            tile,
            tile,
            tile,
        )


def _largest_power(side: int) -> int:
    """Return the largest power of two below a side."""
    return 1 << max(side - 1, 1).bit_length() - 1


def _refusal(error: RuntimeError, restorer: Restorer, lq: Tensor) -> Exception:
    """Return the error of a network that cannot take an image of this size; the error itself where it is another."""
    text = str(error)
    if type(error) is not RuntimeError or any(word in text for word in _OF_THE_DEVICE):
        return error
    size = "x".join(map(str, lq.shape[-2:])) + " pixels"
    if isinstance(restorer, Tileable) and restorer.tile:
        size += f" in tiles of {restorer.tile}"
    name = type(restorer.network).__name__
    return UserError(f"{name} cannot restore an image of {size} ({first_line(error)})")
