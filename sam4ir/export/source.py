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
from sam4ir.engine.build import DIFFUSION_ENTRY, build_network, naming
from sam4ir.engine.restore.build import build_inference, restore_recipe
from sam4ir.engine.restore.images import image_form
from sam4ir.engine.restore.settings import file_of_run, network_options
from sam4ir.engine.weights import load_weights, locate
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
    options = network_options(weights, options_file, "cpu").options
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
    facts = facts_of(locate(weights), weights, options_file or file_of_run(weights))
    if recipe.diffusion is not None:
        facts[DIFFUSION_ENTRY] = recipe.diffusion.model_dump()
    return ExportSource(network, block, channels, scale, window, facts)
