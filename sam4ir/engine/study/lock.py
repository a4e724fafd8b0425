"""A lock that a process shares with the programs that it starts: it is free when the last of them has ended."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]


class InheritedLock:
    """A lock on a file. A program that gets `descriptors` keeps it, even when the process that started it is killed.

    So a training that outlives a killed study holds its job. Without POSIX locks no program inherits it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._other: FileLock | None = None

    def acquire(self) -> bool:
        """Take the lock without waiting; return False where another process has it."""
        if fcntl is None:
            self._other = FileLock(self._path, is_singleton=False, thread_local=False)
            try:
                self._other.acquire(timeout=0)
            except Timeout:
                return False
            return True
        file = self._path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        except OSError:
            file.close()
            raise
        self._file = file
        return True

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The file descriptors that a program must inherit to keep the lock."""
        if self._file is None:
            return ()
        return (self._file.fileno(),)

    def release(self) -> None:
        """Give the lock up; a program that inherited it has it until it ends."""
        if self._file is not None:
            self._file.close()  # and no LOCK_UN, which would take it from the program too
            self._file = None
        if self._other is not None:
            with contextlib.suppress(OSError):
                self._other.release()
