"""HINet (Chen et al., HINet: Half Instance Normalization Network for Image Restoration, CVPRW 2021, arXiv 2105.06086).

Modules and keyword arguments have the official names, so official checkpoints load strictly.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sam4ir.archs.layers import NetworkBlock, Pointwise, UpConvolution, run_block
from sam4ir.archs.size import SizeRule, pad, unpad


def half_normed(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise the first half of the channels of (b, c, h, w) for each image, then scale and shift it, in x's type.

    Return the map and two tensors for the derivative, in float32: (half - mean) / deviation and the deviation.
    """
    half, rest = x.chunk(2, dim=1)
    centred = half.float() - half.float().mean((2, 3), keepdim=True)
    deviation = torch.sqrt(centred.square().mean((2, 3), keepdim=True) + eps)
    normed = centred / deviation
    scaled = torch.addcmul(bias.view(-1, 1, 1), normed, weight.view(-1, 1, 1))
    return torch.cat([scaled.to(x.dtype), rest], dim=1), normed, deviation


class _HalfNormed(torch.autograd.Function):
    """half_normed with an explicit derivative: autograd would go over the half map twice as often."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Return the normalised map, and keep what the derivative needs."""
        out, normed, deviation = half_normed(x, weight, bias, eps)
        ctx.save_for_backward(normed.to(x.dtype), deviation, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """d half = weight / deviation * (g - mean(g) - normed * mean(g * normed)); d rest = g."""
        normed, deviation, weight = ctx.saved_tensors
        half, rest = gradients[0].chunk(2, dim=1)
        g, normed = half.float(), normed.float()
        to_bias, to_weight = g.sum((2, 3), keepdim=True), (g * normed).sum((2, 3), keepdim=True)
        pixels = normed.shape[2] * normed.shape[3]
        to_half = torch.addcmul(g - to_bias / pixels, normed, to_weight, value=-1 / pixels)
        to_half *= weight.view(-1, 1, 1) / deviation
        to_x = torch.cat([to_half.to(rest.dtype), rest], dim=1)
        return to_x, to_weight.sum(0).flatten(), to_bias.sum(0).flatten(), None


class HalfInstanceNorm(nn.Module):
    """Instance normalisation of the first half of the channels; the second half passes unchanged (section 3.2).

    (b, channels, h, w) -> the same, in x's type; statistics are float32. h * w must be more than 1.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels // 2))
        self.bias = nn.Parameter(torch.zeros(channels // 2))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the map with its first half normalised, (b, channels, h, w)."""
        if not torch.is_grad_enabled():  # plain operations, which every exporter knows
            return half_normed(x, self.weight, self.bias, self.eps)[0]
        normed: Tensor = _HalfNormed.apply(x, self.weight, self.bias, self.eps)
        return normed


class ConvBlock(NetworkBlock):
    """Two 3x3 convolutions with leaky ReLU beside a 1x1 shortcut: (b, in_channels, h, w) -> (b, channels, h, w).

    hin: whether the first convolution is followed by half instance normalisation (the paper's HIN block, Fig. 3).
    csff: whether encoder and decoder features of the first U-Net at the same level are added, each through a 3x3
        convolution (cross-stage feature fusion, after MPRNet).
    downsample: whether the block owns the 4x4 convolution of stride 2 to the next level; the caller applies it.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        relu_slope: float,
        downsample: bool = False,
        csff: bool = False,
        hin: bool = False,
    ) -> None:
        super().__init__()
        self.relu_slope = relu_slope
        self.identity = Pointwise(in_channels, channels)
        self.conv_1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.csff_enc: nn.Module = nn.Identity()
        self.csff_dec: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        self.downsample: nn.Module = nn.Identity()
        if csff:
            self.csff_enc = nn.Conv2d(channels, channels, 3, padding=1)
            self.csff_dec = nn.Conv2d(channels, channels, 3, padding=1)
        if hin:
            self.norm = HalfInstanceNorm(channels)
        if downsample:
            self.downsample = nn.Conv2d(channels, channels, 4, stride=2, padding=1, bias=False)

    def forward(self, x: Tensor, first: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return (b, channels, h, w). first: encoder and decoder features of the first U-Net, with csff only."""
        y = self._activate(self.norm(self.conv_1(x)))
        y = self._activate(self.conv_2(y)) + self.identity(x)
        if first is not None:
            encoded, decoded = first
            y = y + self.csff_enc(encoded) + self.csff_dec(decoded)
        return y

    def _activate(self, y: Tensor) -> Tensor:
        """Apply leaky ReLU in place; the derivative reads the sign of y, which only a negative slope would change."""
        return F.leaky_relu(y, self.relu_slope, inplace=self.relu_slope >= 0)


class UpBlock(NetworkBlock):
    """Transposed convolution and a ConvBlock over its output and the skip.

    (b, in_channels, h, w), (b, channels, 2h, 2w) -> (b, channels, 2h, 2w).
    """

    def __init__(self, in_channels: int, channels: int, relu_slope: float) -> None:
        super().__init__()
        self.up = UpConvolution(in_channels, channels)
        self.conv_block = ConvBlock(in_channels, channels, relu_slope)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return (b, channels, 2h, 2w)."""
        return self.conv_block(torch.cat([self.up(x), skip], dim=1))


class SupervisedAttention(nn.Module):
    """HINet's SAM, the supervised attention module after MPRNet; unrelated to Segment Anything.

    features (b, channels, h, w), image -> features for the second stage, first stage's output (b, 3, h, w).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, 3, 3, padding=1)
        self.conv3 = nn.Conv2d(3, channels, 3, padding=1)

    def forward(self, features: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return (features for the second stage, the first stage's restored image)."""
        restored = self.conv2(features) + image
        attention = torch.sigmoid(self.conv3(restored))
        return self.conv1(features) * attention + features, restored


class HINet(nn.Module):
    """HINet, two U-Nets in a row: (b, in_chn, h, w) -> [output of the first, output of the second], any h and w.

    The last element is the restored image; the official recipes put the loss on both. Each is float32 where the input
    is. Images that the levels cannot halve, or whose normalised map would be one pixel, are padded by reflection.
    Raises ValueError for depth < 1 and for a level of odd width with half instance normalisation.

    Args:
        in_chn: Channels of the image, 3 for RGB.
        wf: Channels at full resolution; each further level doubles them.
        depth: Number of levels of each U-Net, at least 1.
        relu_slope: Slope of the leaky ReLUs for negative values.
        hin_position_left: First encoder level with half instance normalisation, counted from 0.
        hin_position_right: Last encoder level with half instance normalisation, counted from 0.
    """

    def __init__(
        self,
        in_chn: int = 3,
        wf: int = 64,
        depth: int = 5,
        relu_slope: float = 0.2,
        hin_position_left: int = 0,
        hin_position_right: int = 4,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth {depth}: give at least 1 level")
        widths = [wf * 2**level for level in range(depth)]
        hin = [hin_position_left <= level <= hin_position_right for level in range(depth)]
        deepest = max(itertools.compress(range(depth), hin), default=-1)
        if hin[0] and wf % 2:
            raise ValueError(f"wf {wf}: half instance normalisation at level 0 needs an even width")
        self.down_path_1 = nn.ModuleList()
        self.down_path_2 = nn.ModuleList()
        self.conv_01 = nn.Conv2d(in_chn, wf, 3, padding=1)
        self.conv_02 = nn.Conv2d(in_chn, wf, 3, padding=1)
        for level, (before, width) in enumerate(zip([wf, *widths], widths, strict=False)):
            down = level + 1 < depth
            self.down_path_1.append(ConvBlock(before, width, relu_slope, down, hin=hin[level]))
            self.down_path_2.append(ConvBlock(before, width, relu_slope, down, csff=down, hin=hin[level]))
        skips = widths[:-1][::-1]  # from coarse to fine
        self.up_path_1 = nn.ModuleList(UpBlock(2 * width, width, relu_slope) for width in skips)
        self.up_path_2 = nn.ModuleList(UpBlock(2 * width, width, relu_slope) for width in skips)
        self.skip_conv_1 = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for width in skips)
        self.skip_conv_2 = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for width in skips)
        self.sam12 = SupervisedAttention(wf)
        self.cat12 = Pointwise(2 * wf, wf)
        self.last = nn.Conv2d(wf, in_chn, 3, padding=1)
        multiple = 2 ** (depth - 1)
        self.size = SizeRule(multiple=multiple, minimum=max(multiple, 2 ** (deepest + 1)), mode="reflect")

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the restored images of both U-Nets, each (b, in_chn, h, w)."""
        padded = pad(image, self.size).contiguous(memory_format=torch.channels_last)
        encoded, decoded = self._unet(1, self.conv_01(padded), None)
        features, restored = self.sam12(decoded[-1], padded)
        x = self.cat12(torch.cat([self.conv_02(padded), features], dim=1))
        _, decoded = self._unet(2, x, (encoded, decoded))
        size = image.shape[-2], image.shape[-1]
        return [unpad(restored, size), unpad(self.last(decoded[-1]) + padded, size)]

    def _unet(
        self, number: int, x: Tensor, first: tuple[list[Tensor], list[Tensor]] | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run one U-Net; return (encoder features fine to coarse, decoder features coarse to fine).

        Both leave out the coarsest map, but the only map of a U-Net of one level is its decoder feature.
        """
        downs, ups, skips = self.down_path_1, self.up_path_1, self.skip_conv_1
        if number == 2:
            downs, ups, skips = self.down_path_2, self.up_path_2, self.skip_conv_2
        encoded: list[Tensor] = []
        decoded: list[Tensor] = []
        for level, block in enumerate(list(downs)[:-1]):
            assert isinstance(block, ConvBlock)
            fused = None
            if first is not None:
                fused = (first[0][level], first[1][-1 - level])
            y = run_block(block, x, fused)
            encoded.append(y)
            x = block.downsample(y)
        x = run_block(downs[-1], x)
        for up, skip, features in zip(ups, skips, reversed(encoded), strict=True):
            x = run_block(up, x, skip(features))
            decoded.append(x)
        return encoded, decoded or [x]
