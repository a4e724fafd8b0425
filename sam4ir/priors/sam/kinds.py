"""The kinds of SAM: networks with random weights, and the kind that a weights file holds, told by names and shapes."""

from __future__ import annotations

import functools
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

KINDS = ("vit_h", "vit_l", "vit_b", "mobile_sam")

_WIDTH = 256  # of SAM's embeddings
_PLACES = (64, 64)  # of an image's embedding
_PIXELS = (1024, 1024)  # that the encoders take


def build_sam(kind: str) -> Sam:
    """A SAM of a kind out of KINDS with random weights, in eval mode and without gradients.

    Raises ValueError with the near miss for another kind.
    """
    sam = construct(kind)
    return sam.eval().requires_grad_(False)


def read_sam_state(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The kind of SAM that a weights file holds, and its state dict.

    Raises ValueError naming the file, the nearest kind and what differs where it is none.
    """
    state = read_weights(path).state
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    differences = {kind: _differences(shapes, _shapes(kind)) for kind in KINDS}
    nearest = min(KINDS, key=lambda kind: sum(map(len, differences[kind].values())))
    found = {what: keys for what, keys in differences[nearest].items() if keys}
    if found:
        told = "; ".join(f"{len(keys)} {what} ({_some(keys)})" for what, keys in found.items())
        raise WeightsFileError(
            f"{path}: holds no SAM of a known kind ({', '.join(KINDS)}). Nearest is {nearest}, of whose "
            f"{len(_shapes(nearest))} tensors, against the file's {len(state)}: {told}"
        )
    return nearest, state


def require_kind(path: Path, kind: str) -> None:
    """Raise WeightsFileError unless a weights file would load strictly into a SAM of this kind."""
    found, _ = read_sam_state(path)
    if found != kind:
        raise WeightsFileError(f"{path}: is a SAM of kind {found}, not the {kind} it should be")


def construct(kind: str) -> Sam:
    """As build_sam, in training mode and with gradients; on the meta device nothing is allocated or drawn."""
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


def _differences(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    both = [key for key in wanted if key in found]
    return {
        "are missing": [key for key in wanted if key not in found],
        "are unknown": [key for key in found if key not in wanted],
        "have another shape": [f"{k} {found[k]}, expected {wanted[k]}" for k in both if found[k] != wanted[k]],
    }


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
