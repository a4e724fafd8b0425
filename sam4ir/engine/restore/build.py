"""Options -> how an image goes through a network: in one pass, or by the sampling of a diffusion network."""

from __future__ import annotations

import dataclasses

from torch import nn

from sam4ir.config.schema import DiffusionOptions, Options, ValOptions
from sam4ir.diffusion.process import Process
from sam4ir.diffusion.schedule import noise_schedule
from sam4ir.engine.build import DIFFUSION_ENTRY, BuildError, naming
from sam4ir.engine.restore.one_pass import Inference, PlainRestorer, Restorer
from sam4ir.engine.restore.sampling import DEFAULT_STEPS, DiffusionRestorer, OnStep, Sampling
from sam4ir.engine.weights import facts_of

TILES_AT_ONCE = 8  # where val.max_minibatch is left out, as in BasicSR's forks ...
DIFFUSION_TILE = 128  # ... and of a diffusion network no more LR pixels at once than a tile of this side has


def process(options: Options) -> Process:
    """The diffusion that `diffusion` describes."""
    own = options.process
    with naming("diffusion"):
        schedule = noise_schedule(
            own.schedule, own.timesteps, s=own.s, beta_start=own.beta_start, beta_end=own.beta_end
        )
        return Process(schedule, own.modulation, own.strength, own.target, own.profile)


def trained_diffusion(source: str) -> DiffusionOptions | None:
    """The diffusion that weights were trained with, where their file says it (the released ones do not)."""
    told = facts_of(source, DIFFUSION_ENTRY)
    return DiffusionOptions.model_validate(dict(told)) if told else None


def check_diffusion(options: Options, source: str) -> None:
    """Raise BuildError where weights were trained for another reverse process than the options describe."""
    told = trained_diffusion(source) if options.diffuses else None
    if told is None:
        return
    own = options.process
    names = ["schedule", "timesteps", "target", *(["s"] if own.schedule == "cosine" else ["beta_start", "beta_end"])]
    for name in names:
        if getattr(told, name) != getattr(own, name):
            raise BuildError(
                f"diffusion.{name} is {getattr(own, name)}, but {source} was trained with {getattr(told, name)}; "
                "an image is made with what the network was trained with"
            )
    if (told.modulation == "paper") != (own.modulation == "paper"):
        raise BuildError(
            f"diffusion.modulation is {own.modulation}, but {source} was trained with {told.modulation}: with paper "
            "the estimate means something else, and only one sampler can follow it"
        )


def sampling(options: Options) -> Sampling:
    """How a diffusion network makes images, as `val` says."""
    run, own = inference(options), (options.val or ValOptions()).sampling
    sampler = own.sampler or Sampling.sampler
    steps = own.steps or min(DEFAULT_STEPS[sampler], options.process.timesteps)
    return Sampling(sampler, steps, own.spacing, own.eta, own.seed, own.precision, run.tile, run.overlap, run.batch)


def _fitting(how: Sampling, net: nn.Module) -> Sampling:
    """The sampling with tiles that the network can take. Raises BuildError where too little of a tile is its own."""
    if how.tile is None:
        return how
    multiple, smallest = int(net.multiple), int(net.smallest)  # type: ignore[arg-type]
    tile = max(how.tile // multiple, 1) * multiple
    if tile < smallest or how.overlap >= tile:
        raise BuildError(
            f"val.crop_size: tiles of {how.tile} become {tile}, as the network needs multiples of {multiple}; they "
            f"must be {smallest} at least and larger than the overlap of {how.overlap}"
        )
    return dataclasses.replace(how, tile=tile)


def build_restorer(options: Options, net: nn.Module, on_step: OnStep | None = None) -> Restorer:
    """How an image goes through a network, as the option file says. on_step: see engine.restore.sampling."""
    if options.diffuses:
        return DiffusionRestorer(net, process(options), options.scale, _fitting(sampling(options), net), on_step)
    return PlainRestorer(net, inference(options))


def inference(options: Options) -> Inference:
    """How images go through the network, as `val` says."""
    val = options.val or ValOptions()
    tile = val.crop_size if val.grids else None
    overlap = val.overlap if val.overlap is not None else (tile or 0) // 8
    batch = TILES_AT_ONCE
    if options.diffuses and tile:
        batch = min(batch, max(1, DIFFUSION_TILE**2 // tile**2))
    return Inference(tile, overlap, val.max_minibatch or batch, val.window_size or 1, val.self_ensemble, options.scale)
