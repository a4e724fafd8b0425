"""The line of an iteration on the console and in the log file, in BasicSR's form."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH = 120  # columns of a line with the time and the level before it
STAMP = len("2026-01-31 12:00:00,000 INFO: ")
_INDENT = "    "


class Pace:
    """How fast a run goes.

    The time left is measured since this process began to train, the images a second since the line before.
    """

    def __init__(self, start_iteration: int, total: int) -> None:
        self.start_iteration = start_iteration
        self.total = total
        self._begun = time.monotonic()
        self._last = self._begun
        self._images = 0

    def add(self, images: int) -> None:
        """Count the images of an iteration, over all processes."""
        self._images += images

    def left(self, iteration: int) -> str:
        """Return the time left, such as '1 day, 0:12:30'."""
        seconds = (time.monotonic() - self._begun) / max(iteration - self.start_iteration, 1)
        return str(datetime.timedelta(seconds=int(seconds * (self.total - iteration))))

    def since_line(self) -> float:
        """Return the seconds since `rate` was asked for the last time."""
        return time.monotonic() - self._last

    def rate(self) -> float:
        """Return the images a second since the last call."""
        now = time.monotonic()
        rate = self._images / max(now - self._last, 1e-9)
        self._last, self._images = now, 0
        return rate


@dataclass(frozen=True)
class IterationLine:
    """What a line says.

    rates: learning rate of each network that trains. left: the time left. times: seconds of the iteration, and of
    loading its images. images: a second, over all processes. memory: the peak, in words.
    """

    name: str
    epoch: int
    iteration: int
    rates: Sequence[float]
    left: str
    times: tuple[float, float]
    images: float
    memory: str
    values: Mapping[str, float]

    def __str__(self) -> str:
        rates = "".join(f"{rate:.3e}," for rate in self.rates)
        head = f"[{self.name}][epoch:{self.epoch:3d}, iter:{self.iteration:8,d}, lr:({rates})]"
        pace = f"[eta: {self.left}, time (data): {self.times[0]:.3f} ({self.times[1]:.3f}), {self.images:.3g} images/s]"
        parts = [head, pace]
        for name, value in once(self.values).items():
            parts.append(f"{name}: {_number(name, value)}")
        parts.append(f"peak memory: {self.memory}")
        return wrapped(parts)


def wrapped(parts: Sequence[str]) -> str:
    """Return the parts with blanks between them, on lines of WIDTH columns where each part fits; none is cut."""
    lines = [parts[0]]
    used = STAMP + len(parts[0])
    for part in parts[1:]:
        if used + 1 + len(part) > WIDTH:
            lines.append(_INDENT + part)
            used = len(lines[-1])
        else:
            lines[-1] += f" {part}"
            used += 1 + len(part)
    return "\n".join(lines)


def once(values: Mapping[str, float]) -> dict[str, float]:
    """Return the values without losses that repeat another value, or its negative: l_pix of PSNRLoss beside psnr."""
    shown: dict[str, float] = {}
    for name, value in values.items():
        others = [abs(other) for key, other in values.items() if not key.startswith("l_")]
        if not name.startswith("l_") or not any(_equal(abs(value), other) for other in others):
            shown[name] = value
    return shown


def _equal(a: float, b: float) -> bool:
    """Return whether two numbers look the same in a line."""
    return abs(a - b) <= 1e-3 * max(abs(a), abs(b))


def _number(name: str, value: float) -> str:
    """Return a value as it is shown: a PSNR in dB, all others with an exponent."""
    if name.startswith("psnr"):
        return f"{value:.2f}"
    return f"{value:.4e}"
