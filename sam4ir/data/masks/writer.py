"""Write a mask store: many processes of one machine may do so at once, and no record is ever half written."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb

from sam4ir.data.lmdb_env import MAX_KEY, OpenLmdb, open_for_writing
from sam4ir.data.masks import meta as mask_meta
from sam4ir.data.masks.from_sam import record_from_sam
from sam4ir.data.masks.record import MaskStoreError, mask_count
from sam4ir.errors import UserError
from sam4ir.utils.files import make_folder


def key_bytes(key: str, path: Path) -> bytes:
    """Return the bytes of an image's key in LMDB; raise MaskStoreError naming the store for one that it cannot hold."""
    try:
        name = key.encode()
    except UnicodeEncodeError:
        raise MaskStoreError(f"{path}: key {key!r} is no UTF-8; rename the image") from None
    if not 0 < len(name) <= MAX_KEY:
        raise MaskStoreError(f"{path}: key {key!r} has {len(name)} bytes, LMDB keys have 1 to {MAX_KEY}")
    return name


class MaskStoreWriter:
    """Writes a mask store: `with MaskStoreWriter(path, meta) as writer: writer.put(key, masks)`.

    meta: how the masks are made: generator, checkpoint, checkpoint_sha256, settings, source (gt | lq | restored), and
    any further provenance. Three keys may differ from run to run: `versions` adds package versions to those of the
    writer, `made_on` names the machine (meta.json lists those of all runs), and `told` holds any further remarks.
    An existing store is continued if its masks were made in the same way; otherwise a MaskStoreError names the
    differences. With new=True an existing store is moved aside (name.old1, ...) and a new one begins. Nothing is ever
    deleted. Each put is one transaction, on disk when it returns: an interrupted run loses nothing, and asks
    `key in writer` to continue. Other processes of this machine may write into the same store and read it meanwhile. On
    a network file system only one process may write and nobody may read meanwhile: parts.py ensures that.
    """

    def __init__(
        self, path: str | Path, meta: Mapping[str, Any], new: bool = False, map_size: int = 64 * 2**20
    ) -> None:
        self.path = Path(path)
        provenance = mask_meta.checked_provenance(meta)
        if new and self.path.exists():
            mask_meta.refuse_foreign(self.path)
            self._refuse_writers()
            mask_meta.move_aside(self.path)
        if not mask_meta.holds_nothing(self.path):
            mask_meta.read_meta(self.path)  # so that nothing is written into a foreign folder
        make_folder(self.path)
        with mask_meta.locked(self.path):
            mask_meta.write_meta(self.path, mask_meta.joined_meta(self.path, provenance, meta))  # before any data
        self._presence = mask_meta.Presence(self.path)
        self._stored_count = 0
        existing = self.path / "data.mdb"
        if existing.exists():
            map_size = max(map_size, 2 * existing.stat().st_size)
        try:
            self._opened: OpenLmdb | None = open_for_writing(self.path, map_size)
        except UserError as error:
            self._presence.leave()
            raise MaskStoreError(str(error)) from None

    def _open(self) -> OpenLmdb:
        if self._opened is None:
            raise MaskStoreError(f"{self.path}: this writer is closed")
        return self._opened

    def _refuse_writers(self) -> None:
        if not self.path.is_dir():
            return
        presence = mask_meta.Presence(self.path)
        last = presence.last()
        presence.leave()
        if not last:
            raise MaskStoreError(f"{self.path}: another process is writing into it; end it before a new one begins")

    def put(
        self,
        key: str,
        masks: Sequence[Mapping[str, Any]],
        size: tuple[int, int] | None = None,
        image_sha256: str | None = None,
        overwrite: bool = True,
    ) -> bool:
        """Store the masks of image `key` in their order and return whether they were stored.

        masks: segment-anything's dictionaries (from_sam.record_from_sam). size: (h, w) of the image, needed where the
        list is empty. image_sha256: from_sam.pixel_sha256 of the image that the generator read. overwrite: replace an
        earlier record of that key; otherwise the earlier one stays.
        """
        self.encode_key(key)
        try:
            record = record_from_sam(masks, size, bytes.fromhex(image_sha256 or ""))
        except ValueError as error:
            raise MaskStoreError(f"image {key!r}: {error}") from None
        return self.put_record(key, record, overwrite)

    def put_record(self, key: str, record: bytes, overwrite: bool = True) -> bool:
        """Store a record's bytes, perhaps copied from another store; return whether they were stored."""
        return bool(self.put_records([(self.encode_key(key), record)], overwrite))

    def put_records(self, records: Sequence[tuple[bytes, bytes]], overwrite: bool = False) -> int:
        """Store (key, record) pairs in one transaction, all or none of them; return how many were stored."""
        for name, record in records:
            mask_count(record, f"{self.path}: {name.decode(errors='replace')}")

        def store(transaction: lmdb.Transaction) -> int:
            return sum(transaction.put(name, record, overwrite=overwrite) for name, record in records)

        try:
            stored = self._open().write(store)
        except UserError as error:
            raise MaskStoreError(str(error)) from None
        self._stored_count += stored
        return stored

    def encode_key(self, key: str) -> bytes:
        """Return the bytes of an image's key in LMDB; see key_bytes."""
        return key_bytes(key, self.path)

    def __contains__(self, key: object) -> bool:
        return contains(self._open(), key)

    def __len__(self) -> int:
        return int(self._open().env.stat()["entries"])

    def close(self) -> None:
        """Stop writing; the last process that does so counts the records for meta.json.

        Calling it again does nothing.
        """
        if self._opened is None:
            return
        try:
            if self._presence.last():
                self._count()
        finally:
            self._opened = None  # closed with its last user: a MaskStore of this process may still read it
            self._presence.leave()

    def _count(self) -> None:
        meta = mask_meta.read_meta(self.path)
        if not self._stored_count and meta.get("counts", {}).get("images") == len(self):
            return
        masks = self._open().read(_mask_counts, buffers=True)
        with mask_meta.locked(self.path):
            counts = {"images": len(self), "masks": sum(masks)}
            mask_meta.write_meta(self.path, {**mask_meta.read_meta(self.path), "counts": counts})

    def __enter__(self) -> MaskStoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        with contextlib.suppress(OSError, ValueError):  # the block's own error must show: on a full disk both fail
            self.close()


def _mask_counts(transaction: lmdb.Transaction) -> list[int]:
    counts = []
    for key, value in transaction.cursor():
        with contextlib.suppress(MaskStoreError):  # a damaged record does not count; masks.py verify lists it
            counts.append(mask_count(value, bytes(key).decode(errors="replace")))
    return counts


def contains(opened: OpenLmdb, key: object) -> bool:
    """Return whether the environment has a value under `key`."""
    name = key.encode(errors="replace") if isinstance(key, str) else b""
    if not 0 < len(name) <= MAX_KEY or name.decode() != key:
        return False
    return bool(opened.read(lambda transaction: transaction.get(name) is not None, buffers=True))
