"""Placements: the window and the flip that all aligned arrays of a sample share.

Arrays are (h, w, ...) with any trailing axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np

from sam4ir.errors import UserError


class Cuttable(Protocol):
    """An array (h, w, ...) or what is cut like one: `[rows, columns]` of two slices is an array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, place: Any, /) -> Any: ...


class Corner:
    """The upper left (h, w) of an image, to cut windows out of it; nothing is read before."""

    def __init__(self, image: Cuttable, h: int, w: int) -> None:
        self.shape = (h, w, *image.shape[2:])
        self._image = image

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        rows, columns = (slice(*part.indices(side)) for part, side in zip(place, self.shape, strict=False))
        corner: np.ndarray = self._image[rows, columns]
        return corner


@dataclass(frozen=True)
class Window:
    """A rectangle, in pixels of an image. Outside the image it shows the mirror image.

    The mirror repeats the edge (numpy's 'symmetric', OpenCV's BORDER_REFLECT), as the padding of NAFNet's, HINet's
    and Restormer's data sets does; unlike a mirror that leaves the edge out, it commutes with `scaled`.
    """

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def draw(cls, size: tuple[int, int], patch: int, rng: np.random.Generator) -> Window:
        """Draw a patch x patch window, uniform over all that fit into an image of size (h, w).

        Along a side where the image is smaller, the window takes all of it and reaches over its bottom or right.
        """
        h, w = max(size[0], patch), max(size[1], patch)
        return cls(int(rng.integers(h - patch + 1)), int(rng.integers(w - patch + 1)), patch, patch)

    @classmethod
    def whole(cls, size: tuple[int, int]) -> Window:
        """Return the window of a whole image of size (h, w)."""
        return cls(0, 0, *size)

    def inside(self, size: tuple[int, int]) -> Window:
        """Return the part of an image of size (h, w) that the window shows; a side that it leaves counts whole."""
        rows, columns = _reach(self.top, self.height, size[0]), _reach(self.left, self.width, size[1])
        return Window(rows[0], columns[0], rows[1], columns[1])

    def cut(self, array: Cuttable) -> np.ndarray:
        """Return the window of an (h, w, ...) array: a view where it lies inside, else a copy with mirrored pixels."""
        part = self.inside((array.shape[0], array.shape[1]))
        inner: np.ndarray = array[part.top : part.top + part.height, part.left : part.left + part.width]
        if part == self:
            return inner
        return self.mirrored(inner, part)

    def mirrored(self, inner: np.ndarray, part: Window) -> np.ndarray:
        """Return the window, mirrored from `inner`, the pixels of `part` = inside(size)."""
        rows = _mirror(self.top - part.top, self.height, part.height)
        columns = _mirror(self.left - part.left, self.width, part.width)
        return inner[rows[:, None], columns]

    def scaled(self, factor: int) -> Window:
        """Return the same window on a grid `factor` times finer."""
        return Window(self.top * factor, self.left * factor, self.height * factor, self.width * factor)

    def grown(self, margin: int) -> Window:
        """Return the window with `margin` more pixels on each side."""
        return Window(self.top - margin, self.left - margin, self.height + 2 * margin, self.width + 2 * margin)


def _reach(start: int, length: int, side: int) -> tuple[int, int]:
    """Return (start, length) of what a stretch shows of a side: itself where it lies inside, else the whole side."""
    if start >= 0 and start + length <= side:
        return start, length
    return 0, side


def _mirror(start: int, length: int, side: int) -> np.ndarray:
    """Return the indices 0..side-1 that start, ..., start + length - 1 show, mirrored at both edges repeatedly."""
    within = np.arange(start, start + length) % (2 * side)
    return np.minimum(within, 2 * side - 1 - within)


@dataclass(frozen=True)
class Flip:
    """One of the eight symmetries of the square, applied as BasicSR's `augment`: horizontal, vertical, transpose."""

    horizontal: bool = False
    vertical: bool = False
    transpose: bool = False

    @classmethod
    def draw(cls, use_hflip: bool, use_rot: bool, rng: np.random.Generator) -> Flip:
        """Draw horizontal with probability 1/2 if use_hflip; vertical and transpose, 1/2 each, if use_rot."""
        horizontal, vertical, transpose = (rng.random(3) < 0.5).tolist()
        return cls(use_hflip and horizontal, use_rot and vertical, use_rot and transpose)

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Return the flipped (h, w, ...) array, as a view."""
        if self.horizontal:
            array = array[:, ::-1]
        if self.vertical:
            array = array[::-1]
        if self.transpose:
            array = array.swapaxes(0, 1)
        return array

    def copy(self, pixels: np.ndarray) -> np.ndarray:
        """Return the flipped (h, w, c) uint8, uint16 or float32 pixels as a contiguous copy.

        The result equals `apply`, whose views cost ten times as much once they are copied, one pixel at a time.
        """
        if self == Flip():
            return np.array(pixels, order="C")
        h, w, c = pixels.shape
        axes = {(True, True): -1, (True, False): 1, (False, True): 0}  # OpenCV's codes of (horizontal, vertical)
        if self.horizontal or self.vertical:
            pixels = cv2.flip(pixels, axes[self.horizontal, self.vertical])
        if self.transpose:
            return cv2.transpose(pixels).reshape(w, h, c)  # OpenCV drops the axis of one channel
        return pixels.reshape(h, w, c)


@dataclass(frozen=True)
class Placement:
    """The place of a sample in its image: a window and a flip."""

    window: Window
    flip: Flip

    def take(self, array: np.ndarray) -> np.ndarray:
        """Return the sample's part of an (h, w, ...) array, a view where the window lies inside."""
        return self.flip.apply(self.window.cut(array))

    def pixels(self, image: Cuttable) -> np.ndarray:
        """Return the sample's part of an (h, w, c) image, a contiguous copy."""
        return self.flip.copy(self.window.cut(image))

    def scaled(self, factor: int) -> Placement:
        """Return the same placement on a grid `factor` times finer."""
        return Placement(self.window.scaled(factor), self.flip)

    def grown(self, margin: int) -> Placement:
        """Return the same placement with `margin` more pixels on each side."""
        return Placement(self.window.grown(margin), self.flip)


@dataclass(frozen=True)
class Augmentation:
    """The rule by which placements are drawn. patch: side of the square window; None takes whole images."""

    patch: int | None = None
    use_hflip: bool = False
    use_rot: bool = False

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> Placement:
        """Draw a placement in an image of size (h, w); a smaller image is mirrored at its bottom and right (Window)."""
        window = Window.whole(size)
        if self.patch is not None:
            window = Window.draw(size, self.patch, rng)
        return Placement(window, Flip.draw(self.use_hflip, self.use_rot, rng))


def augmentation(
    gt_size: int | None, use_hflip: bool, use_flip: bool | None, use_rot: bool, scale: int = 1
) -> Augmentation:
    """Return the augmentation, on the LQ grid, that a data set's options ask for.

    use_flip is NAFNet's and HINet's name of use_hflip. Raises ValueError where the two disagree or gt_size is no
    positive multiple of scale.
    """
    if use_flip is not None and use_hflip and not use_flip:
        raise UserError("use_hflip: true and use_flip: false contradict each other; they are one option, keep one")
    if scale < 1:
        raise UserError(f"scale: {scale} must be a positive integer")
    return Augmentation(patch_side(gt_size, scale), use_hflip or bool(use_flip), use_rot)


def patch_side(gt_size: int | None, scale: int) -> int | None:
    """Return the side of the LQ patch. Raise ValueError where gt_size is no positive multiple of scale."""
    if gt_size is None:
        return None
    if gt_size < 1 or gt_size % scale:
        raise UserError(f"gt_size: {gt_size} must be a positive multiple of scale: {scale}")
    return gt_size // scale


def refuse_normalization(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Raise ValueError where BasicSR's `mean` and `std` would change images.

    Networks, masks, metrics and saved images all take [0, 1] here.
    """
    if set(mean or ()) - {0} or set(std or ()) - {1}:
        raise UserError(
            f"mean {mean} and std {std}: images stay in [0, 1] here, in losses, metrics and files alike; "
            "leave mean and std out, or normalise inside your network"
        )
