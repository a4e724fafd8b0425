"""Options -> the Restorer: one pass of a plain network, or the sampling of a diffusion network."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass

from pydantic import ValidationError
from torch import nn

from sam4ir.config.schema import DiffusionOptions, Options, ValOptions
from sam4ir.diffusion.process import Process
from sam4ir.diffusion.samplers import OnStep
from sam4ir.diffusion.schedule import noise_schedule
from sam4ir.engine.build import DIFFUSION_ENTRY, BuildError, naming
from sam4ir.engine.foreign.network import ForeignNetwork
from sam4ir.engine.restore.one_pass import Inference, OnTile, PlainRestorer, Restorer
from sam4ir.engine.restore.sampling import DEFAULT_STEPS, DiffusionRestorer, Sampling
from sam4ir.engine.weights import WeightsFileError, metadata_of

log = logging.getLogger(__name__)

TILES_AT_ONCE = 8  # where val.max_minibatch is left out, as in BasicSR's forks ...
DIFFUSION_TILE = 128  # ... and of a diffusion network no more LR pixels at once than a tile of this side has


@dataclass(frozen=True)
class RestoreRecipe:
    """The keys of an option file by which its network restores images.

    val: tiles, self-ensemble, sampling. scale: output pixels per input pixel.
    diffusion: the process of a diffusion network; None for a network that restores in one pass.
    precision: the number format of a network that restores in one pass; no option file sets it, so that validation and
    tests have fp32.
    compiled: whether the network is compiled for inference (`compile: inference`), see `for_inference`.
    """

    val: ValOptions
    scale: int = 1
    diffusion: DiffusionOptions | None = None
    precision: str = "fp32"
    compiled: bool = False

    def in_format(self, precision: str) -> RestoreRecipe:
        """Return the recipe with another number format: fp32, bf16 or fp16."""
        return dataclasses.replace(self, precision=precision)


def restore_recipe(options: Options) -> RestoreRecipe:
    """Return the keys of an option file by which its network restores images."""
    diffusion = options.process if options.diffuses else None
    return RestoreRecipe(options.val or ValOptions(), options.scale, diffusion, compiled=options.compile == "inference")


def for_inference(recipe: RestoreRecipe, net: nn.Module) -> nn.Module:
    """Return the network, compiled where the recipe says so; its weights must not change any more."""
    if not recipe.compiled or recipe.diffusion is not None:
        return net
    from sam4ir.engine.restore.compiled import CompiledNetwork  # torch's compiler takes seconds to import

    return CompiledNetwork(net, in_tiles=build_inference(recipe).tile is not None)


def build_restorer(
    recipe: RestoreRecipe, net: nn.Module, on_step: OnStep | None = None, on_tile: OnTile | None = None
) -> Restorer:
    """Build the Restorer of a network.

    on_step: called with (steps done, all steps) by a diffusion network. on_tile: called with (tiles done, all tiles) by
    another one that restores in tiles.

    Raises BuildError where the tiles of val.crop_size do not suit the network.
    """
    inference = build_inference(recipe)
    if recipe.diffusion is None:
        multiple = math.lcm(inference.multiple, getattr(net, "unshuffle", 1))  # RRDBNet of scale 2 and 1
        inference = dataclasses.replace(inference, on_tile=on_tile)
        if isinstance(net, ForeignNetwork):
            return PlainRestorer(net, _suited(inference, net), recipe.precision)
        return PlainRestorer(net, dataclasses.replace(inference, multiple=multiple), recipe.precision)
    sampling = _fitted(build_sampling(recipe, recipe.diffusion), net)
    return DiffusionRestorer(net, build_process(recipe.diffusion), recipe.scale, sampling, on_step)


def _suited(inference: Inference, net: ForeignNetwork) -> Inference:
    """Return the inference with tiles that a network of another library takes without padding each of them."""
    traits = net.traits
    multiple = math.lcm(inference.multiple, traits.multiple)
    if inference.tile is None:
        return dataclasses.replace(inference, multiple=multiple)
    name = type(net).__name__
    if not traits.tiles_advised:
        log.warning("%s looks at the whole image; in tiles its result may differ from that without", name)
    tile = max(inference.tile // multiple, 1) * multiple
    if tile < traits.minimum or inference.overlap >= tile:
        raise BuildError(
            f"val.crop_size: tiles of {inference.tile} become {tile}, as {name} needs multiples of {multiple}; they "
            f"must be {max(traits.minimum, 1)} at least and larger than the overlap of {inference.overlap}"
        )
    return dataclasses.replace(inference, multiple=multiple, tile=tile)


def build_inference(recipe: RestoreRecipe) -> Inference:
    """Return how images go through a network: whole or in tiles, with self-ensemble where val asks for it."""
    val = recipe.val
    tile = val.crop_size if val.grids else None
    overlap = val.overlap
    if overlap is None:
        overlap = (tile or 0) // 8
    batch = TILES_AT_ONCE
    if recipe.diffusion is not None and tile:
        batch = min(batch, max(1, DIFFUSION_TILE**2 // tile**2))
    return Inference(tile, overlap, val.max_minibatch or batch, val.window_size or 1, val.self_ensemble, recipe.scale)


def build_sampling(recipe: RestoreRecipe, diffusion: DiffusionOptions) -> Sampling:
    """Return the sampling of a diffusion network that val.sampling describes; steps are at most the process's."""
    inference, keys = build_inference(recipe), recipe.val.sampling
    sampler = keys.sampler or Sampling.sampler
    return Sampling(
        sampler,
        steps=keys.steps or min(DEFAULT_STEPS[sampler], diffusion.timesteps),
        spacing=keys.spacing,
        eta=keys.eta,
        seed=keys.seed,
        precision=keys.precision,
        tile=inference.tile,
        overlap=inference.overlap,
        batch=inference.batch,
    )


def _fitted(sampling: Sampling, net: nn.Module) -> Sampling:
    """Return the sampling with tiles that the network can take.

    Raises BuildError where tiles are too small for the network, or hardly larger than their overlap.
    """
    if sampling.tile is None:
        return sampling
    multiple, smallest = int(net.multiple), int(net.smallest)  # type: ignore[arg-type]
    tile = max(sampling.tile // multiple, 1) * multiple
    if tile < smallest or sampling.overlap >= tile:
        raise BuildError(
            f"val.crop_size: tiles of {sampling.tile} become {tile}, as the network needs multiples of {multiple}; "
            f"they must be {smallest} at least and larger than the overlap of {sampling.overlap}"
        )
    return dataclasses.replace(sampling, tile=tile)


def build_process(diffusion: DiffusionOptions) -> Process:
    """Build the diffusion process that the block `diffusion` describes."""
    with naming("diffusion"):
        schedule = noise_schedule(
            diffusion.schedule,
            diffusion.timesteps,
            s=diffusion.s,
            beta_start=diffusion.beta_start,
            beta_end=diffusion.beta_end,
        )
        return Process(schedule, diffusion.modulation, diffusion.strength, diffusion.target, diffusion.profile)


def trained_diffusion(source: str) -> DiffusionOptions | None:
    """Return the diffusion that weights were trained with; None where their file does not hold it (released ones)."""
    metadata = metadata_of(source, DIFFUSION_ENTRY)
    if not metadata:
        return None
    try:
        return DiffusionOptions.model_validate(dict(metadata))
    except ValidationError as error:
        problem = error.errors()[0]
        raise WeightsFileError(
            f"{source}: its entry {DIFFUSION_ENTRY} describes no diffusion ({problem['loc'][0]}: {problem['msg']}); "
            "describe it in an option file and give that with -opt"
        ) from None


def check_diffusion(diffusion: DiffusionOptions, source: str) -> None:
    """Raise BuildError where weights were trained for another reverse process than `diffusion` describes."""
    trained = trained_diffusion(source)
    if trained is None:
        return
    keys = ["schedule", "timesteps", "target"]
    if diffusion.schedule == "cosine":
        keys.append("s")
    else:
        keys += ["beta_start", "beta_end"]
    for key in keys:
        asked, held = getattr(diffusion, key), getattr(trained, key)
        if asked != held:
            raise BuildError(
                f"diffusion.{key} is {asked}, but {source} was trained with {held}; "
                "images must be sampled with the diffusion that the network was trained with"
            )
    if (trained.modulation == "paper") != (diffusion.modulation == "paper"):
        raise BuildError(
            f"diffusion.modulation is {diffusion.modulation}, but {source} was trained with {trained.modulation}: "
            "with paper the estimate means something else, and only one sampler can follow it"
        )
