"""What follows a run beside its own files: TensorBoard, and the services of engine.trackers."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from sam4ir.errors import first_line

log = logging.getLogger(__name__)

FLUSH_SECONDS = 30.0  # that a checkpoint waits for a service
CLOSE_SECONDS = 120.0  # that the end of a run waits for a service
_MOST_WAITING = 10_000  # calls that a service which does not answer may leave undone


class Tracker(Protocol):
    """A place that shows curves and pictures of a run. Iterations rise, but for those that a resumed run repeats."""

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Take scalars by tag, such as losses/l_pix."""

    def pictures(self, iteration: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Take pictures (h, w, 3) uint8 RGB by tag."""

    def flush(self) -> None:
        """Make lasting what was taken: a checkpoint is about to be written, and nothing before it is repeated."""

    def close(self) -> None:
        """Write what is not written yet, and end."""


class Guarded:
    """A service that can neither stop nor delay a training. Its calls run in a thread of their own, in order.

    name: for warnings. make: returns the tracker of the service. The first error, of `make` too, is a warning, and the
    service gets nothing more. A checkpoint waits for it FLUSH_SECONDS at most, the end of the run CLOSE_SECONDS.
    """

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name = name
        self._failed = False
        self._tasks: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._work, args=(make,), name=f"tracker {name}", daemon=True)
        self._thread.start()

    def _work(self, make: Callable[[], Tracker]) -> None:
        """Make the tracker, and do what it is given until None comes."""
        try:
            tracker = make()
            while True:
                task = self._tasks.get()
                if task is None:
                    tracker.close()
                    return
                task(tracker)
        except Exception as error:  # of a service or its package: any class
            self._fail(first_line(error)[:300])

    def _fail(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            log.warning("%s fails, and takes nothing more of this run: %s", self._name, reason)

    def _put(self, task: Callable[[Tracker], None] | None) -> None:
        if self._failed:
            return
        try:
            self._tasks.put_nowait(task)
        except queue.Full:
            self._fail("it does not answer")

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Hand scalars on."""
        self._put(lambda tracker: tracker.scalars(iteration, values))

    def pictures(self, iteration: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Hand pictures on."""
        self._put(lambda tracker: tracker.pictures(iteration, pictures))

    def flush(self) -> None:
        """Wait until the service has what it was given."""
        done = threading.Event()

        def task(tracker: Tracker) -> None:
            tracker.flush()
            done.set()

        self._put(task)
        waited = 0.0
        while not self._failed and self._thread.is_alive() and waited < FLUSH_SECONDS and not done.wait(0.1):
            waited += 0.1

    def close(self) -> None:
        """End the service."""
        self._put(None)
        if not self._failed:
            self._thread.join(CLOSE_SECONDS)
        if not self._failed and self._thread.is_alive():
            self._fail(f"it is still busy after {CLOSE_SECONDS:.0f} seconds")
