"""Train a small network plainly and with SAM4IR on real photographs, score both and report.

sam4ir quickstart

The command copies six photographs from the scikit-image package, fetches VGG16 and calls sam4ir train, test and
report with option files of the package, as a user would. A CPU does this in minutes. The same command continues a run
that was stopped.

It writes into the current folder. results/quickstart gets report.html (curves, scores, and images with a slider
between both networks), summary.json (all scores), summary.md (a table) and comparison.png; datasets/quickstart gets
the photographs and their masks, experiments/ the two runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from sam4ir.utils import cli


def parser() -> cli.Parser:
    """Return the parser of the command."""
    command = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument(
        "--commit",
        action="store_true",
        help="in a checkout: also copy summary.md and comparison.png to datasets/quickstart, for README.md",
    )
    return command


def main(words: Sequence[str] | None = None) -> int:
    """Make the photographs, train, test, and write the results; return the exit status."""
    options = parser().parse_args(words)
    from sam4ir.engine.quickstart import quickstart

    return quickstart(options.commit)
