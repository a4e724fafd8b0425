"""The kinds of SAM: build one with random weights, and recognise the kind of a weights file by names and shapes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor

from sam4ir.errors import UserError
from sam4ir.priors.sam.tiny_vit import TinyViT
from sam4ir.registry import near_miss
from sam4ir.utils.weights import WeightsFileError, read_weights

log = logging.getLogger(__name__)

KINDS = ("vit_h", "vit_l", "vit_b", "mobile_sam")

_WIDTH = 256  # channels of SAM's embeddings
_PLACES = (64, 64)  # height and width of an image's embedding
_PIXELS = (1024, 1024)  # height and width of the encoders' input


def build_sam(kind: str) -> Sam:
    """Build a SAM of a kind in KINDS with random weights, in eval mode and without gradients.

    Raises UserError with the nearest name for another kind.
    """
    sam = construct(kind)
    return sam.eval().requires_grad_(False)


def read_sam_state(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the kind of SAM that a weights file holds, and its state dict.

    Raises WeightsFileError naming the file, the nearest kind and the differences if it holds none.
    """
    weights = read_weights(path)
    state = weights.state
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    differences = {kind: _differences(shapes, _shapes(kind)) for kind in KINDS}
    nearest = min(KINDS, key=lambda kind: sum(map(len, differences[kind].values())))
    problems = []
    for what, keys in differences[nearest].items():
        if keys:
            problems.append(f"{len(keys)} {what} ({_examples(keys)})")
    if problems:
        raise WeightsFileError(
            f"{path}: holds no SAM of a known kind ({', '.join(KINDS)}). Nearest is {nearest}, of whose "
            f"{len(_shapes(nearest))} tensors, against the file's {len(state)}: {'; '.join(problems)}"
        )
    log.info("SAM %s: its weights are %s", nearest, weights.description)
    return nearest, state


def require_kind(path: Path, kind: str) -> None:
    """Raise WeightsFileError unless a weights file would load strictly into a SAM of this kind."""
    actual, _ = read_sam_state(path)
    if actual != kind:
        raise WeightsFileError(f"{path}: is a SAM of kind {actual}, not the {kind} it should be")


def construct(kind: str) -> Sam:
    """Build a SAM as build_sam does, but in training mode and with gradients. The meta device allocates nothing."""
    if kind not in KINDS:
        raise UserError(f"no SAM is of kind {kind!r}{near_miss(kind, KINDS) or ';'} known: {', '.join(KINDS)}")
    if kind != "mobile_sam":
        return sam_model_registry[kind](checkpoint=None)
    transformer = TwoWayTransformer(depth=2, embedding_dim=_WIDTH, num_heads=8, mlp_dim=2048)
    decoder = MaskDecoder(transformer_dim=_WIDTH, transformer=transformer, num_multimask_outputs=3)
    prompts = PromptEncoder(embed_dim=_WIDTH, image_embedding_size=_PLACES, input_image_size=_PIXELS, mask_in_chans=16)
    return Sam(TinyViT(), prompts, decoder)


@functools.cache
def _shapes(kind: str) -> Mapping[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in construct(kind).state_dict().items()}


def _differences(actual: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """Return the names of tensors that a file lacks, that are unknown, and that have another shape."""
    missing = [name for name in wanted if name not in actual]
    unknown = [name for name in actual if name not in wanted]
    reshaped = []
    for name, shape in wanted.items():
        if name in actual and actual[name] != shape:
            reshaped.append(f"{name} {actual[name]}, expected {shape}")
    return {"are missing": missing, "are unknown": unknown, "have another shape": reshaped}


def _examples(keys: list[str]) -> str:
    """Return the first three keys as text."""
    text = ", ".join(keys[:3])
    if len(keys) > 3:
        text += ", ..."
    return text
