"""Options -> the parts of a training run: model, optimisers, EMA."""

from __future__ import annotations

import functools
import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sam4ir.archs.layers import checkpoint_blocks
from sam4ir.config.schema import (
    Block,
    DatasetOptions,
    DiffusionOptions,
    DistillOptions,
    OptimOptions,
    Options,
    TrainOptions,
)
from sam4ir.config.signature import block_arguments
from sam4ir.engine.build import (
    DIFFUSION_ENTRY,
    BuildError,
    build_network,
    check_images,
    load_pretrained,
    naming,
)
from sam4ir.engine.foreign.network import ForeignNetwork
from sam4ir.engine.refine.network import build_refiner
from sam4ir.engine.restore.build import build_process
from sam4ir.engine.train.data import measured_spe
from sam4ir.engine.train.ema import Ema
from sam4ir.engine.train.losses import LossBuilder, build_reconstruction, build_refinement
from sam4ir.engine.train.optim import Optimiser, learning_rate
from sam4ir.engine.train.parts import TrainingParts
from sam4ir.engine.train.stages import Stage, stages
from sam4ir.engine.train.step import Step
from sam4ir.engine.train.terms import build_terms
from sam4ir.errors import UserError
from sam4ir.models.restoration import Loss, Model, Restoration
from sam4ir.models.sam_diffsr import SamDiffSR
from sam4ir.models.sam_distill import Refiner, SamDistill, Schedule
from sam4ir.registry import SCHEDULES
from sam4ir.utils.dist import ALONE, World, peers
from sam4ir.utils.precision import number_format

log = logging.getLogger(__name__)


def train_options(options: Options) -> TrainOptions:
    """Return the block `train` of an option file. Raises BuildError where the file has none."""
    if options.train is None:
        raise BuildError("train: the file has no such block, so it trains nothing; score it with sam4ir test")
    return options.train


def build_parts(options: Options, device: torch.device, world: World = ALONE, channels: int = 3) -> TrainingParts:
    """Build model, optimisers and EMAs of a training run, as they are before any checkpoint is loaded.

    channels: of the degraded images.
    """
    train = train_options(options)
    networks = _networks(options, train, device, channels)
    if options.checkpoint_activations:
        _checkpoint_activations(networks)
    starts = {"g": train.distill.refine_iter or 0, "r": 0}  # iterations before the network begins to train
    emas, optimisers, shared = {}, {}, {}
    for label, net in networks.items():
        emas[label] = Ema(net, train.ema_decay, options.ema_warms_up)
        optimisers[label] = _optimiser(train, net, label, starts[label])
        shared[label] = _shared(net, device, world, options.find_unused_parameters)
    scaler = torch.amp.GradScaler(device.type, enabled=number_format(options.precision, device) == "fp16")
    seed = options.manual_seed
    builder = LossBuilder(device, min(channels, 3))
    metadata: dict[str, Any] = {}
    model: Model
    if options.diffuses:
        metadata = {DIFFUSION_ENTRY: options.process.model_dump()}
        ((key, block),) = options.phase("train").items()
        measure = functools.partial(measured_spe, key, block, options.scale, options.process.mean)
        model = _diffusion_model(shared["g"], train, options.process, measure, seed, builder)
    elif options.distills:
        model = _distilling_model(shared, train, emas, seed, builder)
    else:
        model = Restoration(shared["g"], build_reconstruction(train, builder), seed)
    save_format = options.logger.save_format
    return TrainingParts(model, optimisers, emas, scaler, tuple(shared.values()), metadata, save_format)


def _networks(options: Options, train: TrainOptions, device: torch.device, channels: int) -> dict[str, nn.Module]:
    """Build the networks that train, by label: the student g, and the refiner r of SAM4IR; load pretrained weights."""
    seed, channels_last = options.manual_seed, options.channels_last
    student = build_network(options.network_g, "g", device, seed=seed, channels_last=channels_last)
    has_weights = load_pretrained(student, options.path, average=not options.official)
    window = options.val.window_size if options.val is not None else None
    check_images(student, options.scale, device, channels, diffusion=options.diffuses, multiple=window or 1)
    if options.precision == "fp16" and isinstance(student, ForeignNetwork) and not student.traits.half:
        log.warning(
            "precision: fp16: by spandrel %s does not do well in it; bf16 or fp32 is safe", options.network_g.type
        )
    if not options.distills:
        return {"g": student}
    refiner = build_refiner(options, device)
    if has_weights:
        _copy_student(student, refiner.network, train.distill)
    return {"g": student, "r": refiner}


def _copy_student(student: nn.Module, second: nn.Module, distill: DistillOptions) -> None:
    """Copy the student's pretrained weights into the refiner's network, where distill.init_refiner asks for it."""
    if distill.init_refiner != "student":
        return
    with naming("train.distill.init_refiner"):
        try:
            second.load_state_dict(student.state_dict())
        except RuntimeError:
            raise UserError("student needs network_r to be the network of the student") from None


def _optimiser(train: TrainOptions, net: nn.Module, label: str, start: int) -> Optimiser:
    """Build the optimiser of a network. start: iterations before the network begins to train."""
    optim: OptimOptions = train.optim_g
    place = "scheduler"
    if label == "r":
        optim = train.optim_r or train.optim_g
        if train.scheduler_r:
            place = "scheduler_r"
    block: Block | None = getattr(train, place)
    schedule: Callable[[int, float], float] = SCHEDULES.get("ConstantLR")
    if block is not None:
        schedule = functools.partial(
            SCHEDULES.get(block.type), **block_arguments(SCHEDULES, block.type, block.arguments)
        )
    with naming(f"train.{place}"):
        schedule(0, optim.lr)
        rate = learning_rate(optim.lr, schedule, train.warmup_iter, start)
    return Optimiser(
        net.parameters(),
        type_name=optim.type,
        rate=rate,
        betas=optim.betas,
        weight_decay=optim.decay,
        eps=optim.eps,
        clip=train.grad_clip if train.use_grad_clip else None,
    )


def _diffusion_model(
    net: nn.Module,
    train: TrainOptions,
    diffusion: DiffusionOptions,
    measure: Callable[[], float],
    seed: int,
    builder: LossBuilder,
) -> Model:
    """Build the model of SAM-DiffSR. measure: returns the RMS of the training images' position encoding."""
    assert train.pixel_opt is not None  # config/consistency.py requires it
    loss = cast(Loss, builder.build(train.pixel_opt, "train.pixel_opt"))
    encoding = f"SPE, mean over the {diffusion.mean}"
    return SamDiffSR(net, build_process(diffusion), loss, seed, measure, encoding)


def _distilling_model(
    networks: Mapping[str, nn.Module], train: TrainOptions, emas: Mapping[str, Ema], seed: int, builder: LossBuilder
) -> Model:
    """Build the model of SAM4IR from the networks g and r as the step calls them."""
    reconstruction = build_reconstruction(train, builder)
    return SamDistill(
        networks["g"],
        networks["r"],
        reconstruction,
        build_refinement(train, reconstruction, builder),
        terms=build_terms(train, builder.device),
        teacher=emas["r"].module if train.distill.teacher == "ema" else None,
        schedule=schedule_of(train.distill, train.total_iter),
        masks=train.distill.masks,
        seed=seed,
    )


def schedule_of(distill: DistillOptions, total_iter: int) -> Schedule:
    """Return the schedule of student and refiner; where start_iter is unset, terms start after a tenth of training."""
    if distill.schedule == "two_phase":
        return Schedule(refine_iter=distill.refine_iter)
    if distill.start_iter is None:
        return Schedule(start_iter=math.ceil(total_iter / 10))
    return Schedule(start_iter=distill.start_iter)


def _shared(net: nn.Module, device: torch.device, world: World, find_unused: bool) -> nn.Module:
    """Wrap a network for training by several processes: gradients are averaged while they are computed."""
    if world.size == 1:
        return net
    # beta and gamma of NAFNet are (1, c, 1, 1): whatever strides a side of 1 has, the memory is the same
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    with peers():
        return DistributedDataParallel(
            net,
            device_ids=[device.index] if device.type == "cuda" else None,
            find_unused_parameters=find_unused,
            gradient_as_bucket_view=True,
        )


def _checkpoint_activations(networks: Mapping[str, nn.Module]) -> None:
    """Make the blocks of the networks compute their activations again in the backward pass, which saves memory."""
    for label, net in networks.items():
        if not checkpoint_blocks(net):
            raise BuildError(f"checkpoint_activations: network_{label} has no blocks that can be computed again")


def build_step(options: Options, parts: TrainingParts, device: torch.device, world: World = ALONE) -> Step:
    """Build the optimiser step of a training run."""
    return Step(
        parts,
        device,
        world,
        precision=number_format(options.precision, device),
        channels_last=options.channels_last,
        find_unused_parameters=options.find_unused_parameters,
    )


def compilable(parts: TrainingParts) -> dict[str, nn.Module]:
    """Return the networks that `compile` compiles, by label: the student, and the refiner's network without SPF."""
    networks: dict[str, nn.Module] = {}
    for label, network in parts.model.networks.items():
        if isinstance(network, Refiner):
            network = network.network
        networks[label] = network
    return networks


def stages_of(train: TrainOptions, loader: DatasetOptions, world: World) -> list[Stage]:
    """Return the stages of the training; see engine/train/stages.py."""
    with naming("datasets.train"):
        return stages(train, loader, world.size)


def worker_count(loader: DatasetOptions) -> int:
    """Return num_worker_per_gpu, at most the number of the machine's processors."""
    return min(loader.num_worker_per_gpu, os.cpu_count() or 1)
