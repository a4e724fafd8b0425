"""One task after the other, or on many processes; results come in order, and only the caller writes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import BaseContext
from typing import Any, Generic, TypeVar

import cv2

from sam4ir.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
TASKS_A_PROCESS = 64  # a process costs seconds to start


@dataclass(frozen=True)
class Failure:
    """What is wrong with the input of a task, for the user to read."""

    message: str


def useful(workers: int, tasks: int, at_least: int = TASKS_A_PROCESS) -> int:
    """How many of `workers` processes pay for so many tasks; each should have `at_least` of them."""
    return max(1, min(workers, tasks // at_least))


def attempts(
    function: Callable[[T], R], tasks: Iterable[T], workers: int = 1, ahead: int = 4
) -> Generator[tuple[T, R | Failure], None, None]:
    """(task, function(task)) in the order of `tasks`; a UserError, OSError or MemoryError of one is a Failure.

    workers: processes, 1 = this one. ahead: tasks a worker that are handed out before the first of them is done; their
    results wait in memory. `function` is pickled once a process: a module's function or a partial of one.
    Close the generator (contextlib.closing) when leaving early: it ends the processes.
    Raises ValueError where a process dies, naming the tasks at which that was.
    """
    if workers <= 1:
        for task in tasks:
            yield task, _Attempt(function)(task)
        return
    with ProcessPoolExecutor(workers, _context(), _begin, (_Attempt(function),)) as pool:
        waiting: deque[tuple[T, Future[R | Failure]]] = deque()
        try:
            for task in tasks:
                waiting.append((task, pool.submit(_call, task)))
                if len(waiting) > ahead * workers:
                    yield waiting[0][0], waiting[0][1].result()
                    waiting.popleft()
            while waiting:
                yield waiting[0][0], waiting[0][1].result()
                waiting.popleft()
        except BrokenProcessPool:
            names = ", ".join(str(task)[:80] for task, _ in list(waiting)[: workers + 1])
            raise UserError(
                f"a worker process died at or after {names}; memory may be short: fewer --workers need less"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Attempt(Generic[T, R]):
    """The function with its user errors as values."""

    def __init__(self, function: Callable[[T], R]) -> None:
        self.function = function

    def __call__(self, task: T) -> R | Failure:
        try:
            return self.function(task)
        except (UserError, OSError) as error:
            return Failure(str(error))
        except MemoryError as error:
            return Failure(f"{task}: not enough memory ({error})")


_ATTEMPT: list[Any] = []  # of a worker process


def _call(task: Any) -> Any:
    return _ATTEMPT[0](task)


def _begin(attempt: Any) -> None:
    """One thread, deaf to Ctrl-C (the parent ends it), gone when the parent is killed."""
    _ATTEMPT.append(attempt)
    cv2.setNumThreads(1)
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _context() -> BaseContext:
    """Workers of a server that imports this module once; forked from here they would inherit locks and LMDBs."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "sam4ir.data.masks.store", "sam4ir.data.sources"])
    return context
