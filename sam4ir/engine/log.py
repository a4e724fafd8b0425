"""The outputs of a run: console and log file, JSON lines, TensorBoard, CSV."""

from __future__ import annotations

import csv
import datetime
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sam4ir.utils.files import atomic, read_text


def console(log_file: Path | None = None) -> logging.Logger:
    """Set up the logger `sam4ir`: it writes to stdout and appends to log_file, if there is one, in BasicSR's format."""
    logger = logging.getLogger("sam4ir")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
        logger.addHandler(handler)
    return logger


class JsonLines:
    """A file of JSON objects, one a line, each with a key `iter`."""

    def __init__(self, path: Path, keep_until: int, validated: int) -> None:
        """Open the file of a run that goes on from iteration keep_until; drop later lines, which the run repeats.

        validated: iteration of the last validation; metrics of later ones are dropped too.
        """

        def valid(line: str) -> bool:
            last = validated if '"metrics/' in line else keep_until
            return _iteration(line) <= last

        if path.exists():
            keep_lines(path, valid)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record and flush the file."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _iteration(line: str) -> float:
    """Return the iteration of a JSON line; infinity for a torn last line, so that it is dropped."""
    try:
        return float(json.loads(line)["iter"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")


def set_aside(path: Path) -> Path | None:
    """Rename a file to <name>.1, .2 ... (the first that is free); None where there is no such file."""
    if not path.exists():
        return None
    number = 1
    while path.with_name(f"{path.name}.{number}").exists():
        number += 1
    return path.rename(path.with_name(f"{path.name}.{number}"))


def keep_lines(path: Path, keep: Callable[[str], bool]) -> None:
    """Drop the lines of a text file for which `keep` returns False, atomically."""
    lines = read_text(path).splitlines(keepends=True)
    rest = [line for line in lines if keep(line)]
    if len(rest) < len(lines):
        with atomic(path) as part:
            part.write_text("".join(rest), encoding="utf-8")


class CsvTable:
    """A CSV that grows by rows; its first column is the iteration.

    A file with other columns is set aside. Rows past the iteration keep_until are dropped.
    """

    def __init__(self, path: Path, columns: Sequence[str], keep_until: int) -> None:
        self.columns = ["iter", *columns]
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            header = next(csv.reader(read_text(path).splitlines()), [])
            if header != self.columns:  # the run goes on with other metrics
                set_aside(path)
        if path.exists():
            keep_lines(path, lambda line: _row_iteration(line) <= keep_until)
        new = not path.exists() or path.stat().st_size == 0
        self._file = path.open("a", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, self.columns, restval="")
        if new:
            self._writer.writeheader()

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows."""
        self._writer.writerows(rows)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _row_iteration(line: str) -> int:
    """Return the iteration of a CSV line; 0 for the head, which is never dropped."""
    first = line.split(",", 1)[0]
    if not first.isdigit():
        return 0
    return int(first)


class Scalars(Protocol):
    """A writer of scalars by tag and iteration."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Write one scalar."""

    def close(self) -> None:
        """Close the files."""


class NoScalars:
    """The writer of a run without TensorBoard."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Close nothing."""


def scalars(folder: Path | None, purge_after: int) -> Scalars:
    """Return a TensorBoard writer into `folder`; one that writes nothing where it is None."""
    if folder is None:
        return NoScalars()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from torch.utils.tensorboard import SummaryWriter

    purge_step = None
    if purge_after:
        purge_step = purge_after + 1
    return SummaryWriter(str(folder), purge_step=purge_step)


class Pace:
    """The seconds an iteration and the time left, measured since this process began to train."""

    def __init__(self, start_iteration: int, total: int) -> None:
        self.start_iteration = start_iteration
        self.total = total
        self._begun = time.monotonic()

    def line(self, iteration: int) -> tuple[str, float]:
        """Return the time left ('1 day, 0:12:30') and the seconds an iteration."""
        seconds = (time.monotonic() - self._begun) / max(iteration - self.start_iteration, 1)
        left = datetime.timedelta(seconds=int(seconds * (self.total - iteration)))
        return str(left), seconds


def message(
    name: str,
    epoch: int,
    iteration: int,
    rates: Sequence[float],
    eta: str,
    times: tuple[float, float],
    values: Mapping[str, float],
) -> str:
    """Return the console line of an iteration, in BasicSR's format.

    rates: learning rate of each network that trains. times: seconds of the iteration, and of loading its images.
    """
    lr = "".join(f"{rate:.3e}," for rate in rates)
    shown = " ".join(f"{name}: {value:.4e}" for name, value in values.items())
    head = f"[{name[:5]}..][epoch:{epoch:3d}, iter:{iteration:8,d}, lr:({lr})]"
    return f"{head} [eta: {eta}, time (data): {times[0]:.3f} ({times[1]:.3f})] {shown}"
