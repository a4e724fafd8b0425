"""Restore images and videos with a trained network and write the results (`sam4ir restore`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from sam4ir import __version__
from sam4ir.config.consistency import consistency
from sam4ir.config.load import load_options
from sam4ir.config.schema import DIFFUSION_MODEL, Block, DiffusionOptions, Options, SamplingOptions, ValOptions
from sam4ir.engine.devices import choose_device
from sam4ir.engine.precision import settle_restoring
from sam4ir.engine.restore.build import trained_diffusion
from sam4ir.engine.restore.files import Results, restore_files
from sam4ir.engine.restore.images import LARGEST_WHOLE, image_restorer
from sam4ir.engine.restore.pictures import AlphaMode
from sam4ir.engine.restore.progress import ItemProgress
from sam4ir.engine.restore.work import STREAM, find_work
from sam4ir.engine.weights import flow, network_block
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


def restore_folder(request: RestoreRequest, stream: BinaryIO | None = None) -> int:
    """Restore the files; return the exit status: 1 where some cannot be read, which are listed, else 0.

    stream: standard output, which gets the image where request.output is `-`; messages must not go there then.
    """
    work = find_work(request.input, request.output, request.format, request.suffix)
    check_format(work.format, request.quality)
    if request.crf > 51:
        raise UserError(f"--crf: {request.crf} is none; give 0 (without loss) to 51")
    if request.output == STREAM and request.samples > 1:
        raise UserError("--samples: standard output takes one image; name a folder")
    options = with_flags(run_options(request.weights, request.opt, request.device), request)
    weights = request.weights or options.path.pretrain_network_g
    if not weights:
        raise UserError(f"{request.opt}: path.pretrain_network_g names no weights; give --weights")
    formats = settle_restoring(options, choose_device(options.device))
    for line in (*formats.chosen, *formats.warnings):
        print(line)
    steps, tiles = ItemProgress("step"), ItemProgress("tile")
    whole_up_to: int | None = LARGEST_WHOLE
    if request.tile == 0:
        whole_up_to = None
    restorer = image_restorer(formats.options, weights, steps, tiles, whole_up_to)
    exif: ExifOrientation = "apply"
    if request.ignore_exif:
        exif = "ignore"
    identity = _identity(formats.options, weights, whole_up_to)
    results = Results(request.quality, request.alpha, request.samples, request.overwrite, exif, request.crf, identity)
    return restore_files(work, restorer, results, (steps, tiles), stream)


def _identity(options: Options, weights: str, whole_up_to: int | None) -> str:
    """Return a text that changes with the network, its weights and the way in which it restores."""
    state = ""
    if Path(weights).is_file():
        status = Path(weights).stat()
        state = f"{status.st_size} {status.st_mtime_ns}"
    return repr((__version__, weights, state, options.network_g, options.val, options.scale, whole_up_to))


def run_options(weights: str | None, opt: Path | None, device: str | None) -> Options:
    """Return the options of the network: those of -opt, of the run that holds the weights, or by the weights."""
    path = opt or _file_of_run(weights)
    overrides = []
    if device:
        overrides.append(f"device={device}")
    if path is not None:
        return load_options(path, overrides, training=False, named_by_user=opt is not None)
    if weights is None:
        raise UserError("--weights: name the weights, or an option file with path.pretrain_network_g by -opt")
    block = network_block(weights)
    print(f"network_g: {flow(block)} (by the weights)")
    kind: dict[str, Any] = {}
    if block["type"] == "DiffSR":
        kind = {"scale": block.get("sr_scale", 4), **_diffusion_of(weights)}
    try:
        return Options(name="restore", network_g=Block(**block), device=device or "auto", **kind)
    except ValidationError as error:
        raise UserError(f"--device: {device!r} is none; give auto, cpu, cuda, cuda:1 ... or mps") from error


def _file_of_run(weights: str | None) -> Path | None:
    """Return the option file of the run that a weights file lies in; None without such a file."""
    if not weights or not Path(weights).is_file():
        return None
    options_file = Path(weights).resolve().parent.parent / "options.yml"
    if not options_file.is_file():
        return None
    return options_file


def _diffusion_of(weights: str) -> dict[str, Any]:
    """Return model_type and diffusion of a diffusion network: those of its weights file, else the released code's."""
    recorded = trained_diffusion(weights)
    diffusion = recorded or DiffusionOptions()
    source = "by the weights"
    if not recorded:
        source = "assumed, as the weights do not record it; an option file does: -opt"
    print(f"diffusion: {flow(diffusion.model_dump())} ({source})")
    return {"model_type": DIFFUSION_MODEL, "diffusion": diffusion}


def with_flags(options: Options, request: RestoreRequest) -> Options:
    """Return the options, changed as the command line's flags of tiles and sampling say."""
    val = options.val or ValOptions()
    sampling = _sampling(options, request)
    changes: dict[str, Any] = {"self_ensemble": request.self_ensemble or val.self_ensemble, "samples": request.samples}
    if request.tile:
        changes |= {"grids": True, "crop_size": request.tile, "overlap": request.overlap}
    elif request.tile == 0:
        changes["grids"] = False
    elif request.overlap is not None:
        changes["overlap"] = request.overlap
    tile = request.tile
    if tile is None and val.grids:
        tile = val.crop_size
    if request.overlap is not None and not tile:
        raise UserError("--overlap: there are no tiles; add --tile")
    if request.overlap is not None and tile and request.overlap >= tile:
        raise UserError(f"--overlap: {request.overlap} must be smaller than the tile of {tile}")
    try:
        changes["sampling"] = SamplingOptions(**{**val.sampling.model_dump(), **sampling})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--{first['loc'][0]}: {first['input']!r}: {first['msg']}") from error
    # training sets and their masks are of no concern here
    changed = options.model_copy(update={"val": val.model_copy(update=changes), "train": None, "datasets": {}})
    for problem in consistency(changed):
        raise UserError(f"--{problem.path[-1]!s}: {problem.message}")
    return changed


def _sampling(options: Options, request: RestoreRequest) -> dict[str, Any]:
    """Return the keys of val.sampling that flags set; raise UserError for flags that the network has no use for."""
    sampling: dict[str, Any] = {}
    for name in ("sampler", "steps", "eta", "seed", "precision"):
        value = getattr(request, name)
        if value is not None:
            sampling[name] = value
    names = list(sampling)
    if request.samples > 1:
        names.append("samples")
    if names and not options.diffuses:
        raise UserError(f"--{names[0]}: is for diffusion networks; {options.network_g.type} restores in one pass")
    if "sampler" in sampling:  # steps and eta of the file are another sampler's
        sampling = {"steps": None, "eta": 0.0, **sampling}
    return sampling
