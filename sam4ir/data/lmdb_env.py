"""Open LMDB environments: one for each file and process, safe beside a writer, opened again after a fork.

LMDB has rules for its users, and this module keeps them. A process opens a file once. A child process never uses an
environment that it inherited by a fork, and never closes one in the middle of a transaction. A map grows only while no
transaction of the process is open. Readers beside a writer hold slots in lock.mdb, and the slots of killed processes
become free again.
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from sam4ir.errors import UserError
from sam4ir.utils.files import refuse_full, write_error

T = TypeVar("T")

MAX_READERS = 4096  # slots in lock.mdb, 64 bytes each; the first opener sets the number, so all ask for the same
MAX_KEY = 511  # LMDB's compiled-in limit, bytes
_FORK_PATIENCE = 10.0  # seconds that a fork waits for the transactions of other threads
_ATTEMPTS = 100  # to read while a map grows or all MAX_READERS slots are in use
_CHECK_EVERY = 256  # write transactions between two searches for slots of killed processes
_MOUNTS = (Path("/proc/self/mountinfo"), Path("/proc/mounts"))
_NETWORK = re.compile(
    r"9p|acfs|afs|beegfs|ceph|cifs|coda|davfs|efs|fhgfs|gfs2?|gpfs|glusterfs|lustre|ncpfs|nfs4?|ocfs2|orangefs|panfs"
    r"|pvfs2|smb[23]?|smbfs|virtiofs|vboxsf|vmhgfs|wekafs"
    r"|fuse\.(?!ext|ntfs|exfat|lxcfs|gvfs|overlay|fuse-overlayfs|portal|bindfs|mergerfs|unionfs).*"
)


def network_filesystem(path: Path) -> str | None:
    """Return the kind of network file system ('nfs4', 'lustre', ...) that holds `path`, which need not exist.

    None for a local file system, and on systems without /proc. A FUSE file system counts as a network one unless it is
    in the list of local ones (_NETWORK).
    """
    real_path = Path(os.path.realpath(path))
    depth, path_kind = -1, ""
    for mount, kind in _mounts():
        if len(mount.parts) >= depth and real_path.is_relative_to(mount):  # a later mount hides an equal earlier one
            depth, path_kind = len(mount.parts), kind
    return path_kind if _NETWORK.fullmatch(path_kind) else None


def _mounts() -> Iterator[tuple[Path, str]]:
    """Yield (mount point, kind of file system) for each mount that proc(5) lists."""
    for file in _MOUNTS:
        try:
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            before, dash, after = line.partition(" - ")
            words = before.split()
            if dash:  # mountinfo
                point, kind = words[4], after.split()[0]
            else:  # mounts
                point, kind = words[1], words[2]
            yield Path(re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), point)), kind
        return


class OpenLmdb:
    """An open environment and the process that opened it; it is closed after its last user is gone (_close_unused)."""

    def __init__(self, path: Path, env: lmdb.Environment, slots: bool) -> None:
        self.path = path
        self.pid = os.getpid()
        self.env = env
        self.slots = slots  # whether its readers hold slots in lock.mdb
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)
        self._in_use: dict[int, int] = {}  # thread -> number of its open transactions
        self._blockers = 0  # threads that block new transactions
        self._written = 0

    @property
    def usable(self) -> bool:
        """Whether this process opened it; False in a child that inherited it by a fork."""
        return self.pid == os.getpid()

    def _wait_for_others(self, patience: float | None = None) -> None:
        """Block new transactions and wait until no other thread has one open. The caller holds the condition."""
        own = threading.get_ident()
        self._blockers += 1
        self._condition.wait_for(lambda: all(thread == own for thread in self._in_use), patience)

    def _unblock(self) -> None:
        """Let new transactions begin again."""
        self._blockers -= 1
        self._condition.notify_all()

    def _enter(self) -> None:
        """Count a new transaction of this thread, once no other thread blocks it.

        Every read calls this, so it takes the plain lock: `with` of the condition costs ten times more.
        """
        thread = threading.get_ident()
        with self._lock:
            if self._blockers and thread not in self._in_use:
                self._condition.wait_for(lambda: not self._blockers)
            self._in_use[thread] = self._in_use.get(thread, 0) + 1

    def _leave(self) -> None:
        """Count an ended transaction of this thread."""
        thread = threading.get_ident()
        with self._lock:
            remaining = self._in_use.pop(thread) - 1
            if remaining:
                self._in_use[thread] = remaining
            elif self._blockers:
                self._condition.notify_all()

    def read(self, query: Callable[[Any], T], buffers: bool = False) -> T:
        """Return query(transaction), where the lmdb.Transaction sees the values that were committed when it began.

        The query must not keep the transaction. buffers: values are views, valid inside the query only. A map that
        another process has grown is followed. Raises UserError where all slots for readers stay in use.
        """
        for _ in range(_ATTEMPTS):
            try:
                return self._read_once(query, buffers)
            except lmdb.MapResizedError:
                self.resize(0)
            except lmdb.ReadersFullError:
                self.env.reader_check()
        raise UserError(f"{self.path}: all {MAX_READERS} places for readers are taken; end some of them")

    def _read_once(self, query: Callable[[Any], T], buffers: bool) -> T:
        self._enter()
        try:
            transaction: Any = self.env.begin(buffers=True) if buffers else self.env.begin()
            try:
                return query(transaction)
            finally:
                transaction.abort()
                del transaction  # the object holds its slot in lock.mdb even after the end
        finally:
            self._leave()

    def resize(self, size: int) -> None:
        """Set the map's size in bytes, 0 for the file's own, once no other thread has a transaction open."""
        with self._condition:
            self._wait_for_others()
            try:
                self.env.set_mapsize(size)
            finally:
                self._unblock()

    def write(self, change: Callable[[lmdb.Transaction], T]) -> T:
        """Return change(transaction) of one committed transaction; call it again after a full map has grown.

        Raises UserError where the file cannot be written: full disk, file-size limit, damage.
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
            raise write_error(self.path, error) from None

    def _write_once(self, change: Callable[[lmdb.Transaction], T]) -> T:
        self._enter()
        try:
            with self.env.begin(write=True) as transaction:
                return change(transaction)
        finally:
            self._leave()

    def before_fork(self) -> None:
        """Block new transactions until after_fork, and wait for those of other threads."""
        self._condition.acquire()
        self._wait_for_others(_FORK_PATIENCE)

    def after_fork(self, child: bool) -> None:
        """Let transactions begin again in the parent; in a child, close the inherited copy.

        Closing a copy without open transactions changes nothing for the parent. With open transactions the child keeps
        the copy for good, because closing it would free slots in lock.mdb that the parent still reads with.
        """
        busy = bool(self._in_use)
        self._unblock()
        self._condition.release()
        if child and busy:
            _INHERITED.append(self)
        elif child:
            self.env.close()


_INHERITED: list[OpenLmdb] = []  # copies in a forked child that must stay open
# LMDB must not be opened twice in one process, so readers of one file share it while any of them lives.
_OPEN: weakref.WeakValueDictionary[tuple[int, int], OpenLmdb] = weakref.WeakValueDictionary()
_ENVS: dict[tuple[int, int], lmdb.Environment] = {}  # of _OPEN, and of unused ones until they are closed
_OPENING = threading.RLock()  # held while opening, closing and forking: a child would wait forever if half closed
_forking: list[OpenLmdb] = []


def _register(identity: tuple[int, int], opened: OpenLmdb) -> OpenLmdb:
    """Add an environment to the table of open ones. The caller holds _OPENING.

    No __del__ closes it, because while __del__ runs another thread still finds the object in _OPEN.
    """
    _OPEN[identity] = opened
    _ENVS[identity] = opened.env
    weakref.finalize(opened, _after_last_user).atexit = False
    return opened


def _after_last_user() -> None:
    """Close unused environments, unless another thread holds _OPENING; then the next call closes them.

    The garbage collector may call this anywhere, so it must not wait.
    """
    if _OPENING.acquire(blocking=False):
        try:
            _close_unused()
        finally:
            _OPENING.release()


def _close_unused() -> None:
    """Close the environments without users. The caller holds _OPENING."""
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
    """Return the environment of the LMDB folder at `path`, for reading.

    beside_writer: other processes may write meanwhile. Each read then takes a slot in lock.mdb, so that no page that it
    reads is overwritten. Read-only folders have no lock.mdb and network file systems cannot use it: there is no slot,
    and no process may write meanwhile.
    Raises UserError naming the folder, the fault (missing, cut off, no LMDB file) and the remedy.
    """
    identity = _identity(path, remedy)
    with _OPENING:
        opened = _OPEN.get(identity)
        if opened is not None and opened.usable:
            return opened
        if opened is not None and not opened.slots:
            opened.env.close()  # the parent's, inherited by fork; this closes the child's copy only
        _close_unused()
        return _register(identity, _open(path, remedy, beside_writer and network_filesystem(path) is None))


def open_for_writing(path: Path, map_size: int) -> OpenLmdb:
    """Return the environment of the LMDB folder at `path`, for writing; make it where it does not exist.

    map_size: first size of LMDB's map in bytes. Any number of processes of one machine may write into it by turns while
    others read. On a network file system LMDB's own lock does not work: there the caller must ensure that one process
    writes and none reads. Raises UserError where it cannot be opened, or is open in this process already.
    """
    lock = network_filesystem(path) is None
    with _OPENING:
        _close_unused()
        try:
            env = lmdb.open(
                str(path.resolve()), map_size=map_size, lock=lock, max_readers=MAX_READERS, max_spare_txns=0
            )
        except lmdb.Error as error:
            refuse_full(path, error)
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
    """Return the value under `key`, or None. Raises UserError naming the folder and the key for a damaged page."""
    try:
        return transaction.get(key.encode())
    except UnicodeEncodeError:  # a file name that is no UTF-8: LMDB has no such key
        return None
    except lmdb.Error as error:
        raise UserError(f"{path}: key {key!r} cannot be read ({error}); copy or make the LMDB again") from None


def keys_of(transaction: lmdb.Transaction, path: Path) -> list[str]:
    """Return all keys in LMDB's order. Raises UserError naming the folder for damage and keys that are not UTF-8."""
    try:
        return [bytes(key).decode() for key in transaction.cursor().iternext(values=False)]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: has the key {error.object!r}, which is not UTF-8; make the LMDB again") from None
    except lmdb.Error as error:
        raise UserError(f"{path}: its keys cannot be read ({error}); copy or make the LMDB again") from None


def _identity(path: Path, remedy: str) -> tuple[int, int]:
    """Return the device and inode of data.mdb, which are the same for all paths to it."""
    try:
        status = (path / "data.mdb").stat()
    except OSError as error:
        raise UserError(f"{path}: no LMDB folder, data.mdb cannot be read ({error.strerror}); {remedy}") from None
    return status.st_dev, status.st_ino


def _open(path: Path, remedy: str, lock: bool) -> OpenLmdb:
    """Open a folder for reading and check its length. lock: use lock.mdb if the folder can hold one."""
    ways = (True, False) if lock else (False,)
    for locked in ways:
        try:
            env = lmdb.open(
                str(path.resolve()),
                create=False,
                readonly=True,
                lock=locked,
                readahead=False,
                max_readers=MAX_READERS,
                max_spare_txns=0 if locked else 8,  # a spare one keeps its slot, which a forked child would free
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
    """Raise UserError where data.mdb is shorter than its header says: reading past its end would kill the process."""
    needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    try:
        present = file.stat().st_size
    except OSError as error:  # moved away after it was opened, as a merged part is
        env.close()
        raise UserError(f"{file}: cannot be read ({error.strerror}); {remedy}") from None
    if present < needed:
        env.close()
        raise UserError(f"{file}: truncated, {present} of {needed} bytes are there; {remedy}")
