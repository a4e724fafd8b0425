"""Draw the curves of runs in a terminal, from their log.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sam4ir.engine.evaluate.chart import is_drawable, ticks
from sam4ir.engine.run_record import REFINER
from sam4ir.errors import UserError
from sam4ir.utils.tables import text_lines

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character, by row and column
_EMPTY = 0x2800
COLOURS = (34, 33, 32, 35, 36, 31)  # of terminals: blue, yellow, green, magenta, cyan, red
_LABEL = 9  # columns of the axis on the left

Points = list[tuple[int, float]]


@dataclass
class RunCurves:
    """The curves of a run by tag, read as the file grows. A file that became shorter is read anew (a resume).

    last: the last iteration of the file.
    """

    folder: Path
    curves: dict[str, Points] = field(default_factory=dict)
    last: int = 0
    _read: int = 0

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.folder.resolve().name

    def read(self) -> None:
        """Read the lines that are new. Raises UserError where the folder is that of no run."""
        path = self.folder / "log.jsonl"
        if not path.is_file():
            raise UserError(f"{self.folder}: is no folder of a run: it holds no log.jsonl; name experiments/NAME")
        if path.stat().st_size < self._read:
            self.curves, self.last, self._read = {}, 0, 0
        with path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]  # the last line may be half written
        self._read += len(whole)
        for line in text_lines(whole.decode("utf-8", "replace")):
            self._add(line)

    def _add(self, line: str) -> None:
        try:
            record = json.loads(line)
            iteration = int(record["iter"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return
        if not is_drawable(iteration):
            return
        if iteration < self.last:  # a run that was resumed from an earlier checkpoint
            for points in self.curves.values():
                while points and points[-1][0] >= iteration:
                    points.pop()
        self.last = iteration
        for tag, value in record.items():
            if tag != "iter" and isinstance(value, (int, float)) and is_drawable(value):
                self.curves.setdefault(tag, []).append((iteration, float(value)))


def chosen_tags(runs: Sequence[RunCurves], words: Sequence[str]) -> list[str]:
    """Return the tags to draw: those that contain one of the words, or the first loss and the first score.

    Raises UserError where no tag has such a word.
    """
    tags: list[str] = []
    for run in runs:
        tags += [tag for tag in run.curves if tag not in tags]
    if not tags:
        return []
    if words:
        chosen = [tag for tag in tags if any(word in tag for word in words)]
        if not chosen:
            raise UserError(f"--show {' '.join(words)}: no curve has such a name; there are {', '.join(sorted(tags))}")
        return chosen
    chosen = [tag for tag in tags if tag.startswith("l_")][:1]
    chosen += [tag for tag in tags if tag.startswith("metrics/") and not tag.endswith(REFINER)][:1]
    return chosen or tags[:1]


def smoothed(points: Points, count: int) -> Points:
    """Return at most `count` points, each the mean of the points of its share of the iterations."""
    if len(points) <= count:
        return points
    first, last = points[0][0], points[-1][0]
    bins: dict[int, list[tuple[int, float]]] = {}
    for iteration, value in points:
        place = min(int((iteration - first) / max(last - first, 1) * count), count - 1)
        bins.setdefault(place, []).append((iteration, value))
    means = []
    for inside in bins.values():
        iteration = round(sum(point[0] for point in inside) / len(inside))
        means.append((iteration, sum(point[1] for point in inside) / len(inside)))
    return means


def drawing(title: str, curves: Mapping[str, Points], width: int, height: int, colours: bool) -> list[str]:
    """Return the lines of a chart of curves by name, at most `width` columns wide and `height` lines high.

    A legend names each curve with its last value. colours: whether escape sequences colour the curves.
    """
    shown = {name: points for name, points in curves.items() if points}
    if not shown:
        return [f"{title}: nothing yet"]
    columns, rows = max(width - _LABEL - 1, 8), max(height - 3 - len(shown), 4)
    lines = {name: smoothed(points, 2 * columns) for name, points in shown.items()}
    xs = [point[0] for points in lines.values() for point in points]
    ys = [point[1] for points in lines.values() for point in points]
    levels = ticks(min(ys), max(ys))
    digits = digits_of(levels)
    canvas = _Canvas(columns, rows, (min(xs), max(xs)), (levels[0], levels[-1]))
    for number, points in enumerate(lines.values()):
        canvas.curve(points, number)
    text = [title[:width]]
    for row in range(rows):
        text.append(f"{canvas.label(row, levels, digits):>{_LABEL}} {canvas.line(row, colours)}")
    ends = f"{min(xs):,}", f"{max(xs):,}"
    text.append(" " * (_LABEL + 1) + ends[0] + ends[1].rjust(max(columns - len(ends[0]), 1)))
    for number, (name, points) in enumerate(shown.items()):
        mark = _coloured("⣿", number, colours)
        text.append(f"{'':{_LABEL}} {mark} {name}: {points[-1][1]:.5g} at {points[-1][0]:,}"[: width + 9 * colours])
    return text


def digits_of(levels: Sequence[float]) -> int:
    """Return the digits that tell the numbers of an axis apart: 4 to 7, as many as its labels have room for."""
    for digits in range(4, _LABEL - 2):
        if len({f"{level:.{digits}g}" for level in levels}) == len(set(levels)):
            return digits
    return _LABEL - 2


class _Canvas:
    """Dots of braille characters, 2 x 4 a character; each character has the colour of the last curve in it."""

    def __init__(self, columns: int, rows: int, x: tuple[float, float], y: tuple[float, float]) -> None:
        self._size = 2 * columns, 4 * rows
        self._x, self._y = x, y
        self._cells = [[_EMPTY] * columns for _ in range(rows)]
        self._owner = [[0] * columns for _ in range(rows)]

    def curve(self, points: Points, number: int) -> None:
        """Draw points and the straight lines between them."""
        places = [self._place(*point) for point in points]
        before = places[0]
        for place in places:
            steps = max(abs(place[0] - before[0]), abs(place[1] - before[1]), 1)
            for step in range(steps + 1):
                x = before[0] + (place[0] - before[0]) * step / steps
                y = before[1] + (place[1] - before[1]) * step / steps
                self._dot(round(x), round(y), number)
            before = place

    def _place(self, x: float, y: float) -> tuple[int, int]:
        across = (x - self._x[0]) / max(self._x[1] - self._x[0], 1e-12)
        down = (self._y[1] - y) / max(self._y[1] - self._y[0], 1e-12)
        return round(across * (self._size[0] - 1)), round(down * (self._size[1] - 1))

    def _dot(self, x: int, y: int, number: int) -> None:
        self._cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
        self._owner[y // 4][x // 2] = number

    def label(self, row: int, levels: Sequence[float], digits: int) -> str:
        """Return the number of the axis whose height is in this row, with its digits; '' where none is."""
        for level in levels:
            if self._place(self._x[0], level)[1] // 4 == row:
                return f"{level:.{digits}g}"
        return ""

    def line(self, row: int, colours: bool) -> str:
        """Return the characters of a row."""
        text = ""
        for cell, owner in zip(self._cells[row], self._owner[row], strict=True):
            character = chr(cell) if cell != _EMPTY else " "
            text += _coloured(character, owner, colours and cell != _EMPTY)
        return text


def _coloured(text: str, number: int, colours: bool) -> str:
    """Return text with the escape sequences of the colour of a curve."""
    if not colours:
        return text
    return f"\x1b[{COLOURS[number % len(COLOURS)]}m{text}\x1b[0m"


def charts(runs: Sequence[RunCurves], words: Sequence[str], width: int, height: int, colours: bool) -> str:
    """Return the charts of runs: one for each tag, in which each run has a curve."""
    tags = chosen_tags(runs, words)
    if not tags:
        return "no point yet"
    lines: list[str] = []
    names = _names(runs)
    for tag in tags:
        curves = {name: run.curves.get(tag, []) for name, run in zip(names, runs, strict=True)}
        lines += [*drawing(_shown(tag), curves, width, max(height // len(tags) - 1, 9), colours), ""]
    return "\n".join(lines)


def _names(runs: Sequence[RunCurves]) -> list[str]:
    """Return the names of runs as the legend has them; where names are equal, the folders as they were given."""
    names = [_shown(run.name) for run in runs]
    if len(set(names)) < len(names):
        names = [_shown(str(run.folder)) for run in runs]
    return names


def _shown(text: str) -> str:
    """Return a text without characters that a terminal would obey, such as those of a log that others wrote."""
    return "".join(character if character.isprintable() else "?" for character in text)
