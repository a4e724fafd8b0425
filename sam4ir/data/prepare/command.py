"""Make the LMDBs of a data set from what was downloaded, and print how an option file reads them (`sam4ir prepare`)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sam4ir.data.prepare.make import Plan, estimate
from sam4ir.data.prepare.parts import Job, Part, RecipeChoice, Summary
from sam4ir.data.prepare.recipes import RECIPES, folder_part
from sam4ir.data.prepare.run import check_space, gigabytes, run_job, snippet
from sam4ir.data.prepare.tree import Tree
from sam4ir.errors import UserError

STOPPED = 130


@dataclass(frozen=True)
class PrepareRequest:
    """What to make of what: the flags of `sam4ir prepare SET`, which has a sentence for each.

    recipe: the set, or folder for own pairs. input: files of a set; gt, lq: the folders of own pairs.
    """

    recipe: str
    output: Path
    encoding: Literal["raw", "png"]
    workers: int
    crop_size: int | None = None
    step: int | None = None
    thresh: int | None = None
    no_crop: bool = False
    dry_run: bool = False
    input: Sequence[Path] = ()
    subset: str = "all"
    scale: Sequence[int] = (4,)
    make_lq: bool = False
    blur: str = "blur"
    allow_incomplete: bool = False
    gt: Path = Path()
    lq: Path | None = None
    filename_tmpl: str = "{}"


def prepare_set(request: PrepareRequest) -> int:
    """Find the images, verify counts and names, print them, and make the sets."""
    if request.workers < 1:
        raise UserError(f"--workers: {request.workers} must be at least 1")
    jobs = _jobs(request)
    _verify(request, jobs)
    jobs = [job for job in jobs if job.part.items]  # the others have problems that --allow-incomplete accepts
    if request.dry_run:
        for job in jobs:
            print(_forecast(job))
        return 0
    try:
        for job in jobs:
            print(_summary(run_job(job, request.workers)), flush=True)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return STOPPED
    return 0


def _jobs(request: PrepareRequest) -> list[Job]:
    """Return a job for each part of the data set."""
    names = []
    for path in _sources(request):
        names.append(str(path.resolve()))
    jobs = []
    for part in _parts(request):
        folder_of_part = request.output / part.folder
        jobs.append(Job(part, folder_of_part, request.encoding, request.recipe, tuple(names)))
    return jobs


def _sources(request: PrepareRequest) -> list[Path]:
    """Return the paths that the command line names."""
    if request.recipe != "folder":
        return list(request.input)
    if request.lq is None:
        return [request.gt]
    return [request.gt, request.lq]


def _parts(request: PrepareRequest) -> list[Part]:
    """Find the parts of the data set that --subset asks for."""
    choice = RecipeChoice(
        crop_size=request.crop_size,
        step=request.step,
        thresh=request.thresh,
        no_crop=request.no_crop,
        scales=tuple(sorted(set(request.scale))),
        make_lq=request.make_lq,
        blur=request.blur,
    )
    if request.recipe == "folder":
        return [folder_part(request.gt, request.lq, request.filename_tmpl, request.scale[0], choice)]
    tree = Tree(request.input)
    if not tree.files:
        raise UserError(f"--input: no images in {_names(request.input)}{_spare(tree.spare)}")
    parts: list[Part] = []
    for phase, build in RECIPES[request.recipe].items():
        if request.subset in (phase, "all"):
            parts += build(tree, choice)
    if any(part.problems for part in parts) and tree.spare:
        print(f"note: unread{_spare(tree.spare)}", file=sys.stderr)
    return parts


def _verify(request: PrepareRequest, jobs: Sequence[Job]) -> None:
    """Raise UserError where counts or names are not as published, unless --allow-incomplete accepts that."""
    problems: list[str] = []
    total = 0
    for job in jobs:
        problems += job.part.problems
        total += len(job.part.items)
        print(f"  {job.folder}: {len(job.part.items)} images or pairs found", flush=True)
    if total == 0:
        raise UserError(
            f"--input: {_names(request.input)} holds nothing of {request.recipe}; the folders and files that it is "
            f"read from stand at the end of: sam4ir prepare {request.recipe} --help"
        )
    if not problems:
        return
    text = "  " + "\n  ".join(problems)
    if request.allow_incomplete:
        print(f"note: not as published, taken as it is:\n{text}", file=sys.stderr)
        return
    raise UserError(
        f"{request.recipe} is not as published:\n{text}\nadd what is missing; or take a part of it with --subset, or "
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
