"""Adapt an EXIF block to a restored image, and bring it into a TIFF and out of one.

An EXIF block is a small TIFF file (EXIF 2.32, 4.5): a directory of tags, with the directories of the camera and of GPS
below it. Values are changed in their place, so that makers' notes, which hold offsets of their own, stay readable.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image

ORIENTATION, CAMERA, GPS = 0x0112, 0x8769, 0x8825  # tags: the last two hold the place of another directory
ICC_PROFILE = 34675  # the tag of a TIFF
_SIDES = (0xA002, 0xA003)  # of the camera's directory: width and height in pixels
_INTEROPERABILITY = 0xA005
_HEAD = b"Exif\0\0"  # what a JPEG has before the block
_SHORT, _LONG = 3, 4  # types of values
_MOST_TAGS = 4096
# Tags of the first directory that describe a picture and not how its pixels are stored.
DESCRIPTIVE = (270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 33432, 40091, 40092, 40093, 40094, 40095)


def exif_of_restored(block: bytes, height: int, width: int, turned: bool) -> bytes:
    """Return the block of an image that was restored to (height, width), without the head of a JPEG.

    Orientation becomes 1 where the pixels were turned by it, the sides become those of the new image, and the
    thumbnail, which shows the old one, is no longer referred to. A block that cannot be followed is returned as it is.
    Raises ValueError where the bytes are no EXIF.
    """
    block = block.removeprefix(_HEAD)
    if block[:4] not in (b"II*\0", b"MM\0*"):
        raise ValueError("it begins with no EXIF directory")
    order = "<" if block[:2] == b"II" else ">"
    data = bytearray(block)
    try:
        (first,) = struct.unpack_from(f"{order}I", data, 4)
        camera = None
        for at, tag in _tags(data, order, first):
            if tag == ORIENTATION and turned:
                _set_number(data, order, at, 1)
            elif tag == CAMERA:
                (camera,) = struct.unpack_from(f"{order}I", data, at + 8)
        (count,) = struct.unpack_from(f"{order}H", data, first)
        struct.pack_into(f"{order}I", data, first + 2 + 12 * count, 0)  # no directory of a thumbnail follows
        if camera is not None:
            for at, tag in _tags(data, order, camera):
                if tag in _SIDES:
                    _set_number(data, order, at, width if tag == _SIDES[0] else height)
    except struct.error:  # a directory that the block ends before
        return bytes(data)
    return bytes(data)


def _tags(data: bytearray, order: str, place: int) -> Iterator[tuple[int, int]]:
    """Yield (place, tag) of each entry of a directory."""
    (count,) = struct.unpack_from(f"{order}H", data, place)
    for index in range(min(count, _MOST_TAGS)):
        at = place + 2 + 12 * index
        (tag,) = struct.unpack_from(f"{order}H", data, at)
        yield at, tag


def _set_number(data: bytearray, order: str, at: int, number: int) -> None:
    """Set the one whole number of an entry; its type becomes long where 16 bits are too few."""
    kind, count = struct.unpack_from(f"{order}HI", data, at + 2)
    if count != 1 or kind not in (_SHORT, _LONG):
        return
    if kind == _SHORT and number < 1 << 16:
        struct.pack_into(f"{order}HH", data, at + 8, number, 0)
    else:
        struct.pack_into(f"{order}HII", data, at + 2, _LONG, 1, number)


def tiff_tags(data: bytes) -> dict[int, Any]:
    """Return the tags of a TIFF's first directory, or of an EXIF block, by number; the directories below as dicts.

    Raises ValueError, or an error of the library, where they cannot be read.
    """
    exif = Image.Exif()
    exif.load(data)
    tags = dict(exif)
    for below in (CAMERA, GPS):
        if below in tags:
            tags[below] = _plain(exif.get_ifd(below))
    return tags


def exif_of_tiff(tags: Mapping[int, Any]) -> bytes | None:
    """Return the EXIF block of what a TIFF's tags say about the picture; None where they say nothing."""
    exif = Image.Exif()
    for tag, value in tags.items():
        if tag in (*DESCRIPTIVE, ORIENTATION, CAMERA, GPS):
            exif[tag] = value
    if not len(exif):
        return None
    return exif.tobytes().removeprefix(_HEAD)


def _plain(tags: Mapping[int, Any]) -> dict[int, Any]:
    """Return a directory's tags without the place of the directory below it."""
    plain = dict(tags)
    plain.pop(_INTEROPERABILITY, None)
    return plain
