"""Restormer (Zamir et al., Restormer: Efficient Transformer for High-Resolution Image Restoration, CVPR 2022,
arXiv 2111.09881).

Modules and keyword arguments have the official names, so official checkpoints load strictly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam4ir.archs.layers import Blocks, NetworkBlock, Pointwise, channel_layer_norm, channel_scale_norm
from sam4ir.archs.size import SizeRule, pad, unpad

NORM_EPS = 1e-5


class WithBiasNorm(nn.Module):
    """Layer normalisation over the channels of (b, channels, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, scale and shift (b, channels, h, w), in x's type."""
        return channel_layer_norm(x, self.weight, self.bias, NORM_EPS)


class BiasFreeNorm(nn.Module):
    """Division by the standard deviation over the channels of (b, channels, h, w), without centring."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Divide and scale (b, channels, h, w), in x's type."""
        return channel_scale_norm(x, self.weight, NORM_EPS)


NORMS: dict[str, type[nn.Module]] = {"WithBias": WithBiasNorm, "BiasFree": BiasFreeNorm}


class Norm(nn.Module):
    """A normalisation of NORMS under the official key `body`."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.body = NORMS[kind](channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map, in the shape of x."""
        return self.body(x)


class ChannelAttention(nn.Module):
    """Multi-Dconv head transposed attention (MDTA, section 3.1): attention between channels, linear in h w.

    (b, channels, h, w) -> the same, channels_last.
    """

    def __init__(self, channels: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = Pointwise(channels, 3 * channels, bias)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=bias)
        self.project_out = Pointwise(channels, channels, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the projection of attention times value, (b, channels, h, w)."""
        b, c, h, w = x.shape
        heads = self.temperature.shape[0]
        qkv = self.qkv_dwconv(self.qkv(x)).permute(0, 2, 3, 1).reshape(b, h * w, 3 * c)
        q, k, v = qkv.chunk(3, dim=2)
        attention = self._attention(q.unflatten(2, (heads, -1)), k.unflatten(2, (heads, -1)))
        # project_out(attention v) = (project_out attention) v: one product of size h w instead of two
        weight = self.project_out.weight.to(attention.dtype)  # a network in float16 has its attention in float32
        project = weight.view(c, heads, c // heads).transpose(0, 1) @ attention
        merged = project.transpose(1, 2).reshape(b, c, c).transpose(1, 2)
        out = v @ merged.to(v.dtype)
        if self.project_out.bias is not None:
            out = out + self.project_out.bias.to(out.dtype)
        return out.view(b, h, w, c).permute(0, 3, 1, 2)

    def _attention(self, q: Tensor, k: Tensor) -> Tensor:
        """Return softmax(temperature * cos(q_i, k_j)) over channels j.

        q, k: (b, hw, heads, d). Returns (b, heads, d, d) float32.
        """
        if q.dtype is torch.float16:
            q, k = q.float(), k.float()  # unnormalised products over h w overflow float16
        products = q.permute(0, 2, 3, 1) @ k.permute(0, 2, 1, 3)
        q_norm, k_norm = _norms(q).unsqueeze(-1), _norms(k).unsqueeze(-2)
        return (products / q_norm / k_norm * self.temperature).softmax(dim=-1)


def _norms(x: Tensor) -> Tensor:
    """Return max(norm over dimension 1, 1e-12) in float32.

    linalg.vector_norm goes down columns and takes twice as long.
    """
    return x.float().square().sum(dim=1).clamp_min(1e-24).sqrt()


class GatedFeedForward(nn.Module):
    """Gated-Dconv feed-forward network (GDFN, section 3.2): (b, channels, h, w) -> the same."""

    def __init__(self, channels: int, expansion: float, bias: bool) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = Pointwise(channels, 2 * hidden, bias)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias)
        self.project_out = Pointwise(hidden, channels, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated and projected map, (b, channels, h, w)."""
        gate, y = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * y)


class TransformerBlock(NetworkBlock):
    """x + MDTA(norm(x)), then x + GDFN(norm(x)); (b, channels, h, w) -> the same."""

    def __init__(self, channels: int, heads: int, expansion: float, bias: bool, norm: str) -> None:
        super().__init__()
        self.norm1 = Norm(channels, norm)
        self.attn = ChannelAttention(channels, heads, bias)
        self.norm2 = Norm(channels, norm)
        self.ffn = GatedFeedForward(channels, expansion, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return x with attention and feed-forward network added."""
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class PatchEmbed(nn.Module):
    """3x3 convolution of the image under the official key `proj`."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (b, channels, h, w) of an image."""
        return self.proj(x)


class Resample(nn.Module):
    """3x3 convolution to `wide` channels, then a pixel (un)shuffle by 2, under the official key `body`."""

    def __init__(self, channels: int, wide: int, shuffle: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, wide, 3, padding=1, bias=False), shuffle)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, wide / 4, 2h, 2w) after a shuffle, (b, 4 wide, h / 2, w / 2) after an unshuffle."""
        return self.body(x)


class Restormer(nn.Module):
    """Restormer, a U-shaped transformer of four levels: (b, inp_channels, h, w) -> (b, out_channels, h, w).

    Any h and w (reflected to a multiple of 8); the output is float32 where the input is. It is a correction that is
    added to the image, but not with dual_pixel_task. Raises ValueError for lists that are not four long, for heads
    that do not divide the channels and for an unknown LayerNorm_type.

    Args:
        inp_channels: Channels of the input: 3 for RGB, 1 for grey, 6 for a dual-pixel pair.
        out_channels: Channels of the restored image.
        dim: Channels at full resolution; each level doubles them.
        num_blocks: Number of blocks at each of the four levels, from fine to coarse.
        num_refinement_blocks: Number of blocks at full resolution after the decoder.
        heads: Number of attention heads at each of the four levels; it divides the channels there.
        ffn_expansion_factor: Hidden channels of a feed-forward network over its channels.
        bias: Whether convolutions have biases.
        LayerNorm_type: Normalisation; BiasFree, as for denoising, divides by the deviation without centring.
        dual_pixel_task: Whether the input is a pair of views (6 channels), which is not added to the output; its
            convolved embedding joins the decoder instead.
    """

    def __init__(
        self,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        LayerNorm_type: Literal["WithBias", "BiasFree"] = "WithBias",
        dual_pixel_task: bool = False,
    ) -> None:
        super().__init__()
        _check(dim, num_blocks, heads, LayerNorm_type)
        if not dual_pixel_task and inp_channels not in (1, out_channels):
            raise ValueError(
                f"inp_channels {inp_channels} cannot be added to out_channels {out_channels}; "
                "give equal ones or dual_pixel_task: true"
            )

        def blocks(channels: int, level: int, number: int) -> Blocks:
            """Return `number` blocks with the heads of a level."""
            settings = (heads[level], ffn_expansion_factor, bias, LayerNorm_type)
            return Blocks(*(TransformerBlock(channels, *settings) for _ in range(number)))

        self.patch_embed = PatchEmbed(inp_channels, dim)
        self.encoder_level1 = blocks(dim, 0, num_blocks[0])
        self.down1_2 = _down(dim)
        self.encoder_level2 = blocks(2 * dim, 1, num_blocks[1])
        self.down2_3 = _down(2 * dim)
        self.encoder_level3 = blocks(4 * dim, 2, num_blocks[2])
        self.down3_4 = _down(4 * dim)
        self.latent = blocks(8 * dim, 3, num_blocks[3])
        self.up4_3 = _up(8 * dim)
        self.reduce_chan_level3 = Pointwise(8 * dim, 4 * dim, bias)
        self.decoder_level3 = blocks(4 * dim, 2, num_blocks[2])
        self.up3_2 = _up(4 * dim)
        self.reduce_chan_level2 = Pointwise(4 * dim, 2 * dim, bias)
        self.decoder_level2 = blocks(2 * dim, 1, num_blocks[1])
        self.up2_1 = _up(2 * dim)
        self.decoder_level1 = blocks(2 * dim, 0, num_blocks[0])
        self.refinement = blocks(2 * dim, 0, num_refinement_blocks)
        self.dual_pixel_task = dual_pixel_task
        if dual_pixel_task:
            self.skip_conv = Pointwise(dim, 2 * dim, bias)
        self.output = nn.Conv2d(2 * dim, out_channels, 3, padding=1, bias=bias)
        self.size = SizeRule(multiple=8, mode="reflect")

    def forward(self, image: Tensor) -> Tensor:
        """Return the restored image (b, out_channels, h, w)."""
        padded = pad(image, self.size)
        x = self.patch_embed(padded.contiguous(memory_format=torch.channels_last))
        embedded = x.contiguous(memory_format=torch.channels_last)
        level1 = self.encoder_level1(embedded)
        level2 = self.encoder_level2(self.down1_2(level1))
        level3 = self.encoder_level3(self.down2_3(level2))
        x = self.up4_3(self.latent(self.down3_4(level3)))
        x = self.decoder_level3(self.reduce_chan_level3(torch.cat([x, level3], dim=1)))
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(x), level2], dim=1)))
        x = self.refinement(self.decoder_level1(torch.cat([self.up2_1(x), level1], dim=1)))
        if self.dual_pixel_task:
            out = self.output(x + self.skip_conv(embedded)).to(image.dtype)
        else:
            out = padded + self.output(x)
        return unpad(out, (image.shape[-2], image.shape[-1]))


def _check(dim: int, num_blocks: Sequence[int], heads: Sequence[int], norm: str) -> None:
    for name, value in (("num_blocks", num_blocks), ("heads", heads)):
        if len(value) != 4:
            raise ValueError(f"{name} {list(value)}: give four numbers, one a level from fine to coarse")
    for level, number in enumerate(heads):
        if number < 1 or dim * 2**level % number:
            raise ValueError(f"heads {list(heads)}: {number} does not divide the {dim * 2**level} channels there")
    if norm not in NORMS:
        raise ValueError(f"LayerNorm_type {norm!r}: give one of {', '.join(NORMS)}")


def _down(channels: int) -> Resample:
    return Resample(channels, channels // 2, nn.PixelUnshuffle(2))


def _up(channels: int) -> Resample:
    return Resample(channels, 2 * channels, nn.PixelShuffle(2))
