"""The mask record: all masks of one image as bytes, which a mask store holds as the value of the image's key.

A record is: header | columns | region of each atom | atoms x masks bits | tile index | tiles. Everything behind the
header is a zstd frame that is decompressed only when it is needed. Tiles are 64 x 64 pieces of the atom map (smaller at
the right and bottom edge), so that a window decompresses only the tiles it meets. The index holds one number for each
tile: its length in bytes, or the atom that fills the whole tile, which is then not stored.

Version 1 is still read. It has byte offsets instead of the index, stores every tile, and has no labels of one byte.
"""

from __future__ import annotations

import itertools
import math
import struct
import threading
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

from sam4ir import regions
from sam4ir.errors import UserError

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
TILE = 64
_MAGIC = b"S4MR"
_LEVEL = 9
# magic, version, label bytes, tile, h, w, masks, atoms, bytes of the three frames, sha256 of the image file
_HEADER = struct.Struct("<4sHHIIIIIIII32s")
_LENGTHS = struct.Struct("<II")  # behind the header from version 2 on: bytes of the tile index and of all tiles
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
        self.writer = zstandard.ZstdCompressor(level=_LEVEL)


_ZSTD = _Zstd()


def encode_record(
    atoms: regions.Atoms, region: NDArray[np.int32], columns: MaskColumns, image_sha256: bytes = b""
) -> bytes:
    """Return the record's bytes; equal arguments give equal bytes.

    region: (atoms,) number + 1 of the mask on top of each atom, 0 where no mask lies. image_sha256: 32 bytes, or
    empty where the image that the generator read is not known.
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
    return b"".join([header, _LENGTHS.pack(lengths[3], sum(map(len, tiles))), *frames, *tiles])


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


def mask_count(data: bytes | memoryview, name: str = "mask record") -> int:
    """Return how many masks a record holds, from its header alone; raise MaskStoreError where it has no header."""
    if len(data) < _HEADER.size or bytes(data[:4]) != _MAGIC:
        raise MaskStoreError(f"{name}: not a mask record; make the masks again with scripts/masks.py")
    return int(_HEADER.unpack_from(data)[6])


class MaskRecord:
    """The masks of one image, which may overlap, in the generator's order; decodes only what a method needs.

    data: the record's bytes. name: where they came from, for messages. size: (h, w); count: n, the number of masks.
    Raises MaskStoreError on bytes that are no record of a format version that this module reads.
    """

    def __init__(self, data: bytes, name: str = "mask record") -> None:
        self.name = name
        self._data = memoryview(data)
        if len(data) < _HEADER.size or not data.startswith(_MAGIC):
            raise MaskStoreError(f"{name}: not a mask record; make the masks again with scripts/masks.py")
        _, version, itemsize, tile, h, w, count, atoms, *lengths, sha256 = _HEADER.unpack_from(data)
        if version not in READABLE_VERSIONS:
            raise MaskStoreError(
                f"{name}: record format {version}, this sam4ir reads {' and '.join(map(str, READABLE_VERSIONS))}; "
                "make the masks again with scripts/masks.py or use the sam4ir that wrote them"
            )
        if tile != TILE or itemsize not in (1, 2, 4):
            raise MaskStoreError(f"{name}: damaged header; make this image's masks again")
        self.size: tuple[int, int] = (h, w)
        self.count: int = count
        self.atom_count: int = atoms
        self.image_sha256: str | None = sha256.hex() if any(sha256) else None
        self._version, self._tile, self._dtype = version, tile, np.dtype(f"<u{itemsize}")
        self._across, self._down = -(-w // tile), -(-h // tile)
        self._tiles_at = self._layout(lengths)

    def _layout(self, lengths: list[int]) -> int:
        """Set where each frame begins and return where the first tile begins; MaskStoreError on a record cut off."""
        start, end = _HEADER.size, len(self._data)
        tile_bytes = 0
        if self._version > 1:
            index_bytes = end  # too long for the record, and so an error below, where even the lengths are cut off
            if end >= start + _LENGTHS.size:
                index_bytes, tile_bytes = _LENGTHS.unpack_from(self._data, start)
            start, lengths = start + _LENGTHS.size, [*lengths, index_bytes]
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
            return offsets, np.full(count, -1)
        planes = self._frame(3, np.uint8, 4, count)
        entries = np.ascontiguousarray(planes.T).view("<u4")[:, 0].astype(np.int64)
        filled = entries & 1 == 1
        if (entries[filled] >> 1 >= self.atom_count).any():
            raise MaskStoreError(f"{self.name}: damaged (a tile of an atom that does not exist); make its masks again")
        starts = np.zeros(count + 1, np.int64)
        np.cumsum(np.where(filled, 0, entries >> 1), out=starts[1:])
        return starts, np.where(filled, entries >> 1, -1)

    def __reduce__(self) -> tuple[type[MaskRecord], tuple[bytes, str]]:
        return MaskRecord, (bytes(self._data), self.name)

    def _inflate(self, start: int, stop: int, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return a frame's array; its stated length is checked before memory for it is allocated."""
        frame, dtype = self._data[start:stop], np.dtype(dtype)
        try:
            if zstandard.frame_content_size(frame) == math.prod(shape) * dtype.itemsize:
                return np.frombuffer(_ZSTD.reader.decompress(frame), dtype).reshape(shape)
        except (zstandard.ZstdError, ValueError) as error:
            raise MaskStoreError(f"{self.name}: damaged ({error}); make this image's masks again") from None
        raise MaskStoreError(
            f"{self.name}: damaged (a part of {stop - start} bytes has the wrong length); make its masks again"
        )

    def _frame(self, number: int, dtype: Any, *shape: int) -> NDArray[Any]:
        return self._inflate(self._frames[number], self._frames[number + 1], dtype, shape)

    @cached_property
    def _columns(self) -> NDArray[np.float64]:
        return self._frame(0, "<f8", len(_COLUMNS), self.count)

    @property
    def areas(self) -> NDArray[np.int64]:
        """Pixels that each mask covers, (n,)."""
        return self._columns[0].astype(np.int64)

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
        return self._frame(1, "<i4", self.atom_count)

    @cached_property
    def _last_listed(self) -> NDArray[np.int32]:
        return regions.top_masks(self.table, np.arange(self.count))

    def labels(self, top: int, left: int, h: int, w: int) -> NDArray[Any]:
        """Return the atoms of a window, numbered as in the whole image: (h, w) uint16 or uint32.

        Raises UserError where the window does not lie in the image.
        """
        if min(top, left) < 0 or min(h, w) < 1 or top + h > self.size[0] or left + w > self.size[1]:
            raise UserError(
                f"{self.name}: window top {top}, left {left}, size {h}x{w} does not lie in the image of "
                f"{self.size[0]}x{self.size[1]}"
            )
        out = np.empty((h, w), np.uint16 if self._dtype.itemsize <= 2 else np.uint32)
        tile = self._tile
        for y in range(top - top % tile, top + h, tile):
            for x in range(left - left % tile, left + w, tile):
                y0, x0, y1, x1 = max(y, top), max(x, left), min(y + tile, top + h), min(x + tile, left + w)
                piece = self._read_tile(y, x)
                if piece.size > 1:
                    piece = piece[y0 - y : y1 - y, x0 - x : x1 - x]
                out[y0 - top : y1 - top, x0 - left : x1 - left] = piece
        return out

    def _read_tile(self, y: int, x: int) -> NDArray[Any]:
        """Return the labels of the tile whose corner is (y, x), or (1, 1) where one atom fills it."""
        number = y // self._tile * self._across + x // self._tile
        starts, filling_atoms = self._index
        atom, start, stop = int(filling_atoms[number]), int(starts[number]), int(starts[number + 1])
        if atom >= 0:
            return np.full((1, 1), atom, self._dtype)
        shape = min(self._tile, self.size[0] - y), min(self._tile, self.size[1] - x)
        return self._inflate(self._tiles_at + start, self._tiles_at + stop, self._dtype, shape)

    def stack(self, top: int, left: int, h: int, w: int) -> NDArray[np.bool_]:
        """Return the window of every mask, (n, h, w) bool."""
        labels = self.labels(top, left, h, w).astype(np.intp)
        in_window = np.zeros(self.atom_count, bool)
        in_window[labels] = True
        masks = np.flatnonzero(self.table[in_window].any(axis=0))
        out = np.zeros((self.count, h, w), bool)
        for mask in masks:
            np.take(self._by_mask[mask], labels, out=out[mask], mode="clip")  # 'raise' would buffer the output
        return out

    def region_map(self, top: int, left: int, h: int, w: int) -> NDArray[np.int32]:
        """Return (h, w) int32: mask number + 1, small masks on top (regions.paint_order); 0 where no mask lies."""
        return self._region[self.labels(top, left, h, w).astype(np.intp)]  # three times faster than by uint16

    def list_map(self, top: int, left: int, h: int, w: int) -> NDArray[np.int32]:
        """Return (h, w) int32: mask number + 1, later masks on top (the SPE's order); 0 where no mask lies."""
        return self._last_listed[self.labels(top, left, h, w).astype(np.intp)]

    def boundary_map(self, top: int, left: int, h: int, w: int) -> NDArray[np.bool_]:
        """Return (h, w) bool: True where a pixel's region differs from a 4-neighbour's inside the window."""
        return regions.boundary(self.region_map(top, left, h, w))
