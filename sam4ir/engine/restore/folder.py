"""Restore a folder of images, or one image, with a trained network and write the results (`sam4ir restore`)."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from tqdm import tqdm

from sam4ir.config.consistency import consistency
from sam4ir.config.load import load_options
from sam4ir.config.schema import DIFFUSION_MODEL, Block, DiffusionOptions, Options, SamplingOptions, ValOptions
from sam4ir.engine.devices import choose_device
from sam4ir.engine.precision import settle_restoring
from sam4ir.engine.restore.build import trained_diffusion
from sam4ir.engine.restore.images import ImageRestorer, image_restorer
from sam4ir.engine.weights import flow, network_block
from sam4ir.errors import UserError
from sam4ir.utils.faults import fault_of_item
from sam4ir.utils.files import output_path, remove_left_over
from sam4ir.utils.folders import list_files, refuse_folder_of_images
from sam4ir.utils.image import IMAGE_SUFFIXES, ExifOrientation, read_image, write_image
from sam4ir.utils.memory import out_of_memory


@dataclass(frozen=True)
class RestoreRequest:
    """What to restore and how: the flags of `sam4ir restore`, which has a sentence for each.

    weights: a file or a name of the zoo; None takes those of the option file. opt: the option file; None takes that of
    the run that holds the weights, or finds the network by the weights. None in other fields leaves the option file's.
    """

    input: Path
    output: Path
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
    compile: bool = False


def restore_folder(request: RestoreRequest) -> int:
    """Restore the images; return the exit status: 1 where images cannot be read, which are listed, else 0."""
    work = find_work(request.input, request.output)
    options = with_flags(run_options(request.weights, request.opt, request.device), request)
    weights = request.weights or options.path.pretrain_network_g
    if not weights:
        raise UserError(f"{request.opt}: path.pretrain_network_g names no weights; give --weights")
    formats = settle_restoring(options, choose_device(options.device))
    for line in (*formats.chosen, *formats.warnings):
        print(line)
    restored = image_restorer(formats.options, weights, StepBar())
    exif: ExifOrientation = "apply"
    if request.ignore_exif:
        exif = "ignore"
    return restore_all(work, request.output, restored, request.samples, request.overwrite, exif)


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
    elif request.overlap is not None:
        changes["overlap"] = request.overlap
    tile = request.tile
    if not tile and val.grids:
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
    compiling: bool | str = options.compile
    if request.compile:
        compiling = "inference"
    changed = options.model_copy(
        update={"val": val.model_copy(update=changes), "train": None, "datasets": {}, "compile": compiling}
    )
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


class Work(NamedTuple):
    """The images to restore.

    folder: of the results. images: (file, path of its result in the folder) of each. unreadable: folders that cannot be
    read, with the reason.
    """

    folder: Path
    images: list[tuple[Path, Path]]
    unreadable: list[str]


def find_work(place: Path, output: Path) -> Work:
    """Return the images of --input with the paths of their results; `a.jpg` beside `a.png` keeps its suffix.

    output: a folder, or for one image also a file with the suffix of an image. Raises UserError where there is no
    image, and where --output is no place for results.
    """
    if place.is_file():
        target = _target_of(place, output)
        return Work(target.parent, [(place, Path(target.name))], [])
    if not place.is_dir():
        raise UserError(f"{place}: no such image or folder")
    if output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir():
        raise UserError(f"--output: {output} is the name of an image, and {place} is a folder; name a folder")
    if output.is_file():
        raise UserError(f"--output: {output} is a file; name a folder")
    refuse_folder_of_images(output, place, "--output")
    listing = list_files(place, IMAGE_SUFFIXES, output=[output])
    listing.report()
    if not listing.files and not listing.unreadable:
        raise UserError(f"{place}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    files = sorted(map(Path, listing.files))
    owners = Counter(file.with_suffix("") for file in files)
    work = []
    for file in files:
        name = file.stem
        if owners[file.with_suffix("")] > 1:
            name = file.name
        work.append((place / file, file.with_name(f"{name}.png")))
    return Work(output, work, listing.unreadable)


def _target_of(image: Path, output: Path) -> Path:
    """Return the path of the result of a single image."""
    target = output / f"{image.stem}.png"
    if output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir():
        target = output
    elif output.is_file():
        raise UserError(f"--output: {output} is a file; name a folder, or a file with the suffix of an image")
    if target.exists() and target.samefile(image):
        raise UserError(f"--output: {target} is the image itself; name another folder or file")
    return target


class StepBar:
    """A progress bar of the steps of a diffusion network, below that of the images; shown in a terminal only."""

    def __init__(self) -> None:
        self.bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self.bar is None:
            self.bar = tqdm(total=total, unit="step", position=1, leave=False, disable=None)
        elif done == 1:
            self.bar.reset(total)
        self.bar.update(done - self.bar.n)


def restore_all(
    work: Work,
    output: Path,
    restored: ImageRestorer,
    samples: int,
    overwrite: bool,
    exif_orientation: ExifOrientation = "apply",
) -> int:
    """Write every restored image; print how many were there and which cannot be read. Return the exit status."""
    old, bad = 0, list(work.unreadable)
    if output.is_dir():
        remove_left_over(output)
    planned = _planned(work, samples, bad)
    for file, wanted in tqdm(planned, unit="image", disable=None):
        targets = wanted
        if not overwrite:
            targets = {number: target for number, target in wanted.items() if not target.exists()}
        if not targets:
            old += 1
            continue
        try:
            image = read_image(file, restored.channels, exif_orientation)
            for number, target in targets.items():
                write_image(target, restored(image, file.stem, number))
        except Exception as error:
            message = _message_of(file, error)
            if message is None:
                raise
            bad.append(message)
    count = len(work.images) + len(work.unreadable) - old - len(bad)
    print(f"{count} images restored to {output}")
    if old:
        print(f"{old} were there already and were kept; --overwrite replaces them")
    for message in bad:
        print(f"skipped: {message}", file=sys.stderr)
    return int(bool(bad))


def _message_of(file: Path, error: Exception) -> str | None:
    """Return the sentence that lists an image with its error; None for a bug."""
    message = fault_of_item(error)
    if message is None:
        return None
    if out_of_memory(error):
        message += "; --tile 256 needs less"
    if str(file) not in message:
        message = f"{file}: {message}"
    return message


def _planned(work: Work, samples: int, bad: list[str]) -> list[tuple[Path, dict[int, Path]]]:
    """Return (file, its targets) of each image; add a sentence to `bad` for one that cannot have its own."""
    owners: dict[Path, Path] = {}
    planned = []
    for file, name in work.images:
        try:
            targets = _targets(file, work.folder, name, samples)
            for target in targets.values():
                if owners.setdefault(target, file) != file:
                    raise UserError(f"{file}: and {owners[target]} would both be restored to {target}; rename one")
        except UserError as error:
            bad.append(str(error))
        else:
            planned.append((file, targets))
    return planned


def _targets(file: Path, folder: Path, name: Path, samples: int) -> dict[int, Path]:
    """Return sample number -> path of the result in the folder, NAME_s0.png and so on; UserError for a bad name."""
    key, targets = name.with_suffix("").as_posix(), {}
    for number in range(samples):
        suffix = name.suffix
        if samples > 1:
            suffix = f"_s{number}{name.suffix}"
        targets[number] = output_path(folder, key, suffix, file)
    return targets
