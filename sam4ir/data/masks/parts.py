"""Let several processes make masks where they cannot share one LMDB: each writes a part, and the parts are merged.

LMDB's lock works between the processes of one machine on a local file system. Elsewhere (on network file systems, or
where the user asks for it) each process writes a mask store of its own, `OUT.lmdb.parts/<name>.lmdb`, and holds the
lock file beside it while it runs; the lock ends with the process. The holder of the store's merge lock merges the parts
that nobody holds: it copies records as bytes, keeps the first record of each key, and removes a part once its records
are committed. Merging may therefore be killed at any point and started again.
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
from sam4ir.utils.files import make_folder

_MERGE_LOCK = ".merge.lock"
_GONE = ".gone"  # suffix of a part whose records are in the store; it only waits for its removal


@dataclass(frozen=True)
class MergeResult:
    """records: number of records copied. parts: merged parts. living: parts that other processes still write."""

    records: int = 0
    parts: tuple[str, ...] = ()
    living: tuple[str, ...] = ()


def parts_folder(store: Path) -> Path:
    """Return the folder of a store's parts."""
    return store.with_name(store.name + ".parts")


@contextlib.contextmanager
def merging(store: Path) -> Iterator[None]:
    """Hold the store's merge lock for a block: no other process merges or begins a part meanwhile."""
    if not mask_meta.holds_nothing(store):
        mask_meta.read_meta(store)  # so that nothing is written into a foreign folder
    make_folder(store)
    with mask_meta.locked(store, _MERGE_LOCK):
        yield


def begin_new(store: Path, meta: Mapping[str, Any]) -> None:
    """Move a store and its parts aside and begin a new one. Raises MaskStoreError where a process writes a part."""
    folder = parts_folder(store)
    if folder.is_dir():
        parts = set(_parts(folder))
        for file in folder.glob("*.lock"):
            parts.add(file.with_suffix(".lmdb"))  # a process holds its lock before its part exists
        living = [part.name for part in sorted(parts) if _lock(part) is None]
        if living:
            raise MaskStoreError(f"{folder}: {', '.join(living)} is being written by another process; end it first")
        mask_meta.move_aside(folder)
    MaskStoreWriter(store, meta, new=True).close()


def merge_idle(store: Path, meta: Mapping[str, Any]) -> MergeResult:
    """Merge the parts that nobody writes into the store, which is made if it does not exist; call it inside `merging`.

    Raises MaskStoreError where the provenance of the store or of a part differs from `meta`, or a part is damaged.
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
    return MergeResult(records, tuple(merged), tuple(living))


@contextlib.contextmanager
def part_writer(store: Path, name: str, meta: Mapping[str, Any]) -> Iterator[MaskStoreWriter]:
    """Give a block a writer of the part `name` of a store, and hold the part's lock meanwhile.

    Do not call it inside `merging`. Raises MaskStoreError, with the part, where another living process writes it.
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
    """Return the parts in a folder, sorted; remove the rest of those that were merged."""
    for merged in folder.glob(f"*{_GONE}"):
        shutil.rmtree(merged)
    return sorted(folder.glob("*.lmdb"))


def _lock(part: Path) -> FileLock | None:
    """Acquire and return the part's lock, or return None where another process holds it."""
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
    """Remove the lock files of merged parts; nobody waits for one, because parts begin only inside `merging`."""
    for file in folder.glob("*.lock"):
        part = file.with_suffix(".lmdb")
        if part.exists():
            continue
        lock = _lock(part)
        if lock is not None:
            file.unlink()
            lock.release()


def _merge_one(writer: MaskStoreWriter, part: Path, meta: Mapping[str, Any]) -> int:
    """Copy a part's records and return their number, 0 where the part's process was killed before it wrote any."""
    data = part / "data.mdb"
    if mask_meta.holds_nothing(part) or not data.exists() or not data.stat().st_size:
        return 0
    part_meta = mask_meta.read_meta(part)
    mask_meta.refuse_other_provenance(part, mask_meta.stored_provenance(part_meta), mask_meta.checked_provenance(meta))
    copied = sum(writer.put_records(batch) for batch in MaskStore(part).batches())
    mask_meta.add_made_on(writer.path, part_meta.get("made_on", []))
    return copied


def _remove(part: Path) -> None:
    merged = part.with_name(part.name + _GONE)
    part.rename(merged)  # first, so that a half-removed folder is never read as a part
    shutil.rmtree(merged)
