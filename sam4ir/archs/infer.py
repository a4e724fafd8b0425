"""Recognition of a network by its weights, from the names and shapes in their state dict.

A network is reported only if it has exactly these keys and shapes when it is built on the meta device with the
inferred arguments. NAFNetLocal has NAFNet's keys and is reported as NAFNet, BaselineLocal as Baseline. The tables of a
noise schedule that released checkpoints of SAM-DiffSR hold beside the weights are ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from sam4ir.archs.diffusion_sr import DiffSR, is_released_table
from sam4ir.archs.diffusion_unet import DiffSRUnet
from sam4ir.archs.hinet import HINet
from sam4ir.archs.nafnet import Baseline, NAFNet
from sam4ir.archs.restormer import Restormer
from sam4ir.archs.rrdb import DiffSRRRDBNet, RRDBNet, to_basicsr_keys

Shapes = Mapping[str, tuple[int, ...]]

USUAL_EXPANSION = 2.66  # Restormer's in every official configuration


class Fit(NamedTuple):
    """A network with the keys and shapes of a state dict.

    arguments: the constructor's arguments that follow from shapes. undetermined: arguments without a trace in weights.
    """

    network: type[nn.Module]
    arguments: dict[str, Any]
    undetermined: tuple[str, ...] = ()


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Return key -> shape of a state dict."""
    return {key: tuple(value.shape) for key, value in state.items()}


def infer(shapes: Shapes) -> Fit | None:
    """Return the network of a state dict with these keys and shapes; None if none of ours has exactly them."""
    if "denoise_fn.cond_proj.weight" in shapes:
        shapes = {key: shape for key, shape in shapes.items() if not is_released_table(key)}
    if "model.0.weight" in shapes or "0.weight" in shapes:
        shapes = to_basicsr_keys(shapes)
    for first, guess in _GUESSES.items():
        shape = shapes.get(first, ())
        if len(shape) == 4 and min(shape) > 0:
            try:
                fit = guess(shapes)
                if built_shapes(fit.network, fit.arguments) == shapes:
                    return fit
            except (LookupError, ValueError, ArithmeticError, RuntimeError):  # another network, or invalid arguments
                pass
            return None
    return None


def restoring(fit: Fit) -> Fit:
    """Return the network that restores images in [0, 1] with the weights of `fit`.

    ESRGAN's first release and SRDiff have the same keys; DiffSRRRDBNet takes images in [-1, 1], RRDBNet computes the
    same for those in [0, 1].
    """
    old = fit.arguments
    if fit.network is not DiffSRRRDBNet or old["sr_scale"] != 4:
        return fit
    arguments = {
        "num_in_ch": old["in_nc"],
        "num_out_ch": old["out_nc"],
        "scale": 4,
        "num_feat": old["nf"],
        "num_block": old["nb"],
        "num_grow_ch": old["gc"],
    }
    return Fit(RRDBNet, arguments, fit.undetermined)


def shared_keys(fit: Fit) -> bool:
    """Return whether another network has the keys and shapes of `fit`, and ours does not restore as that one does.

    ESRGAN of scale 8 (BSRGAN's code) takes images in [0, 1], DiffSRRRDBNet those in [-1, 1].
    """
    return restoring(fit).network is DiffSRRRDBNet


def stereo(shapes: Shapes) -> bool:
    """Return whether a state dict is that of NAFSSR, which restores two views at once."""
    return any(key.startswith("body.0.module.blk.") for key in shapes)


def built_shapes(network: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return key -> shape of a network on the meta device, which takes no memory and draws no random number."""
    with torch.device("meta"):
        return shapes_of(network(**arguments).state_dict())


def _nafnet(shapes: Shapes) -> Fit:
    """Infer NAFNet, or Baseline, whose blocks have squeeze-and-excitation (se)."""
    width, channels = shapes["intro.weight"][:2]
    levels = range(_count(shapes, "downs"))
    arguments = {
        "img_channel": channels,
        "width": width,
        "middle_blk_num": _count(shapes, "middle_blks"),
        "enc_blk_nums": [_count(shapes, f"encoders.{level}") for level in levels],
        "dec_blk_nums": [_count(shapes, f"decoders.{level}") for level in levels],
    }
    squeeze = next((key for key in shapes if key.endswith(".se.1.weight")), None)
    if squeeze is None:
        return Fit(NAFNet, arguments)
    block = squeeze.removesuffix(".se.1.weight")
    for name, conv in {"dw_expand": "conv1", "ffn_expand": "conv4"}.items():
        after, before = shapes[f"{block}.{conv}.weight"][:2]
        arguments[name] = after // before
    return Fit(Baseline, arguments)


def _hinet(shapes: Shapes) -> Fit:
    """Infer HINet; its levels with half instance normalisation follow one another."""
    width, channels = shapes["conv_01.weight"][:2]
    depth = _count(shapes, "down_path_1")
    hin = []
    for level in range(depth):
        if f"down_path_1.{level}.norm.weight" in shapes:
            hin.append(level)
    arguments = {
        "in_chn": channels,
        "wf": width,
        "depth": depth,
        "hin_position_left": min(hin, default=depth),
        "hin_position_right": max(hin, default=depth),
    }
    return Fit(HINet, arguments, undetermined=("relu_slope",))


def _restormer(shapes: Shapes) -> Fit:
    """Infer Restormer, of one of its two kinds of layer normalisation."""
    dim, channels = shapes["patch_embed.proj.weight"][:2]
    levels = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    norms = set()
    for key in shapes:
        if ".norm1.body." in key:
            norms.add(key.rsplit(".", 1)[-1])
    norm = "WithBias"
    if norms == {"weight"}:
        norm = "BiasFree"
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
        "LayerNorm_type": norm,
        "dual_pixel_task": "skip_conv.weight" in shapes,
    }
    return Fit(Restormer, arguments)


def _rrdb(shapes: Shapes) -> Fit:
    """Infer an RRDB network with the keys of BasicSR or of SRDiff."""
    width, channels = shapes["conv_first.weight"][:2]
    out = shapes["conv_last.weight"][0]
    if "trunk_conv.weight" in shapes:
        arguments = {
            "in_nc": channels,
            "out_nc": out,
            "nf": width,
            "nb": _count(shapes, "RRDB_trunk"),
            "gc": shapes.get("RRDB_trunk.0.RDB1.conv1.weight", (32,))[0],
            "sr_scale": 8 if "upconv3.weight" in shapes else 4,
        }
        return Fit(DiffSRRRDBNet, arguments)
    scale = {4 * out: 2, 16 * out: 1}.get(channels, 4)  # as many channels come in as go out
    arguments = {
        "num_in_ch": channels // (4 // scale) ** 2,
        "num_out_ch": out,
        "scale": scale,
        "num_feat": width,
        "num_block": _count(shapes, "body"),
        "num_grow_ch": shapes.get("body.0.rdb1.conv1.weight", (32,))[0],
    }
    return Fit(RRDBNet, arguments)


def _diffsr_unet(shapes: Shapes) -> Fit:
    """Infer DiffSRUnet; weights hold only a product of cond_dim and rrdb_num_block, so cond_dim is dim if that fits."""
    joined, dim, kernel = shapes["cond_proj.weight"][:3]
    cond_dim = dim
    if joined % dim:
        cond_dim = joined
    arguments = {
        "dim": dim,
        "out_dim": shapes["final_conv.1.weight"][0],
        "dim_mults": _multiples(shapes, "downs", dim),
        "cond_dim": cond_dim,
        "rrdb_num_block": 3 * (joined // cond_dim) - 1,
        "sr_scale": kernel // 2,
        "use_attn": "mid_attn.fn.g" in shapes,
        "up_input": "up_proj.1.weight" in shapes,
        "cond_sam": "sam_conv.0.weight" in shapes,
    }
    return Fit(DiffSRUnet, arguments, undetermined=("cond_dim", "rrdb_num_block"))


def _diffsr(shapes: Shapes) -> Fit:
    """Infer DiffSR, the U-Net with its RRDB network."""
    _, dim, kernel = shapes["denoise_fn.cond_proj.weight"][:3]
    arguments = {
        "hidden_size": dim,
        "dim_mults": _multiples(shapes, "denoise_fn.downs", dim),
        "rrdb_num_feat": shapes["rrdb.conv_first.weight"][0],
        "rrdb_num_block": _count(shapes, "rrdb.RRDB_trunk"),
        "sr_scale": kernel // 2,
        "use_attn": "denoise_fn.mid_attn.fn.g" in shapes,
        "up_input": "denoise_fn.up_proj.1.weight" in shapes,
    }
    return Fit(DiffSR, arguments)


def _multiples(shapes: Shapes, levels: str, dim: int) -> list[int]:
    """Return the width of each level of a U-Net over its width at full resolution."""
    multiples = []
    for level in range(_count(shapes, levels)):
        width = shapes[f"{levels}.{level}.0.mlp.1.weight"][0]
        multiples.append(width // dim)
    return multiples


_GUESSES: dict[str, Callable[[Shapes], Fit]] = {
    "intro.weight": _nafnet,
    "conv_01.weight": _hinet,
    "patch_embed.proj.weight": _restormer,
    "conv_first.weight": _rrdb,
    "cond_proj.weight": _diffsr_unet,
    "denoise_fn.cond_proj.weight": _diffsr,
}


def _count(shapes: Shapes, prefix: str) -> int:
    """Return how many different numbers follow `prefix` and a dot."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    numbers = set()
    for key in shapes:
        match = pattern.match(key)
        if match is not None:
            numbers.add(match[1])
    return len(numbers)


def _expansion(shapes: Shapes) -> float:
    """Return a factor whose product with each level's channels, rounded down, is its number of hidden channels.

    That is 2.66 if it fits, and otherwise the factor with the fewest decimals.
    """
    sizes = set()
    for key, shape in shapes.items():
        if key.endswith(".ffn.project_out.weight"):
            sizes.add(shape[:2])
    least = max((hidden / channels for channels, hidden in sizes), default=0.0)
    for factor in _factors(least):
        if all(int(channels * factor) == hidden for channels, hidden in sizes):
            return factor
    return least


def _factors(least: float) -> Iterator[float]:
    """Yield factors to try: the usual one, then `least` rounded up to 0, 1, 2 ... decimals."""
    yield USUAL_EXPANSION
    for decimals in range(7):
        yield math.ceil(least * 10**decimals) / 10**decimals
