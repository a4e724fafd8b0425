"""Compare results of test.py, paired image by image: is the second better, by how much, and with what confidence?

python scripts/compare.py results/plain results/sam4ir [results/another ...]
python scripts/compare.py --a results/plain_1 results/plain_2 --b results/sam4ir_1 results/sam4ir_2

A result is a results/<name> folder, its summary.json or its metrics.csv; a validation.csv of a training run gives its
last iteration. The first is the baseline. With --a and --b the pairs are runs of one seed each, not images.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from sam4ir.engine.evaluate.compare import CompareChoice, Comparison, compare, compare_seeds, extremes, flat_row
from sam4ir.engine.evaluate.report import columns, plain, printable, titled
from sam4ir.engine.evaluate.results import read_results
from sam4ir.engine.evaluate.statistics import FEW, RESAMPLES, Interval
from sam4ir.utils import cli
from sam4ir.utils.files import write_text
from sam4ir.utils.tables import csv_text

HEAD = ("metric", "result", "pairs", "baseline", "mean", "difference", "95 % (t)", "95 % (bootstrap)")
COUNTS = ("better", "worse", "equal", "p Wilcoxon", "p sign")
OF_IMAGES = (
    "The intervals are over images, for these very weights. Another training run with another seed can move the\n"
    "difference by more: to say that one method beats another, compare runs of several seeds by --a and --b."
)
OF_FEW = f"Bootstrap intervals of fewer than {FEW} pairs are too narrow: go by those of Student's t."
OF_RUNS = "The intervals are over runs, paired by seed in the order given; the means of a run are over images."


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options; end the program where they contradict each other."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULT", help="the baseline, then one or more others")
    parser.add_argument("--a", nargs="+", type=Path, metavar="RESULT", help="the baseline's runs, one of each seed")
    parser.add_argument("--b", nargs="+", type=Path, metavar="RESULT", help="the other's runs, seeds in the same order")
    parser.add_argument("--stage", default="restored", help="restored (default), refined, bicubic, or input")
    parser.add_argument("--metric", nargs="+", help="names of metrics (default: all that every result has)")
    parser.add_argument("--common", action="store_true", help="compare the images that all have, where some lack some")
    parser.add_argument(
        "--lower-is-better",
        nargs="+",
        default=[],
        metavar="METRIC",
        help="more metrics where a lower value is better",
    )
    parser.add_argument(
        "--extremes",
        type=cli.count,
        default=3,
        metavar="N",
        help="images to list, those with the largest differences",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the statistics as a table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the statistics and the value of every image")
    options = parser.parse_args(arguments)
    seeds = options.a is not None or options.b is not None
    if seeds and (options.results or options.a is None or options.b is None):
        parser.error("give results one after the other, or all of them by both --a and --b")
    if not seeds and len(options.results) < 2:
        parser.error("give two results at least, the baseline first")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison and write it to files; return the exit status."""
    options = parse(arguments)
    choice = CompareChoice(options.stage, options.metric, options.common, options.lower_is_better)
    if options.a is not None:
        runs = read_results([*options.a, *options.b])
        comparisons, notes = compare_seeds(runs[: len(options.a)], runs[len(options.a) :], choice)
        closing = [OF_RUNS]
    else:
        comparisons, notes = compare(read_results(options.results), choice)
        closing = [OF_IMAGES]
    if any(1 < comparison.statistics.finite < FEW for comparison in comparisons):
        closing.append(OF_FEW)
    lines = text(comparisons, options.extremes)
    for note in notes:
        lines.append(f"note: {note}")
    lines += ["", *closing]
    print(printable("\n".join(lines), sys.stdout.encoding))
    if options.csv is not None:
        write_text(options.csv, table(comparisons))
    if options.json is not None:
        write_text(options.json, json.dumps(document(comparisons, notes), indent=1))
    return 0


def text(comparisons: Sequence[Comparison], listed: int) -> list[str]:
    """Return the lines of the report: a table for each data set, then images and definitions."""
    by_dataset: dict[str, list[Comparison]] = {}
    protocols = {}
    for comparison in comparisons:
        by_dataset.setdefault(comparison.dataset, []).append(comparison)
        protocols[comparison.metric] = f"{comparison.metric}: {comparison.protocol}"
    lines = []
    for dataset, group in by_dataset.items():
        lines += [f"{dataset}, stage {group[0].output}, baseline {group[0].baseline}", ""]
        lines += [*columns([[*HEAD, *COUNTS], *map(row, group)]), ""]
        for comparison in group:
            lines += largest(comparison, listed)
        lines.append("")
    return [*lines, *protocols.values()]


def row(c: Comparison) -> list[str]:
    """Return the cells of one comparison."""
    s = c.statistics
    means = [f"{s.mean_a:.4f}", f"{s.mean_b:.4f}", f"{s.difference:+.5f}", interval(s.t), interval(s.bootstrap)]
    counts = [str(s.better), str(s.worse), str(s.equal), f"{s.wilcoxon_p:.3g}", f"{s.sign_p:.3g}"]
    return [titled(c.metric, c.lower_is_better), c.result, str(s.finite), *means, *counts]


def interval(bounds: Interval) -> str:
    """Return '[low, high]', or '-' for an interval that does not exist."""
    if math.isnan(bounds[0]):
        return "-"
    return f"[{bounds[0]:+.5f}, {bounds[1]:+.5f}]"


def largest(c: Comparison, listed: int) -> list[str]:
    """Return lines of the pairs with the largest differences, both ways."""
    if len(c.units) < 2:
        return []
    lines = []
    for unit, a, b in extremes(c, listed):
        lines.append(f"  {b - a:+9.5f}  {a:.4f} -> {b:.4f}  {unit}")
    if lines:
        lines.insert(0, f"{c.metric}, {c.result}: largest differences")
    return lines


def table(comparisons: Sequence[Comparison]) -> str:
    """Return the statistics as CSV."""
    rows = list(map(flat_row, comparisons))
    return csv_text(list(rows[0]), rows)


def document(comparisons: Sequence[Comparison], notes: Sequence[str]) -> dict[str, object]:
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
