"""MATLAB's imresize with its bicubic kernel, which defines the down- and up-scaling of super-resolution.

The kernel is Keys' cubic convolution with a = -0.5. Shrinking widens the kernel by the factor (antialiasing). The
weights of each output pixel are normalised to sum 1. Beyond the border the image is mirrored with its edge repeated.
Rows and columns are resized one after the other. Neighbouring output pixels read nearly the same input pixels, so each
direction is one batch of small dense products: a block of outputs from the stretch of inputs that it reads.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam4ir.errors import UserError

Size = tuple[int, int]
_CPU = torch.device("cpu")

SUPPORT = 2  # pixels of the smaller grid that the kernel reaches to each side of an output pixel's centre
_BLOCK = 32  # outputs of one product
_WHOLE = 256  # inputs up to which one product for all outputs is faster
_WORTH = 2  # a block that sees this many times more than its share (strong shrinking) saves nothing
_GRID = float(1 << 26)  # values in pixel units are brought to multiples of 1 / _GRID before they are rounded


def imresize(image: Tensor, scale: float) -> Tensor:
    """Resize an image by `scale` as MATLAB's imresize(image, scale): both sides are multiplied and rounded up.

    image: (..., h, w) floating point, any range, any device. Values may overshoot that range: nothing is clipped.
    Returns (..., ceil(h scale), ceil(w scale)) of the same type; half and bfloat16 are computed in float32.
    Raises UserError for a scale that is not above 0, and for integer images.
    """
    if not (scale > 0 and math.isfinite(scale)):
        raise UserError(f"scale: {scale} must be a finite number above 0")
    h, w = image.shape[-2:]
    size = math.ceil(h * scale - 1e-9), math.ceil(w * scale - 1e-9)  # 1e-9: sides times 1/3 stay whole
    return _resized(image, size, (float(scale), float(scale)))


def resize_to(image: Tensor, size: Size) -> Tensor:
    """Resize an (..., h, w) image to a size (h, w) as MATLAB's imresize(image, size); otherwise as `imresize`."""
    if min(size) < 1:
        raise UserError(f"size: {size} must be (height, width), both at least 1")
    h, w = image.shape[-2:]
    return _resized(image, size, (size[0] / max(h, 1), size[1] / max(w, 1)))


def shrunk_pixels(pixels: NDArray[Any], factor: int, rounded: bool = True) -> NDArray[Any]:
    """Shrink (h, w, c) unsigned integer pixels by a whole factor, with the same values for a part as for the whole.

    The values are computed in float64 and rounded to a fine grid. So a part of an image gives the very values that the
    whole image gives there, except within SUPPORT output pixels of a border that is not the image's.
    rounded: whether to return the pixels' own type, clipped, halves to even, as a file would store them; else float64
    is returned, 1 for the type's largest value, not clipped.
    Raises UserError where a side is no positive multiple of the factor.
    """
    h, w, c = pixels.shape
    if factor < 1 or min(h, w) < factor or h % factor or w % factor:
        raise UserError(f"pixels of {h}x{w} cannot be shrunk by {factor}; both sides must be multiples of it")
    rows, columns = (_bands(side, side // factor, 1 / factor, torch.float64, _CPU) for side in (h, w))
    lines = rows.along_rows(torch.from_numpy(pixels.reshape(1, h, w * c).astype(np.float64)))
    planes = columns.along_columns(lines.view(h // factor, w, c).permute(2, 0, 1))
    shrunk = planes.mul_(_GRID).round_().div_(_GRID).permute(1, 2, 0).numpy()
    largest = np.iinfo(pixels.dtype).max
    if rounded:
        return np.rint(shrunk).clip(0, largest).astype(pixels.dtype)
    return shrunk / largest


def _resized(image: Tensor, size: Size, scale: tuple[float, float]) -> Tensor:
    if not image.is_floating_point():
        raise UserError(f"image: {image.dtype} must be floating point, such as pixels / 255")
    h, w = image.shape[-2:]
    if min(h, w) < 1:
        raise UserError(f"image: {h}x{w} is empty")
    dtype = image.dtype
    if dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32
    rows = _bands(h, size[0], scale[0], dtype, image.device)
    columns = _bands(w, size[1], scale[1], dtype, image.device)
    planes = image.to(dtype).reshape(-1, h, w)
    kind = image.device.type
    with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):  # bf16 would keep 8 bits of the products
        if size[0] <= h:  # the pass along columns copies: it comes where there are fewer pixels
            planes = columns.along_columns(rows.along_rows(planes))
        else:
            planes = rows.along_rows(columns.along_columns(planes))
    return planes.reshape(*image.shape[:-2], *size).to(image.dtype)


class _Bands(NamedTuple):
    """The weights of one direction.

    weights: (blocks, outputs of a block, s). inputs: the (blocks * s,) indices of the inputs that the weights belong
    to; None where one block reads all inputs in their order. out: the number of outputs.
    """

    weights: Tensor
    inputs: Tensor | None
    out: int

    def along_rows(self, image: Tensor) -> Tensor:
        """(n, h, w) -> (n, out, w)."""
        if self.inputs is None:
            return torch.matmul(self.weights[0], image)
        n, _, w = image.shape
        blocks, block, span = self.weights.shape
        gathered = image.index_select(1, self.inputs).view(n, blocks, span, w)
        return torch.matmul(self.weights, gathered).view(n, blocks * block, w)[:, : self.out]

    def along_columns(self, image: Tensor) -> Tensor:
        """(n, h, w) -> (n, h, out)."""
        if self.inputs is None:
            return torch.matmul(image, self.weights[0].T)
        n, h, _ = image.shape
        blocks, block, span = self.weights.shape
        gathered = image.index_select(2, self.inputs).view(n * h, blocks, span).transpose(0, 1)
        outputs = torch.bmm(gathered, self.weights.transpose(1, 2)).transpose(0, 1)
        return outputs.reshape(n, h, blocks * block)[:, :, : self.out]


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)  # a later call with gradients may read the cached weights
def _bands(length: int, out: int, scale: float, dtype: torch.dtype, device: torch.device) -> _Bands:
    """Return the weights that bring `length` pixels to `out`; they are computed in float64."""
    first, taps = _taps(out, scale)
    reach = taps.shape[1]
    block = min(_BLOCK, out)
    blocks = -(-out // block)
    starts = first[::block]
    ends = np.append(first[block - 1 :: block], first[-1])[:blocks] + reach
    span = int((ends - starts).max())
    if length <= _WHOLE or blocks * span >= _WORTH * length:
        return _Bands(torch.from_numpy(_matrix(length, first, taps)[None]).to(dtype).to(device), None, out)
    banded = np.zeros((blocks * block, span))
    place = first - np.repeat(starts, block)[:out]
    banded[np.arange(out)[:, None], place[:, None] + np.arange(reach)] = taps
    inputs = _mirrored(starts[:, None] + np.arange(span), length)
    weights = torch.from_numpy(banded.reshape(blocks, block, span)).to(dtype).to(device)
    return _Bands(weights, torch.from_numpy(inputs.ravel()).to(device), out)


def _matrix(length: int, first: NDArray[np.int64], taps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weight of each input in each output: (out, length)."""
    out, reach = taps.shape
    matrix = np.zeros((out, length))
    inputs = _mirrored(first[:, None] + np.arange(reach), length)
    np.add.at(matrix, (np.arange(out)[:, None], inputs), taps)
    return matrix


def _taps(out: int, scale: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the first input that each output reads, (out,), and the weights from that input on, (out, taps)."""
    step = 1 / scale
    if abs(step - round(step)) < 1e-9:
        step = round(step)  # exact, so that the weights do not depend on the place of an output in the image
    shrinking = min(scale, 1.0)
    width = 2 * SUPPORT * max(step, 1)
    centre = (np.arange(out) + 0.5) * step - 0.5
    first = np.floor(centre - width / 2).astype(np.int64) + 1
    inputs = first[:, None] + np.arange(math.ceil(width))
    weights = _cubic((centre[:, None] - inputs) * shrinking)
    weights /= weights.sum(axis=1, keepdims=True)
    return first, weights


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' kernel (IEEE TASSP 29, 1981, eq. 15), a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def _mirrored(places: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Map places that may lie outside to indices 0..length-1: mirrored with the edge repeated, as often as needed."""
    within = places % (2 * length)
    return np.minimum(within, 2 * length - 1 - within)
