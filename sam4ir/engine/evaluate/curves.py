"""Curves of several weights: a table and pictures, computed from the summaries of their results."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sam4ir.engine.evaluate.candidates import file_name, iteration_in
from sam4ir.engine.evaluate.chart import Line, chart, is_drawable
from sam4ir.engine.evaluate.published import Published, origin, rows_of
from sam4ir.engine.evaluate.report import BASELINES, columns, titled
from sam4ir.engine.evaluate.results import ResultError, SetValues, numbers_of, read_summary
from sam4ir.utils.files import write_text
from sam4ir.utils.image import write_image
from sam4ir.utils.tables import write_csv


@dataclass(frozen=True)
class Point:
    """The mean scores of one of the weights. means: {dataset: {output: {metric: value}}}.

    name: the folder of its results. lower: the metrics where a lower value is better.
    """

    name: str
    iteration: int | None
    means: Mapping[str, Mapping[str, Mapping[str, float]]]
    protocols: Mapping[str, str]
    lower: Sequence[str]


class MeanRow(NamedTuple):
    """One mean score of one of the weights."""

    weights: str
    dataset: str
    output: str
    metric: str
    value: float


class Picture(NamedTuple):
    """The arguments of `chart` for one metric. names: of the points, where x is no iteration."""

    title: str
    below: str
    lines: list[Line]
    names: list[str]


def write_curves(folder: Path, table: Published | None, scale: int) -> str:
    """Write curve.csv, curve.txt and curve_<metric>.png of all summaries below a folder; return the text.

    table: published figures to print beside ours. scale: ours.
    """
    points = read_points(folder)
    lower: set[str] = set()
    names: dict[str, None] = {}
    for point in points:
        lower.update(point.lower)
        for row in _rows(point):
            names[row.metric] = None
    metrics = list(names)
    _write_csv(folder / "curve.csv", points)
    for metric in metrics:
        picture = picture_of(points, metric, metric in lower)
        if picture is not None:
            write_image(folder / f"curve_{file_name(metric)}.png", chart(*picture))
    text = _text(points, metrics, lower, table, scale)
    write_text(folder / "curve.txt", text)
    return text


def _write_csv(path: Path, points: Sequence[Point]) -> None:
    """Write a row for each mean; the column of the output is called `stage`."""
    head = ["iter", "weights", "dataset", "stage", "metric", "value"]
    rows = []
    for point in points:
        for row in _rows(point):
            rows.append(dict(zip(head, (point.iteration, *row), strict=True)))  # None becomes an empty cell
    write_csv(path, head, rows)


def read_points(folder: Path) -> list[Point]:
    """Read the summaries of several weights below a folder, sorted by iteration and then by name."""
    points = []
    for path in sorted(folder.glob("*/summary.json")):
        summary = read_summary(path)
        if "weights" not in summary:
            continue
        name = path.parent.name
        try:
            means, protocols = _numbers(summary["mean"]), dict(summary["protocols"])
            iteration = iteration_in(Path(summary["weights"]["source"]).stem)
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise ResultError(f"{path}: is no whole summary.json of sam4ir test ({error})") from error
        points.append(Point(name, iteration, means, protocols, summary.get("lower_is_better", ())))
    return sorted(points, key=lambda point: (point.iteration is None, point.iteration or 0, point.name))


def _numbers(means: Any) -> SetValues:
    """Return the means of a summary with all values as numbers."""
    numbers: SetValues = {}
    for dataset, outputs in means.items():
        numbers[dataset] = {}
        for output, row in outputs.items():
            numbers[dataset][output] = numbers_of(row)
    return numbers


def _rows(point: Point) -> Iterator[MeanRow]:
    for dataset, outputs in point.means.items():
        for output, row in outputs.items():
            for metric, value in row.items():
                yield MeanRow(point.name, dataset, output, metric, value)


def _text(
    points: Sequence[Point], metrics: Sequence[str], lower: Collection[str], table: Published | None, scale: int
) -> str:
    """Return a table for each data set, the definitions of the metrics, and where published figures come from."""
    protocols: dict[str, str] = {}
    datasets: dict[str, None] = {}
    for point in points:
        protocols.update(point.protocols)
        datasets.update(dict.fromkeys(point.means))
    head = ["weights", "stage", *(titled(metric, metric in lower) for metric in metrics)]
    lines = []
    for dataset in datasets:
        cells = [head, *_cells(points, dataset, metrics, lower)]
        if table is not None:
            for method, figures in rows_of(table, dataset, protocols).items():
                cells.append([method, "published", *_value_cells(figures, metrics)])
        lines += [dataset, *columns(cells), ""]
    for metric, text in protocols.items():
        lines.append(f"{metric}: {text}")
    if table is not None:
        lines += ["", *origin(table, scale)]
    return "\n".join(lines) + "\n"


def _cells(points: Sequence[Point], dataset: str, metrics: Sequence[str], lower: Collection[str]) -> list[list[str]]:
    """Return the rows of a data set: first the outputs without a network, then the weights, the best marked with *."""
    baselines: dict[str, Mapping[str, float]] = {}
    restored: list[tuple[str, str, Mapping[str, float]]] = []
    rivals: dict[str, list[Mapping[str, float]]] = {}
    for point in points:
        for output, row in point.means.get(dataset, {}).items():
            if output in BASELINES:
                baselines[output] = row
            else:
                restored.append((point.name, output, row))
                rivals.setdefault(output, []).append(row)
    cells = []
    for output, row in baselines.items():
        cells.append(["-", output, *_value_cells(row, metrics)])
    for name, output, row in restored:
        best = set()
        for metric in metrics:
            if _is_best(row, rivals[output], metric, metric in lower):
                best.add(metric)
        cells.append([name, output, *_value_cells(row, metrics, best)])
    return cells


def _value_cells(row: Mapping[str, float], metrics: Sequence[str], best: Collection[str] = ()) -> list[str]:
    """Return a cell for each metric: '-' where the row lacks it, and * behind the values of `best`."""
    cells = []
    for metric in metrics:
        text = "-"
        if metric in row:
            text = f"{row[metric]:.4f}"
        if metric in best:
            text += " *"
        cells.append(text)
    return cells


def _is_best(
    row: Mapping[str, float], rivals: Sequence[Mapping[str, float]], metric: str, lower_is_better: bool
) -> bool:
    """Return whether a row has the best value of several; the only value is not marked."""
    values = []
    for rival in rivals:
        if metric in rival and not math.isnan(rival[metric]):
            values.append(rival[metric])
    if len(values) < 2 or metric not in row:
        return False
    if lower_is_better:
        return row[metric] == min(values)
    return row[metric] == max(values)


def picture_of(points: Sequence[Point], metric: str, lower_is_better: bool) -> Picture | None:
    """Return the picture of a metric: a line for each data set and output; None where there is nothing to draw.

    x is the iteration where every point has one of its own, else the number of the point.
    """
    iterations = {point.iteration for point in points}
    by_iteration = None not in iterations and len(iterations) == len(points)
    curves: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for number, point in enumerate(points):
        x = float(number)
        if by_iteration:
            x = float(point.iteration or 0)
        for row in _rows(point):
            if row.metric == metric and is_drawable(row.value):
                curves.setdefault((row.dataset, row.output), []).append((x, row.value))
    if not curves:
        return None
    lines = []
    for (dataset, output), values in curves.items():
        lines.append(Line(f"{dataset} {output}", values, dashed=output in BASELINES))
    better = "lower" if lower_is_better else "higher"
    title = f"{metric} ({better} is better)"
    if by_iteration:
        return Picture(title, "iteration", lines, [])
    return Picture(title, "", lines, [point.name for point in points])
