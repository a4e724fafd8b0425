"""The mask store: one LMDB folder a mask set, one record an image key, meta.json beside data.mdb."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from sam4ir.data.lmdb_env import OpenLmdb, get, open_shared
from sam4ir.data.masks.meta import HELP, PROVENANCE_KEYS, SOURCES, read_meta
from sam4ir.data.masks.record import MaskRecord, MaskStoreError, mask_count
from sam4ir.data.masks.writer import MaskStoreWriter, contains
from sam4ir.registry import near_miss

__all__ = ["PROVENANCE_KEYS", "SOURCES", "MaskRecord", "MaskStore", "MaskStoreError", "MaskStoreWriter"]

T = TypeVar("T")

_BATCH = 32 << 20  # bytes of records that are copied at once


class MaskStore:
    """A mask store, read-only: any number of readers, beside processes of this machine that write into it.

    Opens its LMDB once a process (after a fork or in a spawned worker again), so it can be handed to
    loader workers and pickled. Raises MaskStoreError, naming path and remedy, where there is no whole store.
    In a read-only folder and on a network file system it reads without LMDB's lock, which cannot work there: do not
    write meanwhile, nor from another machine.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.meta: dict[str, Any] = read_meta(self.path)
        self._opened: OpenLmdb | None = None
        self._look(self._check)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "meta": self.meta, "_opened": None}

    def _environment(self) -> OpenLmdb:
        if self._opened is None or not self._opened.usable:
            self._opened = None  # lets go of a parent's environment before the file is opened again
            self._opened = open_shared(self.path, HELP, beside_writer=True)
        return self._opened

    def _look(self, look: Callable[[Any], T]) -> T:
        """look(transaction); what LMDB and the file are at fault for is a MaskStoreError."""
        try:
            return self._environment().read(look)
        except MaskStoreError:
            raise
        except (ValueError, lmdb.Error) as error:
            message = str(error)
            place = "" if message.startswith(str(self.path)) else f"{self.path}: cannot be read: "
            raise MaskStoreError(f"{place}{message}") from None

    def _check(self, transaction: Any) -> None:
        """That the first value is a mask record, so that another program's LMDB is told at once."""
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
        """The record of image `key` as stored, to be copied. Raises MaskStoreError where there is none."""
        data = self._look(lambda transaction: get(transaction, key, self.path)) if key else None
        if data is None:
            raise MaskStoreError(
                f"{self.path}: no record for image {key!r} among {len(self)}{self._nearest(key)}; "
                "make the masks of this image, or take it out of the list (scripts/masks.py verify lists all)"
            )
        return bytes(data)

    def read(self, key: str) -> MaskRecord:
        """The record of image `key`. Raises MaskStoreError where there is none."""
        return MaskRecord(self.record_bytes(key), f"{self.path}: {key}")

    def batches(self, after: bytes = b"") -> Iterator[list[tuple[bytes, bytes]]]:
        """(key, record) pairs in LMDB's order, a list of some 32 MB at a time, to copy a store of any size."""
        while batch := self._look(lambda transaction: _batch(transaction, after)):  # noqa: B023  (called at once)
            yield batch
            after = batch[-1][0]

    def _nearest(self, key: str) -> str:
        return near_miss(key, self.keys()) if len(self) <= 20_000 else ""

    def keys(self) -> list[str]:
        """All image keys, sorted."""
        return self._look(_keys)

    def __len__(self) -> int:
        return int(self._environment().env.stat()["entries"])

    def __contains__(self, key: object) -> bool:
        return contains(self._environment(), key)


def _keys(transaction: Any) -> list[str]:
    return [bytes(key).decode() for key in transaction.cursor().iternext(values=False)]


def _batch(transaction: Any, after: bytes) -> list[tuple[bytes, bytes]]:
    """Records behind the key `after`."""
    cursor = transaction.cursor()
    there = cursor.set_range(after) if after else cursor.first()
    if there and cursor.key() == after:
        there = cursor.next()
    batch: list[tuple[bytes, bytes]] = []
    size = 0
    while there and size < _BATCH:
        batch.append((cursor.key(), cursor.value()))
        size += len(batch[-1][1])
        there = cursor.next()
    return batch
