"""Encode a picture with its transparency, colour profile and EXIF block: PNG, JPEG, WebP, TIFF, BMP and AVIF."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin, TiffTags

from sam4ir.errors import UserError
from sam4ir.utils.containers import PNG_MAGIC
from sam4ir.utils.exif import CAMERA, DESCRIPTIVE, GPS, ICC_PROFILE, ORIENTATION, exif_of_restored, tiff_tags
from sam4ir.utils.image import encode_png
from sam4ir.utils.picture import PictureFile


@dataclass(frozen=True)
class PictureFormat:
    """What a file format can hold.

    name: as people write it. suffix: of its files. bits: the most of a channel. grey, alpha, profile, exif: whether it
    holds them. quality: the one that is taken where none is named; None for a format without losses.
    longest_exif: bytes.
    """

    name: str
    suffix: str
    bits: int = 8
    grey: bool = True
    alpha: bool = True
    profile: bool = True
    exif: bool = True
    quality: int | None = None
    longest_exif: int = 1 << 30


FORMATS = {
    "png": PictureFormat("PNG", ".png", 16),
    "jpg": PictureFormat("JPEG", ".jpg", alpha=False, quality=95, longest_exif=65_500),
    "webp": PictureFormat("WebP", ".webp", grey=False, quality=90),
    "tiff": PictureFormat("TIFF", ".tiff", 16),
    "bmp": PictureFormat("BMP", ".bmp", alpha=False, profile=False, exif=False),
    "avif": PictureFormat("AVIF", ".avif", quality=80),
}
_OTHER_SUFFIXES = {".jpeg": "jpg", ".tif": "tiff"}
WRITTEN_SUFFIXES = frozenset({*_OTHER_SUFFIXES, *(form.suffix for form in FORMATS.values())})
_EXIF_HEAD = b"Exif\0\0"  # what JPEG, WebP and AVIF get before the block from pillow
_STRIP = 1 << 20  # bytes of the pixels in a strip of a TIFF
_LONGEST_TIFF = 4_290_000_000  # bytes of pixels that places of 32 bits reach


def format_of(suffix: str) -> str:
    """Return the key of FORMATS for one of WRITTEN_SUFFIXES, in any case."""
    suffix = suffix.lower()
    return _OTHER_SUFFIXES.get(suffix, suffix.removeprefix("."))


def check_format(key: str, quality: int | None) -> None:
    """Raise UserError where this format cannot be written here, or has no such quality."""
    form = FORMATS[key]
    if quality is not None and form.quality is None:
        raise UserError(f"--quality: {form.name} stores pixels without loss and has none; leave it out")
    if quality is not None and not 1 <= quality <= 100:
        raise UserError(f"--quality: {quality} is none; give 1 (smallest file) to 100 (best)")
    Image.init()
    if form.name.upper() not in Image.SAVE:
        raise UserError(f"--format: the installed pillow does not write {form.name}; update it, or name another format")


def encode_picture(picture: PictureFile, key: str, quality: int | None = None) -> tuple[bytes, tuple[str, ...]]:
    """Return a picture as the bytes of a file, and notes on what the format cannot hold.

    key: of FORMATS. quality: 1 to 100 for JPEG, WebP (where 100 has no loss) and AVIF, None for the format's own.
    The EXIF block is adapted to the picture (utils.exif).
    """
    form = FORMATS[key]
    quality = quality or form.quality
    icc, notes = _profile(picture, form)
    exif, more = _exif(picture, form)
    notes += more
    channels = [picture.pixels]
    if picture.alpha is not None and form.alpha:
        channels.append(picture.alpha)
    elif picture.alpha is not None:
        notes.append(f"{form.name} holds no transparency")
    pixels = np.concatenate(channels, axis=2)
    if pixels.dtype == np.uint16 and form.bits == 8:
        notes.append(f"{form.name} holds 8 of its 16 bits")
        pixels = of_type(pixels, np.dtype(np.uint8))
    return _ENCODERS[key](pixels, icc, exif, quality), tuple(notes)


def _profile(picture: PictureFile, form: PictureFormat) -> tuple[bytes | None, list[str]]:
    """Return the colour profile where the file can hold it, and a note where it cannot.

    A profile is of RGB or of grey images (ICC.1:2022, 7.2.6: its colour space).
    """
    if not picture.icc:
        return None, []
    if not form.profile:
        return None, [f"{form.name} holds no colour profile"]
    space = b"RGB "
    if picture.pixels.shape[2] == 1 and form.grey:
        space = b"GRAY"
    if picture.icc[16:20] != space:
        return None, ["its colour profile is for other channels than the result has and is not copied"]
    return picture.icc, []


def _exif(picture: PictureFile, form: PictureFormat) -> tuple[bytes | None, list[str]]:
    """Return the EXIF block of the new picture where the file can hold it, and a note where it cannot."""
    if not picture.exif:
        return None, []
    if not form.exif:
        return None, [f"{form.name} holds no EXIF"]
    height, width = picture.pixels.shape[:2]
    try:
        exif = exif_of_restored(picture.exif, height, width, picture.turned)
    except ValueError as error:
        return None, [f"its EXIF is damaged ({error}) and is not copied"]
    if len(exif) > form.longest_exif:
        return None, [f"{form.name} holds no EXIF of {len(exif)} bytes"]
    return exif, []


def of_type(pixels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return uint8 or uint16 pixels in the other of these types: 255 is 65535, and values between are rounded."""
    if pixels.dtype == dtype:
        return pixels
    if dtype == np.uint16:
        return pixels.astype(np.uint16) * np.uint16(257)
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _png(pixels: np.ndarray, icc: bytes | None, exif: bytes | None, quality: int | None) -> bytes:
    """Encode a PNG; its chunks of profile and EXIF stand before the pixels (ISO/IEC 15948:2023, 11.3)."""
    if pixels.shape[2] == 2:
        data = _png_of_grey_and_alpha(pixels)
    else:
        data = encode_png(pixels)
    extra = b""
    if icc:
        extra += _chunk(b"iCCP", b"profile\0\0" + zlib.compress(icc))
    if exif:
        extra += _chunk(b"eXIf", exif)
    end_of_header = len(PNG_MAGIC) + 25
    return data[:end_of_header] + extra + data[end_of_header:]


def _png_of_grey_and_alpha(pixels: np.ndarray) -> bytes:
    """Encode (h, w, 2) as PNG, which neither OpenCV nor pillow does in 16 bits; each row stores its difference."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).reshape(height, -1).view(np.uint8)
    differences = np.diff(rows, axis=0, prepend=np.zeros((1, rows.shape[1]), np.uint8))
    up = np.full((height, 1), 2, np.uint8)  # the filter: the byte above (9.2)
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, 4, 0, 0, 0)
    body = zlib.compress(np.hstack([up, differences]).tobytes(), 6)
    return PNG_MAGIC + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _saved(pixels: np.ndarray, kind: str, icc: bytes | None, exif: bytes | None, **settings: Any) -> bytes:
    """Encode uint8 pixels by pillow."""
    file = io.BytesIO()
    if icc:
        settings["icc_profile"] = icc
    if exif:
        settings["exif"] = _EXIF_HEAD + exif
    if pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    try:
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, kind, **settings)
    except (OSError, ValueError) as error:
        height, width = pixels.shape[:2]
        raise UserError(f"an image of {height}x{width} pixels cannot be written as {kind} ({error})") from error
    return file.getvalue()


def _jpg(pixels: np.ndarray, icc: bytes | None, exif: bytes | None, quality: int | None) -> bytes:
    return _saved(pixels, "JPEG", icc, exif, quality=quality)


def _webp(pixels: np.ndarray, icc: bytes | None, exif: bytes | None, quality: int | None) -> bytes:
    if quality == 100:
        return _saved(pixels, "WEBP", icc, exif, lossless=True, exact=True)
    return _saved(pixels, "WEBP", icc, exif, quality=quality)


def _bmp(pixels: np.ndarray, icc: bytes | None, exif: bytes | None, quality: int | None) -> bytes:
    return _saved(pixels, "BMP", None, None)


def _avif(pixels: np.ndarray, icc: bytes | None, exif: bytes | None, quality: int | None) -> bytes:
    return _saved(pixels, "AVIF", icc, exif, quality=quality)


def _tiff(pixels: np.ndarray, icc: bytes | None, exif: bytes | None, quality: int | None) -> bytes:
    """Encode a TIFF of one page: deflated strips, with the tags of the EXIF block where a TIFF has them."""
    height, width, channels = pixels.shape
    colours = 3 if channels >= 3 else 1
    ifd = TiffImagePlugin.ImageFileDirectory_v2()
    if exif:
        _describe(ifd, exif)
    if icc:
        ifd.tagtype[ICC_PROFILE] = 7
        ifd[ICC_PROFILE] = icc
    ifd[256], ifd[257] = width, height
    ifd[258] = (8 * pixels.dtype.itemsize,) * channels
    ifd[259], ifd[262], ifd[277], ifd[284] = 8, 2 if colours == 3 else 1, channels, 1
    if channels > colours:
        ifd[338] = 2  # alpha that is not multiplied in
    rows = max(1, min(height, _STRIP // (width * channels * pixels.dtype.itemsize)))
    little = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)
    strips = []
    for first in range(0, height, rows):
        strips.append(zlib.compress(little[first : first + rows].tobytes(), 6))
    ifd[278] = rows
    ifd[279] = tuple(map(len, strips))
    places = [0]
    for strip in strips[:-1]:
        places.append(places[-1] + len(strip))
    if places[-1] + len(strips[-1]) > _LONGEST_TIFF:
        raise UserError(f"an image of {height}x{width} pixels makes a TIFF of more than 4 GB; write PNG")
    ifd.tagtype[273] = TiffTags.LONG
    ifd[273] = tuple(places)  # pillow counts them from the end of the directory
    file = io.BytesIO()
    ifd.save(file)
    return file.getvalue() + b"".join(strips)


def _describe(ifd: TiffImagePlugin.ImageFileDirectory_v2, exif: bytes) -> None:
    """Add the tags of an EXIF block that describe the picture; of a block that cannot be read none."""
    try:
        tags = tiff_tags(exif)
    except (OSError, ValueError, SyntaxError, LookupError, TypeError, struct.error):
        return
    for tag, value in tags.items():
        if tag in (CAMERA, GPS):
            ifd.tagtype[tag] = TiffTags.LONG
        if tag in (*DESCRIPTIVE, ORIENTATION, CAMERA, GPS):
            ifd[tag] = value


_Encoder = Callable[[np.ndarray, "bytes | None", "bytes | None", "int | None"], bytes]
_ENCODERS: dict[str, _Encoder] = {
    "png": _png,
    "jpg": _jpg,
    "webp": _webp,
    "tiff": _tiff,
    "bmp": _bmp,
    "avif": _avif,
}
