"""Score the images of two folders without an option file: restored by a network, or restored already."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam4ir.config.schema import Block, DatasetOptions, Options, PathOptions, ValOptions, folder_name
from sam4ir.data.paired import fitting_template
from sam4ir.data.sample import Dataset, Sample
from sam4ir.data.sources import open_source
from sam4ir.engine import build
from sam4ir.engine.devices import choose_device
from sam4ir.engine.evaluate.build import build_metrics
from sam4ir.engine.evaluate.metric import prepare_metrics
from sam4ir.engine.evaluate.result_folder import OPTIONS_FILE, refuse_other_options, write_results
from sam4ir.engine.evaluate.score import score_network
from sam4ir.engine.evaluate.testbed import Scores
from sam4ir.engine.evaluate.validate import SHOWN_FAULTS, evaluate
from sam4ir.engine.restore.images import load_network
from sam4ir.engine.restore.settings import file_of_run, network_options
from sam4ir.errors import UserError
from sam4ir.registry import METRICS
from sam4ir.utils.dist import World
from sam4ir.utils.files import write_text
from sam4ir.utils.shell import yaml_line

log = logging.getLogger(__name__)

METRIC_NAMES = ("psnr", "ssim")  # where the user names none


@dataclass(frozen=True)
class FolderRequest:
    """What to score: flags of `sam4ir test`.

    gt: the ground truth. images: degraded images, which the network of `weights` (a file or a name of the zoo) restores
    first. restored: images that are restored already, in place of these. metrics: names of METRICS. name: of the
    results; without it that of the run or the weights, and of the folder. device: as in an option file.
    """

    gt: Path
    images: Path | None = None
    weights: str | None = None
    restored: Path | None = None
    metrics: Sequence[str] = METRIC_NAMES
    name: str | None = None
    device: str | None = None
    overwrite: bool = False


def score_folders(request: FolderRequest, world: World, faults: list[str]) -> str:
    """Score the images; return the table that is also written to results/<name>.

    faults: grows by a sentence for each image that could not be scored. Raises UserError for flags that do not go
    together, folders whose names do not pair, and what score_network raises.
    """
    for metric in request.metrics:
        if metric not in METRICS:
            METRICS.get(metric)  # raises with the nearest name
    if request.images is not None and request.restored is None:
        if request.weights is None:
            raise UserError("--images: are restored first; add --weights FILE, or --restored for images that are")
        return score_network(_options(request, request.images, request.weights), request.overwrite, world, faults)
    if request.restored is None or request.images is not None:
        raise UserError("--gt: give --images and --weights, or --restored, beside it")
    if request.weights is not None:
        raise UserError("--restored: holds results, which need no network; leave --weights out, or say --images")
    return _score_restored(request, request.restored, world, faults)


def _options(request: FolderRequest, images: Path, weights: str) -> Options:
    """Return the options of a test: those of the weights, with the folders as the test set."""
    described = network_options(weights, None, request.device, _flag)
    for line in described.notes:
        log.info("%s", line)
    trained = Path(weights).stem
    if file_of_run(weights) is not None:
        trained = described.options.name
    loaded = load_network(described.options, weights)
    block = folder_pairs(request.gt, images, "--images", loaded.channels)
    val = (described.options.val or ValOptions()).model_copy(update={"metrics": _metrics(request)})
    path = described.options.path.model_copy(update={"pretrain_network_g": weights})
    changed = {
        "name": _name(request, f"{trained}_{_folder(images)}"),
        "scale": loaded.scale,
        "datasets": {"test": block},
        "train": None,
        "val": val.model_copy(update={"save_img": False, "refiner": False, "save_best": None, "patience": None}),
        "path": path.model_copy(update={"root": ".", "resume_state": None}),
    }
    return described.options.model_copy(update=changed)


def folder_pairs(gt_folder: Path, images: Path, flag: str, channels: int) -> DatasetOptions:
    """Return the pairs as a data set of an option file. Raises UserError where no names pair.

    Its name is that of the folder of --gt, so that results of several restorations of the same images can be compared.
    """
    gt, lq = open_source(gt_folder, None, "--gt"), open_source(images, None, flag)
    arguments: dict[str, Any] = {"dataroot_gt": str(gt_folder), "dataroot_lq": str(images)}
    if channels == 1:
        arguments["channels"] = 1
    names = set(lq.keys)
    if not names.intersection(gt.keys):
        template = fitting_template(gt.keys, names)
        if template is None:
            raise UserError(
                f"--gt {gt_folder} and {flag} {images}: no two names pair; the first are {gt.keys[0]!r} and "
                f"{lq.keys[0]!r}"
            )
        arguments["filename_tmpl"] = template
    return DatasetOptions(type="PairedImageDataset", name=_folder(gt_folder), **arguments)


def _folder(path: Path) -> str:
    """Return the name of a folder, as a data set may be called."""
    try:
        return folder_name(path.resolve().name.removesuffix(".lmdb"))
    except UserError:
        return "images"


def _name(request: FolderRequest, usual: str) -> str:
    """Return the name of the results. Raises UserError for one that cannot name a folder."""
    try:
        return folder_name(request.name or usual)
    except UserError as error:
        raise UserError(f"--name: {error}") from None


def _metrics(request: FolderRequest) -> dict[str, Block]:
    return {name: Block(type=name) for name in request.metrics}


def _flag(name: str) -> str:
    return "--" + name


class _AsStored:
    """Images that are restored already, as the outputs of a network."""

    refiner = None

    def __call__(self, sample: Sample, number: int = 0) -> dict[str, Any]:
        """Return the image itself as what was restored."""
        return {"restored": sample.lq.clamp(0, 1)}


def _score_restored(request: FolderRequest, restored: Path, world: World, faults: list[str]) -> str:
    """Score images that are restored already, against those of the same names."""
    block = folder_pairs(request.gt, restored, "--restored", 3)
    name = _name(request, _folder(restored))
    folder = build.run_paths(PathOptions(), name).results
    text = yaml_line({"gt": str(request.gt), "restored": str(restored), "metrics": list(request.metrics)}) + "\n"
    if not request.overwrite:
        world.main_first(functools.partial(refuse_other_options, folder, text))
    metrics = prepare_metrics(
        build_metrics(ValOptions(metrics=_metrics(request))), choose_device(request.device or "auto", world)
    )
    data = build.build_dataset("test", block, 1)
    assert block.name is not None
    results = _scores(block.name, data, metrics, world)
    faults.extend(results.faults)
    if not world.main:
        return ""
    write_text(folder / OPTIONS_FILE, text)
    return write_results(folder, results, metrics) + f"results: {folder}\n"


def _scores(name: str, data: Dataset, metrics: Mapping[str, Any], world: World) -> Scores:
    """Return the scores of the images as they are. Raises UserError where none can be scored."""
    evaluation = evaluate(name, data, _AsStored(), metrics, seed=0, world=world)  # type: ignore[arg-type]
    faults = [f"{name}/{key}: {reason}" for key, reason in evaluation.faults]
    if len(faults) == len(data):
        raise UserError("\n  ".join(["none of the images can be scored", *faults[:SHOWN_FAULTS]]))
    scores = [score for score in evaluation.scores if score.output == "restored"]  # `input` is the same image
    sets = [score for score in evaluation.sets if score.output == "restored"]
    return Scores(scores, sets, evaluation.notes, faults)
