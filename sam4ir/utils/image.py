"""Turn image files into arrays and tensors, and back. Only this module knows BGR and integer pixels.

Everywhere else an image is RGB: an (h, w, c) uint8 or uint16 array as the file stores it, or a (c, h, w) float32 tensor
in [0, 1].
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from sam4ir.errors import UserError
from sam4ir.utils.files import atomic

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})

_HEAD_BYTES = 1 << 16
_MAX_SIDE, _MAX_PIXELS = 1 << 20, 1 << 30  # of an image that OpenCV decodes (CV_IO_MAX_IMAGE_*)
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_JPEG_MAGIC = b"\xff\xd8"
_PIXEL_MAX = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}


class ImageError(UserError):
    """An image that cannot be read or written; the message names it."""


def decode_image(data: bytes, name: str, channels: Literal[1, 3] = 3) -> np.ndarray:
    """Decode an image file (PNG, JPEG, BMP or TIFF; recognised by content, not by suffix).

    data: the file's bytes; name: the file's name for error messages.
    Returns (h, w, channels) RGB, uint8 or uint16 as stored. With channels=3 grey is repeated, a palette is looked up
    and alpha is dropped without blending (as BasicSR's `flag='color'`); with channels=1 the decoder turns colour into
    luma (`flag='grayscale'`). EXIF orientation is ignored: pixels keep the order in which they are stored.
    Raises ImageError for empty, truncated or corrupt data and for other pixel types (float TIFF). Damage inside a
    JPEG's entropy-coded data that leaves its end marker in place cannot be detected.
    """
    problem = _container_problem(data)
    if problem:
        raise ImageError(f"{name}: {problem}")
    colour = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
    with _quiet_decoder():
        image = _decoded(data, colour | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ImageError(f"{name}: cannot be decoded; it is damaged or no PNG, JPEG, BMP or TIFF")
    if image.dtype not in _PIXEL_MAX:
        raise ImageError(f"{name}: pixels are {image.dtype}; convert it to 8 or 16 bits")
    if channels == 3:
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return image.reshape(*image.shape[:2], 1)


def read_image(path: str | Path, channels: Literal[1, 3] = 3) -> np.ndarray:
    """Read an image file: (h, w, channels) RGB, uint8 or uint16; see decode_image."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from error
    return decode_image(data, str(path), channels)


def read_labels(path: str | Path) -> np.ndarray:
    """Read a label map: the grey values and palette numbers that the file stores, not the colours that it shows.

    Returns (h, w) uint8 or uint16 of a grey or palette file, and of an RGB file whose channels are equal; (h, w, 3)
    RGB of any other. Grey PNGs of fewer than 8 bits come stretched to 0..255; alpha is dropped.
    Raises ImageError naming the file where it cannot be read, and for JPEG, which changes labels.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from error
    problem = _container_problem(data)
    if data.startswith(_JPEG_MAGIC):
        problem = "JPEG changes labels; save label maps as PNG"
    if problem:
        raise ImageError(f"{path}: {problem}")
    depth = _palette_depth(data)
    with _quiet_decoder():
        stored = _palette_as_grey(data) if depth else data
        image = _decoded(stored, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None or image.dtype not in _PIXEL_MAX:
        raise ImageError(f"{path}: cannot be decoded as a picture of 8 or 16 bits")
    if image.ndim == 3:
        labels = image[:, :, 2::-1]  # BGR or BGRA
        if (labels == labels[:, :, :1]).all():
            labels = labels[:, :, 0]
        return np.ascontiguousarray(labels)
    if 0 < depth < 8:
        return image // (255 // (2**depth - 1))
    return image


def _decoded(data: bytes, flags: int) -> Any:
    """The pixels as OpenCV reads them; None where it cannot, or refuses the size that the header states."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _palette_depth(data: bytes) -> int:
    """Return the bits of a pixel of a palette PNG; 0 for any other file."""
    if data.startswith(_PNG_MAGIC) and data[25:26] == b"\x03":
        return data[24]
    return 0


def _palette_as_grey(data: bytes) -> bytes:
    """Rewrite a palette PNG as a grey one of the same bits, so that the decoder returns numbers instead of colours."""
    chunks, at = [_PNG_MAGIC], len(_PNG_MAGIC)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : end]
        if kind == b"IHDR":
            body = body[:9] + b"\0" + body[10:]  # colour type 3 becomes 0
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            chunks += [data[at : at + 4], kind, body, zlib.crc32(kind + body).to_bytes(4, "big")]
        at = end + 4
    return b"".join(chunks)


def read_size(path: str | Path) -> tuple[int, int]:
    """Return (h, w) of an image file, from its header. Raises ImageError naming the file."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(_HEAD_BYTES)
            size = _header_size(head, str(path))
            if size is not None:
                return size
            return size_of(head + file.read(), str(path))
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from error


def size_of(data: bytes, name: str) -> tuple[int, int]:
    """Return (h, w) of an encoded image: from the header of PNG and JPEG, else by decoding. Raises ImageError."""
    size = _header_size(data, name)
    if size is None:
        h, w, _ = decode_image(data, name).shape
        return h, w
    return size


def to_float_tensor(image: np.ndarray) -> Tensor:
    """Convert (h, w, c) uint8 or uint16 to a new (c, h, w) float32 tensor in [0, 1], by division by 255 or 65535."""
    if image.dtype not in _PIXEL_MAX:
        raise ImageError(f"pixels are {image.dtype}; uint8 or uint16 is needed")
    h, w, c = image.shape
    planes = np.empty((c, h, w), image.dtype)  # small integers are quicker to reorder than floats
    if image.size:
        cv2.split(image, list(planes))  # half the time of a transposed copy
    values = planes.astype(np.float32)
    values /= np.float32(_PIXEL_MAX[image.dtype])
    return torch.from_numpy(values)


def to_grey(image: np.ndarray) -> np.ndarray:
    """Convert (h, w, 3) RGB uint8 or uint16 to (h, w, 1) luma: 0.299 R + 0.587 G + 0.114 B, rounded.

    Where the three channels are equal the value stays.

    The result depends on the pixels alone. OpenCV's `flag='grayscale'` may differ by one level: its luma depends on the
    file's format and on the version of OpenCV.
    """
    luma: Any = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    return luma[:, :, None]


def to_uint8(image: Tensor) -> np.ndarray:
    """Convert (c, h, w) float, clamped to [0, 1], to (h, w, c) uint8 RGB; halves round to even."""
    return to_image(image, np.dtype(np.uint8))


def to_image(image: Tensor, dtype: np.dtype) -> np.ndarray:
    """Convert (c, h, w) float, clamped to [0, 1], to (h, w, c) RGB of dtype uint8 or uint16; halves round to even.

    Raises ImageError for values that are not finite.
    """
    if not image.isfinite().all():
        raise ImageError("the restored image has values that are not finite; are the weights whole?")
    scaled = image.detach().float().clamp(0, 1).mul_(_PIXEL_MAX[dtype]).round_()
    return scaled.permute(1, 2, 0).contiguous().cpu().numpy().astype(dtype)


def encode_png(image: np.ndarray) -> bytes:
    """Encode (h, w, c) RGB or grey, c = 1 or 3, uint8 or uint16, as PNG bytes."""
    return _encode(image, ".png", "image")


def jpeg_round_trip(image: Tensor, quality: int) -> Tensor:
    """Write (c, h, w) float, c = 3 or 1, as a JPEG of `quality` 1 to 100 and read it back: float32 in [0, 1].

    Values are clamped and rounded to 8 bits first. Colour is stored at half resolution (4:2:0), as OpenCV writes it.
    """
    pixels: Any = to_uint8(image)
    channels: Literal[1, 3] = 1
    if len(image) == 3:
        channels = 3
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    encoded, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise ImageError(f"an image of {tuple(image.shape)} cannot be written as JPEG of quality {quality}")
    return to_float_tensor(decode_image(data.tobytes(), "JPEG", channels))


def eight_bits(image: np.ndarray) -> np.ndarray:
    """Return the upper eight bits of uint8 or uint16 pixels: (h, w, c) uint8, contiguous."""
    if image.dtype != np.uint8:
        image = (image >> 8).astype(np.uint8)
    return np.ascontiguousarray(image)


def caption(text: str, width: int, height: int = 16) -> np.ndarray:
    """Draw light text on dark grey: (height, width, 3) uint8. Text that is too long is cut off; ASCII only."""
    strip = np.full((height, width, 3), 40, np.uint8)
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(strip, plain, (3, height - 5), cv2.FONT_HERSHEY_SIMPLEX, height / 40, (230,) * 3, 1, cv2.LINE_AA)
    return strip


def resize_for_display(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an (h, w, 3) uint8 or uint16 picture for display: average to shrink, repeat pixels to enlarge."""
    interpolation = cv2.INTER_NEAREST
    if height <= image.shape[0] and width <= image.shape[1]:
        interpolation = cv2.INTER_AREA
    pixels: Any = np.ascontiguousarray(image)
    return cv2.resize(pixels, (width, height), interpolation=interpolation)


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write (h, w, c) RGB or grey, c = 1 or 3, in the format of the suffix; 16 bits need PNG or TIFF.

    Missing folders are made. Readers see the old file or the whole new one. Raises ImageError naming the path.
    """
    path = Path(path)
    data = _encode(image, path.suffix.lower(), str(path))
    with atomic(path) as part:
        part.write_bytes(data)


def _encode(image: np.ndarray, suffix: str, name: str) -> bytes:
    if suffix not in IMAGE_SUFFIXES:
        raise ImageError(f"{name}: unknown image suffix {suffix!r}; known: {', '.join(sorted(IMAGE_SUFFIXES))}")
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype not in _PIXEL_MAX:
        raise ImageError(f"{name}: needs (h, w, 1 or 3) uint8 or uint16, got {image.shape} {image.dtype}")
    if image.dtype == np.uint16 and suffix not in (".png", ".tif", ".tiff"):
        raise ImageError(f"{name}: {suffix} holds 8 bits only; write 16 bits as .png or .tiff")
    pixels: Any = np.ascontiguousarray(image)
    if image.shape[2] == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    encoded, data = cv2.imencode(suffix, pixels)
    if not encoded:
        raise ImageError(f"{name}: cannot be encoded as {suffix}")
    return data.tobytes()


@contextmanager
def _quiet_decoder() -> Iterator[None]:
    """Switch OpenCV's own log off: an ImageError that names the file says what it would print."""
    log = cv2.utils.logging
    level = log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        log.setLogLevel(level)


def _container_problem(data: bytes) -> str | None:
    """Return what is wrong with the container, or None. Some decoders fill the missing part of a file with grey."""
    if not data:
        return "the file is empty"
    for magic, problem in _CONTAINERS.items():
        if data.startswith(magic):
            return problem(data)
    return None


def _header_size(data: bytes, name: str) -> tuple[int, int] | None:
    """Return the size by the header, None where that is not understood; ImageError where no decoder takes so many."""
    size = _stated_size(data)
    if size is not None and (max(size) > _MAX_SIDE or size[0] * size[1] > _MAX_PIXELS):
        raise ImageError(f"{name}: is damaged, or too large to be read; its header states {size[0]}x{size[1]} pixels")
    return size


def _stated_size(data: bytes) -> tuple[int, int] | None:
    """Return (h, w) of a PNG (IHDR) or JPEG (frame header, ITU T.81, B.2.2) that begins with `data`; else None."""
    if data.startswith(_PNG_MAGIC) and len(data) >= 24:
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    at = 2 if data.startswith(_JPEG_MAGIC) else len(data)
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        at += _segment_length(data, at)
    return None


def _segment_length(data: bytes, at: int) -> int:
    """Return the bytes of the JPEG segment whose marker begins at `at`; a fill byte counts as a segment of one byte."""
    if data[at + 1] == 0xFF:
        return 1
    return 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _png_problem(data: bytes) -> str | None:
    """Check a PNG (ISO/IEC 15948, 5.3): chunks of length, type, data and CRC up to IEND."""
    at = len(_PNG_MAGIC)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return f"corrupt PNG: checksum of chunk {data[at + 4 : at + 8]!r} at byte {at} does not match"
        if data[at + 4 : at + 8] == b"IEND":
            return None
        at = end + 4
    return f"truncated PNG: {len(data)} bytes end before IEND"


def _jpeg_problem(data: bytes) -> str | None:
    """Check a JPEG (ITU T.81, B.1): segments up to the first scan, then an end-of-image marker.

    The search starts at the scan because a thumbnail in the header has an end marker of its own.
    """
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            if data.find(b"\xff\xd9", at) < 0:
                return f"truncated JPEG: no end marker in {len(data)} bytes"
            return None
        at += _segment_length(data, at)
    return f"truncated or corrupt JPEG: no image data in {len(data)} bytes"


_CONTAINERS: dict[bytes, Callable[[bytes], str | None]] = {_PNG_MAGIC: _png_problem, _JPEG_MAGIC: _jpeg_problem}
