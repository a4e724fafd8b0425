"""A network in the form that other programs run fast: convolutions over (b, c, h, w), without products over pixels.

PyTorch multiplies 1x1 convolutions as matrices over channels_last memory. In a graph each of these products stands
between two transpositions, which take other programs longer than the product. Here they are convolutions again. In the
blocks of NAFNet, what is constant after training becomes part of the weights, and the halves of a gate are computed
apart rather than cut from one map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam4ir.archs.layers import LayerNorm2d, Pointwise, UpConvolution
from sam4ir.archs.nafnet import BaselineBlock, NAFBlock
from sam4ir.archs.restormer import NORM_EPS, BiasFreeNorm, WithBiasNorm


@torch.no_grad()
def as_convolutions(network: nn.Module) -> None:
    """Replace layers of a network in evaluation mode, in place. What it computes stays the same, but for rounding.

    Its keys change, so it loads no weights any more: it is for graphs alone.
    """
    for parent in list(network.modules()):  # outer modules come first
        for name, child in list(parent.named_children()):
            replacement = _replacement(child)
            if replacement is not None:
                setattr(parent, name, replacement.eval().requires_grad_(False))


def _replacement(module: nn.Module) -> nn.Module | None:
    """Return the module that takes the place of another one, or None where it stays."""
    if isinstance(module, (NAFBlock, BaselineBlock)):
        return _FoldedBlock(module)
    if isinstance(module, Pointwise):
        return _convolution(module.weight, module.bias)
    if isinstance(module, UpConvolution):
        return _up_convolution(module)
    if isinstance(module, LayerNorm2d):
        return _Norm(module.eps, module.weight, module.bias)
    if isinstance(module, WithBiasNorm):
        return _Norm(NORM_EPS, module.weight, module.bias)
    if isinstance(module, BiasFreeNorm):
        return _Norm(NORM_EPS, module.weight, centred=False)
    return None


def _convolution(weight: Tensor, bias: Tensor | None, padding: int = 0, groups: int = 1) -> nn.Conv2d:
    """Return the plain convolution with a weight (o, i / groups, k, k) and a bias (o,)."""
    out_channels, group_channels, kernel, _ = weight.shape
    with torch.device("meta"):
        plain = nn.Conv2d(
            group_channels * groups, out_channels, kernel, padding=padding, groups=groups, bias=bias is not None
        )
    plain.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        plain.bias = nn.Parameter(bias.contiguous())
    return plain


def _up_convolution(module: UpConvolution) -> nn.ConvTranspose2d:
    """Return the plain transposed convolution of 2x2 pixels and stride 2."""
    with torch.device("meta"):
        plain = nn.ConvTranspose2d(module.in_channels, module.out_channels, 2, stride=2)
    plain.weight, plain.bias = module.weight, module.bias
    return plain


def _channel_mean(x: Tensor) -> Tensor:
    """Return the mean over the channels, (b, c, h, w) -> (b, 1, h, w): as a convolution it takes programs less time."""
    channels = x.shape[1]
    return F.conv2d(x, x.new_full((1, channels, 1, 1), 1 / channels))


class _Norm(nn.Module):
    """Normalisation over the channels of (b, c, h, w), in x's type; statistics are in float32.

    weight, bias: of each channel, or None. centred: whether the mean is taken off, as layer normalisation does.
    """

    def __init__(
        self, eps: float, weight: Tensor | None = None, bias: Tensor | None = None, *, centred: bool = True
    ) -> None:
        super().__init__()
        self.eps = eps
        self.centred = centred
        self.weight = None if weight is None else nn.Parameter(weight.view(-1, 1, 1))
        self.bias = None if bias is None else nn.Parameter(bias.view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map."""
        wide = x.float()
        centred = wide - _channel_mean(wide)
        variance = _channel_mean(centred * centred)
        y = (centred if self.centred else wide) * torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            y = y * self.weight
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype)


class _FoldedBlock(nn.Module):
    """A block of NAFNet or of Baseline: (b, channels, h, w) -> the same.

    Scale and shift of its normalisations, and its own scales beta and gamma, are part of the weights.
    """

    def __init__(self, block: NAFBlock | BaselineBlock) -> None:
        super().__init__()
        self.norm1 = _Norm(block.norm1.eps)
        self.norm2 = _Norm(block.norm2.eps)
        self.attention = block.attention
        self.activation = block.activation
        self.wide = nn.ModuleList()
        depthwise = block.conv2
        pointwise_parts = _parts(*_after_norm(block.norm1, block.conv1), block.halved)
        depthwise_parts = _parts(depthwise.weight, depthwise.bias, block.halved)
        for (weight, bias), (kernels, shifts) in zip(pointwise_parts, depthwise_parts, strict=True):
            around = _convolution(kernels, shifts, padding=1, groups=kernels.shape[0])
            self.wide.append(nn.Sequential(_convolution(weight, bias), around))
        self.hidden = nn.ModuleList()
        for weight, bias in _parts(*_after_norm(block.norm2, block.conv4), block.halved):
            self.hidden.append(_convolution(weight, bias))
        self.conv3 = _scaled(block.conv3, block.beta)
        self.conv5 = _scaled(block.conv5, block.gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Return x with both halves of the block added."""
        y = self._activated(self.wide, self.norm1(x))
        x = x + self.conv3(y * self.attention(y))
        return x + self.conv5(self._activated(self.hidden, self.norm2(x)))

    def _activated(self, parts: nn.ModuleList, x: Tensor) -> Tensor:
        """Return the product of both parts of a gate, or the activation of the only part."""
        if len(parts) == 1:
            return self.activation(parts[0](x))
        first, second = parts
        product: Tensor = first(x) * second(x)
        return product


def _after_norm(norm: LayerNorm2d, conv: Pointwise) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a 1x1 convolution that includes scale and shift of the normalisation before it."""
    matrix = conv.weight.flatten(1)
    assert conv.bias is not None
    return conv.weight * norm.weight.view(1, -1, 1, 1), conv.bias + matrix @ norm.bias


def _scaled(conv: Pointwise, scale: Tensor) -> nn.Conv2d:
    """Return a 1x1 convolution times a scale (1, o, 1, 1)."""
    assert conv.bias is not None
    return _convolution(conv.weight * scale.view(-1, 1, 1, 1), conv.bias * scale.flatten())


def _parts(weight: Tensor, bias: Tensor | None, number: int) -> list[tuple[Tensor, Tensor]]:
    """Return weight and bias of equal parts of the output's channels."""
    assert bias is not None
    return list(zip(weight.chunk(number), bias.chunk(number), strict=True))
