"""What follows a run beside its own files: TensorBoard, and the services of engine.trackers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import numpy as np

from sam4ir.errors import first_line

log = logging.getLogger(__name__)

T = TypeVar("T")


class Tracker(Protocol):
    """A place that shows curves and pictures of a run. Iterations rise, but for those that a resumed run repeats."""

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Take scalars by tag, such as losses/l_pix."""

    def pictures(self, iteration: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Take pictures (h, w, 3) uint8 RGB by tag."""

    def close(self) -> None:
        """Write what is not written yet, and end."""


class Guarded:
    """A tracker that cannot stop a training: its first error is a warning, and it is not called again.

    name: for the warning. make: returns the tracker, and may fail too.
    """

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name = name
        self._tracker: Tracker | None = None
        self._tracker = self._guarded(make)

    def _guarded(self, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except Exception as error:  # of a service or its package: any class
            reason = first_line(error)[:300]
            log.warning("%s fails, and takes nothing more of this run: %s", self._name, reason)
            self._tracker = None
            return None

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Hand scalars on."""
        if self._tracker is not None:
            tracker = self._tracker
            self._guarded(lambda: tracker.scalars(iteration, values))

    def pictures(self, iteration: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Hand pictures on."""
        if self._tracker is not None:
            tracker = self._tracker
            self._guarded(lambda: tracker.pictures(iteration, pictures))

    def close(self) -> None:
        """Close the tracker, once."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            self._guarded(tracker.close)
