"""Masks written by several processes where they cannot share one LMDB: a part each, merged into the store.

LMDB's lock works among the processes of one machine on a local file system. Elsewhere (network file systems, or where
it is asked for) each process writes a mask store of its own, `OUT.lmdb.parts/<name>.lmdb`, and holds the lock file
beside it while it runs; its death lets go of the lock. Whoever holds the store's merge lock merges parts that nobody
holds: records are copied as bytes, the first record of a key stays, and a part goes once its records are committed. So
merging may be killed and begun again at any point.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sam4ir.data.masks import meta as mask_meta
from sam4ir.data.masks.record import MaskStoreError
from sam4ir.data.masks.store import MaskStore, MaskStoreWriter

_MERGE_LOCK = ".merge.lock"
_GONE = ".gone"  # a part whose records are in the store; what is left of it is rubbish


@dataclass(frozen=True)
class Merged:
    """records: that came into the store. parts: that were merged. living: parts that other processes write."""

    records: int = 0
    parts: tuple[str, ...] = ()
    living: tuple[str, ...] = ()


def parts_folder(store: Path) -> Path:
    """Where the parts of a store lie."""
    return store.with_name(store.name + ".parts")


@contextlib.contextmanager
def merging(store: Path) -> Iterator[None]:
    """Inside the block no other process merges parts of this store, nor begins one."""
    if not mask_meta.holds_nothing(store):
        mask_meta.read_meta(store)  # nothing is written into a folder of somebody else
    store.mkdir(parents=True, exist_ok=True)
    with mask_meta.locked(store, _MERGE_LOCK):
        yield


def begin_new(store: Path, meta: Mapping[str, Any]) -> None:
    """Move a store and its parts aside and begin a new one. Raises MaskStoreError where a process writes a part."""
    folder = parts_folder(store)
    if folder.is_dir():
        locked = [file.with_suffix(".lmdb") for file in folder.glob("*.lock")]  # before there is a part
        living = [part.name for part in sorted({*_parts(folder), *locked}) if _lock(part) is None]
        if living:
            raise MaskStoreError(f"{folder}: {', '.join(living)} is being written by another process; end it first")
        mask_meta.move_aside(folder)
    MaskStoreWriter(store, meta, new=True).close()


def merge_idle(store: Path, meta: Mapping[str, Any]) -> Merged:
    """Merge the parts that nobody writes into the store, which is made where there is none; call inside `merging`.

    Raises MaskStoreError where the store, or a part, was made in another way than `meta` says, or a part is damaged.
    """
    folder = parts_folder(store)
    records, merged, living = 0, [], []
    with MaskStoreWriter(store, meta) as writer:
        for part in _parts(folder):
            lock = _lock(part)
            if lock is None:
                living.append(part.name)
                continue
            try:
                records += _merge_one(writer, part, meta)
                _remove(part)
            finally:
                lock.release()
            merged.append(part.name)
    _remove_locks(folder)
    with contextlib.suppress(OSError):
        folder.rmdir()
    return Merged(records, tuple(merged), tuple(living))


@contextlib.contextmanager
def part_writer(store: Path, name: str, meta: Mapping[str, Any]) -> Iterator[MaskStoreWriter]:
    """A writer of the part `name` of a store, held until the block ends. Do not call inside `merging`.

    Raises MaskStoreError naming the part where another living process writes it.
    """
    folder = parts_folder(store)
    part = folder / f"{name}.lmdb"
    with merging(store):
        folder.mkdir(exist_ok=True)
        lock = _lock(part)
    if lock is None:
        raise MaskStoreError(
            f"{part}: is being written by another process; this share of the images is under way already"
        )
    try:
        with MaskStoreWriter(part, meta) as writer:
            yield writer
    finally:
        lock.release()


def _parts(folder: Path) -> list[Path]:
    for rubbish in folder.glob(f"*{_GONE}"):
        shutil.rmtree(rubbish)
    return sorted(folder.glob("*.lmdb"))


def _lock(part: Path) -> FileLock | None:
    """The part's lock, acquired, or None where another process holds it."""
    lock = FileLock(part.with_suffix(".lock"), is_singleton=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        raise MaskStoreError(
            f"{lock.lock_file}: cannot be locked ({error}); the file system must have file locks"
        ) from None
    return lock


def _remove_locks(folder: Path) -> None:
    """The lock files of parts that are gone; nobody waits for one, as parts begin inside `merging` only."""
    for file in folder.glob("*.lock"):
        part = file.with_suffix(".lmdb")
        lock = None if part.exists() else _lock(part)
        if lock is not None:
            file.unlink()
            lock.release()


def _merge_one(writer: MaskStoreWriter, part: Path, meta: Mapping[str, Any]) -> int:
    """Copy a part's records; 0 for one that was killed before it held anything."""
    data = part / "data.mdb"
    if mask_meta.holds_nothing(part) or not data.exists() or not data.stat().st_size:
        return 0
    known = mask_meta.read_meta(part)
    mask_meta.refuse_other_provenance(part, mask_meta.stored_provenance(known), mask_meta.checked_provenance(meta))
    copied = sum(writer.put_records(batch) for batch in MaskStore(part).batches())
    mask_meta.add_made_on(writer.path, known.get("made_on", []))
    return copied


def _remove(part: Path) -> None:
    gone = part.with_name(part.name + _GONE)
    part.rename(gone)  # at once, so that no half of it is ever taken for a part
    shutil.rmtree(gone)
