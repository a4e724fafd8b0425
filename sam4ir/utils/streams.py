"""Standard output and error of a command: a reader that leaves, a closed stream or a narrow encoding ends no work."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import sys
from typing import Any, Literal, TextIO

_READER_LEFT = (errno.EPIPE, errno.ECONNRESET)


_NARROWEST = 20  # columns of a terminal that lines are wrapped for
_UNIT = re.compile(
    r"(?:\[[^\]]*\])+"  # [name][epoch: 1, iter: 200]
    r"|[^\s:\[\]]+: [^\s\[]\S*(?: [KMGT]iB)?"  # psnr: 27.31
    r"|\S+"
)


def narrowed(text: str, columns: int) -> str:
    """Return the text with lines that are longer than `columns` broken between words, brackets and `name: value`.

    What follows a break is indented by four blanks more. A unit that is too long for a line is broken at its blanks.
    """
    lines = []
    for line in text.split("\n"):
        if len(line) <= columns:
            lines.append(line)
        else:
            lines += _broken(line, columns)
    return "\n".join(lines)


def _broken(line: str, columns: int) -> list[str]:
    """Return the lines that a long line becomes."""
    indent = line[: len(line) - len(line.lstrip())]
    further = indent if indent else "    "
    units: list[str] = []
    for unit in _UNIT.findall(line):
        if len(further) + len(unit) > columns:
            units += unit.split(" ")
        else:
            units.append(unit)
    if not units:  # nothing but blanks
        return [line]
    lines = [indent + units[0]]
    for unit in units[1:]:
        if len(lines[-1]) + 1 + len(unit) > columns:
            lines.append(further + unit)
        else:
            lines[-1] += f" {unit}"
    return lines


class _PatientFile(io.FileIO):
    """A standard stream as bytes.

    Once its reader has left (`| head -1`, a killed `tee`, a closed terminal), what is written goes nowhere and no error
    rises, here and in child processes. Any other error, such as a full disk behind `> file`, is raised once, with the
    stream's name.
    """

    def __init__(self, descriptor: int, title: str) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._title = title
        self.ended = False

    def write(self, data: Any, /) -> Any:
        """Write bytes as FileIO does; return their number where they go nowhere."""
        if self.ended:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self.ended = True
            if error.errno in _READER_LEFT or (error.errno == errno.EIO and self.isatty()):
                _to_nowhere(self.fileno())
                return memoryview(data).nbytes
            raise OSError(error.errno, error.strerror, self._title) from error


def _to_nowhere(descriptor: int) -> None:
    """Let a descriptor write to the null device."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """The handler that prints log lines. An error of the system ends the run, as it does for a log file.

    In a terminal, lines that are too long for it go on in the next one, between two values.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a line, wrapped where the stream is a terminal."""
        text = super().format(record)
        try:
            columns = os.get_terminal_size(self.stream.fileno()).columns
        except (AttributeError, OSError, ValueError):  # no terminal, or no file at all
            return text
        if columns < _NARROWEST:
            return text
        return narrowed(text, columns)

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise an OSError, where logging would print its traceback and go on."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            raise error
        super().handleError(record)


def guard_streams() -> None:
    """Replace sys.stdout and sys.stderr by patient ones. A stream that something else captures stays as it is.

    Characters that the encoding lacks are written as escapes. A stream that was closed when the process began is the
    null device, so that no file that is opened later gets its number; standard input is empty then.
    """
    if sys.stdin is None:
        sys.stdin = _closed(0, "r")
    sys.stdout = _guarded(sys.stdout, sys.__stdout__, 1, "standard output")
    sys.stderr = _guarded(sys.stderr, sys.__stderr__, 2, "standard error")


def output_was_cut() -> bool:
    """Return whether something that was printed went nowhere, because the reader of standard output had left."""
    buffer = getattr(sys.stdout, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    return isinstance(raw, _PatientFile) and raw.ended


def _guarded(stream: TextIO | None, original: TextIO | None, number: int, title: str) -> TextIO:
    if stream is None:
        return _closed(number)
    if stream is not original or not isinstance(stream, io.TextIOWrapper):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    raw = _PatientFile(stream.fileno(), title)
    buffer: Any = raw
    if not stream.write_through:  # it is set by `python -u`, which asks for no buffer
        buffer = io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer,
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _closed(number: int, mode: Literal["r", "w"] = "w") -> TextIO:
    """Return a stream of the null device in place of a closed one, and occupy its number."""
    try:
        os.fstat(number)
    except OSError:
        _to_nowhere(number)
    return open(os.devnull, mode, encoding="utf-8", errors="backslashreplace")
