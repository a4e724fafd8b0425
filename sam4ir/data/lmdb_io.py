"""LMDB folders of images: BasicSR's (encoded files) and our own (raw pixels, so that a crop reads only its part).

A folder holds data.mdb, lock.mdb and meta_info.txt, whose lines `name.png (h,w,c) level` list the images; an image's
key is its name without suffix. A value is an image file's bytes, or a raw record: the header below, then the pixels
(h, w, c) in C order, RGB, little endian.

    magic '\\0S4I', version u8, bytes per value u8 (1 or 2), channels u16, height u32, width u32
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Literal

import lmdb
import numpy as np

from sam4ir.utils.image import IMAGE_SUFFIXES, ImageError, decode_image, encode_png

RAW_VERSION = 1

_RAW_MAGIC = b"\0S4I"
_RAW_HEADER = struct.Struct("<4sBBHII")
_MAX_KEY_BYTES = 511  # LMDB's compiled-in limit
_FLUSH_BYTES = 32 << 20
_META_LINE = re.compile(r"(?P<name>.*\S)\s+\((?P<size>\d+,\s*\d+,\s*\d+)\)(\s+\S+)?\s*")


class _Environment:
    """One open LMDB environment of this process."""

    def __init__(self, path: Path) -> None:
        self.pid = os.getpid()
        self.env = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
        info, pages = self.env.info(), self.env.stat()["psize"]
        needed, present = (info["last_pgno"] + 1) * pages, (path / "data.mdb").stat().st_size
        if present < needed:  # reading a page beyond the file's end would kill the process
            self.env.close()
            raise ValueError(f"{path}: data.mdb is truncated ({present} of {needed} bytes); copy or make it again")


# LMDB allows one open environment a file and process, so readers of one folder share it while any of them lives.
_OPEN: weakref.WeakValueDictionary[tuple[int, int], _Environment] = weakref.WeakValueDictionary()


def _environment(path: Path) -> _Environment:
    try:
        status = (path / "data.mdb").stat()
    except OSError as error:
        raise ValueError(f"{path}: no LMDB folder, data.mdb cannot be read ({error.strerror})") from error
    identity = (status.st_dev, status.st_ino)
    opened = _OPEN.get(identity)
    if opened is not None and opened.pid == os.getpid():
        return opened
    if opened is not None:
        opened.env.close()  # inherited over a fork: this process's copy only
    try:
        opened = _Environment(path)
    except lmdb.Error as error:
        raise ValueError(f"{path}: data.mdb cannot be opened as LMDB ({error}); copy or make it again") from error
    _OPEN[identity] = opened
    return opened


class LmdbReader:
    """Values of an LMDB folder by key; opened when first read, in each process anew, so it can be forked and pickled.

    A folder that is missing, truncated or no LMDB is a ValueError naming it, at the first read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._opened: _Environment | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_opened": None}

    def _env(self) -> lmdb.Environment:
        if self._opened is None or self._opened.pid != os.getpid():
            self._opened = _environment(self.path)
        return self._opened.env

    @contextmanager
    def value(self, key: str) -> Iterator[memoryview]:
        """The bytes under `key`, mapped and not copied: valid inside the block only. ValueError where there is none."""
        with self._env().begin(buffers=True) as transaction:
            value = transaction.get(key.encode())
            if value is None:
                raise ValueError(f"{self.path}: no value under key {key!r}")
            yield value

    def keys(self) -> list[str]:
        """All keys, in LMDB's (byte) order."""
        with self._env().begin() as transaction:
            return [key.decode() for key in transaction.cursor().iternext(values=False)]

    def __len__(self) -> int:
        return int(self._env().stat()["entries"])


def key_of(name: str) -> str:
    """An image's key: its name without the image suffix ('a/b.png' -> 'a/b', 'img_1.5' stays)."""
    suffix = PurePosixPath(name).suffix
    return name[: -len(suffix)] if suffix.lower() in IMAGE_SUFFIXES else name


def parse_meta_line(line: str) -> tuple[str, bool]:
    """The image name of one meta_info line, and whether the line gives a size; '' for a blank line.

    With a size in brackets the name is what stands before it (it may hold spaces), else the first word.
    """
    match = _META_LINE.fullmatch(line)
    return (match["name"].strip(), True) if match else ((line.split() or [""])[0], False)


def read_image_keys(path: str | Path) -> list[str]:
    """The keys that an image LMDB's meta_info.txt lists, sorted. ValueError naming the folder where it is missing."""
    meta = Path(path) / "meta_info.txt"
    try:
        lines = meta.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(
            f"{path}: meta_info.txt cannot be read ({error.strerror}); "
            "the folder is no image LMDB, or making it was interrupted: make it again"
        ) from error
    return sorted({key_of(name) for name, _ in map(parse_meta_line, lines) if name})


def pack_raw(image: np.ndarray) -> bytes:
    """The raw record of an (h, w, c) uint8 or uint16 image."""
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"a raw record needs (h, w, 1 or 3) uint8 or uint16, got {image.shape} {image.dtype}")
    h, w, c = image.shape
    header = _RAW_HEADER.pack(_RAW_MAGIC, RAW_VERSION, image.dtype.itemsize, c, h, w)
    return header + image.astype(image.dtype.newbyteorder("<"), copy=False).tobytes()


def unpack_image(value: memoryview | bytes, name: str) -> np.ndarray:
    """(h, w, 3) RGB of a value: a read-only view for a raw record (grey broadcast), else the decoded file."""
    if bytes(value[:4]) != _RAW_MAGIC:
        return decode_image(bytes(value), name)
    if len(value) < _RAW_HEADER.size:
        raise ImageError(f"{name}: raw record of {len(value)} bytes is shorter than its header")
    _, version, itemsize, c, h, w = _RAW_HEADER.unpack_from(value)
    if version != RAW_VERSION or itemsize not in (1, 2) or c not in (1, 3):
        raise ImageError(f"{name}: raw record of version {version}, {itemsize} bytes, {c} channels is not understood")
    if len(value) != _RAW_HEADER.size + h * w * c * itemsize:
        raise ImageError(
            f"{name}: raw record of {len(value)} bytes does not hold {h}x{w}x{c} values of {itemsize} bytes"
        )
    dtype = np.dtype(np.uint8) if itemsize == 1 else np.dtype("<u2")
    pixels = np.frombuffer(value, dtype, offset=_RAW_HEADER.size).reshape(h, w, c)
    pixels.flags.writeable = False
    return pixels if c == 3 else np.broadcast_to(pixels, (h, w, 3))


class LmdbWriter:
    """Makes an image LMDB folder; use as a context manager.

    path: the new folder, ending in .lmdb. It appears under this name whole, when the block ends without an error;
        until then it is `<path>.part`, without meta_info.txt. An existing folder is never touched (ValueError).
    encoding: 'raw' (largest, fastest: crops are cut before anything is converted) or 'png' (BasicSR reads it too).
    map_size: first size of LMDB's map in bytes; it doubles whenever it is full.
    """

    def __init__(self, path: str | Path, encoding: Literal["raw", "png"] = "raw", map_size: int = 1 << 30) -> None:
        self.path = Path(path)
        if self.path.suffix != ".lmdb":
            raise ValueError(f"{path}: an LMDB folder's name must end in .lmdb")
        if self.path.exists():
            raise ValueError(f"{path}: exists already; remove it or choose another name")
        if encoding not in ("raw", "png"):
            raise ValueError(f"encoding: {encoding!r} must be 'raw' or 'png'")
        self.encoding = encoding
        self._part = self.path.with_name(self.path.name + ".part")
        shutil.rmtree(self._part, ignore_errors=True)
        self._part.mkdir(parents=True)
        self._env = lmdb.open(str(self._part), map_size=map_size, sync=False, readahead=False)
        self._pending: list[tuple[bytes, bytes]] = []
        self._pending_bytes = 0
        self._meta: dict[str, str] = {}

    def put(self, key: str, image: np.ndarray) -> None:
        """Stores (h, w, 1 or 3) RGB uint8 or uint16 pixels under `key` (the image's name without suffix)."""
        value = pack_raw(image) if self.encoding == "raw" else encode_png(image)
        self._add(key, value, image.shape, level=0 if self.encoding == "raw" else 1)

    def put_encoded(self, key: str, data: bytes) -> None:
        """Stores an image file's bytes as they are, after a look whether they decode."""
        self._add(key, data, decode_image(data, key).shape, level=1)

    def _add(self, key: str, value: bytes, shape: tuple[int, ...], level: int) -> None:
        encoded = key.encode()
        if not 0 < len(encoded) <= _MAX_KEY_BYTES:
            raise ValueError(f"{self.path}: key {key!r} has {len(encoded)} bytes; LMDB takes 1 to {_MAX_KEY_BYTES}")
        if key in self._meta:
            raise ValueError(f"{self.path}: key {key!r} is stored already; two images have one name")
        h, w, c = shape
        self._meta[key] = f"{key}.png ({h},{w},{c}) {level}"
        self._pending.append((encoded, value))
        self._pending_bytes += len(value)
        if self._pending_bytes >= _FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        while True:
            try:
                with self._env.begin(write=True) as transaction:
                    for key, value in self._pending:
                        transaction.put(key, value)
                break
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])
        self._pending, self._pending_bytes = [], 0

    def close(self) -> None:
        """Writes what is pending, then meta_info.txt, then gives the folder its name."""
        self._flush()
        self._env.sync(True)
        self._env.close()
        lines = [self._meta[key] + "\n" for key in sorted(self._meta)]
        (self._part / "meta_info.txt").write_text("".join(lines), encoding="utf-8")
        os.replace(self._part, self.path)

    def __enter__(self) -> LmdbWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._env.close()
            shutil.rmtree(self._part, ignore_errors=True)
