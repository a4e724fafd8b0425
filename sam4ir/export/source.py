"""Find the network that an export is of: its options, its weights and what its run knows of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sam4ir.archs.diffusion_sr import DiffSR
from sam4ir.config.load import load_options
from sam4ir.config.schema import DIFFUSION_MODEL, Block, Options
from sam4ir.engine.build import DIFFUSION_ENTRY, build_network, naming
from sam4ir.engine.restore.build import build_inference, restore_recipe, trained_diffusion
from sam4ir.engine.restore.images import image_form
from sam4ir.engine.weights import load_weights, locate, network_block
from sam4ir.export.graph import ExportError
from sam4ir.export.metadata import facts_of


@dataclass(frozen=True)
class ExportSource:
    """A trained network on the CPU in evaluation mode, in float32.

    network_g: its type and arguments. channels: of the images that it takes. scale: output pixels per input pixel.
    window: images are padded to a multiple of it. facts: where the weights come from (export.metadata.facts_of).
    """

    network: nn.Module
    network_g: Mapping[str, Any]
    channels: int
    scale: int
    window: int
    facts: Mapping[str, Any]


def export_source(weights: str, options_file: Path | None = None) -> ExportSource:
    """Load the network of a weights file or of a name of the zoo.

    options_file: describes the network. Without it the options of the run that the file lies in do, or the file itself.
    Raises UserError where nothing describes the network, or the weights do not fit it.
    """
    path = locate(weights)
    file = options_file or _file_of_run(path)
    options = _options(weights, file, named_by_user=options_file is not None)
    device = torch.device("cpu")
    network = build_network(options.network_g, "g", device, seed=options.manual_seed)
    load_weights(network, weights, options.path.param_key_g or options.path.param_key, average=options.reads_average)
    network.eval()
    recipe = restore_recipe(options)
    if recipe.diffusion is not None and not isinstance(network, DiffSR):
        raise ExportError(f"{type(network).__name__}: of the diffusion networks, DiffSR alone can be exported")
    with naming("network_g"):
        channels, scale = image_form(network, device, recipe)
    window = math.lcm(build_inference(recipe).multiple, int(getattr(network, "unshuffle", 1)))
    block = {"type": options.network_g.type, **options.network_g.arguments}
    facts = facts_of(path, weights, file)
    if recipe.diffusion is not None:
        facts[DIFFUSION_ENTRY] = recipe.diffusion.model_dump()
    return ExportSource(network, block, channels, scale, window, facts)


def _options(weights: str, file: Path | None, named_by_user: bool) -> Options:
    """Return the options of a file, or those that the weights show. Only a file that the user names runs plugins."""
    if file is not None:
        return load_options(file, ["device=cpu"], training=False, named_by_user=named_by_user)
    block = network_block(weights)
    kind: dict[str, Any] = {}
    if block["type"] == "DiffSR":
        kind = {"scale": block.get("sr_scale", 4), "model_type": DIFFUSION_MODEL}
        diffusion = trained_diffusion(weights)
        if diffusion is not None:
            kind["diffusion"] = diffusion
    return Options(name="export", network_g=Block(**block), device="cpu", **kind)


def _file_of_run(weights: Path) -> Path | None:
    """Return the option file of the run that a weights file lies in; None without such a file."""
    options_file = weights.resolve().parent.parent / "options.yml"
    if not options_file.is_file():
        return None
    return options_file
