"""Reading and writing LMDB folders of images: BasicSR's (image files) and our own (raw pixels: a crop reads its part).

A folder holds data.mdb, lock.mdb and meta_info.txt, whose lines `name.png (h,w,c) level` list the images; an image's
key is its name without suffix. A value is an image file's bytes, or a raw record: the header below, then the rows of
pixels (h, w, c), RGB, little endian, each filled up with zeros to whole words of 8 bytes, then the sums.

    magic '\\0S4I', version u8, bytes per value u8 (1 or 2), channels u16, height u32, width u32,
    CRC-32 of all that u32, four zeros

Sums are u64, one for each column of words in each band of 32 rows, in the order of the bands: the sum of its words
modulo 2^64. So a crop is verified without reading the rest. They notice every changed bit or byte, whole blocks of
zeros and blocks of other data, but not rows that change places within a band.

Version 1 is still read: it has no CRC, no zeros and no sums.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Literal

import lmdb
import numpy as np

from sam4ir.data.lmdb_env import MAX_KEY, OpenLmdb, get, keys_of, open_shared
from sam4ir.errors import UserError
from sam4ir.utils.containers import MAX_PIXELS
from sam4ir.utils.files import append_text, is_utf8, make_folder, read_text, refuse_full, write_error, write_text
from sam4ir.utils.image import (
    IMAGE_SUFFIXES,
    ExifOrientation,
    ImageError,
    decode_image,
    encode_png,
    orientation_of,
    size_of,
)
from sam4ir.utils.tables import text_lines

RAW_VERSION = 2
Encoding = Literal["raw", "png"]

_RAW_MAGIC = b"\0S4I"
_RAW_HEADER = struct.Struct("<4sBBHII")
_RAW_CRC = struct.Struct("<I4x")  # behind the header from version 2 on
_PIXELS_AT = _RAW_HEADER.size + _RAW_CRC.size
_WORD = 8
_WORDS = np.dtype("<u8")
_DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype(np.uint8), 2: np.dtype("<u2")}
_BAND = 32  # rows
_BLOCK = 64  # words: bands and blocks are what a reader verifies once
_BLOCK_BYTES = _BLOCK * _WORD
_FLUSH_BYTES = 32 << 20
LARGEST_LIST = 256_000_000  # bytes of a meta_info file
_META_LINE = re.compile(r"(?P<name>.*\S)\s+\((?P<size>\d+,\s*\d+,\s*\d+)\)(\s+\S+)?\s*")


class LmdbReader:
    """The values of an LMDB folder by key.

    Each process opens the folder at its first read, so a reader can be forked and pickled. That read raises UserError
    naming a folder that is missing, truncated or no LMDB.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._opened: OpenLmdb | None = None
        self._length = 0  # bytes of data.mdb

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_opened": None, "_length": 0}

    def _env(self) -> lmdb.Environment:
        if self._opened is None or not self._opened.usable:
            self._opened = None  # gives up a parent's environment before the file is opened again
            self._opened = open_shared(self.path, "copy or make it again")
            self._length = (self.path / "data.mdb").stat().st_size
        return self._opened.env

    @contextmanager
    def value(self, key: str) -> Iterator[memoryview]:
        """Yield the bytes under `key`, a view that is valid inside the block only. Raises UserError without a value."""
        with self._env().begin(buffers=True) as transaction:
            value = get(transaction, key, self.path)
            if value is None:
                hint = ""
                if not key.isascii():
                    hint = "; where the name looks wrong, save its meta_info.txt with the encoding UTF-8"
                raise UserError(f"{self.path}: no value under key {key!r}{hint}")
            if len(value) > self._length:  # a damaged page; reading it would end the process
                raise UserError(f"{self.path}: key {key!r} is damaged (longer than the file); make the LMDB again")
            yield value

    def keys(self) -> list[str]:
        """Return all keys in LMDB's order, that of their bytes."""
        with self._env().begin() as transaction:
            return keys_of(transaction, self.path)

    def __len__(self) -> int:
        return int(self._env().stat()["entries"])


def key_of(name: str) -> str:
    """Return an image's key: its name without the image suffix ('a/b.png' -> 'a/b', 'img_1.5' stays)."""
    suffix = PurePosixPath(name).suffix
    return name[: -len(suffix)] if suffix.lower() in IMAGE_SUFFIXES else name


def parse_meta_line(line: str) -> tuple[str, bool]:
    """Return the image name of one meta_info line, and whether the line gives a size; '' for a blank line.

    Before a size in brackets all text is the name, which may hold spaces; without a size the first word is the name.
    """
    match = _META_LINE.fullmatch(line)
    if match:
        return match["name"].strip(), True
    return (line.split() or [""])[0], False


def read_image_keys(path: str | Path) -> list[str]:
    """Return the sorted keys of an image LMDB's meta_info.txt. Raises UserError naming a folder without that file."""
    meta = Path(path) / "meta_info.txt"
    if not meta.parent.is_dir():
        raise UserError(f"{path}: no such folder; sam4ir prepare makes the LMDBs of the recipes")
    try:
        lines = text_lines(read_text(meta, LARGEST_LIST))
    except OSError as error:
        raise UserError(
            f"{path}: meta_info.txt cannot be read ({error.strerror}); "
            "the folder is no image LMDB, or making it was interrupted: make it again"
        ) from error
    keys = set()
    for line in lines:
        name, has_size = parse_meta_line(line)
        if name and (has_size or not line.lstrip().startswith("#")):
            keys.add(key_of(name))
    return sorted(keys)


def pack_raw(image: np.ndarray) -> bytes:
    """Return the raw record of an (h, w, 1 or 3) uint8 or uint16 image. Raises ImageError for other arrays."""
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"a raw record needs (h, w, 1 or 3) uint8 or uint16, got {image.shape} {image.dtype}")
    h, w, c = image.shape
    header = _RAW_HEADER.pack(_RAW_MAGIC, RAW_VERSION, image.dtype.itemsize, c, h, w)
    rows = np.zeros((h, _row_bytes(w, c, image.dtype.itemsize)), np.uint8)
    pixels = np.ndarray(image.shape, image.dtype.newbyteorder("<"), rows, strides=_strides(w, c, image.dtype.itemsize))
    pixels[:] = image
    sums = _sums(rows.view(_WORDS))
    return b"".join([header, _RAW_CRC.pack(zlib.crc32(header)), rows.tobytes(), sums.tobytes()])


def raw_length(h: int, w: int, c: int, itemsize: int) -> int:
    """Return the bytes of a raw record of (h, w, c) values of `itemsize` bytes."""
    return _PIXELS_AT + (h * _WORD + -(-h // _BAND) * _WORD) * (_row_bytes(w, c, itemsize) // _WORD)


def _row_bytes(w: int, c: int, itemsize: int) -> int:
    return -(-w * c * itemsize // _WORD) * _WORD


def _strides(w: int, c: int, itemsize: int) -> tuple[int, int, int]:
    return _row_bytes(w, c, itemsize), c * itemsize, itemsize


def _sums(words: np.ndarray) -> np.ndarray:
    """Return the sums of each column of words in each band, (bands, words); words: (h, words) u64."""
    h, columns = words.shape
    whole, rest = divmod(h, _BAND)
    if not rest:
        sums: np.ndarray = np.add.reduce(words.reshape(whole, _BAND, columns), axis=1)
        return sums
    sums = np.empty((whole + 1, columns), _WORDS)
    if whole:
        sums[:whole] = _sums(words[: whole * _BAND])
    np.add.reduce(words[whole * _BAND :], axis=0, out=sums[whole])
    return sums


class _Layout:
    """Where the pixels of a raw record with checksums lie. stored: (h, w, c); strides: bytes of a row, pixel, value."""

    def __init__(self, h: int, w: int, c: int, itemsize: int) -> None:
        self.shape = (h, w, 3)
        self.stored = (h, w, c)
        self.dtype = _DTYPES[itemsize]
        self.strides = _strides(w, c, itemsize)
        self.length = raw_length(h, w, c, itemsize)

    def pieces(self) -> np.ndarray:
        """Return RawPixels.verified of a record of which nothing was verified yet, (bands, blocks) False."""
        return np.zeros((-(-self.stored[0] // _BAND), -(-self.strides[0] // _BLOCK_BYTES)), bool)


Verified = dict[str, tuple[_Layout, np.ndarray]]  # what a process has verified, by name: header, and pieces of pixels


class RawPixels:
    """The pixels of a raw record with checksums, (h, w, 3) RGB uint8 or uint16; what is cut out is verified.

    `pixels[rows, columns]` of two slices without steps is a read-only view, (rows, columns, 3); grey is repeated for
    the three channels. It raises ImageError where one of the words that the window meets, in whole bands and blocks of
    words, was changed. verified: (bands, blocks) bool, the pieces that this process has verified before and need not be
    verified again; the object adds to it.
    """

    __slots__ = ("_layout", "_name", "_pixels", "_value", "_verified", "shape")

    def __init__(self, value: memoryview | bytes, layout: _Layout, name: str, verified: np.ndarray) -> None:
        self.shape = layout.shape
        self._value, self._layout, self._name, self._verified = value, layout, name, verified
        self._pixels: np.ndarray = np.ndarray(layout.stored, layout.dtype, value, _PIXELS_AT, layout.strides)
        self._pixels.flags.writeable = False

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        cut = self._pixels[place]
        if cut.size:
            (top, bottom, _), (left, right, _) = place[0].indices(self.shape[0]), place[1].indices(self.shape[1])
            pixel_bytes = self._layout.strides[1]
            bands = slice(top // _BAND, -(-bottom // _BAND))
            blocks = slice(left * pixel_bytes // _BLOCK_BYTES, -(-right * pixel_bytes // _BLOCK_BYTES))
            if not self._verified[bands, blocks].all():
                self._verify(bands, blocks)
        if cut.shape[2] == 1:
            return np.broadcast_to(cut, (*cut.shape[:2], 3))
        return cut

    def _verify(self, bands: slice, blocks: slice) -> None:
        """Raise ImageError where the sums of some bands and blocks of words differ from the stored ones."""
        h, row_bytes = self.shape[0], self._layout.strides[0]
        columns = row_bytes // _WORD
        words: np.ndarray = np.ndarray((h, columns), _WORDS, self._value, _PIXELS_AT)
        sums_at = _PIXELS_AT + h * row_bytes
        stored: np.ndarray = np.ndarray((-(-h // _BAND), columns), _WORDS, self._value, sums_at)
        part = slice(blocks.start * _BLOCK, blocks.stop * _BLOCK)
        copied = words[bands.start * _BAND : bands.stop * _BAND, part].copy()  # sums of a copy take half the time
        if (_sums(copied) != stored[bands, part]).any():
            raise ImageError(f"{self._name}: damaged (its checksum differs); make the LMDB again, or copy it again")
        self._verified[bands, blocks] = True


def unpack_image(value: memoryview | bytes, name: str, exif_orientation: ExifOrientation = "apply") -> np.ndarray:
    """Return the (h, w, 3) RGB pixels of a value: a read-only view of a raw record, or the decoded file.

    Grey pixels are repeated for the three channels. name: for messages. Raises ImageError for a damaged value.
    """
    pixels = unpack_pixels(value, name, exif_orientation=exif_orientation)
    if isinstance(pixels, RawPixels):
        return pixels[:, :]
    return pixels


def unpack_pixels(
    value: memoryview | bytes,
    name: str,
    verified: Verified | None = None,
    exif_orientation: ExifOrientation = "apply",
) -> np.ndarray | RawPixels:
    """Return the pixels of a value for cutting, of which a raw record verifies what is cut; else as unpack_image.

    verified: records by `name`, which is added to; with it header and pieces of a record are verified once.
    """
    if verified is not None and name in verified:
        layout, state = verified[name]
        if len(value) == layout.length:
            return RawPixels(value, layout, name, state)
    if bytes(value[:4]) != _RAW_MAGIC:
        return decode_image(bytes(value), name, exif_orientation=exif_orientation)
    version, itemsize, c, h, w = _raw_header(value, name)
    if version > 1:
        layout = _Layout(h, w, c, itemsize)
        state = layout.pieces()
        if verified is not None:
            verified[name] = layout, state
        return RawPixels(value, layout, name, state)
    pixels = np.frombuffer(value, _DTYPES[itemsize], offset=_RAW_HEADER.size).reshape(h, w, c)
    pixels.flags.writeable = False
    return pixels if c == 3 else np.broadcast_to(pixels, (h, w, 3))


def _raw_header(value: memoryview | bytes, name: str) -> tuple[int, int, int, int, int]:
    """Return version, bytes per value, channels, h and w of a raw record; ImageError where its bytes do not fit."""
    if len(value) < _RAW_HEADER.size:
        raise ImageError(f"{name}: raw record of {len(value)} bytes is shorter than its header")
    _, version, itemsize, c, h, w = _RAW_HEADER.unpack_from(value)
    if version not in (1, RAW_VERSION) or itemsize not in (1, 2) or c not in (1, 3):
        raise ImageError(f"{name}: raw record of version {version}, {itemsize} bytes, {c} channels is not understood")
    length = _RAW_HEADER.size + h * w * c * itemsize
    if version > 1:
        length = raw_length(h, w, c, itemsize)
        checked = bytes(value[: _RAW_HEADER.size])
        if len(value) < _PIXELS_AT or value[_RAW_HEADER.size : _PIXELS_AT] != _RAW_CRC.pack(zlib.crc32(checked)):
            raise ImageError(f"{name}: raw record with a damaged header; make the LMDB again, or copy it again")
    if len(value) != length or not 0 < h * w <= MAX_PIXELS:
        raise ImageError(
            f"{name}: raw record of {len(value)} bytes does not hold {h}x{w}x{c} values of {itemsize} bytes"
        )
    return version, itemsize, c, h, w


def unpack_orientation(value: memoryview | bytes, name: str) -> int:
    """Return the EXIF orientation of a value, 1 to 8; a raw record has none, which is 1. Raises ImageError."""
    if bytes(value[:4]) != _RAW_MAGIC:
        return orientation_of(bytes(value), name)
    return 1


def unpack_size(value: memoryview | bytes, name: str, exif_orientation: ExifOrientation = "apply") -> tuple[int, int]:
    """Return (h, w) of a value, for an encoded file from its header. Raises ImageError for a damaged value."""
    if bytes(value[:4]) != _RAW_MAGIC:
        return size_of(bytes(value), name, exif_orientation)
    return _raw_header(value, name)[3:]


@dataclass(frozen=True)
class Packed:
    """One value of an LMDB folder.

    value: its bytes. shape: (h, w, c) of the image. level: PNG compression in meta_info.txt, 0 for a raw record.
    """

    value: bytes
    shape: tuple[int, int, int]
    level: int


def pack(image: np.ndarray, encoding: Encoding) -> Packed:
    """Encode (h, w, 1 or 3) RGB uint8 or uint16 pixels as a raw record or a PNG file."""
    h, w, c = image.shape
    if encoding == "raw":
        return Packed(pack_raw(image), (h, w, c), level=0)
    return Packed(encode_png(image), (h, w, c), level=1)


def why_no_key(key: str) -> str:
    """Return why no image LMDB can hold an image of this name; '' where one can, if it is short enough."""
    if not is_utf8(key):
        return "is no UTF-8; rename the image"
    if "\n" in key or "\r" in key:
        return "has a line break, which ends a line of meta_info.txt; rename it"
    return ""


class LmdbWriter:
    """The writer of an image LMDB folder, a context manager.

    path: the new folder, ending in .lmdb. It gets this name when the block ends without an error; until then it is
        `<path>.part` and has no meta_info.txt. An existing folder stays as it is (UserError).
    encoding: 'raw' (largest, fastest: crops are cut before anything is converted) or 'png' (BasicSR reads it too).
    map_size: first size of LMDB's map in bytes; it doubles whenever it is full.
    resume: continue the `<path>.part` of an interrupted writer, keep it when the block raises, and let every commit()
        survive a kill or a power failure; `keys()` of the next writer lists the committed keys.
    Raises UserError naming the folder where the disk is full or `.part` is damaged.
    """

    def __init__(
        self, path: str | Path, encoding: Encoding = "raw", map_size: int = 1 << 30, resume: bool = False
    ) -> None:
        self.path = Path(path)
        if self.path.suffix != ".lmdb":
            raise UserError(f"{path}: an LMDB folder's name must end in .lmdb")
        if self.path.exists():
            raise UserError(f"{path}: exists already; remove it or choose another name")
        if encoding not in ("raw", "png"):
            raise UserError(f"encoding: {encoding!r} must be 'raw' or 'png'")
        self.encoding: Encoding = encoding
        self._resume = resume
        self._part = self.path.with_name(self.path.name + ".part")
        self._journal = self._part / "meta_info.part"  # a line for each key, written before the key is committed
        if not resume:
            shutil.rmtree(self._part, ignore_errors=True)
        make_folder(self._part)
        self._env = self._open(map_size)
        self._pending: dict[str, bytes] = {}
        self._pending_bytes = 0
        self._meta = self._stored_lines() if resume else {}

    def _open(self, map_size: int) -> lmdb.Environment:
        try:
            return lmdb.open(str(self._part), map_size=map_size, sync=self._resume, readahead=False)
        except lmdb.Error as error:
            refuse_full(self._part, error)
            raise UserError(f"{self._part}: cannot be opened ({error}); remove it and begin anew") from None

    def _stored_lines(self) -> dict[str, str]:
        """Return {key: its meta_info line} for the keys that earlier writers committed."""
        text = read_text(self._journal) if self._journal.exists() else ""
        lines = {key_of(parse_meta_line(line)[0]): line for line in text.split("\n")[:-1]}  # whole lines only
        with self._env.begin() as transaction:
            keys = keys_of(transaction, self._part)
        missing = [key for key in keys if key not in lines]
        if missing:
            raise UserError(
                f"{self._journal}: lacks {len(missing)} keys of data.mdb; remove {self._part} and begin anew"
            )
        if text and not text.endswith("\n"):
            write_text(self._journal, "".join(f"{line}\n" for line in lines.values()))
        return {key: lines[key] for key in keys}

    def keys(self) -> list[str]:
        """Return the sorted keys that this and earlier writers stored."""
        return sorted(self._meta)

    def put(self, key: str, image: np.ndarray) -> None:
        """Store (h, w, 1 or 3) RGB uint8 or uint16 pixels under `key`, the image's name without suffix."""
        self.add(key, pack(image, self.encoding))

    def put_encoded(self, key: str, data: bytes) -> None:
        """Store an image file's bytes unchanged. Raises ImageError where they cannot be decoded."""
        h, w, c = decode_image(data, key).shape
        self.add(key, Packed(data, (h, w, c), level=1))

    def add(self, key: str, packed: Packed) -> None:
        """Store a value that `pack` made. Raises UserError where `key` is stored already, empty or too long."""
        reason = why_no_key(key)
        if reason:
            raise UserError(f"{self.path}: key {key!r} {reason}")
        size = len(key.encode())
        if not 0 < size <= MAX_KEY:
            raise UserError(f"{self.path}: key {key!r} has {size} bytes; LMDB takes 1 to {MAX_KEY}")
        if key in self._meta:
            raise UserError(f"{self.path}: key {key!r} is stored already; two images have one name")
        h, w, c = packed.shape
        self._meta[key] = f"{key}.png ({h},{w},{c}) {packed.level}"
        self._pending[key] = packed.value
        self._pending_bytes += len(packed.value)
        if self._pending_bytes >= _FLUSH_BYTES:
            self.commit()

    def value(self, key: str) -> bytes:
        """Return the bytes that this or an earlier writer stored under `key`. Raises UserError without a value."""
        with self._env.begin() as transaction:
            value: bytes | None = self._pending.get(key) or transaction.get(key.encode())
        if value is None:
            raise UserError(f"{self._part}: no value under key {key!r}")
        return value

    def discard(self, keys: Iterable[str]) -> None:
        """Remove committed keys, so that they can be stored again."""
        names = list(keys)
        self._write(dict.fromkeys(names))
        for name in names:
            del self._meta[name]

    def commit(self) -> None:
        """Write the pending values in one transaction; with resume=True they are on disk when this returns."""
        if not self._pending:
            return
        if self._resume:
            append_text(self._journal, "".join(f"{self._meta[key]}\n" for key in self._pending))
        self._write(self._pending)
        self._pending, self._pending_bytes = {}, 0

    def _write(self, values: Mapping[str, bytes | None]) -> None:
        """Store values in one transaction, None deletes a key; a full map grows."""
        while True:
            try:
                with self._env.begin(write=True) as transaction:
                    for key, value in values.items():
                        if value is None:
                            transaction.delete(key.encode())
                        else:
                            transaction.put(key.encode(), value)
                return
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])
            except lmdb.Error as error:
                raise write_error(self._part, error) from None

    def close(self) -> None:
        """Write the pending values and meta_info.txt, then give the folder its final name."""
        self.commit()
        try:
            self._env.sync(True)
        except lmdb.Error as error:
            raise write_error(self._part, error) from None
        self._env.close()
        lines = [self._meta[key] + "\n" for key in sorted(self._meta)]
        write_text(self._part / "meta_info.txt", "".join(lines))
        os.replace(self._part, self.path)
        (self.path / self._journal.name).unlink(missing_ok=True)

    def abandon(self) -> None:
        """Stop without a finished folder: keep the committed values with resume=True, else remove everything."""
        self._env.close()
        if not self._resume:
            shutil.rmtree(self._part, ignore_errors=True)

    def __enter__(self) -> LmdbWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abandon()
