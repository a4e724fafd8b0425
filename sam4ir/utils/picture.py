"""Read a picture whole: its pixels as decode_image gives them, and what a result should keep of the file beside them.

Networks need pixels alone, and data sets read no more (utils.image). A restored picture should also keep the
transparency, the colour profile, the EXIF block and the number of channels of the file that it came from.
"""

from __future__ import annotations

import io
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms

from sam4ir.errors import first_line
from sam4ir.utils import containers, tiff
from sam4ir.utils.containers import PNG_MAGIC, Header
from sam4ir.utils.exif import ICC_PROFILE, ORIENTATION, exif_of_tiff, tiff_tags
from sam4ir.utils.image import (
    IMAGE_SUFFIXES,
    ExifOrientation,
    ImageError,
    decode_alpha,
    decode_image,
    image_header,
    to_grey,
    turned,
)

PICTURE_SUFFIXES = IMAGE_SUFFIXES | {".gif", ".avif"}
_limit = threading.Lock()
_OF_PILLOW = (  # what its readers raise for damaged files
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    RuntimeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    ImageCms.PyCMSError,
)


@dataclass(frozen=True)
class PictureFile:
    """The pixels of a file, and what a result keeps of it.

    pixels: (h, w, c) RGB or grey, uint8 or uint16. alpha: (h, w, 1) of the same type, None for an opaque file. grey:
    whether the file is grey, whatever the channels of pixels. icc, exif: the colour profile and the EXIF block as they
    are stored. turned: whether the pixels were turned by the EXIF orientation. notes: what was converted or is lost.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    turned: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Extras:
    """What pillow reads beside the pixels. mode: pillow's name of the channels, '' where it is not known."""

    mode: str = ""
    icc: bytes | None = None
    exif: bytes | None = None
    notes: tuple[str, ...] = ()


def read_picture(
    data: bytes, name: str, channels: Literal[1, 3] = 3, exif_orientation: ExifOrientation = "apply"
) -> PictureFile:
    """Read an image file: PNG, JPEG, BMP, TIFF, WebP, GIF, or AVIF where pillow knows it; recognised by content.

    data: the file's bytes; name: the file's name for error messages. Pixels are those of utils.image.decode_image,
    except for CMYK with a colour profile, which becomes sRGB by it, and for kinds that decode_image refuses: of a GIF
    and of animations the first frame counts.
    Raises ImageError where the file cannot be read.
    """
    if _is_read_by_pillow(data):
        return _by_pillow(data, name, channels, exif_orientation)
    header = image_header(data, name)
    extras = _extras(data, header)
    notes = list(extras.notes)
    icc, pixels = extras.icc, None
    if extras.mode == "CMYK":
        pixels, note = _from_cmyk(data, icc)
        notes.append(note)
        icc = None
    if pixels is None:
        pixels = decode_image(data, name, channels, exif_orientation)
    else:
        pixels = turned(_of_channels(pixels, channels), header.orientation, exif_orientation)
    return PictureFile(
        pixels,
        _alpha(data, name, header, exif_orientation),
        _is_grey(data, header, extras.mode),
        icc,
        extras.exif,
        header.orientation != 1 and exif_orientation == "apply",
        tuple(notes),
    )


def _is_read_by_pillow(data: bytes) -> bool:
    """Return whether a file is of a kind that decode_image refuses and pillow reads: GIF, AVIF, an animation."""
    if data.startswith(b"GIF8") or (data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis")):
        return True
    if data.startswith(PNG_MAGIC):
        return b"acTL" in data[: data.find(b"IDAT") + 1]
    return data[8:16] == b"WEBPVP8X" and len(data) > 20 and bool(data[20] & 2)


def _by_pillow(data: bytes, name: str, channels: Literal[1, 3], exif_orientation: ExifOrientation) -> PictureFile:
    """Read the first frame as pillow decodes it. Raises ImageError."""
    try:
        with Image.open(io.BytesIO(data)) as file:
            extras = _extras_of(file)
            frames, stated = getattr(file, "n_frames", 1), file.getexif().get(ORIENTATION)
            grey, frame = file.mode in ("1", "L", "LA"), file.convert("RGBA")
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: is of a kind that this pillow does not read; convert it to PNG") from None
    except _OF_PILLOW as error:
        raise ImageError(
            f"{name}: cannot be decoded ({first_line(error)}); it is damaged, or convert it to PNG"
        ) from None
    orientation = 1
    if isinstance(stated, int) and 1 <= stated <= 8:
        orientation = stated
    notes = extras.notes
    if frames > 1:
        notes += (f"is an animation of {frames} frames, of which the first is restored",)
    rgba = turned(np.asarray(frame), orientation, exif_orientation)
    alpha: np.ndarray | None = np.ascontiguousarray(rgba[..., 3:])
    if (rgba[..., 3] == 255).all():
        alpha = None
    return PictureFile(
        _of_channels(np.ascontiguousarray(rgba[..., :3]), channels),
        alpha,
        grey,
        extras.icc,
        extras.exif,
        orientation != 1 and exif_orientation == "apply",
        notes,
    )


def _of_channels(pixels: np.ndarray, channels: Literal[1, 3]) -> np.ndarray:
    """Return RGB pixels, or their luma."""
    if channels == 1:
        return to_grey(pixels)
    return pixels


def _extras(data: bytes, header: Header) -> _Extras:
    """Return what pillow reads beside the pixels; where it cannot, a note says so and the pixels still count."""
    try:
        if header.page is not None:
            return _extras_of_tiff(data, header.page)
        with _any_size(), Image.open(io.BytesIO(data)) as file:
            return _extras_of(file)
    except _OF_PILLOW as error:
        return _Extras(notes=(f"its colour profile and EXIF cannot be read ({first_line(error)}) and are not copied",))


@contextmanager
def _any_size() -> Iterator[None]:
    """Let pillow open a file of any size inside the block: sizes were compared with the file's bytes before."""
    with _limit:
        largest, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, containers.MAX_PIXELS
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = largest


def _extras_of(file: Image.Image) -> _Extras:
    """Return mode, colour profile and EXIF of an open file."""
    notes: tuple[str, ...] = ()
    if file.info.get("xmp") or file.info.get("XML:com.adobe.xmp"):
        notes = ("its XMP is not copied",)
    return _Extras(file.mode, file.info.get("icc_profile") or None, file.info.get("exif") or None, notes)


def _extras_of_tiff(data: bytes, page: tiff.FirstPage) -> _Extras:
    """Return mode, colour profile and EXIF of a TIFF's tags."""
    mode = "CMYK" if page.photometric == 5 else ""
    if data[:4] in tiff.MAGICS[2:]:
        return _Extras(mode, notes=("its colour profile and EXIF are those of a BigTIFF and are not copied",))
    tags = tiff_tags(data)
    icc = tags.get(ICC_PROFILE)
    notes: tuple[str, ...] = ()
    if 700 in tags:
        notes = ("its XMP is not copied",)
    return _Extras(mode, icc or None, exif_of_tiff(tags), notes)


def _is_grey(data: bytes, header: Header, mode: str) -> bool:
    """Return whether a file stores grey values."""
    if header.page is not None:
        return header.page.photometric in (0, 1)
    if header.kind == "PNG":
        return data[25] in (0, 4)
    return mode in ("1", "L", "LA")


def _alpha(data: bytes, name: str, header: Header, exif_orientation: ExifOrientation) -> np.ndarray | None:
    """Return the transparency of a file; None where all of it is opaque, and for files without one."""
    if not _may_be_transparent(data, header):
        return None
    alpha = decode_alpha(data, name, exif_orientation)
    if alpha is None:
        alpha = turned(_alpha_by_pillow(data, name), header.orientation, exif_orientation)
    if (alpha == np.iinfo(alpha.dtype).max).all():
        return None
    return alpha


def _may_be_transparent(data: bytes, header: Header) -> bool:
    """Return whether a file has a channel, a colour or a palette of alpha."""
    if header.page is not None:
        return header.page.samples > header.page.colours
    if header.kind == "PNG":
        return data[25] in (4, 6) or b"tRNS" in data[: data.find(b"IDAT") + 1]
    return header.kind == "WebP" and data[12:16] != b"VP8 "


def _alpha_by_pillow(data: bytes, name: str) -> np.ndarray:
    """Return the alpha (h, w, 1) uint8 of kinds whose alpha OpenCV drops: grey with a transparent value, grey TIFF."""
    try:
        with _any_size(), Image.open(io.BytesIO(data)) as file:
            return np.asarray(file.convert("RGBA"))[..., 3:]
    except _OF_PILLOW as error:
        raise ImageError(
            f"{name}: its transparency cannot be read ({first_line(error)}); save it without alpha"
        ) from None


def _from_cmyk(data: bytes, icc: bytes | None) -> tuple[np.ndarray | None, str]:
    """Return the sRGB pixels of CMYK by its colour profile, as stored, and a note; None where it has no good one."""
    if icc is None or icc[16:20] != b"CMYK":
        return None, "is CMYK without a colour profile; its colours are an estimate"
    try:
        with _any_size(), Image.open(io.BytesIO(data)) as file:
            file.load()
        picture: Any = ImageCms.profileToProfile(
            file,
            ImageCms.ImageCmsProfile(io.BytesIO(icc)),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except _OF_PILLOW as error:
        return None, f"is CMYK whose colour profile cannot be used ({first_line(error)}); its colours are an estimate"
    return np.asarray(picture), "is CMYK; its colours became sRGB by its colour profile"
