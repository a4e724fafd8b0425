"""The mask record: all masks of one image as bytes, which a mask store holds as the value of the image's key.

A record is: header | columns | region of each atom | atoms x masks bits | tile index | tiles. Everything behind the
header is a zstd frame that is decompressed only when it is needed. Tiles are 64 x 64 pieces of the atom map (smaller at
the right and bottom edge), so that a window decompresses only the tiles it meets. The index holds one number for each
tile: its length in bytes, or the atom that fills the whole tile, which is then not stored.

Every byte that is read is checked: a CRC-32 ends the header, and each frame has a checksum of its content. Numbers in
the header are compared with the record's length before memory is allocated for them.

Versions 1 and 2 are still read. They have no checksums. Version 1 has byte offsets instead of the index, stores every
tile, and has no labels of one byte.
"""

from __future__ import annotations

import itertools
import math
import struct
import threading
import zlib
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

from sam4ir import regions
from sam4ir.errors import UserError
from sam4ir.utils.containers import MAX_PIXELS

FORMAT_VERSION = 3
READABLE_VERSIONS = (1, 2, 3)
CHECKED_SINCE = 3  # the first version with checksums
TILE = 64
_MAGIC = b"S4MR"
_LEVEL = 9
# magic, version, label bytes, tile, h, w, masks, atoms, bytes of the three frames, sha256 of the image file
_HEADER = struct.Struct("<4sHHIIIIIIII32s")
_LENGTHS = struct.Struct("<II")  # behind the header from version 2 on: bytes of the tile index and of all tiles
_CRC = struct.Struct("<I")  # behind the lengths from version 3 on: CRC-32 of all bytes before it
_CRC_AT = _HEADER.size + _LENGTHS.size
_SIZES = struct.Struct("<4xH22x3I32x2I")  # of header and lengths: the version and the bytes of all frames and tiles
_CHECKSUM_FLAG = 4  # in byte 4 of a zstd frame (RFC 8878): a checksum of the content ends the frame
_LARGEST_RATIO_BITS = 15  # zstd's smallest block has 4 bytes and gives 2^17
# What a header may claim: so much in any record, or so many times the record's bytes. Records of real masks stay below
# a hundredth of it.
_MASKS, _MASKS_A_BYTE = 1 << 20, 1 << 6
_BITS, _BITS_A_BYTE = 1 << 26, 1 << 12  # of the table of atoms x masks
_WINDOW, _WINDOW_A_BYTE = 1 << 27, 1 << 14  # pixels that are read at once
# one float64 column each, in this order; 4 for the box
_COLUMNS = ("area", "x", "y", "width", "height", "predicted_iou", "stability_score", "spe_sum")


class MaskStoreError(UserError):
    """Raised where a mask store or record is missing, damaged, not ours, or belongs to another image."""


class MaskColumns(NamedTuple):
    """The numbers that a record holds for each mask beside its pixels: (n,) float64, boxes (n, 4) XYWH."""

    area: NDArray[np.float64]
    boxes: NDArray[np.float64]
    predicted_iou: NDArray[np.float64]
    stability_score: NDArray[np.float64]
    spe_sum: NDArray[np.float64]


class _Zstd(threading.local):
    """One compressor and one decompressor for each thread: threads must not share zstandard's objects."""

    def __init__(self) -> None:
        self.reader = zstandard.ZstdDecompressor()
        self.writer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)


_ZSTD = _Zstd()


def encode_record(
    atoms: regions.Atoms, region: NDArray[np.int32], columns: MaskColumns, image_sha256: bytes = b""
) -> bytes:
    """Return the record's bytes; equal arguments give equal bytes.

    region: (atoms,) number + 1 of the mask on top of each atom, 0 where no mask lies. image_sha256: 32 bytes, or
    empty where the image that the generator read is not known. Raises MaskStoreError for more masks or pixels than a
    record can hold.
    """
    labels, table = atoms
    h, w = labels.shape
    compress = _ZSTD.writer.compress
    column_table = np.column_stack([*columns[:1], columns.boxes, *columns[2:]])
    frames = [
        compress(np.asfortranarray(column_table, "<f8").T.tobytes()),
        compress(region.astype("<i4").tobytes()),
        compress(np.packbits(table, axis=1, bitorder="little").tobytes()),
    ]
    stored_labels = labels.astype(_label_type(len(table)), copy=False)
    index, tiles = _encode_tiles(stored_labels)
    frames.append(compress(index))
    lengths = list(map(len, frames))
    header = _HEADER.pack(
        _MAGIC,
        FORMAT_VERSION,
        stored_labels.itemsize,
        TILE,
        h,
        w,
        table.shape[1],
        len(table),
        *lengths[:3],
        image_sha256,
    )
    header += _LENGTHS.pack(lengths[3], sum(map(len, tiles)))
    record = b"".join([header, _CRC.pack(zlib.crc32(header)), *frames, *tiles])
    MaskRecord(record, "the masks")  # whatever is written can be read
    return record


def encode_again(record: MaskRecord) -> bytes:
    """Return the bytes of a record of any version in the newest one, which holds the same."""
    table = record._columns
    columns = MaskColumns(table[0], table[1:5].T, *table[5:])
    atoms = regions.Atoms(record.labels(0, 0, *record.size), record.table)
    return encode_record(atoms, record._region, columns, bytes.fromhex(record.image_sha256 or ""))


def _encode_tiles(labels: NDArray[Any]) -> tuple[bytes, list[bytes]]:
    """Return the index (byte planes, not compressed) and the compressed tiles; a tile of a single atom has no bytes."""
    h, w = labels.shape
    index: list[int] = []
    tiles: list[bytes] = []
    for y in range(0, h, TILE):
        for x in range(0, w, TILE):
            tile = labels[y : y + TILE, x : x + TILE]
            atom = int(tile[0, 0])
            if (tile == atom).all():
                index.append(2 * atom + 1)
            else:
                tiles.append(_ZSTD.writer.compress(tile.tobytes()))
                index.append(2 * len(tiles[-1]))
    planes = np.array(index, "<u4").view(np.uint8).reshape(-1, 4).T  # high bytes are mostly 0
    return planes.tobytes(), tiles


def _label_type(atom_count: int) -> np.dtype:
    """Return the smallest unsigned type that numbers all atoms."""
    for name, size in (("u1", 2**8), ("<u2", 2**16)):
        if atom_count <= size:
            return np.dtype(name)
    return np.dtype("<u4")


def begins_as_record(data: bytes | memoryview) -> bool:
    """Return whether a value of an LMDB looks like a mask record of any version."""
    return len(data) >= _HEADER.size and data[:4] == _MAGIC


def mask_count(data: bytes | memoryview, name: str = "mask record") -> int:
    """Return how many masks a record holds, from its header alone; MaskStoreError where the header is no good."""
    return int(_read_header(data, name)[6])


def record_version(data: bytes | memoryview, name: str = "mask record") -> int:
    """Return a record's format version, from its header alone; MaskStoreError where the header is no good."""
    return int(_read_header(data, name)[1])


def record_length(data: bytes | memoryview, name: str = "mask record") -> int:
    """Return the bytes that a record has by its header, which need not be there; len(data) for version 1."""
    if len(data) >= _CRC_AT + _CRC.size:
        version, *lengths = _SIZES.unpack_from(data)
        if version == FORMAT_VERSION and _CRC_AT + _CRC.size + sum(lengths) == len(data):
            return len(data)  # who reads the record compares the checksums
    header = _read_header(data, name)
    if header[1] == 1 or len(data) < _CRC_AT:
        return len(data)
    length = _CRC_AT + sum(header[8:11]) + sum(_LENGTHS.unpack_from(data, _HEADER.size))
    if header[1] >= CHECKED_SINCE:
        length += _CRC.size
    return int(length)


def _read_header(data: bytes | memoryview, name: str) -> tuple[Any, ...]:
    """Return the fields of _HEADER; raise MaskStoreError on another version, and where the header is damaged."""
    if not begins_as_record(data):
        raise MaskStoreError(f"{name}: not a mask record; make the masks again with sam4ir masks")
    header = _HEADER.unpack_from(data)
    version = header[1]
    if version not in READABLE_VERSIONS:
        raise MaskStoreError(
            f"{name}: record format {version}, this sam4ir reads {', '.join(map(str, READABLE_VERSIONS))}; "
            "make the masks again with sam4ir masks or use the sam4ir that wrote them"
        )
    if version >= CHECKED_SINCE:
        if len(data) < _CRC_AT + _CRC.size:
            raise MaskStoreError(f"{name}: the record is cut off; make this image's masks again")
        if zlib.crc32(data[:_CRC_AT]) != _CRC.unpack_from(data, _CRC_AT)[0]:
            raise MaskStoreError(f"{name}: damaged header (its checksum differs); make this image's masks again")
    return header


class MaskRecord:
    """The masks of one image, which may overlap, in the generator's order; decodes only what a method needs.

    data: the record's bytes. name: where they came from, for messages. size: (h, w); count: n, the number of masks.
    Raises MaskStoreError on bytes that are no record of a format version that this module reads.
    """

    def __init__(self, data: bytes, name: str = "mask record") -> None:
        self.name = name
        self._data = memoryview(data)
        _, version, itemsize, tile, h, w, count, atoms, *lengths, sha256 = _read_header(self._data, name)
        if tile != TILE or itemsize not in (1, 2, 4):
            raise MaskStoreError(f"{name}: damaged header; make this image's masks again")
        self.size: tuple[int, int] = (h, w)
        self.count: int = count
        self.atom_count: int = atoms
        self.image_sha256: str | None = sha256.hex() if any(sha256) else None
        self.has_checksums: bool = version >= CHECKED_SINCE
        self._version, self._dtype = version, np.dtype(f"<u{itemsize}")
        self._refuse_claims()
        self._across, self._down = -(-w // TILE), -(-h // TILE)
        self._tiles_at = self._layout(lengths)

    def _refuse_claims(self) -> None:
        """Raise MaskStoreError where the header states more than a record of these bytes can hold."""
        (h, w), length = self.size, len(self._data)
        if not 0 < h * w <= MAX_PIXELS:
            raise MaskStoreError(f"{self.name}: states an image of {h}x{w} (at most 2^30 pixels); make its masks again")
        table = max(self.count, 1) * self.atom_count
        too_large = self.count > max(_MASKS, length * _MASKS_A_BYTE) or table > max(_BITS, length * _BITS_A_BYTE)
        if too_large or not 0 < self.atom_count <= h * w:
            raise MaskStoreError(
                f"{self.name}: states {self.count} masks and {self.atom_count} atoms of an image of {h}x{w} in "
                f"{length} bytes, which cannot be; make this image's masks again"
            )

    def _layout(self, lengths: list[int]) -> int:
        """Set where each frame begins and return where the first tile begins; MaskStoreError on a record cut off."""
        start, end = _HEADER.size, len(self._data)
        tile_bytes = 0
        if self._version > 1:
            index_bytes = end  # too long for the record, and so an error below, where even the lengths are cut off
            if end >= start + _LENGTHS.size:
                index_bytes, tile_bytes = _LENGTHS.unpack_from(self._data, start)
            start, lengths = start + _LENGTHS.size, [*lengths, index_bytes]
        if self.has_checksums:
            start += _CRC.size
        self._frames: list[int] = list(itertools.accumulate(lengths, initial=start))
        first_tile = self._frames[-1]
        if self._version == 1:
            offsets_at, offset_count = first_tile, self._across * self._down + 1
            first_tile += 4 * offset_count
            if first_tile <= end:
                tile_bytes = int(np.frombuffer(self._data, "<u4", offset_count, offsets_at)[-1])
        if first_tile + tile_bytes != end:
            raise MaskStoreError(f"{self.name}: the record is cut off; make this image's masks again")
        return first_tile

    @cached_property
    def _index(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each tile begins (and where the last ends), and the atom that fills it, -1 where it is stored."""
        count = self._across * self._down
        if self._version == 1:
            offsets = np.frombuffer(self._data, "<u4", count + 1, self._frames[-1]).astype(np.int64)
            if (np.diff(offsets) < 0).any():
                raise MaskStoreError(f"{self.name}: damaged (its tiles overlap); make this image's masks again")
            return offsets, np.full(count, -1)
        planes = self._frame(3, np.uint8, 4, count)
        entries = np.ascontiguousarray(planes.T).view("<u4")[:, 0]
        filled, numbers = (entries & 1).view(np.int32) > 0, (entries >> 1).astype(np.int64)
        atoms = np.where(filled, numbers, -1)
        if int(atoms.max()) >= self.atom_count:
            raise MaskStoreError(f"{self.name}: damaged (a tile of an atom that does not exist); make its masks again")
        starts = np.zeros(count + 1, np.int64)
        np.cumsum(np.where(filled, 0, numbers), out=starts[1:])
        if int(starts[-1]) != len(self._data) - self._tiles_at:
            raise MaskStoreError(f"{self.name}: damaged (the lengths of its tiles); make this image's masks again")
        return starts, atoms

    def __reduce__(self) -> tuple[type[MaskRecord], tuple[bytes, str]]:
        return MaskRecord, (bytes(self._data), self.name)

    def _inflate(self, start: int, stop: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Return a frame's array, after its checksum was compared.

        Its stated length is checked before memory for it is allocated.
        """
        frame = self._data[start:stop]
        size = math.prod(shape) * dtype.itemsize
        try:
            as_long = zstandard.frame_content_size(frame) == size <= len(frame) << _LARGEST_RATIO_BITS
            if as_long and (frame[4] & _CHECKSUM_FLAG or not self.has_checksums):
                return np.ndarray(shape, dtype, _ZSTD.reader.decompress(frame))
        except (zstandard.ZstdError, ValueError, TypeError) as error:  # TypeError: fewer bytes than an array needs
            raise MaskStoreError(f"{self.name}: damaged ({error}); make this image's masks again") from None
        raise MaskStoreError(
            f"{self.name}: damaged (a part of {stop - start} bytes has the wrong length); make its masks again"
        )

    def _frame(self, number: int, dtype: Any, *shape: int) -> NDArray[Any]:
        return self._inflate(self._frames[number], self._frames[number + 1], np.dtype(dtype), shape)

    @cached_property
    def _columns(self) -> NDArray[np.float64]:
        return self._frame(0, "<f8", len(_COLUMNS), self.count)

    @property
    def areas(self) -> NDArray[np.int64]:
        """Pixels that each mask covers, (n,)."""
        areas = self._columns[0]
        if not ((areas >= 0) & (areas <= self.size[0] * self.size[1])).all():  # also where one is not a number
            raise MaskStoreError(f"{self.name}: damaged (the area of a mask); make this image's masks again")
        return areas.astype(np.int64)

    @property
    def boxes(self) -> NDArray[np.float64]:
        """Boxes as the generator wrote them, (n, 4) XYWH."""
        return self._columns[1:5].T

    @property
    def predicted_iou(self) -> NDArray[np.float64]:
        """IoU that the generator predicted, (n,); NaN where it gave none."""
        return self._columns[5]

    @property
    def stability_score(self) -> NDArray[np.float64]:
        """Stability score of the generator, (n,); NaN where it gave none."""
        return self._columns[6]

    @property
    def spe_sum(self) -> NDArray[np.float64]:
        """Sum of the SPE's rotary table over each whole mask, (n,) (regions.spe_sum)."""
        return self._columns[7]

    @cached_property
    def table(self) -> NDArray[np.bool_]:
        """Which masks cover each atom, (atoms, n) bool."""
        packed = self._frame(2, np.uint8, self.atom_count, -(-self.count // 8))
        return np.unpackbits(packed, axis=1, count=self.count, bitorder="little").view(bool)

    @cached_property
    def _by_mask(self) -> NDArray[np.bool_]:
        return np.ascontiguousarray(self.table.T)

    @cached_property
    def _region(self) -> NDArray[np.int32]:
        region: NDArray[np.int32] = self._frame(1, "<i4", self.atom_count)
        if region.view("<u4").max() > self.count:  # a negative number becomes a large one
            raise MaskStoreError(f"{self.name}: damaged (a region without a mask); make this image's masks again")
        return region

    @cached_property
    def _last_listed(self) -> NDArray[np.int32]:
        return regions.top_masks(self.table, np.arange(self.count))

    def labels(self, top: int, left: int, h: int, w: int) -> NDArray[Any]:
        """Return the atoms of a window, numbered as in the whole image: (h, w) uint16 or uint32.

        Raises UserError where the window does not lie in the image, MaskStoreError where the record is damaged.
        """
        out = self._read_window(top, left, h, w)
        if out.max() >= self.atom_count:
            raise self._without_row()
        return out

    def _without_row(self) -> MaskStoreError:
        return MaskStoreError(
            f"{self.name}: damaged, its map has more atoms than its table; make this image's masks again"
        )

    def _read_window(self, top: int, left: int, h: int, w: int) -> NDArray[Any]:
        """Return the atoms of a window as `labels` does, which may have no row in the table where they are damaged."""
        if min(top, left) < 0 or min(h, w) < 1 or top + h > self.size[0] or left + w > self.size[1]:
            raise UserError(
                f"{self.name}: window top {top}, left {left}, size {h}x{w} does not lie in the image of "
                f"{self.size[0]}x{self.size[1]}"
            )
        if h * w > max(_WINDOW, len(self._data) * _WINDOW_A_BYTE):
            raise MaskStoreError(
                f"{self.name}: states an image of {self.size[0]}x{self.size[1]} in {len(self._data)} bytes, too few to "
                "read it whole; make this image's masks again"
            )
        out = np.empty((h, w), np.uint16 if self._dtype.itemsize <= 2 else np.uint32)
        bottom, right = top + h, left + w
        for y in range(top - top % TILE, bottom, TILE):
            rows = slice(max(y - top, 0), min(y + TILE, bottom) - top)
            for x in range(left - left % TILE, right, TILE):
                piece = self._read_tile(y, x)
                if piece.size > 1:
                    piece = piece[max(top - y, 0) : bottom - y, max(left - x, 0) : right - x]
                out[rows, max(x - left, 0) : x + TILE - left] = piece
        return out

    def _read_tile(self, y: int, x: int) -> NDArray[Any]:
        """Return the labels of the tile whose corner is (y, x), or (1, 1) where one atom fills it."""
        number = y // TILE * self._across + x // TILE
        starts, filling_atoms = self._index
        atom = filling_atoms.item(number)
        if atom >= 0:
            return np.full((1, 1), atom, self._dtype)
        shape = min(TILE, self.size[0] - y), min(TILE, self.size[1] - x)
        start, stop = self._tiles_at + starts.item(number), self._tiles_at + starts.item(number + 1)
        return self._inflate(start, stop, self._dtype, shape)

    def atom_pixels(self) -> NDArray[np.int64]:
        """Return the number of pixels of each atom, (atoms,), tile by tile; MaskStoreError where a tile is damaged."""
        rows, columns = np.arange(self._down) * TILE, np.arange(self._across) * TILE
        sizes = np.outer(np.minimum(TILE, self.size[0] - rows), np.minimum(TILE, self.size[1] - columns)).ravel()
        filling_atoms = self._index[1]
        filled = filling_atoms >= 0
        pixels = np.zeros(self.atom_count, np.int64)
        np.add.at(pixels, filling_atoms[filled], sizes[filled])
        for number in np.flatnonzero(~filled).tolist():
            tile = self._read_tile(number // self._across * TILE, number % self._across * TILE)
            if tile.max() >= self.atom_count:
                raise self._without_row()
            np.add.at(pixels, tile.ravel(), 1)
        return pixels

    def _look_up(self, values: NDArray[Any], top: int, left: int, h: int, w: int) -> NDArray[Any]:
        """Return the value of each pixel's atom, (h, w), for `values` of all atoms."""
        labels = self._read_window(top, left, h, w)
        try:
            return values[labels.astype(np.intp)]  # three times faster than by uint16
        except IndexError:
            raise self._without_row() from None

    def stack(self, top: int, left: int, h: int, w: int) -> NDArray[np.bool_]:
        """Return the window of every mask, (n, h, w) bool."""
        labels = self._read_window(top, left, h, w).astype(np.intp)
        in_window = np.zeros(self.atom_count, bool)
        try:
            in_window[labels] = True
        except IndexError:
            raise self._without_row() from None
        masks = np.flatnonzero(self.table[in_window].any(axis=0))
        out = np.zeros((self.count, h, w), bool)
        for mask in masks:
            np.take(self._by_mask[mask], labels, out=out[mask], mode="clip")  # 'raise' would buffer the output
        return out

    def region_map(self, top: int, left: int, h: int, w: int) -> NDArray[np.int32]:
        """Return (h, w) int32: mask number + 1, small masks on top (regions.paint_order); 0 where no mask lies."""
        return self._look_up(self._region, top, left, h, w)

    def list_map(self, top: int, left: int, h: int, w: int) -> NDArray[np.int32]:
        """Return (h, w) int32: mask number + 1, later masks on top (the SPE's order); 0 where no mask lies."""
        return self._look_up(self._last_listed, top, left, h, w)

    def boundary_map(self, top: int, left: int, h: int, w: int) -> NDArray[np.bool_]:
        """Return (h, w) bool: True where a pixel's region differs from a 4-neighbour's inside the window."""
        return regions.boundary(self.region_map(top, left, h, w))
