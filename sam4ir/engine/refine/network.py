"""Options -> the refiner of SAM4IR: SPF and the second network."""

from __future__ import annotations

import torch
from torch import nn

from sam4ir.config.schema import Options
from sam4ir.distill.spf import SemanticPriorsFusion
from sam4ir.engine.build import build_network, build_part, to_device
from sam4ir.models.sam_distill import Refiner
from sam4ir.registry import FUSIONS
from sam4ir.utils.rng import torch_stream


def build_refiner(options: Options, device: torch.device) -> Refiner:
    """Build the refiner that an option file describes; its initial weights are a function of manual_seed."""
    seed, channels_last = options.manual_seed, options.channels_last
    block = options.network_r or options.network_g
    network = build_network(block, "r", device, seed=seed, channels_last=channels_last)
    with torch_stream(seed, "init", "spf"):
        spf: nn.Module
        if options.spf:
            spf = build_part(FUSIONS, options.spf, "spf")
        else:
            spf = SemanticPriorsFusion()
    return Refiner(to_device(spf, device, channels_last), network)
