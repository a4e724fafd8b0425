"""Charts as SVG: curves over iterations, and points of two results; the page's script adds hover values."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sam4ir.engine.evaluate.chart import is_drawable, ticks
from sam4ir.engine.report.markup import Markup, element, joined, json_attribute

WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 54, 16, 10, 34
SIDE = 400  # of a scatter
BESIDE = 18  # room for the label of its upright axis
COLOURS = 7  # that page.css has as --line-0, --line-1 ...
MOST_POINTS = 400  # of a curve; more cannot be told apart in a chart
_LOG_LEAST = 1e-300  # below it powers of ten lose their digits
_LOG_FROM = 50.0  # a chart of positive values whose largest is so many times the smallest has a logarithmic axis

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """Values over iterations. colour: number of the colour. dashed, marked: how the line is drawn."""

    name: str
    points: Points
    colour: int = 0
    dashed: bool = False
    marked: bool = False


@dataclass(frozen=True)
class _Axis:
    """An axis from `low` to `high` along `length` pixels that begin at `start`; a negative length points up."""

    low: float
    high: float
    start: float
    length: float
    logarithmic: bool = False

    def pixel(self, value: float) -> float:
        """Return the place of a value; values beyond the axis lie at its ends."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        share = (min(max(value, low), high) - low) / (high - low)
        return round(self.start + share * self.length, 1)


def thinned(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """Return at most `most` points: each is the mean of as many neighbours; what no chart can show is left out."""
    drawable = [(x, y) for x, y in points if is_drawable(x) and is_drawable(y)]
    group = -(-len(drawable) // most)
    if group <= 1:
        return drawable
    means = []
    for start in range(0, len(drawable), group):
        part = drawable[start : start + group]
        means.append((part[-1][0], math.fsum(value for _, value in part) / len(part)))
    return means


def line_chart(title: str, curves: Sequence[Curve], *, rates: bool = False, below: str = "iteration") -> Markup:
    """Return a figure of curves with a legend; empty where no curve has two finite values.

    Equal curves are drawn as one with the names of all. rates: whether the values are rates or norms, whose axis may be
    logarithmic. below: the label of the axis below.
    """
    shown = _without_repeats(curves)
    if all(len(curve.points) < 2 for curve in shown):
        return Markup("")
    ys = [y for curve in shown for _, y in curve.points]
    xs = [x for curve in shown for x, _ in curve.points]
    logarithmic = rates and min(ys) > _LOG_LEAST and max(ys) > _LOG_FROM * min(ys)
    y_ticks = _log_ticks(min(ys), max(ys)) if logarithmic else ticks(min(ys), max(ys), 6)
    x_ticks = ticks(min(xs), max(xs), 6)
    across = _Axis(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, LEFT, WIDTH - LEFT - RIGHT)
    up = _Axis(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, -(HEIGHT - TOP - BOTTOM), logarithmic)
    parts = [*_grid(across, up, x_ticks, y_ticks), _label(below, WIDTH - RIGHT, HEIGHT - 4, "end")]
    hover = []
    for curve in shown:
        places = [(across.pixel(x), up.pixel(y)) for x, y in curve.points]
        parts.append(_line(curve, places))
        hover.append({"name": curve.name, "colour": curve.colour, "points": _rounded(curve.points), "at": places})
    picture = element(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        tabindex="0",
        class_="chart",
        aria_label=_in_words(title, shown),
        data_curves=json_attribute(hover),
    )
    return element("figure", element("figcaption", title), picture, _legend(shown), class_="plot")


def _without_repeats(curves: Sequence[Curve]) -> list[Curve]:
    """Return the curves that have points, thinned; equal ones become one with the names of all."""
    shown: list[Curve] = []
    for curve in curves:
        points = thinned(curve.points)
        same = [number for number, other in enumerate(shown) if other.points == points]
        if same:
            other = shown[same[0]]
            shown[same[0]] = dataclasses.replace(other, name=f"{other.name}; {curve.name}")
        elif points:
            shown.append(dataclasses.replace(curve, points=points, marked=curve.marked or len(points) == 1))
    return shown


def _rounded(points: Points) -> list[tuple[float, float]]:
    """Return points with six digits, as hover values show them."""
    return [(x, float(f"{y:.6g}")) for x, y in points]


def _in_words(title: str, curves: Sequence[Curve]) -> str:
    """Return what a chart shows, for readers who do not see it."""
    ends = []
    for curve in curves:
        (first, start), (last, end) = curve.points[0], curve.points[-1]
        ends.append(f"{curve.name} from {start:.5g} (iteration {first:g}) to {end:.5g} (iteration {last:g})")
    return f"{title}: {'; '.join(ends)}"


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten that enclose positive values."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def _grid(across: _Axis, up: _Axis, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> list[Markup]:
    """Return the lines and numbers of both axes."""
    parts = []
    right, bottom = across.start + across.length, up.start
    for y in y_ticks:
        row = up.pixel(y)
        parts.append(element("line", x1=across.start, x2=right, y1=row, y2=row, class_="grid"))
        parts.append(_label(f"{y:.6g}", across.start - 6, row + 4, "end"))
    for x in x_ticks:
        if across.low <= x <= across.high:
            column = across.pixel(x)
            parts.append(element("line", x1=column, x2=column, y1=bottom, y2=bottom + 4, class_="tick"))
            parts.append(_label(f"{x:.6g}", column, bottom + 16, "middle"))
    return parts


def _label(text: str, x: float, y: float, anchor: str) -> Markup:
    return element("text", text, x=x, y=y, text_anchor=anchor)


def _line(curve: Curve, places: Points) -> Markup:
    """Return the path of a curve, and its points where they are marked."""
    style = f"line line-{curve.colour % COLOURS}"
    if curve.dashed:
        style += " dashed"
    parts = [element("polyline", points=" ".join(f"{x:g},{y:g}" for x, y in places), class_=style)]
    if curve.marked:
        for x, y in places:
            parts.append(element("circle", cx=x, cy=y, r=3, class_=f"dot dot-{curve.colour % COLOURS}"))
    return joined(parts)


def _legend(curves: Sequence[Curve]) -> Markup:
    """Return the names of the curves beside their colours."""
    items = []
    for curve in curves:
        style = f"key key-{curve.colour % COLOURS}"
        if curve.dashed:
            style += " dashed"
        items.append(element("li", element("span", class_=style), curve.name))
    return element("ul", *items, class_="legend")


@dataclass(frozen=True)
class Dot:
    """A point of a scatter. link: the part of the page that shows its image, None without one."""

    name: str
    x: float
    y: float
    link: str | None = None


def scatter_chart(title: str, below: str, beside: str, dots: Sequence[Dot]) -> Markup:
    """Return a figure of points with the diagonal where both values are equal; empty without two finite values.

    below, beside: the labels of the axes.
    """
    finite = [dot for dot in dots if is_drawable(dot.x) and is_drawable(dot.y)]
    if not finite:
        return Markup("")
    values = list(itertools.chain.from_iterable((dot.x, dot.y) for dot in finite))
    marks = ticks(min(values), max(values), 6)
    across = _Axis(marks[0], marks[-1], LEFT + BESIDE, SIDE - LEFT - BESIDE - RIGHT)
    up = _Axis(marks[0], marks[-1], SIDE - BOTTOM - 12, -(SIDE - TOP - BOTTOM - 12))
    low, high = marks[0], marks[-1]
    diagonal = element(
        "line", x1=across.pixel(low), y1=up.pixel(low), x2=across.pixel(high), y2=up.pixel(high), class_="diagonal"
    )
    parts = [*_grid(across, up, marks, marks), diagonal]
    for dot in finite:
        text = f"{dot.name}: {dot.x:.4f}, {dot.y:.4f} ({dot.y - dot.x:+.4f})"
        mark = element(
            "circle", element("title", text), cx=across.pixel(dot.x), cy=up.pixel(dot.y), r=4, class_="point"
        )
        if dot.link is not None:
            mark = element("a", mark, href=f"#{dot.link}", aria_label=text)
        parts.append(mark)
    parts.append(_label(below, SIDE - RIGHT, SIDE - 4, "end"))
    middle = (TOP + SIDE - BOTTOM) / 2
    parts.append(element("text", beside, x=12, y=middle, text_anchor="middle", transform=f"rotate(-90 12 {middle:g})"))
    above = sum(dot.y > dot.x for dot in finite)
    words = f"{title}: {len(finite)} images, {above} above the diagonal"
    picture = element("svg", *parts, viewBox=f"0 0 {SIDE} {SIDE}", role="img", class_="scatter", aria_label=words)
    return element("figure", element("figcaption", title), picture, class_="plot square")
