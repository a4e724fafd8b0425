"""The report of a comparison: lines for the console, a table and a JSON document."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sam4ir.engine.evaluate.compare import Comparison, extremes, flat_row
from sam4ir.engine.evaluate.report import columns, plain, titled
from sam4ir.engine.evaluate.statistics import FEW, RESAMPLES, Interval
from sam4ir.utils.tables import csv_text

HEAD = ("metric", "result", "pairs", "baseline", "mean", "difference", "95 % (t)", "95 % (bootstrap)")
COUNTS = ("better", "worse", "equal", "p Wilcoxon", "p sign")
OF_IMAGES = (
    "The intervals are over images, for these very weights. Another training run with another seed can move the\n"
    "difference by more: to say that one method beats another, compare runs of several seeds by --a and --b."
)
OF_FEW = f"Bootstrap intervals of fewer than {FEW} pairs are too narrow: go by those of Student's t."
OF_RUNS = "The intervals are over runs, paired by seed in the order given; the means of a run are over images."


def report_lines(comparisons: Sequence[Comparison], listed: int) -> list[str]:
    """Return the lines of the report: a table for each data set, then images and definitions."""
    by_dataset: dict[str, list[Comparison]] = {}
    protocols = {}
    for comparison in comparisons:
        by_dataset.setdefault(comparison.dataset, []).append(comparison)
        protocols[comparison.metric] = f"{comparison.metric}: {comparison.protocol}"
    lines = []
    for dataset, group in by_dataset.items():
        lines += [f"{dataset}, stage {group[0].output}, baseline {group[0].baseline}", ""]
        lines += [*columns([[*HEAD, *COUNTS], *map(_row, group)]), ""]
        for comparison in group:
            lines += _largest(comparison, listed)
        lines.append("")
    return [*lines, *protocols.values()]


def _row(c: Comparison) -> list[str]:
    """Return the cells of one comparison."""
    s = c.statistics
    means = [f"{s.mean_a:.4f}", f"{s.mean_b:.4f}", f"{s.difference:+.5f}", _interval(s.t), _interval(s.bootstrap)]
    counts = [str(s.better), str(s.worse), str(s.equal), f"{s.wilcoxon_p:.3g}", f"{s.sign_p:.3g}"]
    return [titled(c.metric, c.lower_is_better), c.result, str(s.finite), *means, *counts]


def _interval(bounds: Interval) -> str:
    """Return '[low, high]', or '-' for an interval that does not exist."""
    if math.isnan(bounds[0]):
        return "-"
    return f"[{bounds[0]:+.5f}, {bounds[1]:+.5f}]"


def _largest(c: Comparison, listed: int) -> list[str]:
    """Return lines of the pairs with the largest differences, both ways."""
    if len(c.units) < 2:
        return []
    lines = []
    for unit, a, b in extremes(c, listed):
        lines.append(f"  {b - a:+9.5f}  {a:.4f} -> {b:.4f}  {unit}")
    if lines:
        lines.insert(0, f"{c.metric}, {c.result}: largest differences")
    return lines


def csv_report(comparisons: Sequence[Comparison]) -> str:
    """Return the statistics as CSV."""
    rows = list(map(flat_row, comparisons))
    return csv_text(list(rows[0]), rows)


def json_report(comparisons: Sequence[Comparison], notes: Sequence[str]) -> dict[str, object]:
    """Return the statistics and [baseline, result] of every pair; infinities and NaN are texts, as JSON needs."""
    records = []
    for comparison in comparisons:
        record: dict[str, object] = {}
        for key, value in flat_row(comparison).items():
            if isinstance(value, float):
                value = plain(value)
            record[key] = value
        values = {}
        for unit, a, b in zip(comparison.units, comparison.a, comparison.b, strict=True):
            values[unit] = [plain(a), plain(b)]
        record["values"] = values
        records.append(record)
    return {"resamples": RESAMPLES, "notes": list(notes), "comparisons": records}
