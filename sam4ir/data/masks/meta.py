"""meta.json of a mask store: it records how the masks were made and decides whether a run may add to them.

The provenance (generator, weights, settings, source image) must agree between all runs that write into a store; package
versions, machines and remarks may differ. The module also holds the lock of meta.json, and Presence, by which the
processes that write into a store know of each other. The key `digest`, from format version 3 on, is a SHA-256 of all
other keys, so that a changed value is noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from sam4ir.data.masks.record import CHECKED_SINCE, FORMAT_VERSION, READABLE_VERSIONS, MaskStoreError
from sam4ir.errors import UserError
from sam4ir.utils.files import read_json, write_text
from sam4ir.utils.image import ExifOrientation

try:
    import fcntl
except ImportError:  # pragma: no cover  (Windows)
    fcntl = None  # type: ignore[assignment]

STORE_FORMAT = "sam4ir mask store"
SOURCES = ("gt", "lq", "restored")  # which image the generator read
PROVENANCE_KEYS = ("generator", "checkpoint", "checkpoint_sha256", "settings", "source")
HELP = "make it with: sam4ir make-masks, or sam4ir masks import"
FREE_KEYS = ("versions", "made_on", "told", "exif_orientation")  # beside the provenance; runs may differ in them
_DIGEST = "digest"
_OWN_KEYS = ("format", "format_version", "earlier_versions", "counts", _DIGEST)
_KINDS = {"counts": dict, "versions": dict, "settings": dict, "told": dict, "made_on": list, "earlier_versions": list}
_LOCK = ".meta.lock"
_BESIDE = frozenset({_LOCK, ".merge.lock", "lock.mdb"})  # files that may lie in the folder before meta.json does
_UNFINISHED_META = re.compile(r"\.meta\.json\.\d+\.part")  # left by a process that was killed while it wrote meta.json


def read_meta(path: Path) -> dict[str, Any]:
    """Return the content of meta.json; raise MaskStoreError where path holds no store that this version reads."""
    file = path / "meta.json"
    if not path.is_dir():
        problem = "is a file, a mask store is a folder" if path.exists() else "there is no such mask store"
        raise MaskStoreError(f"{path}: {problem}; {HELP}")
    try:
        meta = read_json(file)
    except FileNotFoundError:
        raise MaskStoreError(f"{path}: not a mask store, it has no meta.json; {HELP}") from None
    except OSError as error:
        raise MaskStoreError(f"{file}: cannot be read ({error.strerror}); {HELP}") from None
    except UserError as error:  # it names the file
        raise MaskStoreError(f"{error}; {HELP}") from None
    if not isinstance(meta, dict) or meta.get("format") != STORE_FORMAT:
        raise MaskStoreError(f"{file}: not the meta.json of a mask store; {HELP}")
    if meta.get("format_version") not in READABLE_VERSIONS:
        raise MaskStoreError(
            f"{path}: store format {meta.get('format_version')}, this sam4ir reads "
            f"{', '.join(map(str, READABLE_VERSIONS))}; {HELP}"
        )
    _check_digest(file, meta)
    for key, kind in _KINDS.items():
        if not isinstance(meta.get(key, kind()), kind) and meta[key] is not None:
            raise MaskStoreError(f"{file}: damaged, {key!r} is {_short(meta[key])}; {HELP}")
    meta.pop(_DIGEST, None)
    return meta


def _check_digest(file: Path, meta: Mapping[str, Any]) -> None:
    """Raise MaskStoreError where the content differs from its digest, which files before version 3 need not have."""
    if _DIGEST not in meta and meta["format_version"] < CHECKED_SINCE:
        return
    if meta.get(_DIGEST) != _digest(meta):
        raise MaskStoreError(
            f"{file}: differs from its own digest: it is damaged, or somebody edited it. Bring back a copy; where an "
            f"edit was on purpose, remove {_DIGEST!r} and write 2 as format_version"
        )


def _digest(meta: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all keys but the digest, as sorted JSON."""
    text = json.dumps(_without(meta, (_DIGEST,)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_meta(path: Path, meta: Mapping[str, Any]) -> None:
    """Replace meta.json as a whole, with a digest of its content."""
    content = json.loads(json.dumps(meta))
    content[_DIGEST] = _digest(content)
    try:
        write_text(path / "meta.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise MaskStoreError(str(error)) from None  # it names the file


def checked_provenance(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance that a writer's `meta` holds, as meta.json will give it back.

    Every provenance key is present, None where it is not known. Raises MaskStoreError on keys that the store writes
    itself, on another source than SOURCES, and on values that JSON cannot hold.
    """
    provenance = _without(meta, FREE_KEYS)
    for key in _OWN_KEYS:
        if key in provenance:
            raise MaskStoreError(f"meta key {key!r} is written by the store itself; give it another name")
    if provenance.get("source") not in (None, *SOURCES):
        raise MaskStoreError(f"source must be one of {', '.join(SOURCES)}, not {provenance['source']!r}")
    complete = {**dict.fromkeys(PROVENANCE_KEYS), "settings": {}, **provenance}
    try:
        result: dict[str, Any] = json.loads(json.dumps(complete))
    except (TypeError, ValueError) as error:
        raise MaskStoreError(f"meta must hold plain JSON values ({error})") from None
    return result


def stored_provenance(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance in the content of a store's meta.json."""
    return _without(stored, (*_OWN_KEYS, *FREE_KEYS))


def _without(meta: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in meta.items() if key not in keys}


def refuse_other_provenance(path: Path, stored: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise MaskStoreError, with the differences, where `new` differs from the provenance of the store at `path`."""
    differing = _differences("", stored, new)
    if differing:
        raise MaskStoreError(
            f"{path} holds masks that were made differently ({'; '.join(differing)}); name another store, "
            "or begin a new one with --new (from Python new=True), which moves this one aside"
        )


def _differences(place: str, stored: Any, new: Any) -> list[str]:
    if isinstance(stored, Mapping) and isinstance(new, Mapping):
        keys = {*stored, *new}
        sha256 = stored.get("checkpoint_sha256")
        if sha256 and sha256 == new.get("checkpoint_sha256"):
            keys.discard("checkpoint")  # the same weights may lie in a file of another name
        differing = []
        for key in sorted(keys):
            differing += _differences(f"{place}.{key}", stored.get(key), new.get(key))
        return differing
    if stored == new:
        return []
    return [f"{place[1:]}: stored {_short(stored)}, now {_short(new)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def holds_nothing(path: Path) -> bool:
    """Return whether a new store may begin at `path`: nothing, or a folder with lock files only."""
    if not path.exists():
        return True
    if not path.is_dir():
        return False
    return all(file.name in _BESIDE or _UNFINISHED_META.fullmatch(file.name) for file in path.iterdir())


def joined_meta(path: Path, provenance: dict[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of meta.json once a run writes into the store at `path`, which may be new.

    provenance: from checked_provenance. run: FREE_KEYS of this run. Call it while the store is locked. Raises
    MaskStoreError where the store's masks were made differently.
    """
    stored: dict[str, Any] = {"counts": {"images": 0, "masks": 0}}
    turned = run.get("exif_orientation", "apply")
    if (path / "meta.json").exists() or not holds_nothing(path):
        stored = read_meta(path)
        refuse_other_provenance(path, stored_provenance(stored), provenance)
        turned = exif_orientation(stored)
    versions = {**_versions(), **run.get("versions", {})}
    meta = {"format": STORE_FORMAT, "format_version": FORMAT_VERSION, **provenance, "exif_orientation": turned}
    meta |= _earlier_versions(stored, versions)
    made_on = list(stored.get("made_on", []))
    if run.get("made_on") and run["made_on"] not in made_on:
        made_on.append(run["made_on"])
    if made_on:
        meta["made_on"] = made_on
    if run.get("told"):
        meta["told"] = dict(run["told"])
    elif "told" in stored:
        meta["told"] = stored["told"]
    return {**meta, "versions": versions, "counts": stored.get("counts", {})}


def exif_orientation(stored: Mapping[str, Any]) -> ExifOrientation:
    """Return whether a store's masks follow the EXIF orientation of their images; early stores do not."""
    if stored.get("exif_orientation") == "apply":
        return "apply"
    return "ignore"


def reading_orientation(path: Path, ignore: bool = False, new: bool = False) -> ExifOrientation:
    """Return how the images of a store are read: as the store at `path` was begun, else by `ignore`.

    new: a new store begins in the place of an old one.
    """
    if (path / "meta.json").exists() and not new:
        return exif_orientation(read_meta(path))
    if ignore:
        return "ignore"
    return "apply"


def _earlier_versions(stored: Mapping[str, Any], versions: Mapping[str, str]) -> dict[str, Any]:
    """Return the entry that lists the package versions of earlier runs, empty where all runs had these `versions`."""
    earlier = list(stored.get("earlier_versions", []))
    if stored.get("versions", versions) != versions and stored["versions"] not in earlier:
        earlier.append(stored["versions"])
    if not earlier:
        return {}
    return {"earlier_versions": [other for other in earlier if other != versions]}


def add_made_on(path: Path, made_on: Sequence[Any]) -> None:
    """Add the machines of other writers to the `made_on` list of a store."""
    with locked(path):
        meta = read_meta(path)
        listed = meta.get("made_on", [])
        new = [entry for entry in made_on if entry not in listed]
        if new:
            write_meta(path, {**meta, "made_on": [*listed, *new]})


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("numpy", "lmdb", "zstandard"):
        versions[package] = metadata.version(package)
    return versions


def refuse_foreign(path: Path) -> None:
    """Raise MaskStoreError where `path` is a file, or a folder that is no store of any version."""
    if not path.is_dir() or not (holds_nothing(path) or (path / "meta.json").exists()):
        raise MaskStoreError(f"{path}: exists and is no mask store; name another --store, it is not moved aside")


def move_aside(path: Path) -> Path:
    """Rename path to the first free name of path.old1, path.old2, ... and return the new path."""
    number = 1
    while (aside := path.with_name(f"{path.name}.old{number}")).exists():
        number += 1
    path.rename(aside)
    return aside


@contextlib.contextmanager
def locked(path: Path, name: str = _LOCK) -> Iterator[None]:
    """Lock the store folder at `path` for a block, so that one process at a time runs it.

    The lock ends with its process. Raises MaskStoreError where the file system has no locks.
    """
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
    """Shows other processes of this machine that this process writes into a store; it ends with the process.

    Where the system has no flock, every process counts as the last one. A forked child that inherits the object does
    not count and changes nothing for its parent.
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
        """Return whether no other process writes any more.

        A process that is not the last one does not count from here on. Of processes that ask at the same moment, one
        gets True.
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
        """Stop counting as a writer. Calling it again does nothing."""
        folder, self._folder = self._folder, None
        if folder is not None:
            if self._pid == os.getpid():
                fcntl.flock(folder, fcntl.LOCK_UN)  # which closing does not do while a child has its copy open
            os.close(folder)

    def __del__(self) -> None:
        self.leave()
