"""meta.json of a mask store: how its masks were made, whether others may join them, and who is writing."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from sam4ir.data.masks.record import FORMAT_VERSION, READABLE_VERSIONS, MaskStoreError
from sam4ir.utils.files import read_json, write_text

try:
    import fcntl
except ImportError:  # pragma: no cover  (Windows)
    fcntl = None  # type: ignore[assignment]

FORMAT = "sam4ir mask store"
SOURCES = ("gt", "lq", "restored")  # which image the generator looked at
PROVENANCE = ("generator", "checkpoint", "checkpoint_sha256", "settings", "source")
HELP = "make it with: python scripts/make_masks.py, or scripts/masks.py import"
NOT_ASKED = ("versions", "made_on", "told")  # beside the provenance; they may differ from run to run
_OWN_KEYS = ("format", "format_version", "earlier_versions", "counts")
_LOCK = ".meta.lock"
_BESIDE = frozenset({_LOCK, ".merge.lock", "lock.mdb"})  # what a store may hold before it is one
_HALF = re.compile(r"\.meta\.json\.\d+\.part")  # its meta.json, of a process that was killed while it wrote that


def read_meta(path: Path) -> dict[str, Any]:
    """meta.json of a store that this version reads; MaskStoreError where path holds none."""
    file = path / "meta.json"
    if not path.is_dir():
        what = "is a file, a mask store is a folder" if path.exists() else "there is no such mask store"
        raise MaskStoreError(f"{path}: {what}; {HELP}")
    try:
        meta = read_json(file)
    except FileNotFoundError:
        raise MaskStoreError(f"{path}: not a mask store, it has no meta.json; {HELP}") from None
    except (OSError, ValueError) as error:
        raise MaskStoreError(f"{file}: cannot be read ({error}); {HELP}") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise MaskStoreError(f"{file}: not the meta.json of a mask store; {HELP}")
    if meta.get("format_version") not in READABLE_VERSIONS:
        raise MaskStoreError(
            f"{path}: store format {meta.get('format_version')}, this sam4ir reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))}; {HELP}"
        )
    return meta


def write_meta(path: Path, meta: Mapping[str, Any]) -> None:
    """Replace meta.json as a whole."""
    try:
        write_text(path / "meta.json", json.dumps(meta, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise MaskStoreError(f"{path / 'meta.json'}: cannot be written ({error.strerror})") from None


def provenance(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`meta` as JSON gives it back, with every provenance key, without what may differ; None = not known."""
    given = {k: v for k, v in meta.items() if k not in NOT_ASKED}
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


def provenance_of(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What provenance() gave when a store's meta.json was written."""
    return {k: v for k, v in stored.items() if k not in (*_OWN_KEYS, *NOT_ASKED)}


def refuse_other(path: Path, known: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """MaskStoreError with what differs, where masks were made in another way than those of the store at `path`."""
    differing = _differences("", known, given)
    if differing:
        raise MaskStoreError(
            f"{path} holds masks that were made differently ({'; '.join(differing)}); name another store, "
            "or begin a new one with new=True (--new), which moves this one aside"
        )


def _differences(place: str, known: Any, given: Any) -> list[str]:
    if isinstance(known, Mapping) and isinstance(given, Mapping):
        sha256 = known.get("checkpoint_sha256")
        renamed = {"checkpoint"} if sha256 and sha256 == given.get("checkpoint_sha256") else set()
        keys = sorted({*known, *given} - renamed)  # the same weights may lie in a file of another name
        return [text for key in keys for text in _differences(f"{place}.{key}", known.get(key), given.get(key))]
    return [] if known == given else [f"{place[1:]}: stored {_short(known)}, now {_short(given)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def holds_nothing(path: Path) -> bool:
    """Whether a new store may begin at `path`."""
    return not path.exists() or (
        path.is_dir() and all(p.name in _BESIDE or _HALF.fullmatch(p.name) for p in path.iterdir())
    )


def begin(path: Path, own: dict[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """The meta of a new store, or of the one at `path` when this run has joined it; call with the store locked.

    own: of provenance(). told: NOT_ASKED keys of this run. Raises MaskStoreError where its masks are made differently.
    """
    versions = {**_versions(), **told.get("versions", {})}
    if (path / "meta.json").exists() or not holds_nothing(path):
        known = read_meta(path)
        refuse_other(path, provenance_of(known), own)
    else:
        known = {"counts": {"images": 0, "masks": 0}}
    meta = {"format": FORMAT, "format_version": FORMAT_VERSION, **own}
    earlier = list(known.get("earlier_versions", []))
    if known.get("versions", versions) != versions and known["versions"] not in earlier:
        earlier.append(known["versions"])
    meta |= {"earlier_versions": [v for v in earlier if v != versions]} if earlier else {}
    made_on = list(known.get("made_on", []))
    if told.get("made_on") and told["made_on"] not in made_on:
        made_on.append(told["made_on"])
    meta |= {"made_on": made_on} if made_on else {}
    meta |= {"told": dict(told["told"])} if told.get("told") else {k: known[k] for k in ("told",) if k in known}
    return {**meta, "versions": versions, "counts": known.get("counts", {})}


def add_made_on(path: Path, made_on: Sequence[Any]) -> None:
    """Add what other writers were made on to a store's meta."""
    with locked(path):
        meta = read_meta(path)
        new = [entry for entry in made_on if entry not in meta.get("made_on", [])]
        if new:
            write_meta(path, {**meta, "made_on": [*meta.get("made_on", []), *new]})


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {p: metadata.version(p) for p in ("numpy", "lmdb", "zstandard")}


def refuse_foreign(path: Path) -> None:
    """MaskStoreError where `path` is a file, or a folder of something else than a store, of whatever version."""
    if not path.is_dir() or not (holds_nothing(path) or (path / "meta.json").exists()):
        raise MaskStoreError(f"{path}: is there and is no mask store; name another --store, it is not moved aside")


def move_aside(path: Path) -> Path:
    """Rename path to the first free of path.old1, path.old2, ..."""
    number = 1
    while (aside := path.with_name(f"{path.name}.old{number}")).exists():
        number += 1
    path.rename(aside)
    return aside


@contextlib.contextmanager
def locked(path: Path, name: str = _LOCK) -> Iterator[None]:
    """Inside the block no other process is, for the store folder at `path`; death lets go of it."""
    try:
        lock = FileLock(path / name, is_singleton=False)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise MaskStoreError(
            f"{path / name}: cannot be locked ({error}); the store's folder must be writable and its file system "
            "must have file locks (on Lustre: mounted with -o flock)"
        ) from None
    try:
        yield
    finally:
        lock.release()


class Presence:
    """Says to other processes of this machine that this one writes into the store; death takes it back.

    Where the system has no flock everybody takes himself for the last one. A child that inherits it over a fork does
    not count, and changes nothing of its parent's.
    """

    def __init__(self, path: Path) -> None:
        self._folder: int | None = None
        self._pid = os.getpid()
        if fcntl is not None:
            folder = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(folder, fcntl.LOCK_SH)
            except OSError:  # a file system without locks: a network one, where only one process writes
                os.close(folder)
            else:
                self._folder = folder

    def last(self) -> bool:
        """Whether no other writer is left. Leaves: from here on this one does not count either, unless it is the last.

        Of writers that ask at the same moment one is told so.
        """
        if self._pid != os.getpid():
            return False
        if self._folder is None:
            return True
        try:
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def leave(self) -> None:
        """Calling it again does nothing."""
        folder, self._folder = self._folder, None
        if folder is not None:
            if self._pid == os.getpid():
                fcntl.flock(folder, fcntl.LOCK_UN)  # which closing does not do while a child has its copy open
            os.close(folder)

    def __del__(self) -> None:
        self.leave()
