"""The mask store: one LMDB folder a mask set, one record an image key, meta.json beside data.mdb."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb

from sam4ir.data.lmdb_env import OpenLmdb, get, open_shared
from sam4ir.data.mask_import import record_from_sam
from sam4ir.data.mask_record import FORMAT_VERSION, MaskRecord, MaskStoreError, mask_count
from sam4ir.registry import near_miss

__all__ = ["PROVENANCE", "MaskRecord", "MaskStore", "MaskStoreError", "MaskStoreWriter"]

FORMAT = "sam4ir mask store"
SOURCES = ("gt", "lq", "restored")  # which image the generator looked at
PROVENANCE = ("generator", "checkpoint", "checkpoint_sha256", "settings", "source")
_OWN_KEYS = ("format", "format_version", "versions", "earlier_versions", "counts")
_HELP = "make it with: python scripts/masks.py import"
_MAX_KEY = 511  # LMDB's limit, bytes


class MaskStore:
    """A finished mask store, read-only. Any number of readers, without a lock; do not write meanwhile.

    Opens its LMDB once a process (after a fork or in a spawned worker again), so it can be handed to
    loader workers and pickled. Raises MaskStoreError, naming path and remedy, where there is no whole store.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.meta: dict[str, Any] = _read_meta(self.path)
        self._opened: OpenLmdb | None = None
        self._environment()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "meta": self.meta, "_opened": None}

    def _environment(self) -> lmdb.Environment:
        if self._opened is None or not self._opened.usable:
            self._opened = None  # lets go of a parent's environment before the file is opened again
            try:
                self._opened = open_shared(self.path, _HELP)
            except ValueError as error:
                raise MaskStoreError(str(error)) from None
        return self._opened.env

    def read(self, key: str) -> MaskRecord:
        """The record of image `key`. Raises MaskStoreError where there is none."""
        env = self._environment()
        with env.begin() as transaction:
            data = get(transaction, key, self.path) if key else None
        if data is None:
            raise MaskStoreError(
                f"{self.path}: no record for image {key!r} among {len(self)}{self._nearest(key)}; "
                "make the masks of this image, or take it out of the list (scripts/masks.py verify lists all)"
            )
        return MaskRecord(data, f"{self.path}: {key}")

    def _nearest(self, key: str) -> str:
        return near_miss(key, self.keys()) if len(self) <= 20_000 else ""

    def keys(self) -> list[str]:
        """All image keys, sorted."""
        with self._environment().begin() as transaction:
            return [bytes(key).decode() for key in transaction.cursor().iternext(values=False)]

    def __len__(self) -> int:
        return int(self._environment().stat()["entries"])

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str) or not 0 < len(key.encode()) <= _MAX_KEY:
            return False
        with self._environment().begin(buffers=True) as transaction:
            return transaction.get(key.encode()) is not None


def _read_meta(path: Path) -> dict[str, Any]:
    """meta.json of a store of this format; MaskStoreError where path holds none."""
    file = path / "meta.json"
    if not path.is_dir():
        what = "is a file, a mask store is a folder" if path.exists() else "there is no such mask store"
        raise MaskStoreError(f"{path}: {what}; {_HELP}")
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MaskStoreError(f"{path}: not a mask store, it has no meta.json; {_HELP}") from None
    except (OSError, ValueError) as error:
        raise MaskStoreError(f"{file}: cannot be read ({error}); {_HELP}") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise MaskStoreError(f"{file}: not the meta.json of a mask store; {_HELP}")
    if meta.get("format_version") != FORMAT_VERSION:
        raise MaskStoreError(
            f"{path}: store format {meta.get('format_version')}, this sam4ir reads {FORMAT_VERSION}; {_HELP}"
        )
    return meta


class MaskStoreWriter:
    """Writes a mask store: `with MaskStoreWriter(path, meta) as writer: writer.put(key, masks)`.

    meta: how the masks are made: generator, checkpoint, checkpoint_sha256, settings, source (gt | lq | restored),
    and whatever else belongs to it; `versions` adds package versions to those of the writer.
    An existing store is continued if it was made in the same way, otherwise MaskStoreError says what differs;
    with new=True an existing one is moved aside (name.old1, ...) and a new one begun. Nothing is ever deleted.
    Each put is one committed transaction: an interrupted run loses nothing and goes on with `key in writer`.
    """

    def __init__(
        self, path: str | Path, meta: Mapping[str, Any], new: bool = False, map_size: int = 64 * 2**20
    ) -> None:
        self.path = Path(path)
        provenance = _provenance(meta)
        if new and self.path.exists():
            _move_aside(self.path)
        self._meta = self._begin(provenance, {**_versions(), **meta.get("versions", {})})
        _write_json(self.path / "meta.json", self._meta)  # first, so that no interrupted start leaves data without it
        existing = self.path / "data.mdb"
        size = max(map_size, 2 * existing.stat().st_size if existing.exists() else 0)
        try:
            self._env = lmdb.open(str(self.path.resolve()), map_size=size)
        except lmdb.Error as error:
            raise MaskStoreError(
                f"{self.path}: cannot be opened for writing ({error}); close its readers in this process, or "
                "begin a new store"
            ) from None
        self._closed = False

    def _begin(self, provenance: dict[str, Any], versions: dict[str, str]) -> dict[str, Any]:
        meta: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, **provenance}
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            known = _read_meta(self.path)
            _refuse_other(self.path, {k: v for k, v in known.items() if k not in _OWN_KEYS}, provenance)
            earlier = known.get("earlier_versions", [])
            if known.get("versions", versions) != versions and known["versions"] not in earlier:
                earlier = [*earlier, known["versions"]]
            meta |= {"earlier_versions": earlier} if earlier else {}
            return {**meta, "versions": versions, "counts": known.get("counts", {})}
        self.path.mkdir(parents=True, exist_ok=True)
        return {**meta, "versions": versions, "counts": {"images": 0, "masks": 0}}

    def put(
        self,
        key: str,
        masks: Sequence[Mapping[str, Any]],
        size: tuple[int, int] | None = None,
        image_sha256: str | None = None,
    ) -> None:
        """Stores the masks of image `key` in their order, replacing an earlier record of that key.

        masks: segment-anything's dictionaries (mask_import.record_from_sam). size: (h, w) of the image, needed
        where there are no masks. image_sha256: mask_import.pixel_sha256 of the image that the generator looked at.
        """
        name = key.encode()
        if not 0 < len(name) <= _MAX_KEY:
            raise MaskStoreError(f"{self.path}: key {key!r} has {len(name)} bytes, LMDB keys have 1 to {_MAX_KEY}")
        try:
            record = record_from_sam(masks, size, bytes.fromhex(image_sha256 or ""))
        except ValueError as error:
            raise MaskStoreError(f"image {key!r}: {error}") from None
        self._commit(name, record)

    def _commit(self, name: bytes, record: bytes) -> None:
        while True:
            try:
                with self._env.begin(write=True) as transaction:
                    transaction.put(name, record)
                return
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])
            except lmdb.MapResizedError:  # another process has grown it
                self._env.set_mapsize(0)

    def __contains__(self, key: str) -> bool:
        with self._env.begin(buffers=True) as transaction:
            return transaction.get(key.encode()) is not None

    def close(self) -> None:
        """Counts the records and writes the final meta.json. Calling it again does nothing."""
        if self._closed:
            return
        with self._env.begin(buffers=True) as transaction:
            masks = [mask_count(data) for data in transaction.cursor().iternext(keys=False)]
        self._env.close()
        self._closed = True
        self._meta["counts"] = {"images": len(masks), "masks": sum(masks)}
        _write_json(self.path / "meta.json", self._meta)

    def __enter__(self) -> MaskStoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _provenance(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`meta` as JSON gives it back, with every provenance key; None = not known."""
    given = {k: v for k, v in meta.items() if k != "versions"}
    for key in _OWN_KEYS:
        if key in given:
            raise MaskStoreError(f"meta key {key!r} is written by the store itself; give it another name")
    if given.get("source") not in (None, *SOURCES):
        raise MaskStoreError(f"source must be one of {', '.join(SOURCES)}, not {given['source']!r}")
    full = {**dict.fromkeys(PROVENANCE), "settings": {}, **given}
    try:
        result: dict[str, Any] = json.loads(json.dumps(full))
    except (TypeError, ValueError) as error:
        raise MaskStoreError(f"meta must hold plain JSON values ({error})") from None
    return result


def _refuse_other(path: Path, known: dict[str, Any], given: dict[str, Any]) -> None:
    differing = [k for k in sorted({*known, *given}) if known.get(k) != given.get(k)]
    if differing:
        which = "; ".join(f"{k}: stored {known.get(k)!r}, now {given.get(k)!r}" for k in differing)
        raise MaskStoreError(
            f"{path} holds masks that were made differently ({which}); name another store, "
            "or begin a new one with new=True (--new), which moves this one aside"
        )


def _move_aside(path: Path) -> None:
    number = 1
    while (aside := path.with_name(f"{path.name}.old{number}")).exists():
        number += 1
    path.rename(aside)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {p: metadata.version(p) for p in ("numpy", "lmdb", "zstandard")}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)
