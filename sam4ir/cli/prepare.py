"""Make training and test sets as LMDB from the files that you downloaded.

python scripts/prepare_data.py sidd    --input SIDD_Medium_Srgb blocks --output datasets/SIDD
python scripts/prepare_data.py gopro   --input GOPRO_Large      --output datasets/GoPro
python scripts/prepare_data.py rain13k --input Rain13k          --output datasets/Rain13k
python scripts/prepare_data.py dfwb    --input Downloads        --output datasets/DFWB
python scripts/prepare_data.py df2k    --input DIV2K Flickr2K   --output datasets/DF2K --scale 4
python scripts/prepare_data.py dpdd    --input DPDD             --output datasets/DPDD
python scripts/prepare_data.py folder  --gt SHARP --lq BLURRED  --output datasets/mine
python scripts/prepare_data.py folder  --gt HR --scale 4 --make-lq --output datasets/mine

Images are cut as the set's recipes cut them, counts and names are verified, GT and LQ get the same keys. It may be
killed at any moment: the same command goes on. datasets/README.md says where each set comes from and how much disk
it takes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sam4ir.data.prepare.make import Plan, estimate
from sam4ir.data.prepare.parts import Job, Part, RecipeChoice, Summary
from sam4ir.data.prepare.recipes import RECIPES, folder_part
from sam4ir.data.prepare.run import check_space, gigabytes, run_job, snippet
from sam4ir.data.prepare.tree import Tree
from sam4ir.errors import UserError
from sam4ir.utils import cli

STOPPED = 130


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0, or 2 with one message where something is missing or damaged; 130 when stopped."""
    return prepare(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sets = parser.add_subparsers(required=True, dest="recipe", metavar="SET")
    for name, phases in RECIPES.items():
        help_text = (next(iter(phases.values())).__doc__ or "").partition("\n")[0]
        one = sets.add_parser(name, help=help_text)
        one.add_argument(
            "--input", type=Path, nargs="+", required=True, metavar="PATH", help="folders, .zip or .tar archives"
        )
        one.add_argument("--subset", choices=[*phases, "all"], default="all", help="default: all")
        if name in ("df2k", "div2k"):
            one.add_argument("--scale", type=int, nargs="+", choices=(2, 3, 4), default=[4], help="default: 4")
            _add_make_lq(one)
        if name == "gopro":
            one.add_argument("--blur", choices=("blur", "blur_gamma"), default="blur", help="GOPRO_Large's folder")
        one.add_argument(
            "--allow-incomplete",
            action="store_true",
            help="take what is there where counts or names are not as published",
        )
        _add_common(one)
    own = sets.add_parser("folder", help="your own pairs, matched by name, or GT alone")
    own.add_argument("--gt", type=Path, required=True, metavar="FOLDER")
    own.add_argument("--lq", type=Path, metavar="FOLDER")
    own.add_argument("--filename-tmpl", default="{}", metavar="TEMPLATE", help="LQ name of a GT name, e.g. '{}x4'")
    own.add_argument("--scale", type=int, default=1, help="GT size over LQ size (default 1)")
    _add_make_lq(own)
    _add_common(own)
    return parser


def _add_make_lq(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--make-lq",
        action="store_true",
        help="LQ is GT shrunk by --scale with MATLAB's bicubic, not read; GT is cut to a multiple of it",
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--encoding",
        choices=("raw", "png"),
        default="raw",
        help="raw pixels read fastest; png is smaller (default raw)",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: all cores)"
    )
    parser.add_argument("--crop-size", type=int, metavar="PIXELS", help="instead of the recipe's, for training images")
    parser.add_argument("--step", type=int, metavar="PIXELS", help="distance of sub-images")
    parser.add_argument("--thresh", type=int, metavar="PIXELS", help="remainder at the border that is left out")
    parser.add_argument("--no-crop", action="store_true", help="keep training images whole")
    parser.add_argument("--dry-run", action="store_true", help="print what would be made and its disk space, then stop")


def prepare(options: argparse.Namespace) -> int:
    """Find the images, verify counts and names, print them, and make the sets."""
    if options.workers < 1:
        raise UserError(f"--workers: {options.workers} must be at least 1")
    jobs = _jobs(options)
    _verify(options, jobs)
    jobs = [job for job in jobs if job.part.items]  # the others have problems that --allow-incomplete accepts
    if options.dry_run:
        for job in jobs:
            print(_forecast(job))
        return 0
    try:
        for job in jobs:
            print(_summary(run_job(job, options.workers)), flush=True)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return STOPPED
    return 0


def _jobs(options: argparse.Namespace) -> list[Job]:
    """Return a job for each part of the data set."""
    names = []
    for path in _sources(options):
        names.append(str(path.resolve()))
    jobs = []
    for part in _parts(options):
        folder_of_part = options.output / part.folder
        jobs.append(Job(part, folder_of_part, options.encoding, options.recipe, tuple(names)))
    return jobs


def _sources(options: argparse.Namespace) -> list[Path]:
    """Return the paths that the command line names."""
    if options.recipe != "folder":
        return list(options.input)
    if options.lq is None:
        return [options.gt]
    return [options.gt, options.lq]


def _parts(options: argparse.Namespace) -> list[Part]:
    """Find the parts of the data set that --subset asks for."""
    scales: tuple[int, ...] = (4,)
    if "scale" in options and options.recipe != "folder":
        scales = tuple(sorted(set(options.scale)))
    choice = RecipeChoice(
        crop_size=options.crop_size,
        step=options.step,
        thresh=options.thresh,
        no_crop=options.no_crop,
        scales=scales,
        make_lq=getattr(options, "make_lq", False),
        blur=getattr(options, "blur", "blur"),
    )
    if options.recipe == "folder":
        return [folder_part(options.gt, options.lq, options.filename_tmpl, options.scale, choice)]
    tree = Tree(options.input)
    if not tree.files:
        raise UserError(f"--input: no images in {_names(options.input)}{_spare(tree.spare)}")
    parts: list[Part] = []
    for phase, build in RECIPES[options.recipe].items():
        if options.subset in (phase, "all"):
            parts += build(tree, choice)
    if any(part.problems for part in parts) and tree.spare:
        print(f"note: unread{_spare(tree.spare)}", file=sys.stderr)
    return parts


def _verify(options: argparse.Namespace, jobs: Sequence[Job]) -> None:
    """Raise UserError where counts or names are not as published, unless --allow-incomplete accepts that."""
    problems: list[str] = []
    total = 0
    for job in jobs:
        problems += job.part.problems
        total += len(job.part.items)
        print(f"  {job.folder}: {len(job.part.items)} images or pairs found", flush=True)
    if total == 0:
        raise UserError(
            f"--input: {_names(options.input)} holds nothing of {options.recipe}; the folder trees "
            "that can be read are listed in datasets/README.md"
        )
    if not problems:
        return
    text = "  " + "\n  ".join(problems)
    if options.allow_incomplete:
        print(f"note: not as published, taken as it is:\n{text}", file=sys.stderr)
        return
    raise UserError(
        f"{options.recipe} is not as published:\n{text}\nadd what is missing; or take a part of it with --subset, or "
        "what is there with --allow-incomplete"
    )


def _forecast(job: Job) -> str:
    """Return what a job would make and the disk space that it needs; raise UserError where that is not free."""
    needed = estimate(job.part.items, Plan.of(job))
    check_space(job, needed)
    stores = ", ".join(f"{store.name}.lmdb" for store in job.part.stores)
    return (
        f"{job.folder}: {stores} of about {needed.sub_images} images each; in all about {gigabytes(needed.raw)} raw, "
        f"{gigabytes(needed.png)} png (estimated from a few images); nothing was written"
    )


def _summary(summary: Summary) -> str:
    """Return what a job made, and the lines of an option file that read it."""
    job = summary.job
    state = "was done already, with these settings"
    if summary.fresh:
        state = "done"
    basicsr = ""
    if job.encoding != "png":
        basicsr = "\n# raw records: BasicSR's own programs read --encoding png only"
    return (
        f"{job.folder}: {state}: {summary.images} images or pairs, {summary.sub_images} in each LMDB, "
        f"{gigabytes(summary.bytes)}\n"
        f"datasets:\n{snippet(summary)}{basicsr}"
    )


def _names(paths: Sequence[Path]) -> str:
    """Return paths in one line."""
    return ", ".join(map(str, paths))


def _spare(archives: Sequence[str]) -> str:
    """Return a hint at archives that were not read, the first five by name; '' without any."""
    if not archives:
        return ""
    names = list(archives[:5])
    if len(archives) > 5:
        names.append("...")
    return f" archives there: {', '.join(names)}; unpack them, or name .zip and .tar in --input"
