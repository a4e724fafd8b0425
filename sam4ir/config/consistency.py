"""What no single key of an option file can tell: keys that need or exclude each other."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

from sam4ir.config.schema import DatasetOptions, DistillOptions, Options, TrainOptions, ValOptions
from sam4ir.config.signature import accepts
from sam4ir.config.yaml_text import Path, Problem
from sam4ir.registry import DATASETS

_DATASET_KEY = re.compile(r"(train|val|test)[\w.-]*")
_STAGES = ("gt_sizes", "mini_batch_sizes", "iters")


def consistency(options: Options) -> list[Problem]:
    """The problems of options whose keys are all right, each by itself."""
    problems = _data_sets(options)
    if options.phase("train") and options.train is None:
        problems.append(Problem(("train",), "is required with a training set"))
    if options.train:
        for key, dataset in options.phase("train").items():
            problems += _recipe(key, dataset, options.train, options.distills)
    problems += _diffusion(options) if options.diffuses else _no_diffusion(options)
    return problems + (_distillation(options) if options.distills else _plain(options))


def _no_diffusion(options: Options) -> list[Problem]:
    """Keys of diffusion in a file of a network that restores in one pass."""
    given: list[Path] = [("diffusion",)] if options.diffusion is not None else []
    if options.path.pretrain_network_c:
        given.append(("path", "pretrain_network_c"))
    val = options.val or ValOptions()
    given += [("val", key) for key in ("sampling", "samples") if getattr(val, key) != getattr(ValOptions(), key)]
    return [
        Problem(path, f"belongs to model_type SAMDiffSRModel; this file says {options.model_type}") for path in given
    ]


def _diffusion(options: Options) -> list[Problem]:
    problems = []
    process, val = options.process, options.val or ValOptions()
    if process.modulation == "paper" and process.target != "noise":
        message = f"is {process.target}; modulation paper predicts noise: leave target out"
        problems.append(Problem(("diffusion", "target"), message))
    if process.modulation == "paper" and val.sampling.sampler not in (None, "ddpm"):
        message = (
            f"is {val.sampling.sampler}, which needs the image that a noise estimate implies; with modulation paper "
            "it is biased by the unknown encoding: take ddpm"
        )
        problems.append(Problem(("val", "sampling", "sampler"), message))
    if (val.sampling.steps or 1) > process.timesteps:
        message = f"is {val.sampling.steps}; the diffusion has {process.timesteps} timesteps"
        problems.append(Problem(("val", "sampling", "steps"), message))
    if val.sampling.eta and val.sampling.sampler != "ddim":
        message = f"is {val.sampling.eta}; only sampler: ddim takes it"
        problems.append(Problem(("val", "sampling", "eta"), message))
    if process.modulation not in ("none", "invertible") and process.profile != "flat":
        problems.append(Problem(("diffusion", "profile"), "is of modulation invertible alone"))
    sr_scale = options.network_g.arguments.get("sr_scale", 4)
    if options.network_g.type == "DiffSR" and sr_scale != options.scale:
        problems.append(Problem(("scale",), f"is {options.scale}, network_g.sr_scale is {sr_scale}; make them equal"))
    if val.window_size is not None:
        problems.append(Problem(("val", "window_size"), "is the network's own matter in diffusion; leave it out"))
    if val.self_ensemble:
        problems.append(Problem(("val", "self_ensemble"), "averages images of one pass; a diffusion network has none"))
    if options.compile:
        problems.append(Problem(("compile",), "is not offered for diffusion networks; leave it out"))
    return problems + (_diffusion_training(options) if options.train is not None else [])


def _diffusion_training(options: Options) -> list[Problem]:
    """What the training of a diffusion network needs."""
    problems = []
    if options.train is not None and options.train.pixel_opt.type == "PSNRLoss":
        message = "is of images, not of noise; take L1Loss (as released) or MSELoss"
        problems.append(Problem(("train", "pixel_opt", "type"), message))
    mixes = options.train is not None and options.train.mixing_augs is not None and options.train.mixing_augs.mixup
    for key, dataset in options.phase("train").items() if options.process.needs_masks else ():
        if dataset.masks is None:
            message = (
                f"is required by modulation {options.process.modulation}: {{store: PATH}} of a mask store "
                "(scripts/make_masks.py makes one), or set diffusion.modulation: none"
            )
            problems.append(Problem(("datasets", key, "masks"), message))
    if mixes:
        problems.append(Problem(("train", "mixing_augs", "mixup"), "is not offered for diffusion networks"))
    if not options.path.pretrain_network_c and not options.path.pretrain_network_g:
        message = (
            "is required: the weights of the RRDB that conditions the network, such as "
            "experiments/rrdb_x4/models/net_g_latest.pth (options/train/sr/rrdb_x4.yml trains one)"
        )
        problems.append(Problem(("path", "pretrain_network_c"), message))
    return problems


def _data_sets(options: Options) -> list[Problem]:
    """Keys and names of the data sets; results are filed under the names."""
    wording = "the key of a data set is train, val or test, with letters, digits, - or _ behind it"
    problems = [Problem(("datasets", key), wording) for key in options.datasets if not _DATASET_KEY.fullmatch(key)]
    if len(training := options.phase("train")) > 1:
        problems.append(Problem(("datasets",), f"has several training sets ({', '.join(training)}); keep one"))
    for phase in ("val", "test"):
        owners: dict[str, str] = {}
        for key, dataset in options.phase(phase).items():
            first = owners.setdefault(dataset.name or key, key)
            if first != key:
                message = f"{dataset.name or key!r} is the name of datasets.{first} too; give each its own"
                problems.append(Problem(("datasets", key, "name"), message))
    for key, dataset in options.datasets.items():
        problems += _degradations(key, dataset)
    return problems


def _degradations(key: str, dataset: DatasetOptions) -> list[Problem]:
    """`degradations` goes with the data sets that make their degraded images."""
    if dataset.type not in DATASETS:
        return []  # said already
    place = ("datasets", key, "degradations")
    parameter = inspect.signature(DATASETS.get(dataset.type)).parameters.get("degradations")
    if dataset.degradations is None:
        needed = parameter is not None and parameter.default is parameter.empty
        return [Problem(place, f"is required by {dataset.type}: a list of {{type: NAME, ...}}")] if needed else []
    if parameter is not None:
        return []
    takers = [name for name in DATASETS.names() if accepts(DATASETS.get(name), "degradations")]
    return [Problem(place, f"{dataset.type} takes none; data sets that do: {', '.join(takers) or 'none'}")]


def _recipe(key: str, dataset: DatasetOptions, train: TrainOptions, distills: bool) -> list[Problem]:
    """Stages, batches and mixing of the training set."""
    problems = []
    given = {name: getattr(dataset, name) for name in _STAGES if getattr(dataset, name) is not None}
    lengths = {name: len(values) for name, values in given.items()}
    for name in _STAGES if given else ():
        if name not in given:
            message = f"is required with {' and '.join(given)}: a number for each stage"
            problems.append(Problem(("datasets", key, name), message))
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
        problems.append(Problem(("datasets", key), f"has stages of different numbers ({counts}); one entry a stage"))
    if train.mixing_augs is not None and train.mixing_augs.mixup and (distills or dataset.masks is not None):
        message = "lays two images over each other, and their regions cannot be; with masks, set mixup: false"
        problems.append(Problem(("train", "mixing_augs", "mixup"), message))
    return problems if problems else _total_batch(dataset, train)


def _total_batch(dataset: DatasetOptions, train: TrainOptions) -> list[Problem]:
    """A total batch is made of whole micro-batches, in every stage."""
    total, place = train.total_batch, ("train", "total_batch")
    if total is None:
        return []
    key = "mini_batch_sizes" if dataset.mini_batch_sizes else "batch_size_per_gpu"
    micro: Sequence[int] = dataset.mini_batch_sizes or (dataset.batch_size_per_gpu,)
    if isinstance(total, tuple) and not dataset.mini_batch_sizes:
        return [Problem(place, f"{list(total)} is a batch a stage, but the training set has no gt_sizes; give one")]
    if isinstance(total, tuple) and len(total) != len(micro):
        return [Problem(place, f"{list(total)} has {len(total)} entries for {len(micro)} stages; give one a stage")]
    totals = total if isinstance(total, tuple) else (total,) * len(micro)
    return [
        Problem(place, f"{batch} is no multiple of {key} {share}" + (f" of stage {i}" if len(micro) > 1 else ""))
        for i, (batch, share) in enumerate(zip(totals, micro, strict=True), 1)
        if batch % share
    ]


def _plain(options: Options) -> list[Problem]:
    """Keys of SAM4IR in a file that trains a plain network."""
    given: list[Path] = [(key,) for key in ("spf", "network_r") if getattr(options, key) is not None]
    for key in ("spd_opt", "sgr_opt", "refine_opt", "optim_r", "scheduler_r"):
        if options.train and getattr(options.train, key) is not None:
            given.append(("train", key))
    if options.train and options.train.distill != DistillOptions():
        given.append(("train", "distill"))
    if options.val and options.val.refiner:
        given.append(("val", "refiner"))
    return [Problem(path, f"belongs to model_type SAM4IRModel; this file says {options.model_type}") for path in given]


def _distillation(options: Options) -> list[Problem]:
    problems = _masks(options)
    if options.scale != 1:
        message = f"is {options.scale}; SPF lays masks on the restored image, so SAM4IR needs scale 1"
        problems.append(Problem(("scale",), message))
    if options.val is not None and options.val.refiner and options.val.grids:
        message = "scores whole images, so it does not go with grids: true; switch one of them off"
        problems.append(Problem(("val", "refiner"), message))
    return problems + (_refiner_training(options, options.train) if options.train is not None else [])


def _masks(options: Options) -> list[Problem]:
    """Data sets whose masks the model looks at, without any."""
    if options.train is None or options.train.distill.masks == "empty":
        return []
    scored = options.phase("val") if options.val is not None and options.val.refiner else {}
    hint = "{store: PATH} of a mask store (scripts/make_masks.py makes one), or set train.distill.masks: empty"
    return [
        Problem(("datasets", key, "masks"), f"is required by SAM4IRModel: {hint}")
        for key, dataset in {**options.phase("train"), **scored}.items()
        if dataset.masks is None
    ]


def _refiner_training(options: Options, train: TrainOptions) -> list[Problem]:
    """How student and refiner train together."""
    problems = []
    distill, pretrained = train.distill, options.path.pretrain_network_g
    if distill.teacher == "ema" and train.ema_decay == 0:
        problems.append(Problem(("train", "distill", "teacher"), "ema needs train.ema_decay above 0"))
    if distill.schedule == "two_phase" and not pretrained:
        message = "is required by schedule two_phase: the student is frozen first"
        problems.append(Problem(("path", "pretrain_network_g"), message))
    if distill.schedule == "two_phase" and (distill.refine_iter or 0) >= train.total_iter:
        problems.append(Problem(("train", "distill", "refine_iter"), "must be smaller than total_iter"))
    if distill.init_refiner == "student" and not pretrained:
        message = "student copies the student's weights, but it has none yet; set path.pretrain_network_g"
        problems.append(Problem(("train", "distill", "init_refiner"), message))
    return problems
