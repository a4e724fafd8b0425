"""Problems of keys that need or exclude each other, where each of them is valid by itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

from sam4ir.config.schema import (
    GAN_MODEL,
    SHORT_TERMS,
    DatasetOptions,
    DistillOptions,
    Options,
    TrainOptions,
    ValOptions,
)
from sam4ir.config.signature import accepts
from sam4ir.config.yaml_text import Path, Problem
from sam4ir.registry import DATASETS, TERMS

_DATASET_KEY = re.compile(r"(train|val|test)[\w.-]*")
_STAGES = ("gt_sizes", "mini_batch_sizes", "iters")


def consistency(options: Options) -> list[Problem]:
    """Return the problems of options whose keys are valid one by one."""
    problems = _data_sets(options)
    if options.model_type == GAN_MODEL and options.train is not None:
        message = (
            f"{GAN_MODEL} trains a network against a discriminator (GAN), which sam4ir does not; it restores and tests "
            "with such files alone. SRModel trains RRDBNet, also with train.perceptual_opt"
        )
        problems.append(Problem(("model_type",), message))
    if options.phase("train") and options.train is None:
        problems.append(Problem(("train",), "is required with a training set"))
    if options.train:
        if options.val is not None:
            problems += _best(options, options.val)
        if not options.diffuses:
            problems += _losses(options.train)
        for key, dataset in options.phase("train").items():
            problems += _recipe(key, dataset, options.train, options.distills)
    if options.diffuses:
        problems += _diffusion(options)
    else:
        problems += _no_diffusion(options)
    if options.distills:
        problems += _distillation(options)
    else:
        problems += _plain(options)
    return problems


def _best(options: Options, val: ValOptions) -> list[Problem]:
    """Check what the best weights of a training are chosen by."""
    if val.save_best is None:
        if val.patience is not None:
            return [
                Problem(("val", "patience"), "needs val.save_best, the score that must become better, such as psnr")
            ]
        return []
    place = ("val", "save_best")
    if val.val_freq is None:
        return [Problem(place, "needs val.val_freq: without it nothing is validated during the training")]
    names = [block.name or key for key, block in options.phase("val").items()]
    if not names:
        return [Problem(place, "needs a validation set: datasets.val")]
    set_name, _, metric = val.save_best.rpartition("/")
    if metric not in val.metrics:
        known = ", ".join(val.metrics) or "there are none"
        return [Problem(place, f"{metric!r} is none of val.metrics: {known}")]
    if set_name and set_name not in names:
        return [Problem(place, f"{set_name!r} is no validation set: {', '.join(names)}")]
    return []


def _losses(train: TrainOptions) -> list[Problem]:
    """Check that there is a reconstruction loss, and that each has a log name of its own."""
    problems = []
    log_names = _log_names(train)
    if train.pixel_opt is None and train.perceptual_opt is None and not train.losses:
        message = "is required where train.losses names no loss"
        problems.append(Problem(("train", "pixel_opt"), message))
    for name in train.losses:
        place = ("train", "losses", name)
        owner = name.removesuffix("_style")
        if not name.isidentifier():
            problems.append(Problem(place, "becomes l_NAME in the log; take letters, digits and _ alone"))
        elif name in log_names or name in SHORT_TERMS or name.startswith("refine_"):
            problems.append(Problem(place, f"l_{name} is the log name of another term; take another name"))
        elif owner != name and owner in log_names | train.losses.keys():
            message = f"l_{name} is the log name of the style part of {owner}; take another name"
            problems.append(Problem(place, message))
    return problems


def _log_names(train: TrainOptions) -> set[str]:
    """Return the log names of the losses that have keys of their own in `train`, without l_."""
    names = {"refine", "noise"}
    if train.pixel_opt is not None:
        names.add("pix")
    if train.perceptual_opt is not None:
        names |= {"percep", "style"}
    return names


def _no_diffusion(options: Options) -> list[Problem]:
    """Refuse keys of diffusion in a file of a network that restores in one pass."""
    paths: list[Path] = []
    if options.diffusion is not None:
        paths.append(("diffusion",))
    if options.path.pretrain_network_c:
        paths.append(("path", "pretrain_network_c"))
    val, default = options.val or ValOptions(), ValOptions()
    for key in ("sampling", "samples"):
        if getattr(val, key) != getattr(default, key):
            paths.append(("val", key))
    return _of_another_model(options, paths, "SAMDiffSRModel")


def _of_another_model(options: Options, paths: Sequence[Path], model_type: str) -> list[Problem]:
    """Return a problem for each key that only files of another model type may have."""
    return [Problem(path, f"belongs to model_type {model_type}; this file says {options.model_type}") for path in paths]


def _diffusion(options: Options) -> list[Problem]:
    """Check a file of a diffusion network."""
    problems = _process(options) + _sampling(options)
    sr_scale = options.network_g.arguments.get("sr_scale", 4)
    if options.network_g.type == "DiffSR" and sr_scale != options.scale:
        problems.append(Problem(("scale",), f"is {options.scale}, network_g.sr_scale is {sr_scale}; make them equal"))
    if options.compile:
        problems.append(Problem(("compile",), "is not offered for diffusion networks; leave it out"))
    if options.train is not None:
        problems += _diffusion_training(options, options.train)
    return problems


def _process(options: Options) -> list[Problem]:
    """Check the keys of `diffusion` against each other."""
    problems = []
    process = options.process
    if process.modulation == "paper" and process.target != "noise":
        message = f"is {process.target}; modulation paper predicts noise: leave target out"
        problems.append(Problem(("diffusion", "target"), message))
    if process.modulation not in ("none", "invertible") and process.profile != "flat":
        problems.append(Problem(("diffusion", "profile"), "belongs to modulation invertible; leave it out"))
    return problems


def _sampling(options: Options) -> list[Problem]:
    """Check the keys of `val` that concern sampling."""
    problems = []
    process, val = options.process, options.val or ValOptions()
    sampling = val.sampling
    if process.modulation == "paper" and sampling.sampler not in (None, "ddpm"):
        message = (
            f"is {sampling.sampler}, which needs the image that a noise estimate implies; with modulation paper "
            "it is biased by the unknown encoding: take ddpm"
        )
        problems.append(Problem(("val", "sampling", "sampler"), message))
    if (sampling.steps or 1) > process.timesteps:
        message = f"is {sampling.steps}; the diffusion has {process.timesteps} timesteps"
        problems.append(Problem(("val", "sampling", "steps"), message))
    if sampling.eta and sampling.sampler != "ddim":
        message = f"is {sampling.eta}; only sampler: ddim takes it"
        problems.append(Problem(("val", "sampling", "eta"), message))
    if val.window_size is not None:
        message = "does not apply to a diffusion network, which pads by itself; leave it out"
        problems.append(Problem(("val", "window_size"), message))
    if val.self_ensemble:
        problems.append(Problem(("val", "self_ensemble"), "averages images of one pass; a diffusion network has none"))
    return problems


def _diffusion_training(options: Options, train: TrainOptions) -> list[Problem]:
    """Check what the training of a diffusion network needs and what it excludes."""
    problems = []
    if train.pixel_opt is None:
        message = "is required by SAMDiffSRModel: the loss on the diffusion target, L1Loss (as released) or MSELoss"
        problems.append(Problem(("train", "pixel_opt"), message))
    elif train.pixel_opt.type in ("PSNRLoss", "PerceptualLoss"):
        message = "is a loss of images, not of noise; take L1Loss (as released) or MSELoss"
        problems.append(Problem(("train", "pixel_opt", "type"), message))
    for key in ("losses", "perceptual_opt"):
        if getattr(train, key):
            message = "compares restored images, but a diffusion network is trained on noise; keep pixel_opt alone"
            problems.append(Problem(("train", key), message))
    if options.process.needs_masks:
        for key, dataset in options.phase("train").items():
            if dataset.masks is None:
                message = (
                    f"is required by modulation {options.process.modulation}: {{store: PATH}} of a mask store "
                    "(sam4ir make-masks makes one), or set diffusion.modulation: none"
                )
                problems.append(Problem(("datasets", key, "masks"), message))
    if train.mixing_augs is not None and train.mixing_augs.mixup:
        problems.append(Problem(("train", "mixing_augs", "mixup"), "is not offered for diffusion networks"))
    if not options.path.pretrain_network_c and not options.path.pretrain_network_g:
        message = (
            "is required: the weights of the RRDB that conditions the network, such as "
            "experiments/rrdb_x4/models/net_g_latest.pth (options/train/sr/rrdb_x4.yml trains one)"
        )
        problems.append(Problem(("path", "pretrain_network_c"), message))
    return problems


def _data_sets(options: Options) -> list[Problem]:
    """Check keys and names of the data sets; results are filed under the names."""
    problems = []
    for key in options.datasets:
        if not _DATASET_KEY.fullmatch(key):
            message = "the key of a data set is train, val or test, with letters, digits, - or _ behind it"
            problems.append(Problem(("datasets", key), message))
    if len(training := options.phase("train")) > 1:
        problems.append(Problem(("datasets",), f"has several training sets ({', '.join(training)}); keep one"))
    for phase in ("val", "test"):
        problems += _names(options.phase(phase))
    for key, dataset in options.datasets.items():
        problems += _degradations(key, dataset)
    return problems


def _names(datasets: dict[str, DatasetOptions]) -> list[Problem]:
    """Refuse a name that two data sets of one phase share."""
    problems = []
    owners: dict[str, str] = {}
    for key, dataset in datasets.items():
        name = dataset.name or key
        first = owners.setdefault(name, key)
        if first != key:
            message = f"{name!r} is the name of datasets.{first} too; give each its own"
            problems.append(Problem(("datasets", key, "name"), message))
    return problems


def _degradations(key: str, dataset: DatasetOptions) -> list[Problem]:
    """Check that `degradations` goes with the data sets that degrade clean images."""
    if dataset.type not in DATASETS:
        return []  # another problem reports the unknown name
    place = ("datasets", key, "degradations")
    parameter = inspect.signature(DATASETS.get(dataset.type)).parameters.get("degradations")
    if dataset.degradations is None:
        if parameter is None or parameter.default is not parameter.empty:
            return []
        return [Problem(place, f"is required by {dataset.type}: a list of {{type: NAME, ...}}")]
    if parameter is not None:
        return []
    takers = []
    for name in DATASETS.names():
        if accepts(DATASETS.get(name), "degradations"):
            takers.append(name)
    return [Problem(place, f"{dataset.type} takes none; data sets that do: {', '.join(takers) or 'none'}")]


def _recipe(key: str, dataset: DatasetOptions, train: TrainOptions, distills: bool) -> list[Problem]:
    """Check stages, batches and mixing of the training set."""
    problems = _stages(key, dataset)
    mixes = train.mixing_augs is not None and train.mixing_augs.mixup
    if mixes and (distills or dataset.masks is not None):
        message = "lays two images over each other, and their regions cannot be; with masks, set mixup: false"
        problems.append(Problem(("train", "mixing_augs", "mixup"), message))
    return problems or _total_batch(dataset, train)


def _stages(key: str, dataset: DatasetOptions) -> list[Problem]:
    """Check that the lists of progressive training come together, in one length."""
    lengths = {}
    for name in _STAGES:
        values = getattr(dataset, name)
        if values is not None:
            lengths[name] = len(values)
    if not lengths:
        return []
    problems = []
    for name in _STAGES:
        if name not in lengths:
            message = f"is required with {' and '.join(lengths)}: a number for each stage"
            problems.append(Problem(("datasets", key, name), message))
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
        problems.append(Problem(("datasets", key), f"has stages of different numbers ({counts}); one entry a stage"))
    return problems


def _total_batch(dataset: DatasetOptions, train: TrainOptions) -> list[Problem]:
    """Check that a total batch consists of whole micro-batches, in every stage."""
    total, place = train.total_batch, ("train", "total_batch")
    if total is None:
        return []
    key = "batch_size_per_gpu"
    micro: Sequence[int] = (dataset.batch_size_per_gpu,)
    if dataset.mini_batch_sizes:
        key, micro = "mini_batch_sizes", dataset.mini_batch_sizes
    if isinstance(total, tuple) and not dataset.mini_batch_sizes:
        return [Problem(place, f"{list(total)} is a batch a stage, but the training set has no gt_sizes; give one")]
    if isinstance(total, tuple) and len(total) != len(micro):
        return [Problem(place, f"{list(total)} has {len(total)} entries for {len(micro)} stages; give one a stage")]
    if isinstance(total, int):
        total = (total,) * len(micro)
    problems = []
    for number, (batch, share) in enumerate(zip(total, micro, strict=True), 1):
        if batch % share:
            message = f"{batch} is no multiple of {key} {share}"
            if len(micro) > 1:
                message += f" of stage {number}"
            problems.append(Problem(place, message))
    return problems


def _plain(options: Options) -> list[Problem]:
    """Refuse keys of SAM4IR in a file that trains a plain network."""
    paths: list[Path] = []
    for key in ("spf", "network_r"):
        if getattr(options, key) is not None:
            paths.append((key,))
    if options.train:
        for key in ("spd_opt", "sgr_opt", "refine_opt", "optim_r", "scheduler_r"):
            if getattr(options.train, key) is not None:
                paths.append(("train", key))
        if options.train.distill != DistillOptions():
            paths.append(("train", "distill"))
    if options.val and options.val.refiner:
        paths.append(("val", "refiner"))
    return _of_another_model(options, paths, "SAM4IRModel")


def _distillation(options: Options) -> list[Problem]:
    """Check a file of SAM4IR."""
    problems = _masks(options)
    if options.scale != 1:
        message = f"is {options.scale}; SPF lays masks on the restored image, so SAM4IR needs scale 1"
        problems.append(Problem(("scale",), message))
    if options.val is not None and options.val.refiner and options.val.grids:
        message = "scores whole images, so it does not go with grids: true; switch one of them off"
        problems.append(Problem(("val", "refiner"), message))
    if options.train is not None:
        problems += _refiner_training(options, options.train)
        problems += _terms(options.train)
    return problems


def _terms(train: TrainOptions) -> list[Problem]:
    """Check the distillation terms: names of their own, and a weight where their type has no usual one."""
    problems = []
    loss_names = {"pix", *_log_names(train), *train.losses}
    for name in train.distill.terms:
        path: Path = ("train", "distill", "terms", name)
        if name.startswith("refine_") or name.removesuffix("_style") in loss_names:
            problems.append(Problem(path, "is a name that the log gives to a loss; take another"))
        elif name in SHORT_TERMS and getattr(train, f"{name}_opt") is not None:
            problems.append(Problem(path, f"and train.{name}_opt are the same term; keep one"))
    for name, type_name in SHORT_TERMS.items():
        term = getattr(train, f"{name}_opt")
        if term is not None and term.type in TERMS and term.type != type_name:
            message = f"is {term.type}, but {name}_opt is the term {type_name}; put this one under train.distill.terms"
            problems.append(Problem(("train", f"{name}_opt", "type"), message))
    for path, term in train.terms.values():
        if term.type not in TERMS:  # the unknown type is a problem of its own
            continue
        usual = getattr(TERMS.get(term.type), "default_balance", None)
        if term.loss_weight is None and term.balance is None and not usual:
            message = f"{term.type} has no usual weight; give loss_weight, or balance as a share of the gradient"
            problems.append(Problem(path, message))
    return problems


def _masks(options: Options) -> list[Problem]:
    """Refuse data sets without masks where the model reads masks."""
    if options.train is None or options.train.distill.masks != "store":
        return []
    readers = options.phase("train")
    if options.val is not None and options.val.refiner:
        readers = {**readers, **options.phase("val")}
    hint = "{store: PATH} of a mask store (sam4ir make-masks makes one), or set train.distill.masks: empty (or own)"
    problems = []
    for key, dataset in readers.items():
        if dataset.masks is None:
            problems.append(Problem(("datasets", key, "masks"), f"is required by SAM4IRModel: {hint}"))
    return problems


def _refiner_training(options: Options, train: TrainOptions) -> list[Problem]:
    """Check how student and refiner train together."""
    problems = []
    distill, pretrained = train.distill, options.path.pretrain_network_g
    if distill.teacher == "ema" and train.ema_decay == 0:
        problems.append(Problem(("train", "distill", "teacher"), "ema needs train.ema_decay above 0"))
    if distill.schedule == "two_phase" and not pretrained:
        message = "is required by schedule two_phase: the student is frozen first"
        problems.append(Problem(("path", "pretrain_network_g"), message))
    if distill.schedule == "two_phase" and (distill.refine_iter or 0) > train.total_iter:
        problems.append(Problem(("train", "distill", "refine_iter"), "must not be larger than total_iter"))
    if distill.init_refiner == "student" and not pretrained:
        message = "student copies the student's weights, but it has none yet; set path.pretrain_network_g"
        problems.append(Problem(("train", "distill", "init_refiner"), message))
    return problems
