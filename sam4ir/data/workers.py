"""A function applied to many tasks, here or on several processes; results come in order, so that the caller writes."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

import cv2

from sam4ir.errors import UserError
from sam4ir.utils.files import takes_no_more
from sam4ir.utils.processes import Caught, as_exception, begin_worker, cause_of_death, memory_hint

T = TypeVar("T")
R = TypeVar("R")
TASKS_A_PROCESS = 64  # a process costs seconds to start


@dataclass(frozen=True)
class Failure:
    """The error of a task, whose message tells the user what is wrong with its input."""

    message: str


def useful(workers: int, tasks: int, at_least: int = TASKS_A_PROCESS) -> int:
    """Return how many of `workers` processes are worth their start: each should have at least `at_least` tasks."""
    return max(1, min(workers, tasks // at_least))


def attempts(
    function: Callable[[T], R], tasks: Iterable[T], workers: int = 1, ahead: int = 4
) -> Generator[tuple[T, R | Failure], None, None]:
    """Yield (task, function(task)) in the order of `tasks`; a UserError, OSError or MemoryError becomes a Failure.

    workers: number of processes, 1 = this process. ahead: tasks for each worker that run before the first result is
    taken; their results wait in memory. function: pickled once for each process, so a module's function or a partial of
    one. Close the generator (contextlib.closing) when you leave early: that ends the processes.
    Raises UserError naming the tasks at which a worker process died, and any other exception with the traceback that it
    has in the worker.
    """
    if workers <= 1:
        for task in tasks:
            yield task, _outcome(_Attempt(function)(task))
        return
    others = set(multiprocessing.active_children())
    processes: set[BaseProcess] = set()
    with ProcessPoolExecutor(workers, _context(), _begin_worker, (_Attempt(function),)) as pool:
        pending: deque[tuple[T, Future[R | Failure | Caught]]] = deque()
        try:
            for task in tasks:
                pending.append((task, pool.submit(_call, task)))
                processes |= set(multiprocessing.active_children()) - others
                if len(pending) > ahead * workers:
                    yield pending[0][0], _outcome(pending[0][1].result())
                    pending.popleft()
            while pending:
                yield pending[0][0], _outcome(pending[0][1].result())
                pending.popleft()
        except BrokenProcessPool as error:
            names = ", ".join(str(task)[:80] for task, _ in list(pending)[: workers + 1])
            raise UserError(_death(names, cause_of_death(processes), error)) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Attempt(Generic[T, R]):
    """The function, which returns a Failure instead of raising what the user can mend."""

    def __init__(self, function: Callable[[T], R]) -> None:
        self.function = function

    def __call__(self, task: T) -> R | Failure | Caught:
        try:
            return self.function(task)
        except (UserError, OSError) as error:
            if takes_no_more(error):  # no other task could write either
                return Caught(error)
            return Failure(str(error))
        except MemoryError as error:
            return Failure(f"{task}: not enough memory ({error})")
        except BaseException as error:  # SystemExit too, which would end the command without a message
            if isinstance(error, KeyboardInterrupt):
                raise
            return Caught(as_exception(error), f"at {str(task)[:200]}")


def _outcome(result: R | Failure | Caught) -> R | Failure:
    """Return the result of a task, or raise the error that is no Failure."""
    if isinstance(result, Caught):
        result.throw()
    return result


def _death(names: str, cause: str, error: BrokenProcessPool) -> str:
    """Return the message about a pool that lost a process. names: the tasks that may have done it."""
    if cause:
        return f"a worker process died at or after {names} ({cause}){memory_hint(cause, 'fewer --workers need less')}"
    return f"the result of a worker process is lost at or after {names}: {error.__cause__ or error}"


_ATTEMPT: list[Any] = []  # in a worker process, the one function that it calls


def _call(task: Any) -> Any:
    return _ATTEMPT[0](task)


def _begin_worker(attempt: Any) -> None:
    """Set a worker process up: one thread, and an end with the parent."""
    _ATTEMPT.append(attempt)
    cv2.setNumThreads(1)
    begin_worker(forked_by_main_thread=False)  # its parent is the server


def _context() -> BaseContext:
    """Return a context that starts workers from a clean server, which imports the modules once.

    Workers forked from this process would inherit its locks and open LMDBs.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "sam4ir.data.masks.store", "sam4ir.data.sources"])
    return context
