"""Score networks: sam4ir test -opt FILE [--overwrite] [--force_yml key:key=value ...]

sam4ir test -opt FILE --weights net_g_5000.pth [other.pth ...]
sam4ir test -opt FILE --checkpoints experiments/<name> [--published SAM-DiffSR]

Two folders without an option file, the network found by its weights as sam4ir restore finds it:
sam4ir test --images FOLDER --gt FOLDER --weights experiments/<name> [--metrics psnr ssim]
sam4ir test --restored FOLDER --gt FOLDER      images that are restored already
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sam4ir.utils import cli

OF_FOLDERS = ("gt", "images", "restored", "metrics", "name", "device")  # flags in place of -opt


def parser() -> cli.Parser:
    """Return the parser of the command."""
    command = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_options(command, required=False)
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
    folders = command.add_argument_group("folders in place of -opt")
    folders.add_argument("--gt", type=Path, metavar="FOLDER", help="the ground truth, a folder or an LMDB")
    folders.add_argument(
        "--images", type=Path, metavar="FOLDER", help="degraded images, which the network of --weights restores"
    )
    folders.add_argument("--restored", type=Path, metavar="FOLDER", help="images that are restored already")
    folders.add_argument(
        "--metrics", nargs="+", metavar="NAME", help="such as psnr ssim lpips_alex (default: psnr ssim)"
    )
    folders.add_argument("--name", help="of results/NAME (default: by the run or the weights, and the folder)")
    folders.add_argument("--device", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    command.add_argument("--published", metavar="NAME", help="print published figures beside ours: SAM-DiffSR")
    return command


def main(words: Sequence[str] | None = None) -> int:
    """Score networks and print the tables; return the exit status: 1 where images could not be scored."""
    command = parser()
    arguments = command.parse_args(words)
    _refuse_mixture(command, arguments)
    if arguments.opt is None:
        return _score_folders(arguments)
    from sam4ir.config.load import load_options
    from sam4ir.engine.devices import wants_cuda
    from sam4ir.engine.evaluate.candidates import checkpoints, weights_of
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
    return _report(text, faults, world.main)


def _refuse_mixture(command: cli.Parser, arguments: argparse.Namespace) -> None:
    """End with a usage error where flags of folders stand beside -opt, or neither is there."""
    given = [f"--{name}" for name in OF_FOLDERS if getattr(arguments, name) is not None]
    if arguments.opt is not None and given:
        command.error(
            f"{given[0]}: is for folders, without -opt; --force_yml name=... and device=... change the file's"
        )
    if arguments.opt is None and arguments.gt is None:
        command.error(
            "give an option file (-opt), or folders: --images and --gt with --weights, or --restored and --gt"
        )
    if arguments.opt is None:
        for name in ("checkpoints", "published", "force_yml"):
            if getattr(arguments, name):
                command.error(f"--{name}: needs an option file (-opt)")
        if len(arguments.weights or []) > 1:
            command.error("--weights: several files need an option file (-opt)")


def _score_folders(arguments: argparse.Namespace) -> int:
    """Score two folders; return the exit status."""
    from sam4ir.engine.devices import wants_cuda
    from sam4ir.engine.evaluate.candidates import weights_of
    from sam4ir.engine.evaluate.folders import METRIC_NAMES, FolderRequest, score_folders
    from sam4ir.engine.log import console
    from sam4ir.utils import dist

    weights = None
    if arguments.weights:
        weights = weights_of(arguments.weights[0])
    request = FolderRequest(
        gt=arguments.gt,
        images=arguments.images,
        weights=weights,
        restored=arguments.restored,
        metrics=arguments.metrics or METRIC_NAMES,
        name=arguments.name,
        device=arguments.device,
        overwrite=arguments.overwrite,
    )
    faults: list[str] = []
    with dist.world(arguments.launcher, wants_cuda(arguments.device or "auto")) as world:
        if world.main:
            console()
        text = score_folders(request, world, faults)
    return _report(text, faults, world.main)


def _report(text: str, faults: Sequence[str], main_process: bool) -> int:
    """Print the table and the images that could not be scored; return the exit status."""
    from sam4ir.engine.evaluate.report import printable

    print(printable(text, sys.stdout.encoding), end="")
    if main_process:
        for fault in faults:
            print(f"skipped: {fault}", file=sys.stderr)
    return int(bool(faults))
