"""Show how far one image or video is: by a bar in a terminal, by lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

_PATIENCE = 10.0  # seconds before the first line, and between lines


class ItemProgress:
    """The progress of the steps, tiles or frames of one item, below the bar of all items.

    unit: what is counted. name: of the item, which `begin` sets. In a terminal it is a bar. Elsewhere it is a line on
    standard error every ten seconds, so that what is quick writes none.
    """

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._bar: Any = None
        self._name = ""
        self._printed = time.monotonic()

    def begin(self, name: str) -> None:
        """Count for another item from now on."""
        self._name = name
        self._printed = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done; 0 where the total is not known."""
        if sys.stderr.isatty():
            self._draw(done, total)
        elif time.monotonic() - self._printed > _PATIENCE:
            self._printed = time.monotonic()
            of = f" of {total}" if total else ""
            print(f"{self._name}: {self._unit} {done}{of}", file=sys.stderr, flush=True)

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(total=total or None, unit=self._unit, position=1, leave=False)
        elif done <= self._bar.n:
            self._bar.reset(total or None)
        self._bar.update(done - self._bar.n)
