"""Options -> the parts of a training run: data with masks, model, optimisers, EMA."""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sam4ir.archs.layers import checkpoint_blocks
from sam4ir.config.schema import Block, DatasetOptions, OptimOptions, Options
from sam4ir.config.signature import block_arguments
from sam4ir.distill.spf import SemanticPriorsFusion
from sam4ir.engine.build import (
    ALONE,
    DIFFUSION_ENTRY,
    BuildError,
    check_images,
    make,
    naming,
    network,
    pretrained,
    to_device,
)
from sam4ir.engine.restore.build import process
from sam4ir.engine.train.data import measured_spe
from sam4ir.engine.train.ema import Ema
from sam4ir.engine.train.losses import LossBuilder, build_reconstruction, build_refinement
from sam4ir.engine.train.optim import Optimiser, learning_rate
from sam4ir.engine.train.parts import TrainingParts
from sam4ir.engine.train.stages import Stage, stages
from sam4ir.engine.train.terms import build_terms
from sam4ir.errors import UserError
from sam4ir.models.restoration import Loss, Model, Restoration
from sam4ir.models.sam_diffsr import SamDiffSR
from sam4ir.models.sam_distill import Refiner, SamDistill, Schedule
from sam4ir.registry import FUSIONS, SCHEDULES
from sam4ir.utils.dist import World, peers
from sam4ir.utils.rng import torch_stream


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
    model = _model(options, shared, emas, LossBuilder(device, min(channels, 3)))
    return TrainingParts(model, optimisers, emas, scaler, tuple(shared.values()), metadata)


def _model(options: Options, networks: Mapping[str, nn.Module], emas: Mapping[str, Ema], builder: LossBuilder) -> Model:
    """Return the model of a run: the networks with their losses and distillation terms."""
    train = options.train
    assert train is not None
    if options.diffuses:
        assert train.pixel_opt is not None  # config/consistency.py requires it
        loss = cast(Loss, builder.build(train.pixel_opt, "train.pixel_opt"))
        measure = functools.partial(measured_spe, options)
        encoding = f"SPE, mean over the {options.process.mean}"
        return SamDiffSR(networks["g"], process(options), loss, options.manual_seed, measure, encoding)
    reconstruction = build_reconstruction(train, builder)
    if not options.distills:
        return Restoration(networks["g"], reconstruction, options.manual_seed)
    return SamDistill(
        networks["g"],
        networks["r"],
        reconstruction,
        build_refinement(train, reconstruction, builder),
        terms=build_terms(train, builder.device),
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


def _refiner(options: Options, student: nn.Module, loaded: bool, device: torch.device) -> Refiner:
    train = options.train
    assert train is not None
    second = network(options.network_r or options.network_g, "r", options, device)
    if train.distill.init_refiner == "student" and loaded:
        with naming("train.distill.init_refiner"):
            try:
                second.load_state_dict(student.state_dict())
            except RuntimeError:
                raise UserError("student needs network_r to be the network of the student") from None
    with torch_stream(options.manual_seed, "init", "spf"):
        spf = make(FUSIONS, options.spf, "spf") if options.spf else SemanticPriorsFusion()
    return Refiner(to_device(spf, device, options.channels_last), second)


def stages_of(options: Options, loader: DatasetOptions, world: World) -> list[Stage]:
    """The stages of the training; see engine/train/stages.py."""
    assert options.train is not None
    with naming("datasets.train"):
        return stages(options.train, loader, world.size)


def worker_count(loader: DatasetOptions) -> int:
    """num_worker_per_gpu, at most the machine's processors."""
    return min(loader.num_worker_per_gpu, os.cpu_count() or 1)
