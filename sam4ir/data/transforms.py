"""What is drawn once for all aligned arrays of a sample, a window and a flip.

Arrays are (h, w, ...) with any trailing axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def draw(cls, size: tuple[int, int], patch: int, rng: np.random.Generator) -> Window:
        """A patch x patch window, uniform over all that fit into an image of size (h, w)."""
        h, w = size
        if h < patch or w < patch:
            raise ValueError(f"image is {h}x{w} (h x w), smaller than the {patch}x{patch} patch")
        return cls(int(rng.integers(h - patch + 1)), int(rng.integers(w - patch + 1)), patch, patch)

    @classmethod
    def whole(cls, size: tuple[int, int]) -> Window:
        """All of an image of size (h, w)."""
        return cls(0, 0, *size)

    def cut(self, array: np.ndarray) -> np.ndarray:
        """The window of an (h, w, ...) array, as a view."""
        return array[self.top : self.top + self.height, self.left : self.left + self.width]

    def scaled(self, factor: int) -> Window:
        """The same window on a grid `factor` times finer."""
        return Window(self.top * factor, self.left * factor, self.height * factor, self.width * factor)


@dataclass(frozen=True)
class Flip:
    """One of the eight symmetries of the square, applied as BasicSR's `augment`: horizontal, vertical, transpose."""

    horizontal: bool = False
    vertical: bool = False
    transpose: bool = False

    @classmethod
    def draw(cls, use_hflip: bool, use_rot: bool, rng: np.random.Generator) -> Flip:
        """Horizontal with probability 1/2 if use_hflip; vertical and transpose, 1/2 each, if use_rot."""
        horizontal, vertical, transpose = (bool(v) for v in rng.random(3) < 0.5)
        return cls(use_hflip and horizontal, use_rot and vertical, use_rot and transpose)

    def apply(self, array: np.ndarray) -> np.ndarray:
        """The flipped (h, w, ...) array, as a view."""
        if self.horizontal:
            array = array[:, ::-1]
        if self.vertical:
            array = array[::-1]
        return array.swapaxes(0, 1) if self.transpose else array


@dataclass(frozen=True)
class Placement:
    """Where in the image a sample lies and how it is turned."""

    window: Window
    flip: Flip

    def take(self, array: np.ndarray) -> np.ndarray:
        """The sample's part of an (h, w, ...) array, as a view."""
        return self.flip.apply(self.window.cut(array))

    def scaled(self, factor: int) -> Placement:
        """The same placement on a grid `factor` times finer."""
        return Placement(self.window.scaled(factor), self.flip)


@dataclass(frozen=True)
class Augmentation:
    """How placements are drawn. patch: side of the square window; None takes whole images."""

    patch: int | None = None
    use_hflip: bool = False
    use_rot: bool = False

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> Placement:
        """A placement in an image of size (h, w). Raises ValueError where the image is smaller than the patch."""
        window = Window.whole(size) if self.patch is None else Window.draw(size, self.patch, rng)
        return Placement(window, Flip.draw(self.use_hflip, self.use_rot, rng))


def augmentation(
    gt_size: int | None, use_hflip: bool, use_flip: bool | None, use_rot: bool, scale: int = 1
) -> Augmentation:
    """The Augmentation on the LQ grid that a dataset's options ask for.

    use_flip is NAFNet's and HINet's name of use_hflip. Raises ValueError where the two disagree or gt_size is no
    positive multiple of scale.
    """
    if use_flip is not None and use_hflip and not use_flip:
        raise ValueError("use_hflip: true and use_flip: false contradict each other; they are one option, keep one")
    if scale < 1:
        raise ValueError(f"scale: {scale} must be a positive integer")
    if gt_size is not None and (gt_size < 1 or gt_size % scale):
        raise ValueError(f"gt_size: {gt_size} must be a positive multiple of scale: {scale}")
    return Augmentation(None if gt_size is None else gt_size // scale, use_hflip or bool(use_flip), use_rot)


def refuse_normalization(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """BasicSR's `mean` and `std`: only values that change nothing are taken.

    Networks, masks, metrics and saved images all take [0, 1] here; anything else raises ValueError.
    """
    if any(v != 0 for v in mean or ()) or any(v != 1 for v in std or ()):
        raise ValueError(
            f"mean {mean} and std {std}: images stay in [0, 1] here, in losses, metrics and files alike; "
            "leave mean and std out, or normalise inside your network"
        )
