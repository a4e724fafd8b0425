"""Write an option file for a user's images, and print the next commands (`sam4ir options new`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from sam4ir.config.load import load_options
from sam4ir.config.schema import folder_name
from sam4ir.data.sources import listed
from sam4ir.engine.devices import choose_device
from sam4ir.engine.new_options.images import Survey, survey
from sam4ir.engine.new_options.measure import Durations, measured, words
from sam4ir.engine.new_options.recipe import recipe_for
from sam4ir.engine.new_options.split import Split, split_by_name
from sam4ir.engine.new_options.text import Content, images_in_words, option_text, without_ssim
from sam4ir.errors import UserError
from sam4ir.utils.files import write_text
from sam4ir.utils.shell import command_words

NOISE = 25.0  # sigma for clean images where the user names none


@dataclass(frozen=True)
class NewOptionsRequest:
    """What to write: the flags of `sam4ir options new`, which has a sentence for each.

    val: share of the images for validation, 0 to 1. sam: a name or file of a SAM, None for a training without masks.
    measure: whether a few steps and masks are timed. words: the command as it was typed, for the file's first line.
    """

    gt: Path
    output: Path
    lq: Path | None = None
    noise: float | None = None
    val: float = 0.1
    sam: str | None = None
    name: str | None = None
    measure: bool = True
    overwrite: bool = False


def new_options(request: NewOptionsRequest) -> int:
    """Look at the images, write the option file and its lists of names, print the next commands; return 0.

    Raises UserError for images that nothing can be trained on, and where a file is there already.
    """
    files = _files(request)
    name = _name(request)
    _check(request)
    images = survey(request.gt, request.lq)
    split = split_by_name(images.keys, request.val)
    device = choose_device("auto")
    recipe = recipe_for(images, len(split.train), cuda=device.type == "cuda")
    _report(images, split)
    for note in recipe.notes:
        print(f"note     {note}")
    content = Content(
        command=_typed(request),
        name=name,
        gt=request.gt,
        lq=request.lq,
        noise=_noise(request),
        images=images,
        split=split,
        lists=(files[1], files[2]),
        recipe=recipe,
        store=_store(request),
    )
    if without_ssim(content):
        print(f"note     no SSIM: {without_ssim(content)} of the validation images are smaller than its window")
    if content.store is not None and images.scale > 1:
        raise UserError(
            f"--sam: the GT images are {images.scale} times as large as those of --lq, and SAM4IR restores images of "
            "one size; leave --sam out, or see docs/super-resolution.md for SAM-DiffSR"
        )
    for path, keys in zip(files[1:], split, strict=True):
        write_text(path, "\n".join(keys) + "\n")
    write_text(request.output, option_text(content))
    options = load_options(request.output, named_by_user=True)
    print(f"written  {request.output}, {files[1]}, {files[2]}; the network is {recipe.about}, for {device.type}")
    durations = Durations()
    if request.measure:
        durations = measured(options, request.sam, images)
    _print_commands(request, content, durations)
    return 0


def _files(request: NewOptionsRequest) -> tuple[Path, Path, Path]:
    """Return the option file and its two lists. Raises UserError where they may not be written."""
    output = request.output
    if output.suffix not in (".yml", ".yaml"):
        raise UserError(f"--output: {output}: is no name of an option file; give one that ends in .yml")
    files = (output, output.with_name(f"{output.stem}_train.txt"), output.with_name(f"{output.stem}_val.txt"))
    for path in files:
        if path.exists() and not request.overwrite:
            raise UserError(f"--output: {path}: exists already; --overwrite replaces it, another name keeps it")
    return files


def _name(request: NewOptionsRequest) -> str:
    """Return the name of the run. Raises UserError for one that cannot name a folder."""
    try:
        return folder_name(request.name or request.output.stem)
    except UserError as error:
        raise UserError(f"--name: {error}") from None


def _check(request: NewOptionsRequest) -> None:
    """Raise UserError for flags that contradict each other or are out of range, before anything is read."""
    if request.lq is not None and request.noise is not None:
        raise UserError("--noise: is for clean images alone; --lq brings degraded ones: leave one of them out")
    noise = _noise(request)
    if noise is not None and not 0 < noise < math.inf:
        raise UserError(f"--noise: {noise:g} must be above 0, in units of 0 to 255")
    if not 0 < request.val < 1:
        raise UserError(f"--val: {100 * request.val:g}% must be above 0% and below 100%")
    if request.lq is not None and request.lq.exists() and request.gt.exists() and request.lq.samefile(request.gt):
        raise UserError(f"--lq: {request.lq}: is the folder of --gt; name the folder of the degraded images")
    if request.sam is not None:
        from sam4ir.priors.sam.load import refuse_unknown_sam  # a file without masks needs no SAM

        refuse_unknown_sam(request.sam)


def _noise(request: NewOptionsRequest) -> float | None:
    """Return the sigma of noise that the data set adds; None for pairs."""
    if request.lq is not None:
        return None
    return NOISE if request.noise is None else request.noise


def _store(request: NewOptionsRequest) -> Path | None:
    """Return where make-masks writes the masks: beside the option file."""
    if request.sam is None:
        return None
    return request.output.with_name(f"{request.output.stem}_masks.lmdb")


def _typed(request: NewOptionsRequest) -> str:
    """Return the command with the flags that decide what is written."""
    parts: list[object] = ["sam4ir", "options", "new", "--gt", request.gt]
    if request.lq is not None:
        parts += ["--lq", request.lq]
    else:
        parts += ["--noise", f"{_noise(request):g}"]
    parts += ["--val", f"{100 * request.val:g}%"]
    if request.sam is not None:
        parts += ["--sam", request.sam]
    if request.name is not None:
        parts += ["--name", request.name]
    return command_words(*parts, "--output", request.output)


def _report(images: Survey, split: Split) -> None:
    """Print what was found."""
    print(f"images   {images_in_words(images)} ({images.looked} files were read whole, of any others the headers)")
    if images.deep:
        print("note     16 bits: training reads all of them, sam4ir restore writes them; scores are of 8 bits")
    if 0 < images.grey < images.looked:
        print("note     grey and colour images: the network is one for colour, grey ones are repeated three times")
    if images.scale > 1:
        print(f"scale    {images.scale}: super-resolution")
    if images.pairing is not None and images.pairing.template != "{}":
        print(f"pairs    by the names {images.pairing.template} of --lq")
    for kind, keys in images.left_out.items():
        print(f"left out {kind}: {listed(keys)}")
    print(f"split    {len(split.train)} for training, {len(split.val)} for validation, by a hash of their names")


def _print_commands(request: NewOptionsRequest, content: Content, durations: Durations) -> None:
    """Print the next three commands with what they take, and how a network is used afterwards."""
    weights = f"experiments/{content.name}"
    commands: list[tuple[str, str]] = []
    if content.store is not None:
        masks = command_words("sam4ir", "make-masks", "--input", content.gt, "--store", content.store)
        masks += " " + command_words("--sam", request.sam, "--precision", "auto")
        commands.append((masks, durations.masks))
    else:
        commands.append((command_words("sam4ir", "train", "-opt", request.output, "--check"), durations.check))
    commands.append((command_words("sam4ir", "train", "-opt", request.output), durations.training))
    commands.append((command_words("sam4ir", "test", "-opt", request.output, "--weights", weights), durations.test))
    print("next")
    for command, duration in commands:
        print(f"  {command}" + words(duration))
    source: object = "FOLDER"
    if content.lq is not None:
        source = content.lq
    print("then restore images of yours")
    restored = f"restored/{content.name}"
    print("  " + command_words("sam4ir", "restore", "--weights", weights, "--input", source, "--output", restored))
