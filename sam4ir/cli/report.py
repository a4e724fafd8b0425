"""Report runs and results as one HTML file: curves, tables with intervals, and pictures to compare.

sam4ir report experiments/NAME
sam4ir report results/plain results/sam4ir --output report.html
sam4ir report experiments/plain experiments/sam4ir results/plain results/sam4ir --images 20
sam4ir report results/plain results/sam4ir --table tex

A run is the folder experiments/NAME of a training, a result the folder results/NAME of sam4ir test. Where only runs
are named, their last validations are the results. With --table the table of results is printed, and a page is written
only where --output names one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sam4ir.utils import cli

FORMS = ("text", "csv", "md", "tex")
OUTPUT = Path("report.html")


def parser() -> cli.Parser:
    """Return the parser of the command."""
    command = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("inputs", nargs="+", type=Path, metavar="RUN|RESULT", help="folders of runs and results")
    command.add_argument("--output", type=Path, metavar="FILE", help=f"the page to write (default: {OUTPUT})")
    command.add_argument(
        "--images",
        type=cli.count,
        default=15,
        metavar="N",
        help="images that get full views: the worst, the best and others evenly (default: 15); the rest get reduced "
        "views, and 0 leaves all views out",
    )
    command.add_argument("--metric", help="by which these are chosen (default: the first that all results have)")
    command.add_argument("--lossless", action="store_true", help="views as PNG, exact to the pixel, in a larger file")
    command.add_argument(
        "--max-size",
        type=cli.positive,
        default=60,
        metavar="MB",
        help="size of the page, by which further views are left out (default: 60)",
    )
    command.add_argument(
        "-opt", "--opt", type=Path, metavar="FILE", help="option file whose data sets have the images of the results"
    )
    command.add_argument("--title", help="of the page")
    command.add_argument("--table", choices=FORMS, help="print the table of results in this form")
    return command


def main(words: Sequence[str] | None = None) -> int:
    """Write the page, or print the table; return the exit status."""
    options = parser().parse_args(words)
    from sam4ir.engine.evaluate.report import printable
    from sam4ir.engine.report.inputs import read_inputs
    from sam4ir.engine.report.make import ReportChoice, make_report, refuse_output, scores_only, write_report
    from sam4ir.engine.report.score_table import formatted, score_table

    output = options.output
    if output is None and options.table is None:
        output = OUTPUT
    if output is not None:
        refuse_output(output)
    inputs = read_inputs(options.inputs, options.opt)
    if options.table is not None:
        scores_only(inputs.scored)
        print(printable(formatted(score_table(inputs.scored), options.table), sys.stdout.encoding), end="")
    if output is not None:
        choice = ReportChoice(options.images, options.metric, options.lossless, options.max_size * 10**6, options.title)
        report = make_report(inputs, choice)
        write_report(output, report)
        for note in report.notes:
            print(printable(f"note: {note}", sys.stderr.encoding), file=sys.stderr)
        if options.table is None:
            size = output.stat().st_size / 1e6
            counted = f"{report.images} images with full views"
            if report.reduced:
                counted += f", {report.reduced} with reduced ones"
            print(f"{output}: {size:.1f} MB, {counted}")
    return 0
