"""Restore images and videos with a trained network and write the results (`sam4ir restore`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from sam4ir import __version__
from sam4ir.config.schema import Options
from sam4ir.engine.devices import choose_device
from sam4ir.engine.restore.build import RestoreRecipe
from sam4ir.engine.restore.files import Results, restore_files
from sam4ir.engine.restore.images import LARGEST_WHOLE, ImageRestorer, PictureRestorer, image_restorer
from sam4ir.engine.restore.pictures import AlphaMode
from sam4ir.engine.restore.progress import ItemProgress
from sam4ir.engine.restore.settings import RestoreSettings, network_options, settled_recipe, with_settings
from sam4ir.engine.restore.work import STREAM, Work, find_work, is_video
from sam4ir.errors import UserError
from sam4ir.utils.image import ExifOrientation
from sam4ir.utils.picture_formats import check_format


@dataclass(frozen=True)
class RestoreRequest:
    """What to restore and how: the flags of `sam4ir restore`, which has a sentence for each.

    weights: a file or a name of the zoo; None takes those of the option file. opt: the option file; None takes that of
    the run that holds the weights, or finds the network by the weights. None in other fields leaves the option file's,
    or the format's. tile: 0 takes every image whole.
    """

    input: list[str]
    output: str
    weights: str | None = None
    opt: Path | None = None
    tile: int | None = None
    overlap: int | None = None
    self_ensemble: bool = False
    sampler: str | None = None
    steps: int | None = None
    eta: float | None = None
    seed: int | None = None
    samples: int = 1
    precision: str | None = None
    device: str | None = None
    ignore_exif: bool = False
    overwrite: bool = False
    format: str | None = None
    suffix: str = ""
    quality: int | None = None
    alpha: AlphaMode = "carry"
    crf: int = 16
    compile: bool = False

    @property
    def settings(self) -> RestoreSettings:
        """What is asked of tiles, number format and sampling."""
        return RestoreSettings(
            tile=self.tile,
            overlap=self.overlap,
            self_ensemble=self.self_ensemble or None,
            precision=self.precision,
            sampler=self.sampler,
            steps=self.steps,
            eta=self.eta,
            seed=self.seed,
            samples=self.samples,
            compile=self.compile,
        )


@dataclass(frozen=True)
class Student:
    """The network that restores the files of a command, with what described it.

    options: as its option file or the weights say, without the block `train`. weights: a file or a name of the zoo.
    precision: the number format of its passes.
    """

    restorer: ImageRestorer
    options: Options
    weights: str
    precision: str


class Refine(Protocol):
    """Adds to a network what refines its images, such as engine/refine; this module knows no masks."""

    def __call__(self, student: Student) -> PictureRestorer:
        """Return the restorer of refined images. Raises UserError where the parts do not fit."""


def restore_folder(request: RestoreRequest, stream: BinaryIO | None = None, refine: Refine | None = None) -> int:
    """Restore the files; return the exit status: 1 where some cannot be read, which are listed, else 0.

    stream: standard output, which gets the image where request.output is `-`; messages must not go there then.
    refine: makes the restorer of refined images; None writes those of the network.
    """
    work = find_work(request.input, request.output, request.format, request.suffix)
    check_format(work.format, request.quality)
    if request.crf > 51:
        raise UserError(f"--crf: {request.crf} is none; give 0 (without loss) to 51")
    if refine is not None:
        _leave_videos_out(work)
    if request.output == STREAM and request.samples > 1:
        raise UserError("--samples: standard output takes one image; name a folder")
    described = network_options(request.weights, request.opt, request.device, _flag)
    for line in described.notes:
        print(line)
    options = with_settings(described.options, request.settings, _flag)
    weights = request.weights or options.path.pretrain_network_g
    if not weights:
        raise UserError(f"{request.opt}: path.pretrain_network_g names no weights; give --weights")
    settled = settled_recipe(options, request.precision, choose_device(options.device), _flag)
    for line in settled.lines:
        print(line)
    steps, tiles = ItemProgress("step"), ItemProgress("tile")
    whole_up_to: int | None = LARGEST_WHOLE
    if request.tile == 0:
        whole_up_to = None
    network = image_restorer(options, weights, steps, tiles, whole_up_to, settled.recipe)
    restorer: PictureRestorer = network
    if refine is not None:
        restorer = refine(Student(network, options, weights, settled.recipe.precision))
    exif: ExifOrientation = "apply"
    if request.ignore_exif:
        exif = "ignore"
    identity = _identity(options, settled.recipe, weights, whole_up_to)
    results = Results(
        request.quality,
        request.alpha,
        request.samples,
        request.overwrite,
        exif,
        request.crf,
        identity,
        whole_keys=refine is not None,
    )
    return restore_files(work, restorer, results, (steps, tiles), stream)


def _leave_videos_out(work: Work) -> None:
    """List the videos among the files as unreadable. Raises UserError where there are no images beside them."""
    images, refusals = [], []
    for file, target in work.files:
        if is_video(file):
            refusals.append(f"{file}: is a video, and --refine takes images; restore it without --refine")
        else:
            images.append((file, target))
    if refusals and not images:
        raise UserError(refusals[0])
    work.files = images
    work.unreadable += refusals


def _identity(options: Options, recipe: RestoreRecipe, weights: str, whole_up_to: int | None) -> str:
    """Return a text that changes with the network, its weights and the way in which it restores."""
    state = ""
    if Path(weights).is_file():
        status = Path(weights).stat()
        state = f"{status.st_size} {status.st_mtime_ns}"
    return repr((__version__, weights, state, options.network_g, recipe, whole_up_to))


def _flag(name: str) -> str:
    """Return the flag of a setting, for messages."""
    return "--" + name.replace("_", "-")
