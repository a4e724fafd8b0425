"""The table of results: means with intervals, best and second marked; as text, CSV, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sam4ir.engine.evaluate.report import BASELINES, DOWN, UP, columns, titled
from sam4ir.engine.evaluate.statistics import NOWHERE, Interval, bootstrap_interval, t_interval
from sam4ir.engine.report.inputs import Scored
from sam4ir.utils.tables import csv_text

RESTORED = "restored"
UNKNOWN = "unknown: only a CSV is there"
BEST, SECOND = 1, 2
_DIGITS = 4


@dataclass(frozen=True)
class Column:
    """A metric by one definition; results with another definition have a column of their own."""

    metric: str
    protocol: str
    lower_is_better: bool


@dataclass(frozen=True)
class Cell:
    """A mean over the images of a set, with its 95 % interval over images.

    t, bootstrap: by Student and by resampling. rank: BEST, SECOND or 0, among the restored outputs of several results.
    images: how many have a finite value; a metric of a whole set has its one value and no interval.
    """

    mean: float
    t: Interval
    bootstrap: Interval
    images: int
    rank: int = 0

    @property
    def half(self) -> float:
        """Half the width of Student's interval; NaN without one."""
        return (self.t[1] - self.t[0]) / 2


@dataclass(frozen=True)
class Row:
    """The means of one output of a result on one data set."""

    dataset: str
    output: str
    result: str
    cells: Mapping[Column, Cell]


@dataclass(frozen=True)
class ScoreTable:
    """All means of some results. rows: by data set, the degraded images first, in the order of the results."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def datasets(self) -> list[str]:
        """Return the data sets in order of appearance."""
        return list(dict.fromkeys(row.dataset for row in self.rows))

    def of(self, dataset: str) -> list[Row]:
        """Return the rows of a data set."""
        return [row for row in self.rows if row.dataset == dataset]


def image_metrics(scored: Sequence[Scored]) -> dict[str, bool]:
    """Return {metric: whether a lower value is better} of the metrics of images of all results, in their order."""
    metrics: dict[str, bool] = {}
    for each in scored:
        for metric in each.result.metrics():
            metrics.setdefault(metric, metric in each.result.lower)
    return metrics


def score_table(scored: Sequence[Scored]) -> ScoreTable:
    """Return the table of these results; rows of degraded images that are equal in all results stand there once."""
    heads: dict[Column, None] = {}
    rows: list[Row] = []
    for each in scored:
        names = [*each.result.metrics(), *each.result.set_metrics()]
        by_metric = {}
        for metric in names:
            protocol = each.result.protocols.get(metric, UNKNOWN)
            by_metric[metric] = Column(metric, protocol, metric in each.result.lower)
        heads.update(dict.fromkeys(by_metric.values()))
        rows += _rows_of(each, by_metric)
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    sorted_rows: list[Row] = []
    for dataset in datasets:
        own = [row for row in rows if row.dataset == dataset]
        sorted_rows += _ranked(_baselines_once([row for row in own if row.output in BASELINES]), heads)
        sorted_rows += _ranked([row for row in own if row.output not in BASELINES], heads)
    return ScoreTable(tuple(heads), tuple(sorted_rows))


def _rows_of(scored: Scored, by_metric: Mapping[str, Column]) -> list[Row]:
    """Return the rows of one result: a row for each data set and output."""
    rows = []
    result = scored.result
    for dataset in dict.fromkeys([*result.values, *result.sets]):
        outputs = dict.fromkeys([*result.values.get(dataset, {}), *result.sets.get(dataset, {})])
        for output in outputs:
            images = result.values.get(dataset, {}).get(output, {})
            of_set = result.sets.get(dataset, {}).get(output, {})
            cells = {}
            for metric, column in by_metric.items():
                values = [row[metric] for row in images.values() if metric in row]
                if values:
                    cells[column] = _cell(values)
                elif metric in of_set:
                    cells[column] = Cell(of_set[metric], NOWHERE, NOWHERE, len(images))
            rows.append(Row(dataset, output, scored.name, cells))
    return rows


def _cell(values: Sequence[float]) -> Cell:
    """Return the mean of finite values; infinity where all are infinite, NaN where one is NaN, as in reports.means."""
    finite = np.asarray([value for value in values if math.isfinite(value)], np.float64)
    if any(map(math.isnan, values)):
        return Cell(math.nan, NOWHERE, NOWHERE, len(finite))
    if not len(finite):
        return Cell(math.inf, NOWHERE, NOWHERE, 0)
    mean = math.fsum(finite) / len(finite)
    return Cell(mean, t_interval(finite), bootstrap_interval(finite), len(finite))


def _baselines_once(rows: Sequence[Row]) -> list[Row]:
    """Return rows of degraded images without repeats; one that is equal in several results belongs to none."""
    kept_rows: list[Row] = []
    for row in rows:
        same = None
        for number, other in enumerate(kept_rows):
            if other.output == row.output and _means(other) == _means(row):
                same = number
        if same is None:
            kept_rows.append(row)
        else:
            kept_rows[same] = Row(row.dataset, row.output, "", {**row.cells, **kept_rows[same].cells})
    return kept_rows


def _means(row: Row) -> dict[str, str]:
    """Return the means of a row by metric, as they are printed."""
    return {column.metric: number(cell.mean) for column, cell in row.cells.items()}


def _ranked(rows: Sequence[Row], heads: Mapping[Column, None]) -> list[Row]:
    """Return the rows with the best and the second restored output of each column marked."""
    ranks: dict[tuple[int, Column], int] = {}
    restored = [number for number, row in enumerate(rows) if row.output == RESTORED]
    for column in heads:
        numbers = []
        for place in restored:
            cell = rows[place].cells.get(column)
            if cell is not None and not math.isnan(cell.mean):
                numbers.append((round(cell.mean, _DIGITS), place))
        best_first = sorted({value for value, _ in numbers}, reverse=not column.lower_is_better)
        if len(numbers) < 2:
            continue
        for value, place in numbers:
            if value in best_first[:2]:
                ranks[place, column] = 1 + best_first.index(value)
    ranked = []
    for place, row in enumerate(rows):
        cells = {}
        for column, cell in row.cells.items():
            cells[column] = Cell(cell.mean, cell.t, cell.bootstrap, cell.images, ranks.get((place, column), 0))
        ranked.append(Row(row.dataset, row.output, row.result, cells))
    return ranked


def number(value: float) -> str:
    """Return a value as tables show it."""
    return f"{value:.{_DIGITS}f}"


def with_interval(cell: Cell, plus_minus: str = "±") -> str:
    """Return 'mean ± half of the 95 % interval', or the mean alone where there is no interval."""
    if math.isnan(cell.half):
        return number(cell.mean)
    return f"{number(cell.mean)} {plus_minus} {number(cell.half)}"


def formatted(table: ScoreTable, form: str) -> str:
    """Return the table as text. form: one of FORMS."""
    return FORMS[form](table)


def _text(table: ScoreTable) -> str:
    """Return aligned columns; * marks the best, + the second."""
    lines: list[str] = []
    for dataset in table.datasets():
        rows = [["result", "stage", "images", *_titles(table)]]
        for row in table.of(dataset):
            cells = [_plain_cell(row.cells.get(column)) for column in table.columns]
            rows.append([row.result or "-", row.output, _images(row), *cells])
        lines += [dataset, "", *columns(rows), ""]
    lines.append(f"mean ± half of the 95 % interval over images (Student's t){_explained(table, '* best, + second')}")
    return "\n".join([*lines, *_definitions(table)]) + "\n"


def _plain_cell(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return with_interval(cell) + {BEST: " *", SECOND: " +"}.get(cell.rank, "")


def _titles(table: ScoreTable) -> list[str]:
    """Return the heads of the columns; equal metrics with other definitions are numbered."""
    titles = []
    metrics = [column.metric for column in table.columns]
    for place, column in enumerate(table.columns):
        title = titled(column.metric, column.lower_is_better)
        if metrics.count(column.metric) > 1:
            title += f" ({metrics[: place + 1].count(column.metric)})"
        titles.append(title)
    return titles


def _definitions(table: ScoreTable) -> list[str]:
    """Return a line for each column with its protocol."""
    lines = []
    for title, column in zip(_titles(table), table.columns, strict=True):
        lines.append(f"{title}: {column.protocol}")
    return lines


def _images(row: Row) -> str:
    """Return the number of images of a row."""
    return str(max((cell.images for cell in row.cells.values()), default=0))


def _explained(table: ScoreTable, marks: str) -> str:
    """Return '; ' and what the marks mean; '' where nothing is marked."""
    for row in table.rows:
        if any(cell.rank for cell in row.cells.values()):
            return f"; {marks}"
    return ""


def _csv(table: ScoreTable) -> str:
    """Return one row for each mean."""
    records = []
    for row in table.rows:
        for column, cell in row.cells.items():
            record: dict[str, object] = {
                "dataset": row.dataset,
                "stage": row.output,
                "result": row.result,
                "metric": column.metric,
                "mean": cell.mean,
                "t_low": cell.t[0],
                "t_high": cell.t[1],
                "bootstrap_low": cell.bootstrap[0],
                "bootstrap_high": cell.bootstrap[1],
                "images": cell.images,
                "rank": {BEST: "best", SECOND: "second"}.get(cell.rank, ""),
                "lower_is_better": column.lower_is_better,
                "protocol": column.protocol,
            }
            records.append(record)
    names = ["dataset", "stage", "result", "metric", "mean", "t_low", "t_high", "bootstrap_low", "bootstrap_high"]
    return csv_text([*names, "images", "rank", "lower_is_better", "protocol"], records)


_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]<>|#~&$"})


def markdown_escaped(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line."""
    return " ".join(text.translate(_MARKDOWN).split())


def _markdown(table: ScoreTable) -> str:
    """Return a table for each data set; the best is bold, the second underlined."""
    lines = []
    for dataset in table.datasets():
        titles = map(markdown_escaped, _titles(table))
        lines += [f"**{markdown_escaped(dataset)}**", "", f"| result | stage | images | {' | '.join(titles)} |"]
        lines.append("|---|---" + "|---:" * (1 + len(table.columns)) + "|")
        for row in table.of(dataset):
            cells = [_markdown_cell(row.cells.get(column)) for column in table.columns]
            head = [markdown_escaped(row.result or "-"), markdown_escaped(row.output), _images(row)]
            lines.append(f"| {' | '.join([*head, *cells])} |")
        lines.append("")
    marks = "**best**, <u>second</u>"
    lines.append(f"Mean ± half of the 95 % interval over images (Student's t){_explained(table, marks)}.")
    lines.append("")
    lines += [f"- {markdown_escaped(line)}" for line in _definitions(table)]
    return "\n".join(lines) + "\n"


def _markdown_cell(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    text = with_interval(cell)
    if cell.rank == BEST:
        return f"**{text}**"
    if cell.rank == SECOND:
        return f"<u>{text}</u>"
    return text


_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    UP: r"$\uparrow$",
    DOWN: r"$\downarrow$",
}
_TEX_TABLE = str.maketrans(_TEX)


def tex_escaped(text: str) -> str:
    """Return a text that LaTeX shows as it is, on one line."""
    return " ".join(text.translate(_TEX_TABLE).split())


def _tex(table: ScoreTable) -> str:
    """Return a table environment for each data set, with the protocols in its caption."""
    lines = ["% needs \\usepackage{booktabs}"]
    for dataset in table.datasets():
        shape = "ll" + "r" * len(table.columns)
        head = ["Result", "Stage", *map(tex_escaped, _titles(table))]
        lines += [r"\begin{table}", r"\centering", rf"\caption{{{_caption(table, dataset)}}}"]
        lines += [rf"\begin{{tabular}}{{{shape}}}", r"\toprule", f"{' & '.join(head)} \\\\", r"\midrule"]
        for row in table.of(dataset):
            cells = [_tex_cell(row.cells.get(column)) for column in table.columns]
            lines.append(f"{' & '.join([tex_escaped(row.result or '--'), tex_escaped(row.output), *cells])} \\\\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def _caption(table: ScoreTable, dataset: str) -> str:
    """Return the caption of a data set: what the numbers are, and each protocol."""
    images = max((int(_images(row)) for row in table.of(dataset)), default=0)
    text = (
        f"{tex_escaped(dataset)}, {images} images: mean $\\pm$ half of the 95\\,\\% interval over images "
        f"(Student's $t$){_explained(table, 'best bold, second underlined')}."
    )
    for line in _definitions(table):
        text += f" {tex_escaped(line)}."
    return text


def _tex_cell(cell: Cell | None) -> str:
    if cell is None:
        return "--"
    text = with_interval(cell, r"$\pm$")
    if cell.rank == BEST:
        return rf"\textbf{{{text}}}"
    if cell.rank == SECOND:
        return rf"\underline{{{text}}}"
    return text


FORMS: Mapping[str, Callable[[ScoreTable], str]] = {
    "text": _text,
    "csv": _csv,
    "md": _markdown,
    "tex": _tex,
}
