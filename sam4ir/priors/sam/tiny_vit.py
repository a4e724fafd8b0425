"""TinyViT as MobileSAM's image encoder.

TinyViT: Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers", ECCV 2022 (section 3.2: a
stem of two convolutions, one stage of MBConvs, three of windowed attention with a depthwise convolution between
attention and MLP). MobileSAM: Zhang et al., "Faster Segment Anything: Towards Lightweight SAM for Mobile
Applications", 2023: the 5M TinyViT at 1024 pixels with a last stride of 1 and SAM's neck, in the place of SAM's ViT.

Keys and shapes are those of image_encoder.* in the official mobile_sam.pt, including its unused classifier. Everything
runs channels last, (b, h, w, c) in memory, so that convolutions and attention alternate without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam4ir.errors import UserError


class TinyViT(nn.Module):
    """The encoder: (b, 3, img_size, img_size), normalised as SAM does, to (b, out_chans, img_size / 16, .. / 16).

    embed_dims, depths, num_heads, window_sizes: one number for each of the four parts; the first part consists of
    MBConvs and needs no heads and windows. num_classes: the classes of the classifier, whose weights are in the file
    but unused. Windows that do not divide a part's size are padded with zeros.
    """

    def __init__(
        self,
        img_size: int = 1024,
        embed_dims: Sequence[int] = (64, 128, 160, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (2, 4, 5, 10),
        window_sizes: Sequence[int] = (7, 7, 14, 7),
        mlp_ratio: float = 4.0,
        out_chans: int = 256,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        if img_size % 16:
            raise UserError(f"img_size is {img_size}, which is no multiple of 16")
        self.img_size = img_size
        self.patch_embed = Stem(embed_dims[0])
        stages: list[nn.Module] = [ConvStage(embed_dims[0], depths[0], embed_dims[1])]
        for i in (1, 2, 3):
            blocks = [AttentionBlock(embed_dims[i], num_heads[i], window_sizes[i], mlp_ratio) for _ in range(depths[i])]
            merging = None
            if i < 3:
                # the third part is already at a sixteenth of the image, the size of SAM's embedding
                merging = PatchMerging(embed_dims[i], embed_dims[i + 1], stride=2 if i == 1 else 1)
            stages.append(AttentionStage(blocks, merging))
        self.layers = nn.ModuleList(stages)
        self.norm_head = nn.LayerNorm(embed_dims[-1])
        self.head = nn.Linear(embed_dims[-1], num_classes)
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dims[-1], out_chans, 1, bias=False),
            ChannelNorm(out_chans),
            nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False),
            ChannelNorm(out_chans),
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.img_size, self.img_size):
            raise UserError(f"x is {tuple(x.shape)}, the encoder takes (b, 3, {self.img_size}, {self.img_size})")
        x = self.patch_embed(x.contiguous(memory_format=torch.channels_last))
        for stage in self.layers:
            x = stage(x)
        return self.neck(x).contiguous()


class ConvBN(nn.Module):
    """A convolution without bias and its batch normalisation, which at inference is one convolution."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.c = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        nn.init.constant_(self.bn.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.bn(self.c(x))
        # folded at each call: that costs one pass over the weights, and is never out of date
        mean, variance = self.bn.running_mean, self.bn.running_var
        assert mean is not None  # None is for normalisations without statistics
        assert variance is not None
        scale = self.bn.weight * torch.rsqrt(variance + self.bn.eps)
        weight, bias = self.c.weight * scale.view(-1, 1, 1, 1), self.bn.bias - mean * scale
        return F.conv2d(x, weight, bias, self.c.stride, self.c.padding, groups=self.c.groups)


class Stem(nn.Module):
    """The stem: two convolutions of stride 2, (b, 3, h, w) to (b, channels, h / 4, w / 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            ConvBN(3, channels // 2, kernel=3, stride=2), nn.GELU(), ConvBN(channels // 2, channels, kernel=3, stride=2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.seq(x)


class MBConv(nn.Module):
    """An inverted bottleneck, four times as wide inside; (b, c, h, w) to the same."""

    def __init__(self, channels: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = channels * expansion
        self.conv1 = ConvBN(channels, hidden)
        self.conv2 = ConvBN(hidden, hidden, kernel=3, groups=hidden)
        self.conv3 = ConvBN(hidden, channels, gain=0.0)  # a new block begins as the identity

    def forward(self, x: Tensor) -> Tensor:
        inner = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return F.gelu(x + self.conv3(inner))


class PatchMerging(nn.Module):
    """Between two stages: (b, c, h, w) to (b, out_channels, h / stride, w / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(in_channels, out_channels)
        self.conv2 = ConvBN(out_channels, out_channels, kernel=3, stride=stride, groups=out_channels)
        self.conv3 = ConvBN(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class ConvStage(nn.Module):
    """The first stage: MBConvs, then half the size."""

    def __init__(self, channels: int, depth: int, out_channels: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MBConv(channels) for _ in range(depth))
        self.downsample = PatchMerging(channels, out_channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.downsample(x)


class AttentionStage(nn.Module):
    """Blocks of attention, then the down-sampling to the next part's channels; the last part has none."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.permute(0, 2, 3, 1)
        for block in self.blocks:
            tokens = block(tokens)
        x = tokens.permute(0, 3, 1, 2)
        if self.downsample is None:
            return x
        return self.downsample(x)


class AttentionBlock(nn.Module):
    """Attention within windows, a depthwise 3 x 3 convolution, an MLP; (b, h, w, c) to the same."""

    def __init__(self, channels: int, heads: int, window: int, mlp_ratio: float) -> None:
        super().__init__()
        self.window = window
        self.attn = Attention(channels, heads, window)
        self.local_conv = ConvBN(channels, channels, kernel=3, groups=channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._windowed_attention(x)
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.mlp(x)

    def _windowed_attention(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        size = self.window
        if (h, w) == (size, size):
            return self.attn(x.reshape(b, h * w, c)).view(b, h, w, c)
        x = F.pad(x, (0, 0, 0, -w % size, 0, -h % size))
        rows, columns = x.shape[1] // size, x.shape[2] // size
        windows = x.view(b, rows, size, columns, size, c).transpose(2, 3).reshape(-1, size * size, c)
        windows = self.attn(windows).view(b, rows, columns, size, size, c)
        return windows.transpose(2, 3).reshape(b, rows * size, columns * size, c)[:, :h, :w]


class Attention(nn.Module):
    """Attention among all places of a window, with a learned bias for each head and offset; (b, n, c) to the same.

    An offset is |dy|, |dx|. Padding zeros take part, as in the original.
    """

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)  # head by head: its queries, keys and values
        self.proj = nn.Linear(channels, channels)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        # on the CPU even if the rest is built on the meta device: no file holds it
        self.register_buffer("attention_bias_idxs", _offsets(window), persistent=False)
        self.attention_bias_idxs: Tensor

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, n, self.heads, 3, -1).permute(3, 0, 2, 1, 4)
        bias = self.attention_biases[:, self.attention_bias_idxs].to(q.dtype)[None]  # the fused kernels want 4 axes
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


def _offsets(window: int) -> Tensor:
    """Return |dy| window + |dx| between any two places of a window: (window^2, window^2) int64."""
    y, x = torch.meshgrid(*[torch.arange(window, device="cpu")] * 2, indexing="ij")
    dy, dx = ((axis.reshape(-1, 1) - axis.reshape(1, -1)).abs() for axis in (y, x))
    return dy * window + dx


class Mlp(nn.Module):
    """Normalisation and two layers; (..., c) to the same."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class ChannelNorm(nn.Module):
    """Layer normalisation of the channels at each place of (b, c, h, w), as in SAM's neck."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, eps=1e-6)
        return x.permute(0, 3, 1, 2)
