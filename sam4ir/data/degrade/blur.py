"""Blur of camera motion and of defocus: each image draws a normalised kernel and is convolved with it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import torch
from torch import Tensor

from sam4ir.data.degrade.noise import Range, checked, draw_between

# The generator of Boracchi and Foi that DeblurGAN uses: one exposure is 2,000 steps on a path 60 pixels long, and
# each kernel draws its three forces uniformly from 0 to these, in multiples of anxiety.
_STEPS, _PATH = 2000, 60.0
_GAUSSIAN, _INERTIA, _IMPULSE = 10.0, 0.7, 0.2
_OUR_STEPS = 250  # as fine as a kernel of pixels shows


class MotionBlur:
    """Blur by camera motion: convolve with the trace of a camera that moves at constant speed.

    Source: Boracchi and Foi, Modeling the performance of image restoration from motion blur (IEEE TIP 2012), as
    DeblurGAN (Kupyn et al., CVPR 2018) blurs its training images. Three forces bend the path: Gaussian shaking, a pull
    back towards the start, and rare impulses that turn it round; without them it is a line. The kernel sums to 1, so
    brightness stays, and its centre of mass is its middle, so the image does not move.

    Args:
        length: Length of the path in pixels, from 0 to 500; a number or [low, high].
        anxiety: Scale of the three forces, from 0 to 1: 0 gives lines, 0.005 is DeblurGAN's. A number or [low, high].
        angle: Direction of the path at its start, in degrees from the x axis towards y, which points down; a number
            or [low, high].
    """

    def __init__(self, length: Range = (5.0, 40.0), anxiety: Range = (0.0, 0.005), angle: Range = (0.0, 360.0)) -> None:
        self._length, self._anxiety = checked("length", length, 0, 500), checked("anxiety", anxiety, 0, 1)
        self._angle = checked("angle", angle)
        self.margin = _radius(self._length[1])

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        return convolve(image, self.kernel(rng))

    def kernel(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a kernel, (2 r + 1, 2 r + 1) float32 of sum 1, r at most `margin`."""
        length, anxiety = draw_between(self._length, rng), draw_between(self._anxiety, rng)
        path = trajectory(anxiety, math.radians(draw_between(self._angle, rng)), rng)
        return rasterised(path * length, _radius(length))


class GaussianBlur:
    """Blur by a Gaussian kernel, isotropic or not, which is cut off at four standard deviations and sums to 1.

    These are the kernels of SRMD (Zhang, Zuo and Zhang, CVPR 2018).

    Args:
        sigma: Standard deviation along the wider axis in pixels, from 0.05 to 100; a number or [low, high].
        ratio: Standard deviation along the narrower axis over that along the wider one, from 0.01 to 1, where 1 is
            isotropic; a number or [low, high].
        angle: Direction of the wider axis in degrees from the x axis towards y; a number or [low, high].
    """

    def __init__(self, sigma: Range = (0.5, 3.0), ratio: Range = 1.0, angle: Range = (0.0, 180.0)) -> None:
        self._sigma, self._ratio = checked("sigma", sigma, 0.05, 100), checked("ratio", ratio, 0.01, 1)
        self._angle = checked("angle", angle)
        self.margin = math.ceil(4 * self._sigma[1])

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        return convolve(image, self.kernel(rng))

    def kernel(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a kernel, (2 r + 1, 2 r + 1) float32 of sum 1, r at most `margin`."""
        sigma, ratio = draw_between(self._sigma, rng), draw_between(self._ratio, rng)
        along, across = turned_grid(math.ceil(4 * sigma), math.radians(draw_between(self._angle, rng)))
        weights = np.exp(-0.5 * (along**2 + (across / ratio) ** 2) / sigma**2)
        return (weights / weights.sum()).astype(np.float32)


def turned_grid(radius: int, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates of a (2 r + 1)-square grid along a direction and across it; angle in radians, x towards y."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


def trajectory(anxiety: float, angle: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a path of length 1: (n,) complex positions x + i y of a camera.

    With v the velocity, p the position and n complex normal, a step of the generator above is
        v <- v + jolt + anxiety (gaussian n - inertia p) |v|,  v <- v |v_0| / |v|,  p <- p + v,
    where jolt is 2 v exp(i (pi + u)), u in [-1/2, 1/2], with probability anxiety * impulse, and else 0. Our steps are
    eight times longer; for the same effect on a whole exposure shakes count sqrt(8)-fold and the others eightfold.
    """
    longer = _STEPS / _OUR_STEPS
    gaussian, inertia, impulse = rng.random(3) * (_GAUSSIAN, _INERTIA, _IMPULSE) * anxiety
    n = rng.standard_normal((_OUR_STEPS, 2)) @ (1, 1j) * gaussian * math.sqrt(longer)
    chance, turn = rng.random((2, _OUR_STEPS))
    jolts = np.where(chance < impulse * longer, 2 * np.exp(1j * (math.pi + turn - 0.5)), 0)
    pull = inertia * longer * _PATH
    direction, place = complex(math.cos(angle), math.sin(angle)), 0j
    path = []
    for shake, jolt in zip(n.tolist(), jolts.tolist(), strict=True):
        direction += jolt * direction + shake - pull * place
        direction /= abs(direction) or 1.0
        place += direction / _OUR_STEPS
        path.append(place)
    return np.array(path)


def rasterised(path: np.ndarray, radius: int) -> np.ndarray:
    """Return the time that a path of complex positions spends on each pixel of a (2 r + 1)-square, float32 of sum 1.

    The square is centred on the path's centre of mass. Four pixels share a position between them (bilinear).
    """
    side = 2 * radius + 1
    centred = path - path.mean() + complex(radius, radius)
    left, top = np.floor(centred.real).astype(int), np.floor(centred.imag).astype(int)
    right_share, bottom_share = centred.real - left, centred.imag - top
    kernel = np.zeros(side * side)
    for down, vertical in ((0, 1 - bottom_share), (1, bottom_share)):
        for over, horizontal in ((0, 1 - right_share), (1, right_share)):
            kernel += np.bincount((top + down) * side + left + over, vertical * horizontal, side * side)
    return (kernel / len(path)).reshape(side, side).astype(np.float32)


def convolve(image: Tensor, kernel: np.ndarray) -> Tensor:
    """Convolve (c, h, w) float32 with a (2 r + 1)-square kernel; beyond its border the image is mirrored.

    A Fourier transform makes the time independent of the kernel; the error is 3e-7 of the values. OpenCV's transform
    gives the same bits on any number of threads, torch's does not.
    """
    r, (c, h, w) = len(kernel) // 2, image.shape
    size = transform_size((h + 2 * r, w + 2 * r))
    below, right = size[0] - h - r, size[1] - w - r
    planes = (cv2.copyMakeBorder(plane, r, below, r, right, cv2.BORDER_REFLECT) for plane in image.numpy())
    convolved = np.empty((c, h, w), np.float32)
    for plane, circular in zip(convolved, circular_convolutions(planes, kernel, size), strict=True):
        plane[:] = circular[2 * r : 2 * r + h, 2 * r : 2 * r + w]
    return torch.from_numpy(convolved)


def transform_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the next (h, w) from `size` on for which a Fourier transform is quick."""
    return cv2.getOptimalDFTSize(size[0]), cv2.getOptimalDFTSize(size[1])


def circular_convolutions(
    planes: Iterable[np.ndarray], kernel: np.ndarray, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Yield planes of (h, w) = size, float32, overwritten with their circular convolutions.

    The kernel begins at (0, 0): with (2 r + 1)-square kernels, value (y, x) belongs to position (y - r, x - r), and
    values from (2 r, 2 r) on are free of wrapping.
    """
    response = np.zeros(size, np.float32)
    response[: len(kernel), : len(kernel)] = kernel
    cv2.dft(response, response)  # `nonzeroRows` would leave OpenCV's quick path
    for plane in planes:
        cv2.dft(plane, plane)
        cv2.mulSpectrums(plane, response, 0, plane)
        yield cv2.dft(plane, plane, flags=cv2.DFT_INVERSE | cv2.DFT_SCALE | cv2.DFT_REAL_OUTPUT)


def _radius(length: float) -> int:
    """Return the radius of a path's kernel: half the path's length, and one pixel more for bilinear sharing.

    No point of a path is farther from its centre of mass than half its length.
    """
    return math.ceil(length / 2) + 1
