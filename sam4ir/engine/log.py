"""The outputs of a run: console and log file, JSON lines, TensorBoard, CSV."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sam4ir.utils.files import AppendedFile, encode_text, read_text, write_bytes
from sam4ir.utils.streams import ConsoleHandler
from sam4ir.utils.tables import RawRow, csv_head, csv_rows, json_line, text_lines, whole_rows


def console(log_file: Path | None = None, shown: logging.Handler | None = None) -> logging.Logger:
    """Set up the logger `sam4ir`: it writes to stdout and appends to log_file, if there is one, in BasicSR's format.

    shown: takes the lines in place of stdout.
    """
    logger = logging.getLogger("sam4ir")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handlers: list[logging.Handler] = [shown or ConsoleHandler(sys.stdout)]
    if log_file is not None:
        handlers.append(LogFile(log_file))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
        logger.addHandler(handler)
    return logger


class ProgramLog(logging.Handler):
    """The handler that gives log lines to the program that called sam4ir, as its own set-up of logging asks.

    It keeps the logger's handlers, level and propagation of the time when it is made, so that a run may set the logger
    up for its log file meanwhile; `give_back` undoes that.
    """

    def __init__(self) -> None:
        super().__init__()
        self._logger = logging.getLogger("sam4ir")
        self._handlers = list(self._logger.handlers)
        self._set_level = self._logger.level
        self._propagate = self._logger.propagate
        self._least = self._logger.getEffectiveLevel()
        self._logger.handlers = []

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a line on, unless the program has set a higher level."""
        if record.levelno < self._least:
            return
        for handler in self._handlers:
            if record.levelno >= handler.level:
                handler.handle(record)
        if self._propagate and self._logger.parent is not None:
            self._logger.parent.callHandlers(record)

    def give_back(self) -> None:
        """Set the logger up as it was, and close the handlers of the run."""
        for handler in self._logger.handlers:
            handler.close()
        self._logger.handlers = self._handlers
        self._logger.setLevel(self._set_level)
        self._logger.propagate = self._propagate


class LogFile(logging.Handler):
    """The handler that appends log lines to a file.

    The first error of the system raises a FileError that names the file; later lines are left out, so that the run can
    save what it has and end with the first message.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file: AppendedFile | None = AppendedFile(path)

    def emit(self, record: logging.LogRecord) -> None:
        """Append a line."""
        if self._file is None:
            return
        try:
            self._file.write(self.format(record) + "\n")
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()


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
            text = ""
            for line in filter(valid, text_lines(read_text(path))):
                text += f"{line}\n"
            _replace(path, text)
        self._file = AppendedFile(path)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record. Raises FileError naming the file where the disk is full."""
        self._file.write(json_line(record))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _iteration(line: str) -> float:
    """Return the iteration of a JSON line; infinity for a torn last line, so that it is dropped."""
    try:
        return float(json.loads(line)["iter"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")


def _replace(path: Path, text: str) -> None:
    """Write a text file atomically, unless it holds this text already."""
    data = encode_text(text)
    if path.read_bytes() != data:
        write_bytes(path, data)


def set_aside(path: Path) -> Path | None:
    """Rename a file to <name>.1, .2 ... (the first that is free); None where there is no such file."""
    if not path.exists():
        return None
    number = 1
    while path.with_name(f"{path.name}.{number}").exists():
        number += 1
    return path.rename(path.with_name(f"{path.name}.{number}"))


def set_aside_journal(path: Path) -> Path | None:
    """Set aside a log.jsonl or validation.csv; remove one without a record. Return the new name, None without one."""
    if not path.exists():
        return None
    if path.suffix == ".csv":
        records = len(whole_rows(path)[1:])
    else:
        records = path.read_bytes().count(b"\n")
    if not records:
        path.unlink()
        return None
    return set_aside(path)


class GrowingTable:
    """A CSV that grows by rows; its first column is the iteration.

    A file with other columns is set aside. Rows past the iteration keep_until are dropped, and so is a row that a
    killed run did not end; the file then has the bytes that a run without a stop would have written.
    """

    def __init__(self, path: Path, columns: Sequence[str], keep_until: int) -> None:
        self.columns = ["iter", *columns]
        head = csv_head(self.columns)
        if path.exists():
            old_head, *rows = whole_rows(path) or [RawRow([], "")]
            if rows and old_head.cells != self.columns:  # the run goes on with other metrics
                set_aside(path)
            else:
                text = head
                for row in rows:
                    if _row_iteration(row) <= keep_until:
                        text += row.text
                _replace(path, text)
        self._file = AppendedFile(path, head)

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows, all or none of them. Raises FileError naming the file where the disk is full."""
        self._file.write(csv_rows(self.columns, rows))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _row_iteration(row: RawRow) -> int:
    """Return the iteration of a row; 0 where its first cell is no number."""
    if not row.cells[0].isdigit():
        return 0
    return int(row.cells[0])
