"""Show how far the scoring of a data set is: by a bar in a terminal, by a line each minute elsewhere."""

from __future__ import annotations

import datetime
import logging
import sys
import time
from typing import Any

from tqdm import tqdm

log = logging.getLogger(__name__)

PATIENCE = 55.0  # seconds before the first line, and between lines


class SetProgress:
    """The progress of the images of a data set, and of the tiles or the sampling steps of the present image.

    shown: False for processes that show nothing.
    """

    def __init__(self, shown: bool = True) -> None:
        self._shown = shown
        self._bar: Any = None
        self._name = ""
        self._done, self._total = 0, 0
        self._begun = self._printed = time.monotonic()

    def begin(self, name: str, total: int) -> None:
        """Count the images of a data set."""
        self._name, self._done, self._total = name, 0, total
        self._begun = self._printed = time.monotonic()
        if self._shown and sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=name, unit="image", leave=False)

    def add(self) -> None:
        """Count an image."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(1)
        self._say("")

    def inside(self, done: int, total: int) -> None:
        """Take note that `done` of `total` parts of the present image are done."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"part {done} of {total}")
        if done < total:
            self._say(f", part {done} of {total} of the next one")

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _say(self, more: str) -> None:
        """Log a line where the last one is long ago and there is no bar."""
        now = time.monotonic()
        if self._bar is not None or not self._shown or now - self._printed < PATIENCE or self._done == self._total:
            return
        self._printed = now
        left = ""
        if self._done:
            seconds = (now - self._begun) / self._done * (self._total - self._done)
            left = f"; about {datetime.timedelta(seconds=round(seconds))} left"
        log.info("%s: %d of %d images are scored%s%s", self._name, self._done, self._total, more, left)
