"""The mask store: an LMDB folder that holds one mask record for each image, with meta.json beside data.mdb.

MaskStore reads it; MaskStoreWriter (writer.py) writes it. Both can be imported from here.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from sam4ir.data.lmdb_env import OpenLmdb, get, keys_of, open_shared
from sam4ir.data.masks.meta import HELP, PROVENANCE_KEYS, SOURCES, exif_orientation, read_meta
from sam4ir.data.masks.record import (
    CHECKED_SINCE,
    MaskRecord,
    MaskStoreError,
    begins_as_record,
    record_length,
    record_version,
)
from sam4ir.data.masks.writer import MaskStoreWriter, contains
from sam4ir.errors import UserError
from sam4ir.registry import near_miss
from sam4ir.utils.image import ExifOrientation

__all__ = ["PROVENANCE_KEYS", "SOURCES", "MaskRecord", "MaskStore", "MaskStoreError", "MaskStoreWriter"]

T = TypeVar("T")

_BATCH = 32 << 20  # bytes of records that are copied at once
_FIRST = 8  # values that show whether an LMDB holds mask records


class MaskStore:
    """Reads a mask store; any number of processes may read while others of this machine write into it.

    It opens the LMDB once for each process, and again after a fork or in a spawned worker, so it can be passed to
    loader workers and pickled. Raises MaskStoreError, with the path and a remedy, where path holds no whole store. In a
    read-only folder and on a network file system it reads without LMDB's lock, which cannot work there: nobody may
    write meanwhile, from this machine or another.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.meta: dict[str, Any] = read_meta(self.path)
        self._opened: OpenLmdb | None = None
        self._read(self._check)

    @property
    def exif_orientation(self) -> ExifOrientation:
        """Whether the masks follow the EXIF orientation of their images; those of early stores do not."""
        return exif_orientation(self.meta)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "meta": self.meta, "_opened": None}

    def _environment(self) -> OpenLmdb:
        if self._opened is None or not self._opened.usable:
            self._opened = None  # releases a parent's environment before the file is opened again
            self._opened = open_shared(self.path, HELP, beside_writer=True)
        return self._opened

    def _read(self, query: Callable[[Any], T]) -> T:
        """Return query(transaction), in which values are views; errors of LMDB and the file become MaskStoreErrors."""
        try:
            return self._environment().read(query, buffers=True)
        except MaskStoreError:
            raise
        except (UserError, lmdb.Error) as error:
            message = str(error)
            if not message.startswith(str(self.path)):
                message = f"{self.path}: cannot be read: {message}"
            raise MaskStoreError(message) from None

    def _check(self, transaction: Any) -> None:
        """Raise MaskStoreError where the first values are no mask records: another LMDB is refused at once."""
        values = list(itertools.islice(transaction.cursor().iternext(keys=False), _FIRST))
        if values and not any(map(begins_as_record, values)):
            raise MaskStoreError(
                f"{self.path}: data.mdb holds something other than mask records (an image LMDB, or another "
                f"program's); {HELP}"
            )

    def record_bytes(self, key: str) -> bytes:
        """Return the bytes of the record of image `key`; MaskStoreError where the store has none."""
        data = None
        if key:  # LMDB refuses an empty key
            data = self._read(lambda transaction: _whole(get(transaction, key, self.path), self._name(key)))
        if data is None:
            raise MaskStoreError(
                f"{self.path}: no record for image {key!r} among {len(self)}{self._nearest(key)}; "
                "make the masks of this image, or take it out of the list (sam4ir masks verify lists all)"
            )
        return data

    def _name(self, key: str) -> str:
        return f"{self.path}: {key}"

    def read(self, key: str) -> MaskRecord:
        """Return the record of image `key`; MaskStoreError where the store has none."""
        return MaskRecord(self.record_bytes(key), self._name(key))

    def batches(self, after: bytes = b"") -> Iterator[list[tuple[bytes, bytes]]]:
        """Yield all (key, record) pairs in LMDB's order, in lists of about 32 MB, to copy a store of any size."""
        while batch := self._read(partial(_batch, after=after, path=self.path)):
            yield batch
            after = batch[-1][0]

    def unprotected(self) -> list[str]:
        """Return the keys of the records of earlier formats, which have no checksums, sorted."""
        return self._read(_unprotected)

    def _nearest(self, key: str) -> str:
        return near_miss(key, self.keys()) if len(self) <= 20_000 else ""

    def keys(self) -> list[str]:
        """Return all image keys, sorted."""
        return self._read(partial(keys_of, path=self.path))

    def __len__(self) -> int:
        return int(self._environment().env.stat()["entries"])

    def __contains__(self, key: object) -> bool:
        return contains(self._environment(), key)


def _whole(value: memoryview | None, name: str) -> bytes | None:
    """Return the bytes of a record, None for None; raise MaskStoreError where it has another length than it states.

    Damaged pages of an LMDB may give a view that reaches beyond its file, which a copy would crash on.
    """
    if value is None:
        return None
    if record_length(value, name) != len(value):
        raise MaskStoreError(f"{name}: the record is cut off; make this image's masks again")
    return bytes(value)


def _batch(transaction: Any, after: bytes, path: Path) -> list[tuple[bytes, bytes]]:
    """Return the (key, record) pairs behind the key `after`, about _BATCH bytes of them."""
    cursor = transaction.cursor()
    more = cursor.set_range(after) if after else cursor.first()
    if more and bytes(cursor.key()) == after:
        more = cursor.next()
    batch: list[tuple[bytes, bytes]] = []
    size = 0
    while more and size < _BATCH:
        key = bytes(cursor.key())
        record = _whole(cursor.value(), f"{path}: {key.decode(errors='replace')}")
        assert record is not None
        batch.append((key, record))
        size += len(record)
        more = cursor.next()
    return batch


def _unprotected(transaction: Any) -> list[str]:
    keys = []
    for key, value in transaction.cursor():
        with contextlib.suppress(MaskStoreError):  # a damaged header: whoever reads the record reports it
            if record_version(value) < CHECKED_SINCE:
                keys.append(bytes(key).decode(errors="replace"))
    return keys
