"""Score networks: sam4ir test -opt FILE [--overwrite] [--force_yml key:key=value ...]

sam4ir test -opt FILE --weights net_g_5000.pth [other.pth ...]
sam4ir test -opt FILE --checkpoints experiments/<name> [--published SAM-DiffSR]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from sam4ir.utils import cli


def parser() -> cli.Parser:
    """Return the parser of the command."""
    command = cli.Parser(description="Restore test sets with networks and score them.")
    cli.add_options(command)
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace results of the same name that come from other options or files",
    )
    several = command.add_mutually_exclusive_group()
    several.add_argument(
        "--weights",
        nargs="+",
        metavar="FILE|RUN|NAME",
        help="weights in place of path.pretrain_network_g, of a run the latest; several give a table and curves",
    )
    several.add_argument(
        "--checkpoints",
        type=Path,
        metavar="RUN_FOLDER",
        help="every net_g_<iteration>.pth of experiments/<name>, as several --weights; goes on where it was stopped",
    )
    command.add_argument("--published", metavar="NAME", help="print published figures beside ours: SAM-DiffSR")
    return command


def main(words: Sequence[str] | None = None) -> int:
    """Score networks and print the tables; return the exit status: 1 where images could not be scored."""
    arguments = parser().parse_args(words)
    from sam4ir.config.load import load_options
    from sam4ir.engine.devices import wants_cuda
    from sam4ir.engine.evaluate.candidates import checkpoints, weights_of
    from sam4ir.engine.evaluate.report import printable
    from sam4ir.engine.evaluate.score import score_all, score_network, with_published, with_weights
    from sam4ir.engine.log import console
    from sam4ir.utils import dist

    options = load_options(arguments.opt, arguments.force_yml, named_by_user=True)
    if arguments.published is not None:
        options = with_published(options, arguments.published)
    sources = [weights_of(source) for source in arguments.weights or []]
    if arguments.checkpoints:
        sources = checkpoints(arguments.checkpoints)
    faults: list[str] = []
    several = len(sources) > 1 or arguments.checkpoints
    if sources and not several:
        options = with_weights(options, sources[0])
    with dist.world(arguments.launcher, wants_cuda(options.device)) as world:
        if world.main:
            console()
        if several:
            text = score_all(options, sources, arguments.overwrite, world, faults)
        else:
            text = score_network(options, arguments.overwrite, world, faults)
    print(printable(text, sys.stdout.encoding), end="")
    if world.main:
        for fault in faults:
            print(f"skipped: {fault}", file=sys.stderr)
    return int(bool(faults))
