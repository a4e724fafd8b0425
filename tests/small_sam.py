"""Parts of a SAM of random weights whose masks have areas and edges."""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer


def random_decoder() -> MaskDecoder:
    """SAM's true decoder with random weights, drawn from torch's stream, that are scaled so that masks differ."""
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=256)
    decoder = MaskDecoder(transformer_dim=256, transformer=transformer, num_multimask_outputs=3)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(1.5)
        decoder.iou_prediction_head.layers[-1].weight.mul_(8)
    return decoder
