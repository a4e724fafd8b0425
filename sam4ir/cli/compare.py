"""Compare results of sam4ir test, paired image by image: is the second better, by how much, and with what confidence?

sam4ir compare results/plain results/sam4ir [results/another ...]
sam4ir compare --a results/plain_1 results/plain_2 --b results/sam4ir_1 results/sam4ir_2

A result is a results/<name> folder, its summary.json or its metrics.csv; a validation.csv of a training run gives its
last iteration. The first is the baseline. With --a and --b the pairs are runs of one seed each, not images.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sam4ir.utils import cli


def parser() -> cli.Parser:
    """Return the parser of the command."""
    command = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument(
        "results", nargs="*", type=Path, metavar="RESULT", help="the baseline, then one or more others"
    )
    command.add_argument("--a", nargs="+", type=Path, metavar="RESULT", help="the baseline's runs, one of each seed")
    command.add_argument(
        "--b", nargs="+", type=Path, metavar="RESULT", help="the other's runs, seeds in the same order"
    )
    command.add_argument("--stage", default="restored", help="restored (default), refined, bicubic, or input")
    command.add_argument("--metric", nargs="+", help="names of metrics (default: all that every result has)")
    command.add_argument("--common", action="store_true", help="compare the images that all have, where some lack some")
    command.add_argument(
        "--lower-is-better",
        nargs="+",
        default=[],
        metavar="METRIC",
        help="more metrics where a lower value is better",
    )
    command.add_argument(
        "--extremes",
        type=cli.count,
        default=3,
        metavar="N",
        help="images to list, those with the largest differences",
    )
    command.add_argument("--csv", type=Path, metavar="FILE", help="write the statistics as a table")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the statistics and the value of every image")
    return command


def _parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options; end the program where they contradict each other."""
    command = parser()
    options = command.parse_args(words)
    seeds = options.a is not None or options.b is not None
    if seeds and (options.results or options.a is None or options.b is None):
        command.error("give results one after the other, or all of them by both --a and --b")
    if not seeds and len(options.results) < 2:
        command.error("give two results at least, the baseline first")
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Print the comparison and write it to files; return the exit status."""
    options = _parse(words)
    from sam4ir.engine.evaluate.compare import CompareChoice, compare, compare_seeds
    from sam4ir.engine.evaluate.compare_report import OF_FEW, OF_IMAGES, OF_RUNS, csv_report, json_report, report_lines
    from sam4ir.engine.evaluate.report import printable
    from sam4ir.engine.evaluate.results import read_results
    from sam4ir.engine.evaluate.statistics import FEW
    from sam4ir.utils.files import write_text

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
    lines = report_lines(comparisons, options.extremes)
    for note in notes:
        lines.append(f"note: {note}")
    lines += ["", *closing]
    print(printable("\n".join(lines), sys.stdout.encoding))
    if options.csv is not None:
        write_text(options.csv, csv_report(comparisons))
    if options.json is not None:
        write_text(options.json, json.dumps(json_report(comparisons, notes), indent=1))
    return 0
