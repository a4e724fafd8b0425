"""The mask store: an LMDB folder that holds one mask record for each image, with meta.json beside data.mdb.

MaskStore reads it; MaskStoreWriter (writer.py) writes it. Both can be imported from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from sam4ir.data.lmdb_env import OpenLmdb, get, keys_of, open_shared
from sam4ir.data.masks.meta import HELP, PROVENANCE_KEYS, SOURCES, exif_orientation, read_meta
from sam4ir.data.masks.record import MaskRecord, MaskStoreError, mask_count
from sam4ir.data.masks.writer import MaskStoreWriter, contains
from sam4ir.errors import UserError
from sam4ir.registry import near_miss
from sam4ir.utils.image import ExifOrientation

__all__ = ["PROVENANCE_KEYS", "SOURCES", "MaskRecord", "MaskStore", "MaskStoreError", "MaskStoreWriter"]

T = TypeVar("T")

_BATCH = 32 << 20  # bytes of records that are copied at once


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
        """Return query(transaction); errors of LMDB and of the file become MaskStoreErrors."""
        try:
            return self._environment().read(query)
        except MaskStoreError:
            raise
        except (UserError, lmdb.Error) as error:
            message = str(error)
            if not message.startswith(str(self.path)):
                message = f"{self.path}: cannot be read: {message}"
            raise MaskStoreError(message) from None

    def _check(self, transaction: Any) -> None:
        """Raise MaskStoreError where the first value is no mask record, so that another LMDB is refused at once."""
        cursor = transaction.cursor()
        if cursor.first():
            try:
                mask_count(cursor.value())
            except MaskStoreError:
                raise MaskStoreError(
                    f"{self.path}: data.mdb holds something other than mask records (an image LMDB, or another "
                    f"program's); {HELP}"
                ) from None

    def record_bytes(self, key: str) -> bytes:
        """Return the bytes of the record of image `key`; MaskStoreError where the store has none."""
        data = None
        if key:  # LMDB refuses an empty key
            data = self._read(lambda transaction: get(transaction, key, self.path))
        if data is None:
            raise MaskStoreError(
                f"{self.path}: no record for image {key!r} among {len(self)}{self._nearest(key)}; "
                "make the masks of this image, or take it out of the list (scripts/masks.py verify lists all)"
            )
        return bytes(data)

    def read(self, key: str) -> MaskRecord:
        """Return the record of image `key`; MaskStoreError where the store has none."""
        return MaskRecord(self.record_bytes(key), f"{self.path}: {key}")

    def batches(self, after: bytes = b"") -> Iterator[list[tuple[bytes, bytes]]]:
        """Yield all (key, record) pairs in LMDB's order, in lists of about 32 MB, to copy a store of any size."""
        while batch := self._read(lambda transaction: _batch(transaction, after)):  # noqa: B023  (called at once)
            yield batch
            after = batch[-1][0]

    def _nearest(self, key: str) -> str:
        return near_miss(key, self.keys()) if len(self) <= 20_000 else ""

    def keys(self) -> list[str]:
        """Return all image keys, sorted."""
        return self._read(partial(keys_of, path=self.path))

    def __len__(self) -> int:
        return int(self._environment().env.stat()["entries"])

    def __contains__(self, key: object) -> bool:
        return contains(self._environment(), key)


def _batch(transaction: Any, after: bytes) -> list[tuple[bytes, bytes]]:
    """Return the (key, record) pairs behind the key `after`, about _BATCH bytes of them."""
    cursor = transaction.cursor()
    more = cursor.set_range(after) if after else cursor.first()
    if more and cursor.key() == after:
        more = cursor.next()
    batch: list[tuple[bytes, bytes]] = []
    size = 0
    while more and size < _BATCH:
        batch.append((cursor.key(), cursor.value()))
        size += len(batch[-1][1])
        more = cursor.next()
    return batch
