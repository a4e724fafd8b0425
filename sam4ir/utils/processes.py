"""Worker processes: their start, their end with the parent, and their errors as data.

Every process that this package starts calls `begin_worker` first, and returns errors as `Caught`.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from multiprocessing import connection, queues
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

from sam4ir.errors import UserError

TERM_GRACE = 20.0  # seconds; torchrun kills the whole group after 30
_PR_SET_PDEATHSIG = 1  # prctl(2)
_SHORT_OF_MEMORY = {signal.Signals.SIGKILL, getattr(signal.Signals, "SIGBUS", signal.Signals.SIGKILL)}


class WorkerTraceback(Exception):
    """The traceback of another process as text, shown as the cause of the error that came from there."""


class Caught:
    """An error on its way out of a worker, raised as it is in the main process.

    It always arrives: an error that pickle refuses becomes one of the same message. A bug (no UserError, no OSError)
    brings its traceback as its cause. place: the work that met it, such as 'image 0001 of PairedImageDataset'.
    """

    def __init__(self, error: BaseException, place: str = "") -> None:
        self.traceback = ""
        if multiprocessing.parent_process() is None:  # it goes nowhere, and carries its own traceback
            self.error = error
            return
        if not isinstance(error, (UserError, OSError)):
            heading = f"in a worker process, {place}" if place else "in a worker process"
            self.traceback = f"{heading}:\n{''.join(traceback.format_exception(error))}"
        self.error = _portable(error)

    def throw(self) -> NoReturn:
        """Raise the error."""
        if self.traceback:
            raise self.error from WorkerTraceback(self.traceback)
        raise self.error


def as_exception(error: BaseException) -> BaseException:
    """Return an error in place of one that would end the process without a message (SystemExit); others as they are.

    Ctrl-C stays what it is.
    """
    if isinstance(error, (Exception, KeyboardInterrupt)):
        return error
    stand_in = RuntimeError(f"{type(error).__name__}: {error}")
    stand_in.__cause__ = error
    return stand_in


def _portable(error: BaseException) -> BaseException:
    """Return the error, or one with its message where it does not arrive in another process as what it is."""
    error = as_exception(error)
    try:
        if isinstance(pickle.loads(pickle.dumps(error)), type(error)):
            return error
    except Exception:  # a plugin's exception may refuse in any way
        pass
    if isinstance(error, UserError):
        return UserError(str(error))
    if isinstance(error, OSError):
        return OSError(error.errno, str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")


def begin_worker(forked_by_main_thread: bool = True) -> None:
    """Set a worker process up: it ends with its parent, when the parent asks, and never by Ctrl-C.

    forked_by_main_thread: Linux can end a child with the thread that started it, which is wrong for other threads.
    """
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches the whole group; the parent ends this process
    _obey_the_parents_term()
    if forked_by_main_thread:
        _die_with_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _end_on_lost_results()


def _obey_the_parents_term() -> None:
    """End by SIGTERM: at once if the parent sent it, else after TERM_GRACE.

    SIGTERM may reach the whole group, and then the parent saves first, for which it needs its workers.
    """
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a forked process has the handler of its parent
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads that start later block it as well
        threading.Thread(target=_await_term, args=(_parent_pid(),), daemon=True).start()


def _await_term(parent: int) -> None:
    sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
    end = time.monotonic() + TERM_GRACE
    while sender != parent and time.monotonic() < end:
        again = signal.sigtimedwait({signal.SIGTERM}, max(end - time.monotonic(), 0))
        if again is not None:
            sender = again.si_pid
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.kill(os.getpid(), signal.SIGTERM)


def _die_with_parent() -> None:
    """Let Linux kill this process when its parent dies, however the parent does. Others have _end_with_parent alone."""
    parent = _parent_pid()
    if not sys.platform.startswith("linux") or os.getppid() != parent:  # the child of a server that starts processes
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent died before the call
        os._exit(1)


def _parent_pid() -> int:
    parent = multiprocessing.parent_process()
    return os.getppid() if parent is None or parent.pid is None else parent.pid


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _end_on_lost_results() -> None:
    """End this process where a result cannot be sent: a queue would drop it, and the parent would wait for ever."""

    def end(error: Exception, _: Any) -> None:
        traceback.print_exception(error)
        sys.stderr.flush()
        os._exit(1)

    queues.Queue._on_queue_feeder_error = staticmethod(end)  # type: ignore[attr-defined]


def cause_of_death(processes: Iterable[BaseProcess], text: str = "", wait: float = 1.0) -> str:
    """Return why a worker died: 'signal SIGKILL', 'exit code 3', or '' where none has died.

    text: a message that may name the signal, as torch's does. wait: seconds in which a death may become known.
    A worker's own end comes before that of workers which the pool ended afterwards by SIGTERM.
    """
    processes = list(processes)
    connection.wait([process.sentinel for process in processes], wait)
    codes = []
    for process in processes:
        if process.exitcode:
            codes.append(process.exitcode)
    codes.sort(key=lambda code: code == -signal.SIGTERM)
    if codes and codes[0] < 0:
        return f"signal {signal.Signals(-codes[0]).name}"
    for number in signal.Signals:
        if f"killed by signal: {signal.strsignal(number)}" in text:
            return f"signal {number.name}"
    if codes:
        return f"exit code {codes[0]}"
    return ""


def memory_hint(cause: str, remedy: str) -> str:
    """Return '; memory may be short: <remedy>' for the signals that a lack of memory sends, else ''."""
    if cause in {f"signal {number.name}" for number in _SHORT_OF_MEMORY}:
        return f"; memory may be short: {remedy}"
    return ""
