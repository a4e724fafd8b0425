"""Read-only LMDB environments, shared within a process and opened anew after a fork."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from typing import Any

import lmdb


class OpenLmdb:
    """An open environment and the process that opened it; closed with its last user."""

    def __init__(self, path: Path, remedy: str) -> None:
        self.pid = os.getpid()
        self.env = _open(path, remedy)

    @property
    def usable(self) -> bool:
        """False in a child that inherited it over a fork."""
        return self.pid == os.getpid()

    def __del__(self) -> None:
        if hasattr(self, "env"):
            self.env.close()


# LMDB must not be opened twice in one process, so readers of one file share it while any of them lives.
_OPEN: weakref.WeakValueDictionary[tuple[int, int], OpenLmdb] = weakref.WeakValueDictionary()
_OPENING = threading.Lock()


def open_shared(path: Path, remedy: str) -> OpenLmdb:
    """The environment of the LMDB folder at `path`.

    Raises ValueError naming the folder, what is wrong with it and the remedy: missing, cut off, no LMDB file.
    """
    try:
        status = (path / "data.mdb").stat()
    except OSError as error:
        raise ValueError(f"{path}: no LMDB folder, data.mdb cannot be read ({error.strerror}); {remedy}") from None
    identity = (status.st_dev, status.st_ino)
    with _OPENING:
        opened = _OPEN.get(identity)
        if opened is not None and not opened.usable:
            opened.env.close()  # the parent's, inherited by fork; this closes the child's copy only
            opened = None
        if opened is None:
            opened = _OPEN[identity] = OpenLmdb(path, remedy)
        return opened


def get(transaction: lmdb.Transaction, key: str, path: Path) -> Any:
    """The value under `key`, or None; a damaged page is a ValueError naming the folder and the key."""
    try:
        return transaction.get(key.encode())
    except lmdb.Error as error:
        raise ValueError(f"{path}: key {key!r} cannot be read ({error}); copy or make the LMDB again") from None


def _open(path: Path, remedy: str) -> lmdb.Environment:
    """Compares the length of data.mdb with what its header promises: reading past a cut-off end kills the process."""
    file = path / "data.mdb"
    try:
        env = lmdb.open(str(path.resolve()), create=False, readonly=True, lock=False, readahead=False, max_spare_txns=8)
    except lmdb.Error as error:
        raise ValueError(
            f"{file}: cannot be opened as LMDB ({error}); cut off, no LMDB file, or being written in this process; "
            f"{remedy}"
        ) from None
    needed, present = (env.info()["last_pgno"] + 1) * env.stat()["psize"], file.stat().st_size
    if present < needed:
        env.close()
        raise ValueError(f"{file}: truncated, {present} of {needed} bytes are there; {remedy}")
    return env
