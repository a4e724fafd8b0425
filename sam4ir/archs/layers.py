"""Layers shared by the restoration networks.

Feature maps are (b, c, h, w) in memory format channels_last: normalisation over channels then reads memory in
order. Statistics are float32 also where the activations are bfloat16 or float16, and the result has the type of
the activations, so that a residual stream in bfloat16 stays in bfloat16 beside float32 parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class NetworkBlock(nn.Module):
    """A part of a network whose activations training can drop and compute again; callers go through `run_block`.

    checkpointed: whether training keeps the block's inputs only and repeats its forward pass in the backward pass.
    """

    checkpointed: bool = False


def run_block(block: nn.Module, *inputs: Any) -> Any:
    """Return block(*inputs); a checkpointed block in training keeps its inputs alone in memory, for the same bits."""
    if isinstance(block, NetworkBlock) and block.checkpointed and block.training and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


class Blocks(nn.Sequential):
    """A sequence of blocks, each called through `run_block`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last block."""
        for block in self:
            x = run_block(block, x)
        return x


def checkpoint_blocks(network: nn.Module) -> int:
    """Switch activation checkpointing on for every outermost NetworkBlock of a network; return their number.

    Memory then grows with one block's activations and the inputs of all, for about one more forward pass a step.
    """
    blocks = list(_outermost_blocks(network))
    for block in blocks:
        block.checkpointed = True
    return len(blocks)


def _outermost_blocks(module: nn.Module) -> Iterator[NetworkBlock]:
    for child in module.children():
        if isinstance(child, NetworkBlock):
            yield child
        else:
            yield from _outermost_blocks(child)


def without_autocast(x: Tensor) -> torch.autocast:
    """Return the context in which operations on x keep its precision. Tensors of the meta device may go through it."""
    device = x.device.type
    if device == "meta":
        device = "cpu"  # torch knows no autocast of the meta device
    return torch.autocast(device, enabled=False)


def channel_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) * weight + bias over the channels of (b, c, h, w).

    The result has x's type and is channels_last. Kernels of F.layer_norm accumulate in float32. Autocast is
    off for it: on CUDA it would return float32.
    """
    rows = x.permute(0, 2, 3, 1)
    if x.dtype is torch.float32:
        return F.layer_norm(rows, weight.shape, weight, bias, eps).permute(0, 3, 1, 2)
    with without_autocast(x):
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        return F.layer_norm(rows, weight.shape, weight, bias, eps).permute(0, 3, 1, 2)


def channel_scale_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(var + eps) * weight over the channels of (b, c, h, w), in x's type.

    Restormer's bias-free normalisation: the variance is about the mean, x stays uncentred.
    """
    variance = x.float().var(dim=1, keepdim=True, correction=0)
    return (x * torch.rsqrt(variance + eps) * weight.view(-1, 1, 1)).to(x.dtype)


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of (b, c, h, w), pixel by pixel."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, scale and shift (b, channels, h, w), in x's type."""
        return channel_layer_norm(x, self.weight, self.bias, self.eps)


def simple_gate(x: Tensor) -> Tensor:
    """Multiply the first half of the channels by the second (NAFNet, eq. 4): (b, 2c, h, w) -> (b, c, h, w)."""
    a, b = x.chunk(2, dim=1)
    return a * b


class Pointwise(nn.Conv2d):
    """1x1 convolution (b, i, h, w) -> (b, o, h, w) as a matrix product over channels_last memory."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution (b, o, h, w), in channels_last memory."""
        return _product(x, self.weight.flatten(1), self.bias)

    def scaled(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return scale * self(x) for a scale (1, o, 1, 1), in the type of self(x), so that autocast covers the product.

        Scaling the weights instead of the map saves passes over the map, forward and backward.
        """
        if not _worth_merging(x.shape[0] * x.shape[2] * x.shape[3], x.shape[1]):
            y = self(x)
            return y * scale.to(y.dtype)
        return _product(x, self.weight.flatten(1) * scale.view(-1, 1), self._scaled_bias(scale))

    def attended(self, x: Tensor, attention: Tensor, scale: Tensor) -> Tensor:
        """Return scale * self(attention * x), in the type of self(x).

        attention: (b, i, 1, 1), or a map (b, i, h', w') that `replicate_to` brings to h x w. scale: (1, o, 1, 1).
        Attention with one value a channel is multiplied into the weights, image by image.
        """
        b, c, h, w = x.shape
        if attention.shape[-2:] != (1, 1) or not _worth_merging(h * w, c):
            return self.scaled(x * replicate_to(attention, (h, w)), scale)
        weights = self.weight.flatten(1) * scale.view(-1, 1) * attention.view(b, 1, c)
        bias = self._scaled_bias(scale)
        if b == 1:
            return _product(x, weights[0], bias)
        rows = x.permute(0, 2, 3, 1).reshape(b, h * w, c)
        y = rows @ weights.transpose(1, 2).to(rows.dtype)
        if bias is not None:
            y = y + bias.to(y.dtype)
        return y.view(b, h, w, -1).permute(0, 3, 1, 2)

    def _scaled_bias(self, scale: Tensor) -> Tensor | None:
        """Return scale * bias, or None without a bias."""
        if self.bias is None:
            return None
        return self.bias * scale.flatten()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the product of a map (b, i, h, w) and a weight (o, i), pixel by pixel."""
    return F.linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


def _worth_merging(pixels: int, channels: int) -> bool:
    """Return whether to merge scales into the weights.

    Merging costs passes over channels x channels weights; a compiler fuses the scales by itself, for any size.
    """
    return not torch.compiler.is_compiling() and pixels > 4 * channels


class UpConvolution(nn.ConvTranspose2d):
    """Transposed 2x2 convolution of stride 2, (b, i, h, w) -> (b, o, 2h, 2w); nothing overlaps: it is one product."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 2, stride=2)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return (b, o, 2h, 2w). output_size: torch's argument, which must be None."""
        b, c, h, w = x.shape
        assert output_size is None
        assert self.bias is not None
        weight = self.weight.permute(2, 3, 1, 0).reshape(-1, c)  # (dy, dx, o) rows
        y = F.linear(x.permute(0, 2, 3, 1), weight, self.bias.repeat(4))
        pixels = y.view(b, h, w, 2, 2, -1).transpose(2, 3).reshape(b, 2 * h, 2 * w, -1)
        return pixels.permute(0, 3, 1, 2)


def window_mean(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Return the mean of each window inside the map: (b, c, h, w) -> (b, c, h - kh + 1, w - kw + 1), in x's type.

    window: (kh, kw); a side longer than the map's is cut to it. Each direction takes one running sum, in float32.
    """
    return _running_mean(_running_mean(x.float(), window[0], 2), window[1], 3).to(x.dtype)


def _running_mean(x: Tensor, length: int, dim: int) -> Tensor:
    """Return the mean of each window of `length` entries along a dimension."""
    size = x.shape[dim]
    if length >= size:
        return x.mean(dim, keepdim=True)
    total = x.cumsum(dim)
    later = total.narrow(dim, length, size - length) - total.narrow(dim, 0, size - length)
    return torch.cat([total.narrow(dim, length - 1, 1), later], dim) / length


def replicate_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad (b, c, h', w') by replication, half before and half after, to `size`; a 1x1 map is left to broadcasting."""
    below, beside = size[0] - x.shape[-2], size[1] - x.shape[-1]
    if x.shape[-2:] == (1, 1) or (below, beside) == (0, 0):
        return x
    return F.pad(x, (beside // 2, beside - beside // 2, below // 2, below - below // 2), mode="replicate")
