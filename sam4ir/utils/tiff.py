"""Read the first page of a TIFF (TIFF 6.0, and BigTIFF) within bounds, and rewrite its directory in a plain form.

OpenCV gives pixels of 8 bits as libtiff shows them, and others as they are stored: planes, inverted grey and alpha come
out differently by depth. So the tags are checked here, and OpenCV gets a directory whose meaning does not depend on it:
grey where 0 is black, one plane, an alpha that is not multiplied in, no orientation, no further pages.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from typing import TypeAlias

Bytes: TypeAlias = "bytes | mmap.mmap"

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_TAGS = 4096
MAX_PARTS = 1 << 20  # strips or tiles

_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1, 8: 2, 9: 4, 16: 8, 17: 8}  # bytes of a value by its type
_KEPT = (259, 266, 292, 293, 317, 320, 347, 529, 530, 531, 532)  # compression and colour tags that stay as they are
_USUAL = frozenset((254, *range(256, 285), 296, 305, 306, 317, 339))  # tags that change no meaning
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}  # photometric interpretation -> channels of colour
_COLOUR_NAMES = {4: "a mask", 8: "CIE Lab", 9: "ICC Lab", 10: "ITU Lab", 32803: "raw sensor data", 34892: "raw data"}
_FORMATS = {2: "int", 3: "float", 5: "complex int", 6: "complex"}
_NO_ALPHA = 0
_SHORT_NUMBERS = (258, 262, 277, 284, 338)  # tags of a plain directory that are written in 16 bits
DEFLATE_RATIO = 1032  # bytes that one byte of a deflate stream can stand for (RFC 1951: 258 bytes in 2 bits)
_RATIOS = {1: 1, 5: 2800, 8: DEFLATE_RATIO, 32946: DEFLATE_RATIO, 32773: 64}  # the same, by compression


class HeaderError(ValueError):
    """A file's header that is damaged, or states what is not read; the message is to follow the file's name."""


@dataclass(frozen=True)
class Tag:
    """One tag of a directory: its type, its number of values, and the bytes of its value field."""

    kind: int
    count: int
    field: bytes


@dataclass(frozen=True)
class FirstPage:
    """The first page of a TIFF whose tags were checked.

    size: (h, w) as stored. orientation: 1 to 8. bits, samples: of a pixel. photometric: how samples become colours.
    planar: whether each sample has a plane of its own. premultiplied: colours are stored times alpha.
    """

    size: tuple[int, int]
    orientation: int
    bits: int
    samples: int
    photometric: int
    planar: bool
    premultiplied: bool
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    directory: _Directory

    @property
    def inverted(self) -> bool:
        """Whether 0 is white."""
        return self.photometric == 0

    @property
    def ordinary(self) -> bool:
        """Whether OpenCV reads the file as it is meant, without a plain directory: RGB or grey, one page, no alpha."""
        plain = self.photometric in (1, 2) and self.samples == self.colours and not self.planar
        return plain and self.orientation == 1 and self.directory.last and self.directory.entries.keys() <= _USUAL

    @property
    def colours(self) -> int:
        """The samples without alpha."""
        return _COLOURS[self.photometric]


class _Directory:
    """The tags of the first directory, each value read within the file."""

    def __init__(self, data: Bytes) -> None:
        self.data = data
        self.order = "<" if data[:2] == b"II" else ">"
        self.big = data[:4] in MAGICS[2:]
        word, self.head, entry_bytes = ("Q", 16, 20) if self.big else ("I", 8, 12)
        self.word = word
        (first,) = self.unpack(word, 8 if self.big else 4)
        (count,) = self.unpack("Q" if self.big else "H", first)
        first += 8 if self.big else 2
        if not 0 < count <= MAX_TAGS:
            raise HeaderError(f"corrupt TIFF: {count} tags (1 to {MAX_TAGS} are read)")
        self.entries: dict[int, Tag] = {}
        for index in range(count):
            at = first + index * entry_bytes
            tag, kind, values = self.unpack(f"HH{word}", at)
            self.entries.setdefault(tag, Tag(kind, values, self.data[at + entry_bytes - self.field : at + entry_bytes]))
        (after,) = self.unpack(word, first + count * entry_bytes)
        self.last = after == 0

    @property
    def field(self) -> int:
        """The bytes of a value field."""
        return 8 if self.big else 4

    def unpack(self, form: str, at: int) -> tuple[int, ...]:
        """Return the numbers at a place. Raises HeaderError where the file ends before."""
        form = self.order + form
        end = at + struct.calcsize(form)
        if end > len(self.data):
            raise HeaderError(f"truncated TIFF: a directory at byte {at}, the file has {len(self.data)}")
        return struct.unpack(form, self.data[at:end])

    def values(self, tag: int, default: tuple[int, ...] = (), most: int = 64) -> tuple[int, ...]:
        """Return the values of a tag. Raises HeaderError for more than `most` values and for values of other types."""
        entry = self.entries.get(tag)
        if entry is None:
            return default
        form = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(entry.kind)
        if form is None or not 0 < entry.count <= most:
            raise HeaderError(f"corrupt TIFF: tag {tag} has {entry.count} values of type {entry.kind}")
        width = _WIDTHS[entry.kind] * entry.count
        if width <= self.field:
            return struct.unpack(f"{self.order}{entry.count}{form}", entry.field[:width])
        (at,) = struct.unpack(self.order + self.word, entry.field)
        return self.unpack(f"{entry.count}{form}", at)

    def value(self, tag: int, default: int | None = None) -> int:
        """Return the first value of a tag. Raises HeaderError where the tag is missing and has no default."""
        values = self.values(tag)
        if values:
            return values[0]
        if default is None:
            raise HeaderError(f"corrupt TIFF: tag {tag} is missing")
        return default


def read_page(data: Bytes, check: bool = True) -> FirstPage:
    """Return the first page of a TIFF. Raises HeaderError where it is damaged or of a kind that is not read.

    check: compare the stored bytes with the file's length and with the pixels, too.
    """
    directory = _Directory(data)
    if directory.values(254, (0,))[0] & 5:
        raise HeaderError("is a TIFF whose first page is a thumbnail or a mask; save the image as a file of its own")
    size = directory.value(257), directory.value(256)
    bits = directory.values(258, (1,))
    samples, photometric = directory.value(277, 1), directory.value(262)
    sample_format = directory.values(339, (1,))
    extra = directory.values(338, ())
    orientation = directory.value(274, 1)
    _check_type(bits, sample_format)
    _check_colours(bits[0], samples, photometric, directory)
    page = FirstPage(
        size,
        orientation if 1 <= orientation <= 8 else 1,
        bits[0],
        samples,
        photometric,
        directory.value(284, 1) == 2 and samples > 1,
        1 in extra[:1],
        *_parts(directory),
        directory,
    )
    _check_parts(page)
    if check:
        _check_bytes(page)
    return page


def _check_type(bits: tuple[int, ...], sample_format: tuple[int, ...]) -> None:
    """Raise HeaderError for numbers other than unsigned ones of 1, 2, 4, 8 or 16 bits."""
    if len(set(bits)) > 1 or len(set(sample_format)) > 1:
        raise HeaderError("is a TIFF whose channels have different types; convert it to 8 or 16 bits")
    if sample_format[0] in _FORMATS:
        raise HeaderError(f"pixels are {_FORMATS[sample_format[0]]}{bits[0]}; convert it to 8 or 16 bits (unsigned)")
    if bits[0] not in (1, 2, 4, 8, 16):
        raise HeaderError(f"pixels are of {bits[0]} bits; convert it to 8 or 16 bits")


def _check_colours(bits: int, samples: int, photometric: int, directory: _Directory) -> None:
    """Raise HeaderError for channels that OpenCV does not read, or not as they are meant."""
    if photometric not in _COLOURS:
        kind = _COLOUR_NAMES.get(photometric, f"photometric interpretation {photometric}")
        raise HeaderError(f"is a TIFF of {kind}, which is not read; convert it to RGB")
    colours = _COLOURS[photometric]
    planar, tiled = directory.value(284, 1) == 2, 322 in directory.entries
    if samples not in (colours, colours + 1) or (photometric in (3, 5, 6) and samples != colours):
        raise HeaderError(f"is a TIFF of {samples} channels, which is not read; save grey or RGB")
    if photometric in (3, 5, 6) and (bits == 16 or (planar and samples > 1)):
        raise HeaderError("is a TIFF of palette, CMYK or YCbCr colours, of 16 bits or in planes; convert it to RGB")
    if samples == 2 and (bits == 16 or tiled) and not planar:
        raise HeaderError("is a TIFF of grey and alpha, of 16 bits or in tiles, which is not read; drop its alpha")
    if bits < 8 and samples > 1:
        raise HeaderError(f"is a TIFF of {samples} channels of {bits} bits; convert it to 8 bits")
    if directory.value(259, 1) == 6:
        raise HeaderError("is a TIFF with the old form of JPEG (compression 6), which is not read; save it anew")


def _parts(directory: _Directory) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the offsets and the byte counts of strips or tiles."""
    tiled = 322 in directory.entries
    offsets = directory.values(324 if tiled else 273, (), MAX_PARTS)
    counts = directory.values(325 if tiled else 279, (), MAX_PARTS)
    if not offsets or len(offsets) != len(counts):
        raise HeaderError(f"corrupt TIFF: {len(offsets)} offsets and {len(counts)} lengths of strips or tiles")
    return offsets, counts


def _check_parts(page: FirstPage) -> None:
    """Raise HeaderError where the number of strips or tiles does not follow from the size."""
    h, w = page.size
    directory = page.directory
    if 322 in directory.entries:
        tile_w, tile_h = directory.value(322), directory.value(323)
        if tile_w % 16 or tile_h % 16 or not tile_w or not tile_h:
            raise HeaderError(f"corrupt TIFF: tiles of {tile_h}x{tile_w}")
        if tile_w * tile_h > max(1 << 26, 4 * h * w):
            raise HeaderError(f"corrupt TIFF: tiles of {tile_h}x{tile_w} in an image of {h}x{w}")
        parts = -(-w // tile_w) * -(-h // tile_h)
    else:
        rows = min(directory.value(278, h), h)
        parts = -(-h // rows) if rows else 0
    if page.planar:
        parts *= page.samples
    if parts != len(page.offsets):
        raise HeaderError(f"corrupt TIFF: {len(page.offsets)} strips or tiles instead of {parts}")


def _check_bytes(page: FirstPage) -> None:
    """Raise HeaderError where strips lie outside the file, share bytes, or cannot hold the pixels."""
    length = len(page.directory.data)
    for offset, count in zip(page.offsets, page.counts, strict=True):
        if offset + count > length:
            raise HeaderError(f"truncated TIFF: pixels up to byte {offset + count}, the file has {length}")
    stored = sum(page.counts)
    if stored > length:
        raise HeaderError(f"corrupt TIFF: its strips share bytes ({stored} bytes of pixels in a file of {length})")
    h, w = page.size
    needed = h * w * page.samples * page.bits // 8
    if page.photometric == 6:
        needed = h * w  # colours at a part of the resolution
    ratio = _RATIOS.get(page.directory.value(259, 1))
    if ratio is not None:
        refuse_bomb(needed, stored, ratio)


def refuse_bomb(needed: int, stored: int, ratio: int) -> None:
    """Raise HeaderError where the stored bytes cannot hold the pixels that the header states.

    needed: bytes of the pixels. ratio: bytes that a stored byte can stand for.
    """
    if needed > ratio * stored:
        raise HeaderError(f"is damaged: its header states {needed} bytes of pixels, more than {stored} bytes can hold")


def plain_copies(data: bytes, page: FirstPage) -> list[bytes]:
    """Return TIFF files that OpenCV reads as they are meant: the page, or one grey file for each colour of planes.

    Each is `data` with a new directory behind it. Where 0 is white the values are still to be inverted.
    """
    if page.ordinary:
        return [data]
    if not page.planar:
        return [_with_directory(data, page, slice(None), page.samples)]
    parts = len(page.offsets) // page.samples
    planes = page.samples if page.premultiplied else page.colours
    return [_with_directory(data, page, slice(i * parts, (i + 1) * parts), 1) for i in range(planes)]


def alpha_copy(data: bytes, page: FirstPage) -> bytes | None:
    """Return a TIFF whose last channel is the alpha of the page, or which is its plane of alpha; None without alpha."""
    if page.samples == page.colours:
        return None
    if not page.planar:
        return plain_copies(data, page)[0]
    parts = len(page.offsets) // page.samples
    return _with_directory(data, page, slice((page.samples - 1) * parts, None), 1)


def _with_directory(data: bytes, page: FirstPage, parts: slice, samples: int) -> bytes:
    """Return the file with a new first directory: the chosen strips or tiles, `samples` channels, and no other page."""
    directory = page.directory
    tiled = 322 in directory.entries
    photometric = page.photometric
    if photometric == 0 or (samples == 1 and page.planar):
        photometric = 1
    numbers: dict[int, tuple[int, ...]] = {
        256: (page.size[1],),
        257: (page.size[0],),
        258: (page.bits,) * samples,
        262: (photometric,),
        277: (samples,),
        284: (1,),
        324 if tiled else 273: page.offsets[parts],
        325 if tiled else 279: page.counts[parts],
    }
    if tiled:
        numbers |= {322: (directory.value(322),), 323: (directory.value(323),)}
    else:
        numbers[278] = (min(directory.value(278, page.size[0]), page.size[0]),)
    if samples > page.colours:
        numbers[338] = (_NO_ALPHA,)
    return _written(data, directory, numbers)


def _written(data: bytes, directory: _Directory, numbers: dict[int, tuple[int, ...]]) -> bytes:
    """Return the file with a directory of `numbers`, and of the tags that stay, at its end."""
    order, word, field = directory.order, directory.word, directory.field
    kind_of_place, form_of_place = (16, "Q") if directory.big else (4, "I")
    entries = {tag: directory.entries[tag] for tag in _KEPT if tag in directory.entries}
    base = len(data) + len(data) % 2
    tail = b""
    for tag, values in numbers.items():
        kind, form = kind_of_place, form_of_place
        if tag in _SHORT_NUMBERS:
            kind, form = 3, "H"
        packed = struct.pack(f"{order}{len(values)}{form}", *values)
        if len(packed) > field:
            place = base + len(tail)
            tail += packed + bytes(-len(packed) % 8)
            packed = struct.pack(order + word, place)
        entries[tag] = Tag(kind, len(values), packed.ljust(field, b"\0"))
    place = base + len(tail)
    tail += struct.pack(order + ("Q" if directory.big else "H"), len(entries))
    for tag in sorted(entries):
        entry = entries[tag]
        tail += struct.pack(f"{order}HH{word}", tag, entry.kind, entry.count) + entry.field
    tail += bytes(field)
    head = data[: directory.head - field] + struct.pack(order + word, place)
    return b"".join((head, memoryview(data)[directory.head :], bytes(len(data) % 2), tail))
