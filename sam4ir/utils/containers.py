"""Read the headers of image files and check that a file is whole, without decoding its pixels.

A decoder believes the header, fills missing rows with grey and allocates what the header states. So the header is read
here first, within bounds: sizes, tags and counts against the bytes that the file has.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sam4ir.utils import tiff
from sam4ir.utils.tiff import DEFLATE_RATIO, Bytes, HeaderError, refuse_bomb

MAX_SIDE, MAX_PIXELS = 1 << 20, 1 << 30  # of an image that OpenCV decodes (CV_IO_MAX_IMAGE_*)
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8"

_OTHERS = {
    b"GIF8": "GIF",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a pointer of git-lfs",
    b"P4": "PBM",
    b"P5": "PGM",
    b"P6": "PPM",
}


@dataclass(frozen=True)
class Header:
    """The header of an image file.

    kind: PNG, JPEG, TIFF, BMP or WebP. size: (h, w) as stored. orientation: of EXIF, 1 to 8; 1 shows the pixels as
    they are stored. page: the tags of a TIFF, None for others.
    """

    kind: str
    size: tuple[int, int]
    orientation: int = 1
    page: tiff.FirstPage | None = None

    @property
    def turned_size(self) -> tuple[int, int]:
        """The (h, w) after the orientation is applied; 5 to 8 swap the sides."""
        h, w = self.size
        if self.orientation >= 5:
            return w, h
        return h, w


def read_header(data: Bytes, check: bool = True) -> Header:
    """Return the header of an image file. Raises HeaderError where the file is damaged, too large or not read.

    data: the file's bytes. check: examine the file to its end (checksums, missing ends), not the header alone.
    """
    if not len(data):
        raise HeaderError("the file is empty")
    header = _reader(data)(data, check)
    h, w = header.size
    if min(h, w) < 1:
        raise HeaderError(f"is damaged; its header states {h}x{w} pixels")
    if max(h, w) > MAX_SIDE or h * w > MAX_PIXELS:
        raise HeaderError(
            f"is damaged, or too large to be read (at most 2^30 pixels); its header states {h}x{w} pixels"
        )
    return header


def _reader(data: Bytes) -> Callable[[Bytes, bool], Header]:
    """Return the reader of a file's kind, by its first bytes. Raises HeaderError for a kind that is not read."""
    head = data[:32]
    if head.startswith(PNG_MAGIC):
        return _png
    if head.startswith(JPEG_MAGIC):
        return _jpeg
    if head[:4] in tiff.MAGICS:
        return _tiff
    if head.startswith(b"BM"):
        return _bmp
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _webp
    kind = next((kind for magic, kind in _OTHERS.items() if head.startswith(magic)), None)
    if kind is None and head[4:8] == b"ftyp":
        kind = "HEIC or AVIF"
    if kind is not None:
        raise HeaderError(f"is {kind}; convert it to PNG (PNG, JPEG, BMP, TIFF and WebP are read)")
    raise HeaderError("cannot be decoded; it is damaged or no PNG, JPEG, BMP, TIFF or WebP")


def _png(data: Bytes, check: bool) -> Header:
    """Read a PNG (ISO/IEC 15948, 5.3): chunks of length, type, data and CRC up to IEND."""
    at = len(PNG_MAGIC)
    size = (0, 0)
    row_bytes, orientation = 0, 1
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if end + 4 > len(data):
            break
        if check and zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise HeaderError(f"corrupt PNG: checksum of chunk {kind!r} at byte {at} does not match")
        if kind == b"IHDR" and end - at >= 21:
            size = int.from_bytes(data[at + 12 : at + 16], "big"), int.from_bytes(data[at + 8 : at + 12], "big")
            channels = {2: 3, 4: 2, 6: 4}.get(data[at + 17], 1)
            row_bytes = (size[1] * channels * data[at + 16] + 7) // 8
        elif kind == b"eXIf":
            orientation = _exif_orientation(data[at + 8 : end])
        elif kind == b"acTL":
            raise HeaderError("is an animated PNG; save the frame that you need as an image of its own")
        elif kind == b"IEND":
            if max(size) <= MAX_SIDE and size[0] * size[1] <= MAX_PIXELS:
                refuse_bomb(size[0] * row_bytes, len(data), DEFLATE_RATIO)
            return Header("PNG", size, orientation)
        at = end + 4
    if check or not size[0]:
        raise HeaderError(f"truncated PNG: {len(data)} bytes end before IEND")
    return Header("PNG", size, orientation)


def _jpeg(data: Bytes, check: bool) -> Header:
    """Read a JPEG (ITU T.81, B.1): segments up to the first scan, then an end-of-image marker.

    The search for the end starts at the scan because a thumbnail in the header has an end marker of its own.
    """
    at = 2
    size, orientation = None, 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xE1 and not orientation and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _exif_orientation(data[at + 10 : at + _segment_length(data, at)])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and at + 9 <= len(data):
            size = _jpeg_frame(data, at, marker)
        if marker == 0xDA and size is not None:
            if check and data.find(b"\xff\xd9", at) < 0:
                raise HeaderError(f"truncated JPEG: no end marker in {len(data)} bytes")
            return Header("JPEG", size, orientation or 1)
        at += _segment_length(data, at)
    if check or size is None:
        raise HeaderError(f"truncated or corrupt JPEG: no image data in {len(data)} bytes")
    return Header("JPEG", size, orientation or 1)


def _jpeg_frame(data: Bytes, at: int, marker: int) -> tuple[int, int]:
    """Return (h, w) of a frame header (ITU T.81, B.2.2). Raises HeaderError for frames that OpenCV does not decode."""
    if data[at + 4] != 8:
        raise HeaderError(f"is a JPEG of {data[at + 4]} bits; convert it to 16-bit PNG")
    if marker not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA):
        raise HeaderError("is a lossless or hierarchical JPEG, which is not read; convert it to PNG")
    return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")


def _segment_length(data: Bytes, at: int) -> int:
    """Return the bytes of the JPEG segment whose marker begins at `at`; a fill byte counts as a segment of one byte."""
    if data[at + 1] == 0xFF:
        return 1
    return 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _exif_orientation(block: bytes) -> int:
    """Return the orientation 1 to 8 of an EXIF block (a TIFF directory, EXIF 2.32, 4.6.4); 1 where it has none."""
    if block.startswith(b"Exif\0\0"):
        block = block[6:]
    if block[:2] not in (b"II", b"MM"):
        return 1
    order: Literal["little", "big"] = "little" if block[:2] == b"II" else "big"

    def number(at: int, count: int) -> int:
        return int.from_bytes(block[at : at + count], order)

    first = number(4, 4)
    for index in range(min(number(first, 2), len(block) // 12)):
        at = first + 2 + 12 * index
        if number(at, 2) == 0x0112 and number(at + 4, 4) == 1:
            width = {1: 1, 3: 2, 4: 4}.get(number(at + 2, 2), 0)
            value = number(at + 8, width)
            return value if 1 <= value <= 8 else 1
    return 1


def _tiff(data: Bytes, check: bool) -> Header:
    """Read the first directory of a TIFF; see tiff.read_page."""
    page = tiff.read_page(data, check)
    return Header("TIFF", page.size, page.orientation, page)


def _bmp(data: Bytes, check: bool) -> Header:
    """Read a BMP: 1, 4, 8 or 24 bits, 32 bits of blue, green, red and one byte more, run lengths of 4 and 8 bits."""

    def number(at: int, count: int, signed: bool = False) -> int:
        return int.from_bytes(data[at : at + count], "little", signed=signed)

    if len(data) < 26:
        raise HeaderError("truncated BMP: no header")
    start, header = number(10, 4), number(14, 4)
    if header == 12:
        w, h, bits, compression = number(18, 2), number(20, 2), number(24, 2), 0
    elif header >= 40 and len(data) >= 54:
        w, h, bits, compression = number(18, 4), number(22, 4, True), number(28, 2), number(30, 4)
    else:
        raise HeaderError("truncated BMP, or of an unknown kind")
    masks = (number(54, 4), number(58, 4), number(62, 4))
    if bits == 32 and compression in (3, 6) and masks == (0xFF0000, 0xFF00, 0xFF):
        compression = 0
    if (bits, compression) not in ((1, 0), (4, 0), (8, 0), (24, 0), (32, 0), (4, 2), (8, 1)):
        raise HeaderError(f"is a BMP of {bits} bits, compression {compression}, which is not read; convert it to PNG")
    h = abs(h)
    pixels = (w * bits + 31) // 32 * 4 * h
    if compression:
        refuse_bomb(w * h, len(data), 255)
    elif check and start + pixels > len(data):
        raise HeaderError(f"truncated BMP: {len(data)} bytes instead of {start + pixels}")
    return Header("BMP", (h, w))


def _webp(data: Bytes, check: bool) -> Header:
    """Read a WebP (RFC 9649): chunks of type, length and data in a RIFF file."""
    length = 8 + int.from_bytes(data[4:8], "little")
    if check and length > len(data):
        raise HeaderError(f"truncated WebP: {len(data)} bytes instead of {length}")
    at, orientation = 12, 1
    size: tuple[int, int] | None = None
    while at + 8 <= min(length, len(data)):
        kind, end = data[at : at + 4], at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        body = data[at + 8 : min(end, at + 18)]
        if kind == b"VP8X" and body and body[0] & 2:
            raise HeaderError("is an animated WebP; save the frame that you need as an image of its own")
        if kind == b"EXIF":
            orientation = _exif_orientation(data[at + 8 : end])
        elif size is None:
            size = _webp_size(kind, body)
        at = end + end % 2
    if size is None:
        raise HeaderError("truncated or corrupt WebP: no image data")
    return Header("WebP", size, orientation)


def _webp_size(kind: bytes, body: bytes) -> tuple[int, int] | None:
    """Return (h, w) by the first ten bytes of a chunk; None for one that does not state a size."""
    if kind == b"VP8X" and len(body) == 10:
        return 1 + int.from_bytes(body[7:10], "little"), 1 + int.from_bytes(body[4:7], "little")
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(body[8:10], "little") & 0x3FFF, int.from_bytes(body[6:8], "little") & 0x3FFF
    if kind == b"VP8L" and body[:1] == b"\x2f":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    return None
