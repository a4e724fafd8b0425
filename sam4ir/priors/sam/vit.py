"""The forward pass of SAM's ViT encoder, without its largest matrices.

Parameters and result are those of the segment-anything package's ImageEncoderViT. Only the computation of attention
with decomposed relative positions (Li et al., "MViTv2", CVPR 2022, eq. 4) differs:

    softmax(q k^T / sqrt(d) + H + W) v,    H[i, j] = q_i . r_h(y_i - y_j),    W[i, j] = q_i . r_w(x_i - x_j)

The package holds all n x n scores of all heads at once: 0.8 GB and more for the 4096 places of a global block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling.image_encoder import Attention, Block, ImageEncoderViT, get_rel_pos
from torch import Tensor

SCORES_AT_ONCE = 1 << 18  # of a thread on the CPU: one megabyte of float32, which stays in its second-level cache


def encode(encoder: ImageEncoderViT, x: Tensor) -> Tensor:
    """Return the image embedding (b, 256, h / 16, w / 16) of x: (b, 3, h, w), normalised, of the encoder's img_size.

    The encoder must have absolute and relative positions, as all encoders of SAM have. Follows autocast.
    """
    tokens = encoder.patch_embed(x) + encoder.pos_embed
    for block in encoder.blocks:
        tokens = _block(block, tokens)
    return encoder.neck(tokens.permute(0, 3, 1, 2))


def _block(block: Block, x: Tensor) -> Tensor:
    x = x + _windowed_attention(block.attn, block.norm1(x), block.window_size)
    return x + block.mlp(block.norm2(x))


def _windowed_attention(attention: Attention, x: Tensor, window: int) -> Tensor:
    """Apply attention to x (b, h, w, c) within windows (0: one window), padded with zeros at the right and bottom.

    The queries, keys and values of the zeros are the layer's bias, so the padding follows the layer.
    """
    b, h, w, c = x.shape
    size_h, size_w = (window, window) if window else (h, w)
    qkv = _padded(attention.qkv(x), attention.qkv.bias, -h % size_h, -w % size_w)
    rows, columns, heads = qkv.shape[1] // size_h, qkv.shape[2] // size_w, attention.num_heads
    by_window = qkv.view(b, rows, size_h, columns, size_w, 3, heads, -1).permute(5, 0, 1, 3, 6, 2, 4, 7)
    q, k, v = by_window.reshape(3, b * rows * columns, heads, size_h * size_w, -1)
    offsets_h = get_rel_pos(size_h, size_h, attention.rel_pos_h)
    offsets_w = get_rel_pos(size_w, size_w, attention.rel_pos_w)
    places = q.unflatten(2, (size_h, size_w))
    bias_h = torch.einsum("bnhwc,hkc->bnhwk", places, offsets_h)
    bias_w = torch.einsum("bnhwc,wkc->bnhwk", places, offsets_w)
    attend = _attend_fused
    if q.device.type == "cpu" and q.dtype == torch.float32:
        attend = _attend_by_blocks
    out = attend(q, k, v, bias_h, bias_w).view(b, rows, columns, heads, size_h, size_w, -1)
    out = out.permute(0, 1, 4, 2, 5, 3, 6).reshape(b, rows * size_h, columns * size_w, c)
    return attention.proj(out[:, :h, :w])


def _padded(x: Tensor, value: Tensor, bottom: int, right: int) -> Tensor:
    """Append `bottom` rows and `right` columns of value (c,) to x (b, h, w, c)."""
    if not bottom and not right:
        return x
    b, h, w, _ = x.shape
    out = value.to(x.dtype).repeat(b, h + bottom, w + right, 1)
    out[:, :h, :w] = x
    return out


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
    """Compute attention in one fused call, with the biases as further channels.

    (H + W)[i, j] is the inner product of query i's bias_h and bias_w with key j's row and column in one-hot form.

    q, k, v: (b, heads, h w, d); bias_h: (b, heads, h, w, h) and bias_w: (.., w), by the key's row and column.
    """
    h, w = bias_h.shape[-1], bias_w.shape[-1]
    d = q.shape[-1]
    spare = -(d + h + w) % 8  # GPU kernels want a multiple of 8 channels; values need as many as keys
    rows = torch.eye(h, dtype=q.dtype, device=q.device).repeat_interleave(w, 0)
    columns = torch.eye(w, dtype=q.dtype, device=q.device).repeat(h, 1)
    place = torch.cat([rows, columns], dim=-1).expand(*k.shape[:2], -1, -1)
    queries = torch.cat([q * d**-0.5, bias_h.flatten(2, 3), bias_w.flatten(2, 3)], dim=-1)
    queries, keys = (F.pad(x, (0, spare)) for x in (queries, torch.cat([k, place], dim=-1)))
    return F.scaled_dot_product_attention(queries, keys, F.pad(v, (0, h + w + spare)), scale=1.0)[..., :d]


def _attend_by_blocks(q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor) -> Tensor:
    """Compute the same block by block, so that scores fit the CPU's cache; nearly twice as fast in float32 there."""
    h, w = bias_h.shape[2:4]
    shape, places = q.shape, h * w
    q, k, v, bias_h, bias_w = (x.flatten(0, 1).contiguous() for x in (q, k, v, bias_h, bias_w))
    q, k = q * q.shape[-1] ** -0.5, k.transpose(1, 2)
    out = torch.empty_like(v)
    limit = SCORES_AT_ONCE * torch.get_num_threads()
    maps = max(1, limit // places**2)  # small windows: several heads together; large ones: some rows of queries
    rows = min(h, max(1, limit // (w * places)))
    for first in range(0, len(q), maps):
        some = slice(first, first + maps)
        for top in range(0, h, rows):
            queries = slice(top * w, (top + rows) * w)
            bias = bias_h[some, top : top + rows, :, :, None] + bias_w[some, top : top + rows, :, None, :]
            scores = bias.view(bias.shape[0], -1, places).baddbmm_(q[some, queries], k[some])
            out[some, queries] = torch.bmm(scores.softmax(dim=-1), v[some])
    return out.view(shape)
