"""LMDB environments, one a file and process, safe beside a writer, opened anew after a fork.

What LMDB asks of its users, and this module keeps: a file is opened once a process; a child never uses, nor closes
in the middle of a transaction, what it inherited over a fork; a map grows only while no transaction of the process is
open; readers beside a writer hold slots in lock.mdb, and the slots of killed processes are given back.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from sam4ir.errors import UserError

T = TypeVar("T")

MAX_READERS = 4096  # slots in lock.mdb, 64 bytes each; the first opener settles it, so all ask for the same
MAX_KEY = 511  # LMDB's compiled-in limit, bytes
_FORK_PATIENCE = 10.0  # seconds that a fork waits for the transactions of other threads
_ATTEMPTS = 100  # at a map that grows, or at one of MAX_READERS places
_CHECK_EVERY = 256  # write transactions between two searches for slots of killed processes
_MOUNTS = (Path("/proc/self/mountinfo"), Path("/proc/mounts"))
_NETWORK = re.compile(
    r"9p|acfs|afs|beegfs|ceph|cifs|coda|davfs|efs|fhgfs|gfs2?|gpfs|glusterfs|lustre|ncpfs|nfs4?|ocfs2|orangefs|panfs"
    r"|pvfs2|smb[23]?|smbfs|virtiofs|vboxsf|vmhgfs|wekafs"
    r"|fuse\.(?!ext|ntfs|exfat|lxcfs|gvfs|overlay|fuse-overlayfs|portal|bindfs|mergerfs|unionfs).*"
)


def network_filesystem(path: Path) -> str | None:
    """The kind of network file system ('nfs4', 'lustre', ...) that `path`, or where it would be made, lies on.

    None for a local one, and where nobody tells (systems without /proc). A FUSE file system counts as a network one
    unless it is known to be local.
    """
    place = Path(os.path.realpath(path))
    best, found = -1, ""
    for mount, kind in _mounts():
        if len(mount.parts) >= best and place.is_relative_to(mount):  # the last of equal ones lies on top
            best, found = len(mount.parts), kind
    return found if _NETWORK.fullmatch(found) else None


def _mounts() -> Iterator[tuple[Path, str]]:
    """(mount point, kind) of what proc(5) lists."""
    for file in _MOUNTS:
        try:
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            before, dash, after = line.partition(" - ")
            words = before.split()
            point, kind = (words[4], after.split()[0]) if dash else (words[1], words[2])
            yield Path(re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), point)), kind
        return


class OpenLmdb:
    """An open environment and the process that opened it; closed with its last user (_close_dropped)."""

    def __init__(self, path: Path, env: lmdb.Environment, slots: bool) -> None:
        self.path = path
        self.pid = os.getpid()
        self.env = env
        self.slots = slots  # whether its readers hold slots in lock.mdb
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._in_use: dict[int, int] = {}  # thread -> its open transactions
        self._held = 0  # threads that hold new transactions back
        self._written = 0

    @property
    def usable(self) -> bool:
        """False in a child that inherited it over a fork."""
        return self.pid == os.getpid()

    def _wait_for_others(self, patience: float | None = None) -> None:
        """With the condition held: no other thread has a transaction open any more, and none begins one."""
        own = threading.get_ident()
        self._held += 1
        self._condition.wait_for(lambda: all(thread == own for thread in self._in_use), patience)

    def _let_go(self) -> None:
        self._held -= 1
        self._condition.notify_all()

    def _enter(self) -> None:
        """Before a transaction of this thread. Every read comes here: `with` of the condition costs ten times more."""
        thread = threading.get_ident()
        with self._lock:
            if self._held and thread not in self._in_use:
                self._condition.wait_for(lambda: not self._held)
            self._in_use[thread] = self._in_use.get(thread, 0) + 1

    def _leave(self) -> None:
        """Behind it."""
        thread = threading.get_ident()
        with self._lock:
            left = self._in_use.pop(thread) - 1
            if left:
                self._in_use[thread] = left
            elif self._held:
                self._condition.notify_all()

    def read(self, look: Callable[[Any], T], buffers: bool = False) -> T:
        """look(transaction) of an lmdb.Transaction: it sees what was committed when it began, and keeps nothing of it.

        Follows a map that another process has grown. buffers: values are views, valid inside `look` only.
        """
        for _ in range(_ATTEMPTS):
            try:
                return self._read_once(look, buffers)
            except lmdb.MapResizedError:
                self.resize(0)
            except lmdb.ReadersFullError:
                self.env.reader_check()
        raise UserError(f"{self.path}: all {MAX_READERS} places for readers are taken; end some of them")

    def _read_once(self, look: Callable[[Any], T], buffers: bool) -> T:
        self._enter()
        try:
            transaction: Any = self.env.begin(buffers=True) if buffers else self.env.begin()
            try:
                return look(transaction)
            finally:
                transaction.abort()
                del transaction  # the object holds the slot in lock.mdb, an ended one too
        finally:
            self._leave()

    def resize(self, size: int) -> None:
        """Set the map's size in bytes, 0 for what the file says, once no other thread has a transaction open."""
        with self._condition:
            self._wait_for_others()
            try:
                self.env.set_mapsize(size)
            finally:
                self._let_go()

    def write(self, change: Callable[[lmdb.Transaction], T]) -> T:
        """change(transaction) in one committed transaction; called again after a full map has grown.

        Raises ValueError where the file cannot be written: full disk, file-size limit, damage.
        """
        self._written += 1
        if self._written % _CHECK_EVERY == 0:
            self.env.reader_check()
        try:
            while True:
                try:
                    return self._write_once(change)
                except lmdb.MapFullError:
                    self.resize(2 * self.env.info()["map_size"])
                except lmdb.MapResizedError:  # another process has grown it
                    self.resize(0)
        except lmdb.Error as error:
            free = shutil.disk_usage(self.path).free
            raise UserError(
                f"{self.path}: cannot be written ({error}; its disk has {free / 1e6:.0f} MB free); what was stored "
                "before is whole, make room and go on"
            ) from None

    def _write_once(self, change: Callable[[lmdb.Transaction], T]) -> T:
        self._enter()
        try:
            with self.env.begin(write=True) as transaction:
                return change(transaction)
        finally:
            self._leave()

    def before_fork(self) -> None:
        """Holds new transactions back until after_fork, and waits for those of other threads."""
        self._condition.acquire()
        self._wait_for_others(_FORK_PATIENCE)

    def after_fork(self, child: bool) -> None:
        """child: closes the copy, which without a transaction touches nothing of the parent's; else keeps it for good,
        as its slots in lock.mdb would be given back while the parent reads."""
        busy = bool(self._in_use)
        self._let_go()
        self._condition.release()
        if child and busy:
            _LEFT.append(self)
        elif child:
            self.env.close()


_LEFT: list[OpenLmdb] = []
# LMDB must not be opened twice in one process, so readers of one file share it while any of them lives.
_OPEN: weakref.WeakValueDictionary[tuple[int, int], OpenLmdb] = weakref.WeakValueDictionary()
_ENVS: dict[tuple[int, int], lmdb.Environment] = {}  # theirs, and those without users that are to be closed
_OPENING = threading.RLock()  # held by who opens, closes or forks: a child would wait forever for a half-closed one
_forking: list[OpenLmdb] = []


def _register(identity: tuple[int, int], opened: OpenLmdb) -> OpenLmdb:
    """With _OPENING held. No __del__ closes it: while one runs, another thread still finds the object in _OPEN."""
    _OPEN[identity] = opened
    _ENVS[identity] = opened.env
    weakref.finalize(opened, _dropped).atexit = False
    return opened


def _dropped() -> None:
    """An OpenLmdb has gone. Never waits, since it may be called anywhere: who holds _OPENING leaves it to the next."""
    if _OPENING.acquire(blocking=False):
        try:
            _close_dropped()
        finally:
            _OPENING.release()


def _close_dropped() -> None:
    """With _OPENING held: closes what has no user any more."""
    for identity, env in list(_ENVS.items()):
        opened = _OPEN.get(identity)
        if opened is None or opened.env is not env:
            env.close()
            if _ENVS.get(identity) is env:
                del _ENVS[identity]


def _before_fork() -> None:
    _OPENING.acquire()
    _forking[:] = [opened for opened in _OPEN.values() if opened.usable and opened.slots]
    for opened in _forking:
        opened.before_fork()


def _after_fork(child: bool) -> None:
    for opened in _forking:
        opened.after_fork(child)
    _forking.clear()
    _OPENING.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=lambda: _after_fork(child=False),
        after_in_child=lambda: _after_fork(child=True),
    )


def open_shared(path: Path, remedy: str, beside_writer: bool = False) -> OpenLmdb:
    """The environment of the LMDB folder at `path`, for reading.

    beside_writer: other processes may write meanwhile: takes a slot in lock.mdb, so that no page that it reads is
    written over. Where lock.mdb cannot be had (read-only folders) or used (network file systems) there is no slot, and
    nobody may write meanwhile.
    Raises ValueError naming the folder, what is wrong with it and the remedy: missing, cut off, no LMDB file.
    """
    identity = _identity(path, remedy)
    with _OPENING:
        opened = _OPEN.get(identity)
        if opened is not None and opened.usable:
            return opened
        if opened is not None and not opened.slots:
            opened.env.close()  # the parent's, inherited by fork; this closes the child's copy only
        _close_dropped()
        return _register(identity, _open(path, remedy, beside_writer and network_filesystem(path) is None))


def open_for_writing(path: Path, map_size: int) -> OpenLmdb:
    """The environment of the LMDB folder at `path`, made where there is none.

    Any number of processes of one machine may write into it by turns, and others read meanwhile. On a network file
    system LMDB's own lock does not work: there the caller sees to it that one process writes and nobody reads.
    Raises ValueError where it cannot be opened, or this process has it open already.
    """
    lock = network_filesystem(path) is None
    with _OPENING:
        _close_dropped()
        try:
            env = lmdb.open(
                str(path.resolve()), map_size=map_size, lock=lock, max_readers=MAX_READERS, max_spare_txns=0
            )
        except lmdb.Error as error:
            raise UserError(
                f"{path}: cannot be opened for writing ({error}); close its readers in this process, or begin a new "
                "store"
            ) from None
        try:
            _check_length(env, path / "data.mdb", "begin a new one")
            env.reader_check()
            return _register(_identity(path, ""), OpenLmdb(path, env, lock))
        except BaseException:
            env.close()
            raise


def get(transaction: lmdb.Transaction, key: str, path: Path) -> Any:
    """The value under `key`, or None; a damaged page is a ValueError naming the folder and the key."""
    try:
        return transaction.get(key.encode())
    except lmdb.Error as error:
        raise UserError(f"{path}: key {key!r} cannot be read ({error}); copy or make the LMDB again") from None


def keys_of(transaction: lmdb.Transaction, path: Path) -> list[str]:
    """All keys in LMDB's order. A damaged page and a key that is not UTF-8 are UserErrors naming the folder."""
    try:
        return [bytes(key).decode() for key in transaction.cursor().iternext(values=False)]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: has the key {error.object!r}, which is not UTF-8; make the LMDB again") from None
    except lmdb.Error as error:
        raise UserError(f"{path}: its keys cannot be read ({error}); copy or make the LMDB again") from None


def _identity(path: Path, remedy: str) -> tuple[int, int]:
    try:
        status = (path / "data.mdb").stat()
    except OSError as error:
        raise UserError(f"{path}: no LMDB folder, data.mdb cannot be read ({error.strerror}); {remedy}") from None
    return status.st_dev, status.st_ino


def _open(path: Path, remedy: str, lock: bool) -> OpenLmdb:
    """Opened for reading, with a lock where that can be had; its length checked."""
    for locked in (True, False) if lock else (False,):
        try:
            env = lmdb.open(
                str(path.resolve()),
                create=False,
                readonly=True,
                lock=locked,
                readahead=False,
                max_readers=MAX_READERS,
                max_spare_txns=0 if locked else 8,  # a spare one keeps its slot, which a forked child would give back
            )
        except (lmdb.ReadonlyError, lmdb.DiskError) as error:  # lock.mdb cannot be made here
            if not locked:
                raise _unreadable(path, error, remedy) from None
        except lmdb.Error as error:
            raise _unreadable(path, error, remedy) from None
        else:
            _check_length(env, path / "data.mdb", remedy)
            return OpenLmdb(path, env, locked)
    raise AssertionError("the last way either opens or raises")


def _unreadable(path: Path, error: lmdb.Error, remedy: str) -> UserError:
    return UserError(
        f"{path / 'data.mdb'}: cannot be opened as LMDB ({error}); cut off, no LMDB file, or being written in this "
        f"process; {remedy}"
    )


def _check_length(env: lmdb.Environment, file: Path, remedy: str) -> None:
    """Compares the length of data.mdb with what its header promises: reading past a cut-off end kills the process."""
    needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    try:
        present = file.stat().st_size
    except OSError as error:  # moved away since it was opened, as a merged part is
        env.close()
        raise UserError(f"{file}: cannot be read ({error.strerror}); {remedy}") from None
    if present < needed:
        env.close()
        raise UserError(f"{file}: truncated, {present} of {needed} bytes are there; {remedy}")
