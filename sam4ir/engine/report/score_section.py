"""The part of a report on results: tables by protocol, paired comparisons, scatters, the largest differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sam4ir.engine.evaluate.compare import CompareChoice, CompareError, Comparison, compare
from sam4ir.engine.evaluate.compare_report import OF_FEW, OF_IMAGES
from sam4ir.engine.evaluate.report import BASELINES, titled
from sam4ir.engine.evaluate.statistics import FEW, Interval
from sam4ir.engine.report.charts import Dot, scatter_chart
from sam4ir.engine.report.inputs import Scored
from sam4ir.engine.report.markup import Markup, details, element, joined, table
from sam4ir.engine.report.run_section import notes_list
from sam4ir.engine.report.score_table import (
    BEST,
    RESTORED,
    SECOND,
    Cell,
    Row,
    ScoreTable,
    image_metrics,
    number,
    with_interval,
)

Links = Mapping[tuple[str, str], str]  # {(data set, image): id of its view in the page}


def score_section(scored: Sequence[Scored], scores: ScoreTable, links: Links) -> Markup:
    """Return the section on results, '' without one."""
    if not scored:
        return Markup("")
    parts = [element("h2", "Scores", id="scores"), _legend(scored)]
    notes = []
    for each in scored:
        notes += [f"{each.title}: {note}" for note in each.notes]
    parts += [notes_list(notes), _means(scored, scores), _spreads(scored)]
    if len(scored) > 1:
        parts.append(_compared(scored, links))
    parts.append(_all_images(scored, links))
    return element("section", *parts, aria_labelledby="scores")


def _legend(scored: Sequence[Scored]) -> Markup:
    """Return the table of letters, names, and where the scores come from."""
    names: dict[str, None] = {}
    for each in scored:
        names.update(dict.fromkeys(each.facts))
    rows = []
    for each in scored:
        rows.append([each.letter, each.name, str(each.folder), *(each.facts.get(name, "-") for name in names)])
    return details("Where the scores come from", table(["", "name", "folder", *names], rows, "facts"))


def _means(scored: Sequence[Scored], scores: ScoreTable) -> Markup:
    """Return a table of means for each data set, and the definitions of the metrics."""
    letters = {each.name: each.letter for each in scored}
    parts = []
    for dataset in scores.datasets():
        rows = []
        for row in scores.of(dataset):
            rows.append([_row_title(row, letters), *(_mean_cell(row.cells.get(each)) for each in scores.columns)])
        heads = [titled(column.metric, column.lower_is_better) for column in scores.columns]
        count = max((cell.images for row in scores.of(dataset) for cell in row.cells.values()), default=0)
        parts.append(element("h3", f"{dataset}, {count} images"))
        parts.append(table(["", *heads], rows, "numbers"))
    marks = "The best restored output is bold, the second underlined." if len(scored) > 1 else ""
    parts.append(element("p", f"Mean ± half of the 95 % interval over images (Student's t). {marks}", class_="soft"))
    definitions = [element("li", element("b", column.metric), f": {column.protocol}") for column in scores.columns]
    parts.append(element("ul", *definitions, class_="soft"))
    return joined(parts)


def _row_title(row: Row, letters: Mapping[str, str]) -> Markup:
    """Return the head of a row: the result and its output."""
    if not row.result:
        return element("span", row.output, class_="baseline")
    title = f"{letters[row.result]} {row.result}"
    if row.output != RESTORED:
        title += f", {row.output}"
    return element("span", title, class_="baseline" if row.output in BASELINES else None)


def _mean_cell(cell: Cell | None) -> Markup:
    if cell is None:
        return element("span", "-")
    style = {BEST: "best", SECOND: "second"}.get(cell.rank)
    return element("span", with_interval(cell), class_=style)


def _spreads(scored: Sequence[Scored]) -> Markup:
    """Return the table of standard deviations over several samples of an image, '' where there is one of each."""
    rows = []
    for each in scored:
        for dataset, outputs in each.spreads.items():
            for output, metrics in _items(outputs):
                for metric, spread in _items(metrics):
                    values = [_text(spread, name) for name in ("samples", "image", "mean")]
                    rows.append([each.title, dataset, output, metric, *values])
    if not rows:
        return Markup("")
    head = ["", "data set", "stage", "metric", "samples", "of an image's value (mean)", "of the set's value"]
    return joined([element("h3", "Standard deviation over samples"), table(head, rows, "numbers")])


def _items(value: Any) -> list[tuple[str, Any]]:
    """Return the items of a block of a file, [] of anything else."""
    if not isinstance(value, dict):
        return []
    return list(value.items())


def _text(value: Any, name: str) -> str:
    """Return a number of a block of a file as text."""
    entry = value.get(name, "-") if isinstance(value, dict) else "-"
    if isinstance(entry, float):
        return number(entry)
    return str(entry)


def _compared(scored: Sequence[Scored], links: Links) -> Markup:
    """Return the paired comparison with the first result, scatters, and the largest differences."""
    parts = [element("h3", f"Compared with {scored[0].title}, image by image")]
    try:
        comparisons, notes = compare([each.result for each in scored], CompareChoice(common=True))
    except CompareError as error:
        return joined([*parts, notes_list([f"not compared: {error}"])])
    rows = [_comparison_row(comparison, scored) for comparison in comparisons]
    head = ["", "data set", "metric", "images", "difference", "95 % (t)", "95 % (bootstrap)"]
    parts.append(table([*head, "better", "worse", "equal", "p (Wilcoxon)"], rows, "numbers"))
    closing = OF_IMAGES.replace(", compare runs of several seeds by --a and --b.", ", compare runs of several seeds.")
    parts.append(element("p", closing, class_="soft"))
    if any(1 < comparison.statistics.finite < FEW for comparison in comparisons):
        parts.append(element("p", OF_FEW, class_="soft"))
    parts.append(notes_list(notes))
    scatters = [_scatter(comparison, scored, links) for comparison in comparisons if len(comparison.units) > 1]
    parts.append(element("div", *scatters, class_="plots"))
    return joined(parts)


def _comparison_row(c: Comparison, scored: Sequence[Scored]) -> list[object]:
    """Return the cells of one comparison."""
    s = c.statistics
    gain = -s.difference if c.lower_is_better else s.difference
    difference = element("span", f"{s.difference:+.4f}", class_=_direction(gain, s.t))
    counts = [str(s.better), str(s.worse), str(s.equal), f"{s.wilcoxon_p:.3g}"]
    title = _title_of(c.result, scored)
    metric = titled(c.metric, c.lower_is_better)
    return [title, c.dataset, metric, str(s.finite), difference, _interval(s.t), _interval(s.bootstrap), *counts]


def _direction(gain: float, interval: Interval) -> str | None:
    """Return the class of a difference: better or worse where the interval excludes 0."""
    if math.isnan(interval[0]) or interval[0] <= 0 <= interval[1]:
        return None
    return "better" if gain > 0 else "worse"


def _interval(bounds: Interval) -> str:
    if math.isnan(bounds[0]):
        return "-"
    return f"[{bounds[0]:+.4f}, {bounds[1]:+.4f}]"


def _title_of(name: str, scored: Sequence[Scored]) -> str:
    """Return letter and name of the result with a name."""
    for each in scored:
        if each.name == name:
            return each.title
    return name


def _scatter(c: Comparison, scored: Sequence[Scored], links: Links) -> Markup:
    """Return the scatter of a comparison: a point for each image."""
    dots = []
    for image, a, b in zip(c.units, c.a, c.b, strict=True):
        dots.append(Dot(image, a, b, links.get((c.dataset, image))))
    metric = titled(c.metric, c.lower_is_better)
    return scatter_chart(f"{metric}, {c.dataset}", _title_of(c.baseline, scored), _title_of(c.result, scored), dots)


def _all_images(scored: Sequence[Scored], links: Links) -> Markup:
    """Return the table of the values of all images."""
    heads, rows = [], []
    metrics = image_metrics(scored)
    for metric in metrics:
        heads += [f"{metric} {each.letter}" for each in scored]
    places: dict[tuple[str, str], None] = {}
    columns = [each.result.images(RESTORED) for each in scored]
    for column in columns:
        places.update(dict.fromkeys(column))
    for place in places:
        cells = []
        for metric in metrics:
            for column in columns:
                value = column.get(place, {}).get(metric)
                cells.append("-" if value is None else number(value))
        name: object = place[1]
        if place in links:
            name = element("a", place[1], href=f"#{links[place]}")
        rows.append([name, place[0], *cells])
    return details(f"Values of all {len(rows)} images", table(["image", "data set", *heads], rows, "numbers"))
