"""Options -> the parts of a training run: data with masks, model, optimisers, EMA."""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sam4ir.archs.layers import checkpoint_blocks
from sam4ir.config.schema import Block, DatasetOptions, OptimOptions, Options, SgrOptions, SpdOptions, TermOptions
from sam4ir.config.signature import accepts, block_arguments
from sam4ir.data.masks.store import MaskStore
from sam4ir.data.sample import MaskRecordLike, MaskViews
from sam4ir.data.sources import listed
from sam4ir.data.transforms import Window
from sam4ir.distill.balance import TermWeight
from sam4ir.distill.sgr import SemanticGuidedRelation
from sam4ir.distill.spd import SemanticPriorsDistillation
from sam4ir.distill.spf import SemanticPriorsFusion
from sam4ir.engine.build import (
    ALONE,
    DIFFUSION_ENTRY,
    BuildError,
    channels_of,
    check_images,
    dataset,
    make,
    naming,
    network,
    pretrained,
    to_device,
)
from sam4ir.engine.restore.build import process
from sam4ir.engine.train.ema import Ema
from sam4ir.engine.train.optim import Optimiser, learning_rate
from sam4ir.engine.train.parts import TrainingParts
from sam4ir.engine.train.stages import Stage, stages
from sam4ir.models.restoration import Loss, Model, Restoration
from sam4ir.models.sam_diffsr import SamDiffSR
from sam4ir.models.sam_distill import Refiner, SamDistill, Schedule, Term
from sam4ir.priors.spe import MaskRecordLike as SpeRecordLike
from sam4ir.priors.spe import Mean, spe_map
from sam4ir.registry import DATASETS, FUSIONS, LOSSES, SCHEDULES
from sam4ir.utils.dist import World, peers
from sam4ir.utils.rng import torch_stream

SPE_IMAGES = 1000  # that the scale of the position encoding is measured on

DEFAULT_BALANCE = {"spd": 0.3, "sgr": 0.05}


def region_view(record: MaskRecordLike, window: Window) -> np.ndarray:
    """The region map of a crop: (h, w) int, 0 = no region."""
    return record.region_map(window.top, window.left, window.height, window.width)  # type: ignore[attr-defined]


def spe_view(record: SpeRecordLike, window: Window, mean: Mean = "image") -> np.ndarray:
    """The structural position encoding of a crop: (h, w) float32."""
    return spe_map(record, window.top, window.left, window.height, window.width, mean)


def views_of(options: Options) -> MaskViews:
    """What training reads of masks; nothing where the model does not look at them."""
    if options.distills and options.train is not None and options.train.distill.masks == "store":
        return {"regions": region_view}
    if options.diffuses and options.process.needs_masks:
        return {"spe": functools.partial(spe_view, mean=options.process.mean)}
    return {}


def masked_dataset(key: str, block: DatasetOptions, options: Options, views: MaskViews) -> Any:
    """A data set whose samples carry these views of its masks, if any."""
    if not views or block.masks is None:
        return dataset(key, block, options)
    if not accepts(DATASETS.get(block.type), "masks"):
        raise BuildError(
            f"datasets.{key}.type: {block.type} takes no masks; its constructor needs masks and mask_views"
        )
    store = mask_store(key, block)
    if "spe" in views and options.process.mean == "region" and store.meta.get("imported", {}).get("format") == "spe":
        raise BuildError(
            f"diffusion.mean: region needs whole masks, but {store.path} was imported from maps of their encoding, "
            "which show of each mask what no other covers; take mean: image, or masks made by scripts/make_masks.py"
        )
    data = dataset(key, block, options, masks=store, mask_views=views)
    known = set(store.keys())
    lacking = [name for name in map(data.key, range(len(data))) if name not in known]
    if lacking:
        raise BuildError(
            f"datasets.{key}.masks.store: {store.path} lacks {listed(lacking)} of {len(data)}; make their masks, from "
            "the images that the data set reads (scripts/make_masks.py goes on with a store; scripts/masks.py verify "
            "lists all that lack, and its crop cuts masks of whole images as sub-images were cut)"
        )
    return data


def measured_spe(options: Options) -> float:
    """The RMS of the position encoding over the covered pixels of the training images (at most SPE_IMAGES of them).

    Raises BuildError where no pixel of them is covered.
    """
    ((key, block),) = options.phase("train").items()
    store = mask_store(key, block)
    data = dataset(key, block, options)
    total, count = 0.0, 0
    for index in range(0, len(data), -(-len(data) // SPE_IMAGES)):
        record = store.read(data.key(index))
        spe = spe_map(record, 0, 0, *record.size, mean=options.process.mean)
        covered = record.list_map(0, 0, *record.size) > 0
        total += float(np.square(spe[covered], dtype=np.float64).sum())
        count += int(covered.sum())
    if not total:
        raise BuildError(f"datasets.{key}.masks.store: {store.path} covers no pixel of the training images")
    return math.sqrt(total / count)


def mask_store(key: str, block: DatasetOptions) -> MaskStore:
    """The mask store of a data set; raises BuildError where it cannot be read or was made of other images."""
    assert block.masks is not None
    with naming(f"datasets.{key}.masks.store"):
        store = MaskStore(block.masks.store)
        if block.masks.source and store.meta.get("source") != block.masks.source:
            made = store.meta.get("source")
            raise ValueError(
                f"{store.path}: its masks were made of {made} images; masks.source asks for {block.masks.source}"
            )
    return store


def _optimiser(options: Options, net: nn.Module, label: str, start: int) -> Optimiser:
    train = options.train
    assert train is not None
    own: OptimOptions = (train.optim_r or train.optim_g) if label == "r" else train.optim_g
    place = "scheduler_r" if label == "r" and train.scheduler_r else "scheduler"
    block: Block | None = getattr(train, place)
    schedule: Callable[[int, float], float] = SCHEDULES.get("ConstantLR")
    if block is not None:
        schedule = functools.partial(
            SCHEDULES.get(block.type), **block_arguments(SCHEDULES, block.type, block.arguments)
        )
    with naming(f"train.{place}"):
        schedule(0, own.lr)
        rate = learning_rate(own.lr, schedule, train.warmup_iter, start)
    return Optimiser(
        net.parameters(),
        type_name=own.type,
        rate=rate,
        betas=own.betas,
        weight_decay=own.decay,
        eps=own.eps,
        clip=train.grad_clip if train.use_grad_clip else None,
    )


def _weight(term: TermOptions, name: str) -> TermWeight:
    if term.loss_weight is not None:
        return TermWeight(fixed=term.loss_weight)
    return TermWeight(share=term.balance if term.balance is not None else DEFAULT_BALANCE[name])


def _spd(block: SpdOptions | None) -> tuple[SemanticPriorsDistillation, Term] | None:
    if block is None or block.off:
        return None
    return SemanticPriorsDistillation(block.criterion, block.gate), Term(block.target, _weight(block, "spd"))


def _sgr(block: SgrOptions | None, device: torch.device) -> tuple[SemanticGuidedRelation, Term] | None:
    if block is None or block.off:
        return None
    from sam4ir.priors.features import VGGFeatures

    with naming("train.sgr_opt"):
        analyser = VGGFeatures(variant=block.variant, layers=block.layers, weights=block.weights)
    analyser = to_device(analyser, device)
    relation = SemanticGuidedRelation(analyser, analyser.strides, block.min_cells, block.bf16)
    return relation, Term(block.target, _weight(block, "sgr"), block.every)


def _schedule(options: Options) -> Schedule:
    train = options.train
    assert train is not None
    if train.distill.schedule == "two_phase":
        return Schedule(refine_iter=train.distill.refine_iter)
    start = train.distill.start_iter
    return Schedule(start_iter=start if start is not None else math.ceil(train.total_iter / 10))


def build_parts(options: Options, device: torch.device, world: World = ALONE, channels: int = 3) -> TrainingParts:
    """Model, optimisers and EMAs of a training run, from the start (before any checkpoint).

    channels: of the degraded images.
    """
    train = options.train
    assert train is not None
    student = network(options.network_g, "g", options, device)
    loaded = pretrained(student, options)
    check_images(student, options, device, channels)
    networks: dict[str, nn.Module] = {"g": student}
    if options.distills:
        networks["r"] = _refiner(options, student, loaded, device)
    _checkpoint_activations(networks, options)
    emas = {label: Ema(net, train.ema_decay) for label, net in networks.items()}
    second = train.distill.refine_iter or 0
    starts = {"g": second, "r": 0}
    optimisers = {label: _optimiser(options, net, label, starts[label]) for label, net in networks.items()}
    shared = {label: _shared(net, options, device, world) for label, net in networks.items()}
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
    metadata = {DIFFUSION_ENTRY: options.process.model_dump()} if options.diffuses else {}
    return TrainingParts(
        _model(options, shared, emas, device), optimisers, emas, scaler, tuple(shared.values()), metadata
    )


def _model(options: Options, networks: Mapping[str, nn.Module], emas: Mapping[str, Ema], device: torch.device) -> Model:
    train = options.train
    assert train is not None
    loss = _loss(train.pixel_opt, "train.pixel_opt", device)
    if options.diffuses:
        measure = functools.partial(measured_spe, options)
        encoding = f"SPE, mean over the {options.process.mean}"
        return SamDiffSR(networks["g"], process(options), loss, options.manual_seed, measure, encoding)
    if not options.distills:
        return Restoration(networks["g"], loss, options.manual_seed)
    return SamDistill(
        networks["g"],
        networks["r"],
        loss,
        refine_loss=_loss(train.refine_opt, "train.refine_opt", device) if train.refine_opt else None,
        spd=_spd(train.spd_opt),
        sgr=_sgr(train.sgr_opt, device),
        teacher=emas["r"].module if train.distill.teacher == "ema" else None,
        schedule=_schedule(options),
        masks=train.distill.masks == "store",
        seed=options.manual_seed,
    )


def _shared(net: nn.Module, options: Options, device: torch.device, world: World) -> nn.Module:
    """The network as many processes train it: gradients are averaged while they are computed."""
    if world.size == 1:
        return net
    # beta and gamma of NAFNet are (1, c, 1, 1): whatever strides a side of 1 has, the memory is the same
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    with peers():
        return DistributedDataParallel(
            net,
            device_ids=[device.index] if device.type == "cuda" else None,
            find_unused_parameters=options.find_unused_parameters,
            gradient_as_bucket_view=True,
        )


def _checkpoint_activations(networks: Mapping[str, nn.Module], options: Options) -> None:
    for label, net in networks.items() if options.checkpoint_activations else ():
        if not checkpoint_blocks(net):
            raise BuildError(f"checkpoint_activations: network_{label} has no blocks that can be computed again")


def compilable(parts: TrainingParts) -> dict[str, nn.Module]:
    """What `compile` compiles, by label: the student, and the refiner's network without SPF."""
    networks = parts.model.networks
    return {label: net.network if isinstance(net, Refiner) else net for label, net in networks.items()}


def _loss(block: Block, place: str, device: torch.device) -> Loss:
    loss: Loss = make(LOSSES, block, place)
    return loss.to(device) if isinstance(loss, nn.Module) else loss


def _refiner(options: Options, student: nn.Module, loaded: bool, device: torch.device) -> Refiner:
    train = options.train
    assert train is not None
    second = network(options.network_r or options.network_g, "r", options, device)
    if train.distill.init_refiner == "student" and loaded:
        with naming("train.distill.init_refiner"):
            try:
                second.load_state_dict(student.state_dict())
            except RuntimeError:
                raise ValueError("student needs network_r to be the network of the student") from None
    with torch_stream(options.manual_seed, "init", "spf"):
        spf = make(FUSIONS, options.spf, "spf") if options.spf else SemanticPriorsFusion()
    return Refiner(to_device(spf, device, options.channels_last), second)


@dataclass(frozen=True)
class Sets:
    """The data sets of a run: the training set with its options, validation sets by name."""

    train: Any
    loader: DatasetOptions
    val: Mapping[str, Any]

    @property
    def channels(self) -> int:
        """Channels of the degraded training images."""
        return channels_of(self.train)

    def of(self, stage: Stage) -> Any:
        """The training set with the patches of a stage."""
        return self.train if stage.gt_size is None else self.train.with_gt_size(stage.gt_size)


def data_sets(options: Options) -> Sets:
    """Training and validation sets; masks are read where the model looks at them."""
    train = options.train
    if train is None or not options.phase("train"):
        raise BuildError("datasets.train: training needs a training set and a `train` block; test.py scores networks")
    ((key, block),) = options.phase("train").items()
    views = views_of(options)
    scored = views if options.val is not None and options.val.refiner else {}
    val = {b.name or k: masked_dataset(k, b, options, scored) for k, b in options.phase("val").items()}
    built = masked_dataset(key, block, options, views)
    if block.gt_sizes is not None and not callable(getattr(built, "with_gt_size", None)):
        raise BuildError(
            f"datasets.{key}.gt_sizes: {block.type} cannot change its patch size; it needs a method with_gt_size(size)"
        )
    return Sets(built, block, val)


def stages_of(options: Options, loader: DatasetOptions, world: World) -> list[Stage]:
    """The stages of the training; see engine/train/stages.py."""
    assert options.train is not None
    with naming("datasets.train"):
        return stages(options.train, loader, world.size)


def worker_count(loader: DatasetOptions) -> int:
    """num_worker_per_gpu, at most the machine's processors."""
    return min(loader.num_worker_per_gpu, os.cpu_count() or 1)
