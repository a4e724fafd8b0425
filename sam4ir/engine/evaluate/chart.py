"""A plain line chart as a picture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

WIDTH, HEIGHT = 960, 600
LEFT, RIGHT, TOP, BOTTOM = 90, 30, 50, 60
PAPER, INK, GRID = (255, 255, 255), (40, 40, 40), (222, 222, 222)
# RGB, distinct with any colour vision: Okabe, Ito, Color universal design, 2008
COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0), (0, 0, 0))
LEGEND_ROW = 18
LEGEND_GAP = 12

LARGEST = 1e150  # a chart's numbers lie within +- this, so that their spans and sums are finite
_LEAST_SPAN = 1e-300

XY = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A curve: its name in the legend, its points of finite numbers, and whether it is dashed."""

    name: str
    points: Sequence[XY]
    dashed: bool = False


def chart(title: str, below: str, lines: Sequence[Line], names: Sequence[str] = ()) -> np.ndarray:
    """Draw the lines, each with its points marked, as an (h, w, 3) uint8 RGB picture.

    below: the label of x. names: of the points x = 0, 1, ...; where empty, x is a number.
    """
    legend = LEGEND_GAP + LEGEND_ROW * len(lines)
    canvas = np.full((HEIGHT + legend, WIDTH, 3), PAPER, np.uint8)
    xs: list[float] = []
    ys: list[float] = []
    for line in lines:
        for x, y in line.points:
            xs.append(x)
            ys.append(y)
    x_ticks = list(map(float, range(len(names))))
    if not names:
        x_ticks = ticks(min(xs), max(xs))
    y_ticks = ticks(min(ys), max(ys))
    frame = _Frame(min([*xs, *x_ticks]), max([*xs, *x_ticks]), y_ticks[0], y_ticks[-1])
    _axes(canvas, frame, x_ticks, y_ticks, names)
    _write(canvas, title, (LEFT, TOP - 20), 0.6)
    _write(canvas, below, (LEFT, HEIGHT - 10), 0.45)
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        corners = [frame.pixel(x, y) for x, y in line.points]
        _curve(canvas, corners, colour, line.dashed)
        height = HEIGHT + LEGEND_GAP + LEGEND_ROW * number
        _curve(canvas, [(LEFT, height), (LEFT + 40, height)], colour, line.dashed)
        _write(canvas, f"{line.name}  {line.points[-1][1]:.4g} (last)", (LEFT + 50, height + 4), 0.42)
    return canvas


def is_drawable(value: float) -> bool:
    """Return whether a chart can show a number: it is no NaN, not infinite and not beyond LARGEST."""
    return abs(value) <= LARGEST


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Return round numbers that enclose [low, high], evenly apart by 1, 2 or 5 times a power of ten.

    low, high: numbers that a chart can show (is_drawable).
    """
    span = high - low
    if not span > _LEAST_SPAN:
        span = max(abs(high), 1.0) * 0.1
    rough = span / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1, 2, 5, 10):
        step = power * factor
        if step >= rough * (1 - 1e-9):
            break
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True)
class _Frame:
    """The numbers at the edges of the drawing, from which a point's pixel follows."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def pixel(self, x: float, y: float) -> tuple[int, int]:
        """Return (column, row) of a point."""
        across = 0.5
        if self.x_high > self.x_low:
            across = (x - self.x_low) / (self.x_high - self.x_low)
        up = (y - self.y_low) / (self.y_high - self.y_low)
        return (
            round(LEFT + across * (WIDTH - LEFT - RIGHT)),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)),
        )


def _axes(canvas: Any, frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], names: Sequence[str]) -> None:
    for y in y_ticks:
        row = frame.pixel(frame.x_low, y)[1]
        cv2.line(canvas, (LEFT, row), (WIDTH - RIGHT, row), GRID, 1)
        _write(canvas, f"{y:.6g}", (8, row + 4), 0.42)
    for number, x in enumerate(x_ticks):
        column = frame.pixel(x, frame.y_low)[0]
        cv2.line(canvas, (column, HEIGHT - BOTTOM), (column, HEIGHT - BOTTOM + 5), INK, 1)
        text = f"{x:.6g}"
        if names:
            text = names[number]
        _write(canvas, text[:24], (max(column - 4 * min(len(text), 24), 0), HEIGHT - BOTTOM + 22), 0.42)
    cv2.rectangle(canvas, (LEFT, TOP), (WIDTH - RIGHT, HEIGHT - BOTTOM), INK, 1)


def _curve(canvas: Any, corners: Sequence[tuple[int, int]], colour: tuple[int, int, int], dashed: bool) -> None:
    for start, end in itertools.pairwise(corners):
        pieces, stride = 1, 1
        if dashed:
            pieces, stride = max(1, round(math.dist(start, end) / 8)), 2
        for piece in range(0, pieces, stride):
            dash_start = _between(start, end, piece / pieces)
            dash_end = _between(start, end, (piece + 1) / pieces)
            cv2.line(canvas, dash_start, dash_end, colour, 2, cv2.LINE_AA)
    if not dashed:
        for corner in corners:
            cv2.circle(canvas, corner, 3, colour, -1, cv2.LINE_AA)


def _between(start: tuple[int, int], end: tuple[int, int], share: float) -> tuple[int, int]:
    return round(start[0] + (end[0] - start[0]) * share), round(start[1] + (end[1] - start[1]) * share)


def _write(canvas: Any, text: str, origin: tuple[int, int], size: float) -> None:
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(canvas, plain, origin, cv2.FONT_HERSHEY_SIMPLEX, size, INK, 1, cv2.LINE_AA)
