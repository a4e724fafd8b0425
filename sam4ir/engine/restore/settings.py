"""The options by which weights restore images: those of their run or their shapes, changed as a user asks.

sam4ir restore and sam4ir.load both choose them here, so that they give the same images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError

from sam4ir.config.consistency import consistency
from sam4ir.config.load import Override, load_options
from sam4ir.config.schema import DIFFUSION_MODEL, Block, DiffusionOptions, Options, SamplingOptions, ValOptions
from sam4ir.engine.precision import settle_format, settle_restoring
from sam4ir.engine.restore.build import RestoreRecipe, restore_recipe, trained_diffusion
from sam4ir.engine.weights import flow, network_block
from sam4ir.errors import UserError
from sam4ir.utils.weights import is_hub_name

Naming = Callable[[str], str]  # the name of a setting -> how messages write it, such as --self-ensemble

_OF_SAMPLING = ("sampler", "steps", "eta", "seed")


@dataclass(frozen=True)
class RestoreSettings:
    """What a user asks for when images are restored. None leaves what the option file says.

    tile: side of a tile in pixels of the input; 0 takes whole images. overlap: pixels that tiles share.
    self_ensemble: the mean over the eight flips and rotations. precision: auto, fp32, bf16, or fp16 on CUDA; None is
    fp32, and for a diffusion network what the option file says. The others are for diffusion networks.
    sampler: a name of diffusion.samplers. steps: passes of the network. eta: from 0 to 1, for ddim. seed: of the noise.
    samples: results of an image. compile: compile the network first; for networks that restore in one pass.
    """

    tile: int | None = None
    overlap: int | None = None
    self_ensemble: bool | None = None
    precision: str | None = None
    sampler: str | None = None
    steps: int | None = None
    eta: float | None = None
    seed: int | None = None
    samples: int = 1
    compile: bool = False


class DescribedOptions(NamedTuple):
    """The options of a network, and lines that say what the weights showed of it."""

    options: Options
    notes: list[str]


def network_options(
    weights: str | None, file: Path | None, device: str | None, named: Naming = str
) -> DescribedOptions:
    """Return the options of a network that restores.

    weights: a file or a name of the zoo. file: the option file that the user names, whose plugins are imported. Without
    it the options are those of the run that the weights lie in, or what the weights show. device: replaces the file's.
    Raises UserError where neither describes a network.
    """
    path = file or file_of_run(weights)
    if path is not None:
        overrides = []
        if device:
            overrides.append(Override(("device",), device, named("device")))
        return DescribedOptions(load_options(path, overrides, training=False, named_by_user=file is not None), [])
    if weights is None:
        raise UserError(f"{named('weights')}: name the weights, or an option file with path.pretrain_network_g")
    block = network_block(weights)
    notes = [f"network_g: {flow(block)} (by the weights)"]
    kind: dict[str, Any] = {}
    if block["type"] == "DiffSR":
        diffusion, note = _diffusion_of(weights)
        notes.append(note)
        kind = {"scale": block.get("sr_scale", 4), "model_type": DIFFUSION_MODEL, "diffusion": diffusion}
    try:
        options = Options(name="restore", network_g=Block(**block), device=device or "auto", **kind)
    except ValidationError as error:
        message = f"{named('device')}: {device!r} is none; give auto, cpu, cuda, cuda:1 ... or mps"
        raise UserError(message) from error
    return DescribedOptions(options, notes)


def file_of_run(weights: str | None) -> Path | None:
    """Return the option file of the run that a weights file lies in, or of a model of a hub; None without one."""
    if weights and is_hub_name(weights):
        from sam4ir.priors.zoo.hub import hub_options  # a file needs no hub

        return hub_options(weights)
    if not weights or not Path(weights).is_file():
        return None
    options_file = Path(weights).resolve().parent.parent / "options.yml"
    if not options_file.is_file():
        return None
    return options_file


def _diffusion_of(weights: str) -> tuple[DiffusionOptions, str]:
    """Return the diffusion of a network, and a line on it: that of its weights file, else the released code's."""
    recorded = trained_diffusion(weights)
    diffusion = recorded or DiffusionOptions()
    source = "by the weights"
    if not recorded:
        source = "assumed, as the weights do not record it; an option file does: -opt"
    return diffusion, f"diffusion: {flow(diffusion.model_dump())} ({source})"


def with_settings(options: Options, settings: RestoreSettings, named: Naming = str) -> Options:
    """Return the options, changed as the settings of tiles and sampling say.

    Raises UserError naming the setting that the network has no use for or that is out of its range.
    """
    val = options.val or ValOptions()
    sampling = _sampling(options, settings, named)
    changes: dict[str, Any] = {"samples": settings.samples, **_tiles(val, settings, named)}
    if settings.self_ensemble is not None:
        changes["self_ensemble"] = settings.self_ensemble
    try:
        changes["sampling"] = SamplingOptions(**{**val.sampling.model_dump(), **sampling})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{named(str(first['loc'][0]))}: {first['input']!r}: {first['msg']}") from error
    # training sets and their masks are of no concern here
    whole: dict[str, Any] = {"val": val.model_copy(update=changes), "train": None, "datasets": {}}
    if settings.compile:
        whole["compile"] = "inference"
    changed = options.model_copy(update=whole)
    for problem in consistency(changed):
        raise UserError(f"{named(str(problem.path[-1]))}: {problem.message}")
    return changed


def _tiles(val: ValOptions, settings: RestoreSettings, named: Naming) -> dict[str, Any]:
    """Return the keys of `val` that the settings of tiles change."""
    changes: dict[str, Any] = {}
    tile = settings.tile
    if tile:
        changes = {"grids": True, "crop_size": tile, "overlap": settings.overlap}
    elif settings.overlap is not None:
        changes["overlap"] = settings.overlap
    if tile is None and val.grids:
        tile = val.crop_size
    elif tile == 0:
        changes["grids"] = False
    if settings.overlap is not None and not tile:
        raise UserError(f"{named('overlap')}: there are no tiles; add {named('tile')}")
    if settings.overlap is not None and tile and settings.overlap >= tile:
        raise UserError(f"{named('overlap')}: {settings.overlap} must be smaller than the tile of {tile}")
    return changes


def _sampling(options: Options, settings: RestoreSettings, named: Naming) -> dict[str, Any]:
    """Return the keys of val.sampling that are set; raise UserError for those that the network has no use for."""
    sampling: dict[str, Any] = {}
    for name in _OF_SAMPLING:
        value = getattr(settings, name)
        if value is not None:
            sampling[name] = value
    names = list(sampling)
    if settings.samples > 1:
        names.append("samples")
    if names and not options.diffuses:
        kind = options.network_g.type
        raise UserError(f"{named(names[0])}: is for diffusion networks; {kind} restores in one pass")
    if options.diffuses and settings.precision is not None:
        if settings.precision == "fp16":
            raise UserError(f"{named('precision')}: a diffusion network samples in fp32 or bf16; give one of them")
        sampling["precision"] = settings.precision
    if "sampler" in sampling:  # steps and eta of the file are another sampler's
        sampling = {"steps": None, "eta": 0.0, **sampling}
    return sampling


class SettledRecipe(NamedTuple):
    """How images are restored, without `auto`. lines: what `auto` became, and warnings about slow formats."""

    recipe: RestoreRecipe
    lines: list[str]


def settled_recipe(options: Options, precision: str | None, device: torch.device, named: Naming = str) -> SettledRecipe:
    """Return how a network restores on a device, by options that with_settings returned.

    precision: that of the settings. Raises UserError for fp16 on a device without it.
    """
    formats = settle_restoring(options, device)
    recipe = restore_recipe(formats.options)
    lines = [*formats.chosen, *formats.warnings]
    if recipe.diffusion is not None or precision is None:
        return SettledRecipe(recipe, lines)
    if precision == "fp16" and device.type != "cuda":
        raise UserError(f"{named('precision')}: fp16 is for CUDA, and the device is {device}; give bf16, fp32 or auto")
    number_format, further = settle_format(named("precision"), precision, device)
    return SettledRecipe(recipe.in_format(number_format), [*lines, *further])
