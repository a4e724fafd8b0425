"""Turn image files into arrays and tensors, and back. Only this module knows BGR and integer pixels.

Everywhere else an image is RGB: an (h, w, c) uint8 or uint16 array as the file stores it, or a (c, h, w) float32 tensor
in [0, 1].
"""

from __future__ import annotations

import dataclasses
import mmap
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from sam4ir.errors import UserError
from sam4ir.utils import containers, tiff
from sam4ir.utils.containers import JPEG_MAGIC, PNG_MAGIC, Header
from sam4ir.utils.files import atomic

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
ExifOrientation = Literal["apply", "ignore"]
NOT_FINITE = "the restored image has values that are not finite; are the weights whole?"

_WRITTEN_SUFFIXES = IMAGE_SUFFIXES - {".webp"}
_PIXEL_MAX = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}
_OPENCV_REASON = re.compile(r"\(-?\d+:([^)]*)\)\s*(.*?)\s*(?:in function .*)?$", re.DOTALL)


class ImageError(UserError):
    """An image that cannot be read or written; the message names it."""


def decode_image(
    data: bytes, name: str, channels: Literal[1, 3] = 3, exif_orientation: ExifOrientation = "apply"
) -> np.ndarray:
    """Decode an image file (PNG, JPEG, BMP, TIFF or WebP; recognised by content, not by suffix).

    data: the file's bytes; name: the file's name for error messages.
    Returns (h, w, channels) RGB, uint8 or uint16 as stored. With channels=3 grey is repeated, a palette is looked up
    and alpha is dropped without blending (as BasicSR's `flag='color'`); with channels=1 the decoder turns colour into
    luma (`flag='grayscale'`). The image is turned as its EXIF orientation says, in every format alike (as cv2.imread
    does); exif_orientation='ignore' keeps the order in which pixels are stored. docs/getting-started.md lists what
    becomes of each kind of file.
    Raises ImageError for empty, truncated or corrupt data and for kinds of pixels that would come out wrong. Damage
    inside a JPEG's entropy-coded data that leaves its end marker in place cannot be detected.
    """
    header = image_header(data, name)
    grey = channels == 1
    with _decoding(name):
        if header.page is not None:
            image = _tiff_pixels(data, header.page, grey)
        else:
            image = _decoded(data, _flags(grey))
        if image.dtype not in _PIXEL_MAX:
            raise ImageError(f"{name}: pixels are {image.dtype}; convert it to 8 or 16 bits")
        if grey:
            image = image.reshape(*image.shape[:2], 1)
        else:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return turned(image, header.orientation, exif_orientation)


def read_image(
    path: str | Path, channels: Literal[1, 3] = 3, exif_orientation: ExifOrientation = "apply"
) -> np.ndarray:
    """Read an image file: (h, w, channels) RGB, uint8 or uint16; see decode_image."""
    return decode_image(file_bytes(path), str(path), channels, exif_orientation)


def decode_alpha(data: bytes, name: str, exif_orientation: ExifOrientation = "apply") -> np.ndarray | None:
    """Decode the transparency of an image file: (h, w, 1) of the type of its pixels; None for a file without one.

    A colour that a PNG calls transparent counts, and the alphas of a palette do. Turned as decode_image does.
    Raises ImageError as decode_image does.
    """
    header = image_header(data, name)
    with _decoding(name):
        if header.page is not None:
            stored = tiff.alpha_copy(data, header.page)
        else:
            stored = data
        if stored is None:
            return None
        image = _decoded(stored, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if header.page is None or not header.page.planar:
        if image.ndim < 3 or image.shape[2] not in (2, 4):
            return None
        image = image[..., -1]
    return turned(np.ascontiguousarray(image).reshape(*image.shape[:2], 1), header.orientation, exif_orientation)


def read_labels(path: str | Path) -> np.ndarray:
    """Read a label map: the grey values and palette numbers that the file stores, not the colours that it shows.

    Returns (h, w) uint8 or uint16 of a grey or palette file, and of an RGB file whose channels are equal; (h, w, 3)
    RGB of any other. Grey PNGs of fewer than 8 bits come stretched to 0..255; alpha is dropped. An EXIF orientation is
    applied.
    Raises ImageError naming the file where it cannot be read, for JPEG, which changes labels, and for a TIFF where 0
    is white.
    """
    data = file_bytes(path)
    if data.startswith(JPEG_MAGIC):
        raise ImageError(f"{path}: JPEG changes labels; save label maps as PNG")
    header = image_header(data, str(path))
    depth = _palette_depth(data)
    with _decoding(str(path)):
        if header.page is not None:
            image = _tiff_labels(data, header.page)
        else:
            stored = _palette_as_grey(data) if depth else data
            image = _decoded(stored, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if image.dtype not in _PIXEL_MAX:
        raise ImageError(f"{path}: cannot be decoded as a picture of 8 or 16 bits")
    image = turned(image, header.orientation, "apply")
    if image.ndim == 3:
        labels = image[:, :, 2::-1]  # BGR or BGRA
        if (labels == labels[:, :, :1]).all():
            labels = labels[:, :, 0]
        return np.ascontiguousarray(labels)
    if 0 < depth < 8:
        return image // (255 // (2**depth - 1))
    return image


def file_bytes(path: str | Path) -> bytes:
    """Return a file's bytes. Raises ImageError naming it."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from error


def image_header(data: containers.Bytes, name: str, check: bool = True) -> Header:
    """Return an image file's header. Raises ImageError naming it where it is damaged or not read."""
    try:
        return containers.read_header(data, check)
    except tiff.HeaderError as error:
        raise ImageError(f"{name}: {error}") from None


def _flags(grey: bool) -> int:
    """Return OpenCV's flags for colour or grey, of 8 or 16 bits, in the order of the file."""
    colour = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR
    return colour | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION


def _decoded(data: bytes, flags: int) -> Any:
    """Return the pixels as OpenCV reads them. Raises HeaderError where it cannot."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise tiff.HeaderError(
            "cannot be decoded; it is damaged, or compressed or tiled in a way that OpenCV does not know"
        )
    return image


def _tiff_pixels(data: bytes, page: tiff.FirstPage, grey: bool) -> Any:
    """Return the pixels of a TIFF: (h, w, 3) BGR, or (h, w) grey. Raises HeaderError where OpenCV cannot read them."""
    copies = tiff.plain_copies(data, page)
    if page.premultiplied:
        _refuse_transparent(copies, page.planar)
    if page.planar:
        planes = [_decoded(copy, _flags(grey=True)) for copy in copies[: page.colours]]
        image: Any = cv2.merge(planes[::-1])
        if page.colours == 1:
            image = planes[0]
            return image if grey else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if grey else image
    image = _decoded(copies[0], _flags(grey))
    if page.inverted:
        return np.iinfo(image.dtype).max - image
    return image


def _tiff_labels(data: bytes, page: tiff.FirstPage) -> Any:
    """Return the numbers that a TIFF stores. Raises HeaderError where OpenCV cannot read them."""
    if page.inverted:
        raise tiff.HeaderError("is a TIFF where 0 is white, so its labels are ambiguous; save label maps as PNG")
    if page.photometric == 3 and page.bits == 8:
        page = dataclasses.replace(page, photometric=1)
    if page.planar:
        return _tiff_pixels(data, page, grey=page.colours == 1)
    return _decoded(tiff.plain_copies(data, page)[0], cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)


def _refuse_transparent(copies: list[bytes], planar: bool) -> None:
    """Raise HeaderError unless an image whose colours are stored times alpha is opaque."""
    if planar:
        alpha = _decoded(copies[-1], _flags(grey=True))
    else:
        alpha = _decoded(copies[0], cv2.IMREAD_UNCHANGED)[..., -1]
    if (alpha != np.iinfo(alpha.dtype).max).any():
        raise tiff.HeaderError("its colours are multiplied by its alpha; save it without alpha")


def turned(image: np.ndarray, number: int, exif_orientation: ExifOrientation) -> np.ndarray:
    """Turn an (h, w, ...) image as its EXIF orientation says (EXIF 2.32, 4.6.4: where the first row and column lie).

    number: the orientation, 1 to 8.
    """
    if number == 1 or exif_orientation == "ignore":
        return image
    if number >= 5:
        image = image.swapaxes(0, 1)
    if number in (3, 4, 7, 8):
        image = image[::-1]
    if number in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _palette_depth(data: bytes) -> int:
    """Return the bits of a pixel of a palette PNG; 0 for any other file."""
    if data.startswith(PNG_MAGIC) and data[25:26] == b"\x03":
        return data[24]
    return 0


def _palette_as_grey(data: bytes) -> bytes:
    """Rewrite a palette PNG as a grey one of the same bits, so that the decoder returns numbers instead of colours."""
    chunks, at = [PNG_MAGIC], len(PNG_MAGIC)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : end]
        if kind == b"IHDR":
            body = body[:9] + b"\0" + body[10:]  # colour type 3 becomes 0
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            chunks += [data[at : at + 4], kind, body, zlib.crc32(kind + body).to_bytes(4, "big")]
        at = end + 4
    return b"".join(chunks)


def read_size(path: str | Path, exif_orientation: ExifOrientation = "apply") -> tuple[int, int]:
    """Return (h, w) of an image file as decode_image gives it, from its header. Raises ImageError naming the file."""
    return _shown_size(_read_header(path), exif_orientation)


def size_of(data: bytes, name: str, exif_orientation: ExifOrientation = "apply") -> tuple[int, int]:
    """Return (h, w) of an encoded image as decode_image gives it, from its header. Raises ImageError."""
    return _shown_size(image_header(data, name, check=False), exif_orientation)


def read_orientation(path: str | Path) -> int:
    """Return the EXIF orientation of an image file, 1 to 8; 1 without one. Raises ImageError naming the file."""
    return _read_header(path).orientation


def orientation_of(data: bytes, name: str) -> int:
    """Return the EXIF orientation of an encoded image, 1 to 8; 1 without one. Raises ImageError."""
    return image_header(data, name, check=False).orientation


def _read_header(path: str | Path) -> Header:
    """Read a file's header, and no more of the file than that. Raises ImageError naming the file."""
    try:
        with Path(path).open("rb") as file:
            if not file.read(1):
                return image_header(b"", str(path))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return dataclasses.replace(image_header(data, str(path), check=False), page=None)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from error


def _shown_size(header: Header, exif_orientation: ExifOrientation) -> tuple[int, int]:
    if exif_orientation == "apply":
        return header.turned_size
    return header.size


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


def grey_of(images: Tensor) -> Tensor:
    """Convert (b, 3, h, w) float RGB to (b, 1, h, w) luma as `to_grey` does, without rounding."""
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def to_uint8(image: Tensor) -> np.ndarray:
    """Convert (c, h, w) float, clamped to [0, 1], to (h, w, c) uint8 RGB; halves round to even."""
    return to_image(image, np.dtype(np.uint8))


def to_image(image: Tensor, dtype: np.dtype) -> np.ndarray:
    """Convert (c, h, w) float, clamped to [0, 1], to (h, w, c) RGB of dtype uint8 or uint16; halves round to even.

    Raises ImageError for values that are not finite.
    """
    if not image.isfinite().all():
        raise ImageError(NOT_FINITE)
    scaled = image.detach().float().clamp(0, 1).mul_(_PIXEL_MAX[dtype]).round_()
    return scaled.permute(1, 2, 0).contiguous().cpu().numpy().astype(dtype)


def encode_png(image: np.ndarray) -> bytes:
    """Encode (h, w, c) RGB, RGB with alpha or grey, c = 3, 4 or 1, uint8 or uint16, as PNG bytes."""
    if image.shape[2] == 4:
        bgra: Any = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGBA2BGRA)
        return cv2.imencode(".png", bgra)[1].tobytes()
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


def side_by_side(panels: Mapping[str, np.ndarray], title: str, panel_width: int | None = None) -> np.ndarray:
    """Return one picture of a title, the panels' captions and the panels, (h + 2 strips, panels w, 3) uint8.

    panel_width: scale each panel to so many pixels.
    """
    captions, pictures = [], []
    for name, picture in panels.items():
        if panel_width is not None:
            height = max(1, round(len(picture) * panel_width / picture.shape[1]))
            picture = resize_for_display(picture, height, panel_width)
        captions.append(caption(name, picture.shape[1]))
        pictures.append(picture)
    names = np.concatenate(captions, axis=1)
    return np.concatenate([caption(title, names.shape[1]), names, np.concatenate(pictures, axis=1)])


def resize_smoothly(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (h, w, c) uint8 or uint16 by cubic interpolation; the type's range is kept."""
    if image.shape[:2] == (height, width):
        return image
    pixels: Any = np.ascontiguousarray(image)
    resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
    return resized.reshape(height, width, image.shape[2])


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write (h, w, c) RGB or grey, c = 1 or 3, in the format of the suffix; 16 bits need PNG or TIFF.

    Missing folders are made. Readers see the old file or the whole new one. Raises ImageError naming the path.
    """
    path = Path(path)
    data = _encode(image, path.suffix.lower(), str(path))
    with atomic(path) as part:
        part.write_bytes(data)


def _encode(image: np.ndarray, suffix: str, name: str) -> bytes:
    if suffix not in _WRITTEN_SUFFIXES:
        raise ImageError(f"{name}: unknown image suffix {suffix!r}; known: {', '.join(sorted(_WRITTEN_SUFFIXES))}")
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
def _decoding(name: str) -> Iterator[None]:
    """Turn OpenCV's errors into an ImageError with the file's name, and switch its own log off meanwhile."""
    log = cv2.utils.logging
    level = log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        yield
    except tiff.HeaderError as error:
        raise ImageError(f"{name}: {error}") from None
    except cv2.error as error:
        raise ImageError(f"{name}: cannot be decoded ({_short_reason(error)})") from None
    except MemoryError as error:
        raise ImageError(f"{name}: cannot be decoded (insufficient memory: {error})") from None
    finally:
        log.setLogLevel(level)


def _short_reason(error: cv2.error) -> str:
    """Return OpenCV's reason without its source files: 'Insufficient memory: Failed to allocate 9 bytes'."""
    match = _OPENCV_REASON.search(str(error))
    if match is None:
        return str(error).strip()[:200]
    return f"{match[1]}: {' '.join(match[2].split())}"[:200]
