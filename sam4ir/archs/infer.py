"""Which network weights belong to, from the names and shapes in their state dict.

An answer is given only where the network, built on the meta device with the arguments found, has exactly these keys
and shapes; NAFNetLocal, whose keys are NAFNet's, is told as NAFNet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from sam4ir.archs.hinet import HINet
from sam4ir.archs.nafnet import NAFNet
from sam4ir.archs.restormer import Restormer

Shapes = Mapping[str, tuple[int, ...]]

USUAL_EXPANSION = 2.66  # Restormer's in every official configuration


class Fit(NamedTuple):
    """A network with the keys and shapes asked about.

    arguments: all of its constructor's that shapes tell. untold: those that leave no trace in weights.
    """

    network: type[nn.Module]
    arguments: dict[str, Any]
    untold: tuple[str, ...] = ()


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a state dict."""
    return {key: tuple(value.shape) for key, value in state.items()}


def infer(shapes: Shapes) -> Fit | None:
    """The network of a state dict with these keys and shapes; None where none of ours has exactly them."""
    for first, guess in _GUESSES.items():
        shape = shapes.get(first, ())
        if len(shape) == 4 and min(shape) > 0:
            try:
                fit = guess(shapes)
                return fit if built_shapes(fit.network, fit.arguments) == shapes else None
            except (LookupError, ValueError, ArithmeticError, RuntimeError):  # another network's; refused arguments
                return None
    return None


def built_shapes(network: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a network, built on the meta device: no memory is taken and no random number drawn."""
    with torch.device("meta"):
        return shapes_of(network(**arguments).state_dict())


def _nafnet(shapes: Shapes) -> Fit:
    width, channels = shapes["intro.weight"][:2]
    levels = range(_count(shapes, "downs"))
    arguments = {
        "img_channel": channels,
        "width": width,
        "middle_blk_num": _count(shapes, "middle_blks"),
        "enc_blk_nums": [_count(shapes, f"encoders.{level}") for level in levels],
        "dec_blk_nums": [_count(shapes, f"decoders.{level}") for level in levels],
    }
    return Fit(NAFNet, arguments)


def _hinet(shapes: Shapes) -> Fit:
    width, channels = shapes["conv_01.weight"][:2]
    depth = _count(shapes, "down_path_1")
    hin = [level for level in range(depth) if f"down_path_1.{level}.norm.weight" in shapes]
    arguments = {
        "in_chn": channels,
        "wf": width,
        "depth": depth,
        "hin_position_left": min(hin, default=depth),
        "hin_position_right": max(hin, default=depth),
    }
    return Fit(HINet, arguments, untold=("relu_slope",))


def _restormer(shapes: Shapes) -> Fit:
    dim, channels = shapes["patch_embed.proj.weight"][:2]
    levels = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    norms = {key.rsplit(".", 1)[-1] for key in shapes if ".norm1.body." in key}
    first_blocks = [f"{level}.0.attn.temperature" for level in levels]
    if first_blocks[0] not in shapes:
        first_blocks[0] = "refinement.0.attn.temperature"  # the other stage of this level that may have blocks
    arguments = {
        "inp_channels": channels,
        "out_channels": shapes["output.weight"][0],
        "dim": dim,
        "num_blocks": [_count(shapes, level) for level in levels],
        "num_refinement_blocks": _count(shapes, "refinement"),
        "heads": [shapes.get(block, (1,))[0] for block in first_blocks],
        "ffn_expansion_factor": _expansion(shapes),
        "bias": "output.bias" in shapes,
        "LayerNorm_type": "BiasFree" if norms == {"weight"} else "WithBias",
        "dual_pixel_task": "skip_conv.weight" in shapes,
    }
    return Fit(Restormer, arguments)


_GUESSES: dict[str, Callable[[Shapes], Fit]] = {
    "intro.weight": _nafnet,
    "conv_01.weight": _hinet,
    "patch_embed.proj.weight": _restormer,
}


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbers follow `prefix` and a dot."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({found[1] for found in map(pattern.match, shapes) if found})


def _expansion(shapes: Shapes) -> float:
    """A factor whose product with each level's channels, rounded down, is its number of hidden channels: 2.66 where it
    is one, else the one with the fewest decimals.
    """
    sizes = {shape[:2] for key, shape in shapes.items() if key.endswith(".ffn.project_out.weight")}
    least = max((hidden / channels for channels, hidden in sizes), default=0.0)
    candidates = (f for f in _factors(least) if all(int(c * f) == hidden for c, hidden in sizes))
    return next(candidates, least)


def _factors(least: float) -> Iterator[float]:
    yield USUAL_EXPANSION
    for decimals in range(7):
        yield math.ceil(least * 10**decimals) / 10**decimals
