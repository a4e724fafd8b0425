"""SIGTERM and Ctrl-C, held back until the loop can stop with everything saved."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

PATIENT = "SAM4IR_PATIENT"  # environment variable; 1 where the parent process repeats signals that all have got


class Interrupted(Exception):
    """SIGTERM or Ctrl-C has arrived; `exit_code` is that of the process."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.exit_code = 128 + number


class Signals:
    """The SIGTERM and SIGINT that have arrived, remembered until the loop asks for them.

    patient: a second signal is ignored, since torchrun repeats what the whole group got already, and kills on its own
    after half a minute; `sam4ir study` does alike, and sets PATIENT in the environment. Otherwise a second signal ends
    the process at once. Python hands signals to the main thread alone, so that in another thread none arrives.
    """

    def __init__(self, patient: bool = False) -> None:
        self.received: int | None = None
        self.patient = patient or os.environ.get(PATIENT) == "1"
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and not self.patient:
            raise KeyboardInterrupt
        self.received = self.received or number

    def number(self) -> int:
        """Return the signal that has arrived, or 0."""
        return self.received or 0
