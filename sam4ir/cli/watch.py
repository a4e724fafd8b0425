"""Draw the curves of runs in the terminal, and go on as they grow.

sam4ir watch experiments/NAME                      the loss and the first score
sam4ir watch experiments/A experiments/B           two runs in the same charts
sam4ir watch experiments/NAME --show psnr l_spd    all curves with these words in their names
sam4ir watch experiments/NAME --once               draw once and end, such as in a file

Ctrl-C ends it. What it draws is read from log.jsonl, so it costs the run nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sam4ir.utils import cli

_SHORTEST, _LONGEST = 0.2, 86400.0  # seconds


def parser() -> cli.Parser:
    """Return the parser of the command."""
    command = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run: experiments/NAME")
    command.add_argument("--show", nargs="+", default=[], metavar="WORD", help="curves whose names contain a word")
    command.add_argument("--every", type=seconds, default=5.0, metavar="SECONDS", help="between two looks (default: 5)")
    command.add_argument("--once", action="store_true", help="draw once; so it does where the output is no terminal")
    return command


def seconds(text: str) -> float:
    """Return a time between two looks, in seconds."""
    value = float(text)
    if not _SHORTEST <= value <= _LONGEST:
        raise argparse.ArgumentTypeError(f"{text} is not between {_SHORTEST:g} and {_LONGEST:g}")
    return value


def main(words: Sequence[str] | None = None) -> int:
    """Draw until Ctrl-C; return the exit status."""
    flags = parser().parse_args(words)
    from sam4ir.engine.watch import RunCurves, charts

    runs = [RunCurves(folder) for folder in flags.runs]
    terminal = sys.stdout.isatty()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            for run in runs:
                run.read()
            size = shutil.get_terminal_size((100, 34))
            picture = charts(runs, flags.show, size.columns, size.lines - 1, terminal)
            if flags.once or not terminal:
                print(picture)
                return 0
            sys.stdout.write(f"\x1b[2J\x1b[H{picture}")  # clear, and begin at the top
            sys.stdout.flush()
            time.sleep(flags.every)
    print()
    return 0
