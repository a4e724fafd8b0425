"""SAM's mask decoder for many single points on one image (Kirillov et al., arXiv 2304.02643, section 3 and appendix A).

Work that the segment-anything package repeats is done once here: image tokens stay in one contiguous layout; tokens
that do not depend on the point enter the first layer once for all points; mask embeddings are up-scaled only for points
that have a mask to keep. `ExactArithmetic` keeps the package's order of operations, so its float32 results are equal
bit for bit. `FoldedArithmetic` multiplies the image-side projections into the few point tokens: a quarter of the
multiplications, and results that agree up to rounding.

Alphabet: b points, n tokens of a point (IoU, 4 masks, point, padding), k = 64 * 64 image tokens, c = 256 channels,
h heads of d channels, m masks.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import Tensor, nn

MULTIMASK = slice(1, 4)  # the first mask token is for prompts that are not ambiguous


class Decoded(NamedTuple):
    """The decoder's results for b points.

    iou: (b, 3) predicted IoU of each point's masks. tokens: (b, n, c). image: (b, k, c), not up-scaled yet.
    """

    iou: Tensor
    tokens: Tensor
    image: Tensor


class Arithmetic(Protocol):
    """The arithmetic of the image side. Image tokens are (b, k, c), or (1, k, c) if all points share them."""

    dtype: torch.dtype

    def to_image(self, attention: Any, tokens: Tensor, positioned: Tensor, image: Tensor) -> Tensor:
        """Return (b, n, c) float32: queries `tokens` attend to keys `positioned` and values `image`."""
        ...

    def from_image(self, attention: Any, positioned: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return (b, k, c): image tokens `positioned` attend to a point's tokens, as keys and values (b, n, c)."""
        ...

    def logits(self, upscaling: Any, image: Tensor, hyper: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return (b, masks, 4 * grid) mask logits: up-scaled image tokens times weights hyper (b, masks, c / 8)."""
        ...


class PointDecoder:
    """The prompt encoder and the mask decoder of `sam`.

    arithmetic: its dtype holds for everything that is computed at each image token; the tokens of points and the
    predicted IoU stay in float32.
    """

    def __init__(self, sam: Sam, arithmetic: Arithmetic) -> None:
        self._prompts = sam.prompt_encoder
        self._decoder = sam.mask_decoder
        self._arithmetic = arithmetic
        dtype = arithmetic.dtype
        self._norms = [_cast(layer.norm4, dtype) for layer in sam.mask_decoder.transformer.layers]
        self._upscaling = _cast(sam.mask_decoder.output_upscaling, dtype)
        self._position = _image_tokens(sam.prompt_encoder.get_dense_pe()).to(dtype)

    def begin(self, embedding: Tensor) -> Tensor:
        """Return the image tokens (1, k, c) that all points share. embedding: (1, c, 64, 64) of the image encoder."""
        dense = embedding + self._prompts.no_mask_embed.weight.view(1, -1, 1, 1)
        return _image_tokens(dense).to(self._arithmetic.dtype)

    def decode(self, image: Tensor, points: Tensor) -> Decoded:
        """Decode points (b, 2), x and y in the frame of the encoder's input (longest side 1024). image: of `begin`."""
        labels = torch.ones(len(points), 1, dtype=torch.int, device=points.device)
        prompt, _ = self._prompts(points=(points[:, None], labels), boxes=None, masks=None)
        own = torch.cat([self._decoder.iou_token.weight, self._decoder.mask_tokens.weight])
        point_tokens = torch.cat([own.expand(len(points), -1, -1), prompt], dim=1)
        tokens, transformer = point_tokens, self._decoder.transformer
        positioned = image + self._position
        for layer, norm in zip(transformer.layers, self._norms, strict=True):
            tokens, changed = self._two_way(layer, tokens, point_tokens, positioned, image)
            image = norm(changed.add_(image))
            positioned = image + self._position
        attended = self._arithmetic.to_image(
            transformer.final_attn_token_to_image, tokens + point_tokens, positioned, image
        )
        tokens = transformer.norm_final_attn(tokens + attended)
        return Decoded(self._decoder.iou_prediction_head(tokens[:, 0])[:, MULTIMASK], tokens, image)

    def _two_way(
        self, layer: Any, tokens: Tensor, point_tokens: Tensor, positioned: Tensor, image: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Let tokens attend to each other and to the image and pass an MLP; then let the image attend to them.

        Returns the new tokens (b, n, c), and the update of the image tokens (b, k, c), which is to be added to them.
        """
        if layer.skip_first_layer_pe:
            tokens = layer.self_attn(q=tokens, k=tokens, v=tokens)
        else:
            marked = tokens + point_tokens
            tokens = tokens + layer.self_attn(q=marked, k=marked, v=tokens)
        tokens = layer.norm1(tokens)
        attended = self._arithmetic.to_image(layer.cross_attn_token_to_image, tokens + point_tokens, positioned, image)
        tokens = layer.norm2(tokens + attended)
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        attention = layer.cross_attn_image_to_token
        return tokens, self._arithmetic.from_image(attention, positioned, tokens + point_tokens, tokens)

    def masks(self, decoded: Decoded, chosen: Tensor) -> Tensor:
        """Return the logits (m, 256, 256) float32 of the masks that `chosen` (b, 3) bool marks, point by point."""
        some = chosen.any(dim=1)
        tokens, image = decoded.tokens[some], decoded.image[some]
        heads = self._decoder.output_hypernetworks_mlps
        hyper = torch.stack([head(tokens[:, 1 + i]) for i, head in enumerate(heads)], dim=1)
        grid = self._prompts.image_embedding_size
        logits = self._arithmetic.logits(self._upscaling, image, hyper.to(image.dtype), grid)
        return logits[:, MULTIMASK][chosen[some]].float()


class ExactArithmetic:
    """The package's sums in their order, in float32, without its copies in strided layouts."""

    dtype = torch.float32

    def to_image(self, attention: Any, tokens: Tensor, positioned: Tensor, image: Tensor) -> Tensor:
        q, k, v = _heads(attention, attention.q_proj(tokens), attention.k_proj(positioned), attention.v_proj(image))
        b, h, n, d = q.shape
        weights = torch.softmax(_matmul(q, k.mT).div_(math.sqrt(d)), dim=-1)
        return attention.out_proj(_matmul(weights, v).transpose(1, 2).reshape(b, n, h * d))

    def from_image(self, attention: Any, positioned: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = _heads(attention, attention.q_proj(positioned), attention.k_proj(keys), attention.v_proj(values))
        b, d = len(k), k.shape[3]
        if len(q) == 1 < b:  # one product for all points
            scores = (q[0] @ k.permute(1, 3, 0, 2).flatten(2)).unflatten(2, (b, -1)).permute(2, 0, 1, 3).contiguous()
        else:
            scores = q @ k.mT
        weights = torch.softmax(scores.div_(math.sqrt(d)), dim=-1)
        return attention.out_proj((weights @ v).transpose(1, 2).flatten(2))

    def logits(self, upscaling: Any, image: Tensor, hyper: Tensor, grid: tuple[int, int]) -> Tensor:
        first, norm, _, second, _ = upscaling
        x = first(image.transpose(1, 2).unflatten(2, grid))
        x = second(F.gelu(_layer_norm_2d(x, norm)))
        return (hyper @ F.gelu(x).flatten(2)).unflatten(2, x.shape[2:])


class FoldedArithmetic:
    """Image-side projections multiplied into the point tokens: (q W_q) (x W_k)^T = (q W_q W_k^T) x^T.

    dtype: float32, or bfloat16 for image tokens, attention weights and mask embeddings.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype

    def to_image(self, attention: Any, tokens: Tensor, positioned: Tensor, image: Tensor) -> Tensor:
        (queries,) = _heads(attention, attention.q_proj(tokens))
        b, h, n, d = queries.shape
        folded = queries @ attention.k_proj.weight.unflatten(0, (h, d)) / math.sqrt(d)  # k_proj's bias cancels
        weights = torch.softmax(_rows(folded.to(self.dtype), positioned.mT), dim=-1)
        attended = _rows(weights, image).float() @ attention.v_proj.weight.unflatten(0, (h, d)).mT
        return attention.out_proj(attended.transpose(1, 2).reshape(b, n, h * d) + attention.v_proj.bias)

    def from_image(self, attention: Any, positioned: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        k, v = _heads(attention, attention.k_proj(keys), attention.v_proj(values))
        h, d = k.shape[1], k.shape[3]
        k = k / math.sqrt(d)
        folded = k @ attention.q_proj.weight.unflatten(0, (h, d))
        constant = k @ attention.q_proj.bias.unflatten(0, (h, d, 1))
        scores = _rows(folded.to(self.dtype), positioned.mT).add_(constant.to(self.dtype))
        weights = torch.softmax(scores, dim=2)
        outputs = v @ attention.out_proj.weight.unflatten(1, (h, d)).permute(1, 2, 0)
        attended = weights.flatten(1, 2).mT @ outputs.flatten(1, 2).to(self.dtype)
        return attended.add_(attention.out_proj.bias.to(self.dtype))

    def logits(self, upscaling: Any, image: Tensor, hyper: Tensor, grid: tuple[int, int]) -> Tensor:
        first, norm, _, second, _ = upscaling
        x = F.layer_norm(_upscale(image, first), norm.weight.shape, norm.weight, norm.bias, norm.eps)
        x = F.gelu(_upscale(F.gelu(x).flatten(1, 2), second)).flatten(1, 2)
        values = (x @ hyper.mT).view(len(image), *grid, 2, 2, 2, 2, -1)  # row, column, then each of them twice by two
        values = values.permute(0, 7, 1, 3, 5, 2, 4, 6)
        return values.reshape(len(image), -1, 4 * grid[0], 4 * grid[1])


def _upscale(x: Tensor, layer: Any) -> Tensor:
    """Apply a transposed convolution of kernel and stride 2 to pixels (b, k, c): (b, k, 4, channels), row by row."""
    weight = layer.weight.permute(0, 2, 3, 1).flatten(1)
    return (x @ weight).unflatten(2, (4, -1)) + layer.bias


def _heads(attention: Any, *projected: Tensor) -> list[Tensor]:
    """Split each (b, ..., h * d) into heads: (b, h, ..., d), contiguous."""
    return [x.unflatten(2, (attention.num_heads, -1)).transpose(1, 2).contiguous() for x in projected]


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Multiply (b, h, n, x) @ (b or 1, h, x, y)."""
    if len(b) == 1 < len(a):
        return (a.transpose(0, 1).flatten(1, 2) @ b[0]).unflatten(1, (len(a), -1)).transpose(0, 1)
    return a @ b


def _rows(a: Tensor, b: Tensor) -> Tensor:
    """Multiply (b, h, n, x) @ (b or 1, x, y) without copies of the right side: (b, h, n, y)."""
    if len(b) == 1:
        return (a.reshape(-1, a.shape[3]) @ b[0]).view(*a.shape[:3], -1)
    return (a.flatten(1, 2) @ b).unflatten(1, a.shape[1:3])


def _image_tokens(x: Tensor) -> Tensor:
    """Turn (1, c, h, w) into tokens (1, h * w, c), contiguous."""
    return x.flatten(2).transpose(1, 2).contiguous()


def _layer_norm_2d(x: Tensor, norm: Any) -> Tensor:
    """Apply the package's LayerNorm2d; the difference to the mean is computed once and in place."""
    x = x - x.mean(1, keepdim=True)
    x = x.div_(torch.sqrt(x.pow(2).mean(1, keepdim=True) + norm.eps))
    return x.mul_(norm.weight[:, None, None]).add_(norm.bias[:, None, None])


def _cast(module: nn.Module, dtype: torch.dtype) -> Any:
    """Return the module itself if it has that dtype, else a converted copy."""
    if next(module.parameters()).dtype == dtype:
        return module
    return copy.deepcopy(module).to(dtype)
