"""The kinds of images that a program may hand over, and the way back to the kind that it gave.

NumPy arrays (h, w), (h, w, 1) or (h, w, 3); torch tensors (c, h, w) or (b, c, h, w) with c = 1 or 3; PIL images. Pixels
are uint8, uint16, or float in [0, 1].
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from sam4ir.engine.restore.images import ImageRestorer
from sam4ir.errors import UserError, first_line

if TYPE_CHECKING:
    import PIL.Image

Picture = TypeVar("Picture", bound="np.ndarray | Tensor | PIL.Image.Image")

_WHOLE = (np.dtype(np.uint8), np.dtype(np.uint16))
_WHOLE_TENSORS = (torch.uint8, torch.uint16)
_PIL_MODES = ("RGB", "L", "I;16")
_FARTHEST = 2.0  # of float pixels from [0, 1]: noise leaves the range, but 0..255 is another scale


def restore_object(restorer: ImageRestorer, image: Picture, key: str, sample: int) -> Picture:
    """Restore an image to one of the same kind, type of numbers, channels and device.

    key, sample: as for a Restorer. Raises UserError for other kinds, shapes, numbers and ranges.
    """
    if isinstance(image, np.ndarray):
        return cast(Picture, _array(restorer, image, key, sample))
    if isinstance(image, Tensor):
        return cast(Picture, _tensor(restorer, image, key, sample))
    if _is_pil(image):
        return cast(Picture, _pil(restorer, image, key, sample))
    raise UserError(
        f"an image is a NumPy array, a torch tensor or a PIL image, not {type(image).__name__}; "
        "`folder` restores files, and `restore_file` one file"
    )


def _is_pil(image: Any) -> bool:
    """Return whether this is an image of PIL, which need not be installed."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(image, module.Image)


def _array(restorer: ImageRestorer, image: np.ndarray, key: str, sample: int) -> np.ndarray:
    """Restore (h, w), (h, w, 1) or (h, w, 3)."""
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)) or not image.size:
        raise UserError(f"an array of shape {image.shape} is no image; give (h, w), (h, w, 1) or (h, w, 3) RGB")
    pixels = image
    if image.ndim == 2:
        pixels = image[:, :, None]
    native = image.dtype.newbyteorder("=")  # files of other machines are read as >u2 and >f4
    if native in _WHOLE:
        restored = restorer(np.ascontiguousarray(pixels, native), key, sample).astype(image.dtype, copy=False)
    elif image.dtype.kind == "f":
        values = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))
        planes = restorer.floats(_in_range(values).unsqueeze(0), key, sample)[0]
        restored = planes.permute(1, 2, 0).cpu().numpy().astype(image.dtype)
    else:
        raise UserError(f"pixels are {image.dtype}; uint8, uint16 or float in [0, 1] is needed")
    if image.ndim == 2:
        return restored[:, :, 0]
    return restored


def _in_range(values: Tensor) -> Tensor:
    """Return float pixels; raise UserError where they are not finite, or far from [0, 1]."""
    low, high = values.aminmax()
    if not (low.isfinite() and high.isfinite()):
        raise UserError("the image has values that are not finite")
    if low < -_FARTHEST or high > 1 + _FARTHEST:
        raise UserError(f"float pixels are in [0, 1], and these are from {low:g} to {high:g}; divide 8 bits by 255")
    return values


def _tensor(restorer: ImageRestorer, image: Tensor, key: str, sample: int) -> Tensor:
    """Restore (c, h, w) or (b, c, h, w), c = 1 or 3."""
    if image.ndim not in (3, 4) or image.shape[-3] not in (1, 3) or not image.numel():
        raise UserError(
            f"a tensor of shape {tuple(image.shape)} is no image; give (c, h, w) or (b, c, h, w) with c = 1 or 3"
        )
    if image.layout != torch.strided or image.is_meta:
        kind = f"layout {image.layout}"
        if image.is_meta:
            kind = "device meta"
        raise UserError(f"a tensor of {kind} holds no pixels that can be read; give a dense one on a device")
    batch = image.detach()
    if image.ndim == 3:
        batch = batch.unsqueeze(0)
    if image.dtype in _WHOLE_TENSORS:
        arrays = []
        for pixels in batch.cpu().permute(0, 2, 3, 1).contiguous().numpy():
            arrays.append(pixels)
        restored = torch.from_numpy(np.stack(restorer.arrays(arrays, key, sample))).permute(0, 3, 1, 2)
    elif image.is_floating_point():
        restored = restorer.floats(_in_range(batch.float()), key, sample)
    else:
        raise UserError(f"pixels are {image.dtype}; uint8, uint16 or float in [0, 1] is needed")
    if image.ndim == 3:
        restored = restored[0]
    # a copy: tensors of inference mode could take no part in a training
    return restored.to(image.device, image.dtype).clone(memory_format=torch.contiguous_format)


def _pil(restorer: ImageRestorer, image: PIL.Image.Image, key: str, sample: int) -> PIL.Image.Image:
    """Restore an image of PIL with the mode RGB, L or I;16."""
    import PIL.Image

    if image.mode not in _PIL_MODES:
        raise UserError(f"the mode of the PIL image is {image.mode}; give RGB, L or I;16: image.convert('RGB')")
    try:
        pixels = np.asarray(image)  # reads the file of an image that was opened only
    except (OSError, ValueError, SyntaxError, MemoryError) as error:
        raise UserError(f"the PIL image cannot be read ({first_line(error)})") from error
    return PIL.Image.fromarray(_array(restorer, pixels, key, sample))
