"""The baselines of sam4ir benchmark: networks, training step and loader in the layout of the official code.

They have the same parameters under the same names as sam4ir.archs, so a state dict of ours loads strictly. Only the
benchmark uses them. They keep the official form: contiguous (b, c, h, w) maps; layer normalisation over dimension 1
(NAFNet) or after a rearrangement to (b, h w, c) and back (Restormer); instance normalisation of one chunk, which is
then joined with the other (HINet); queries, keys and values as separate chunks; scales multiplied into the maps;
optimisers with torch's defaults; whole images decoded and converted before a crop is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _NormOverChannels(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias over dimension 1, with its derivative written by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        deviation = (centred.pow(2).mean(1, keepdim=True) + eps).sqrt()
        normed = centred / deviation
        ctx.save_for_backward(normed, deviation, weight)
        return weight.view(1, -1, 1, 1) * normed + bias.view(1, -1, 1, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        (gradient,) = gradients
        normed, deviation, weight = ctx.saved_tensors
        scaled = gradient * weight.view(1, -1, 1, 1)
        projected = (scaled * normed).mean(1, keepdim=True)
        to_x = (scaled - normed * projected - scaled.mean(1, keepdim=True)) / deviation
        return to_x, (gradient * normed).sum((0, 2, 3)), gradient.sum((0, 2, 3)), None


class ReferenceLayerNorm2d(nn.Module):
    """NAFNet's normalisation as an autograd function of elementwise operations."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _NormOverChannels.apply(x, self.weight, self.bias, 1e-6)
        return out


def _gate(x: Tensor) -> Tensor:
    """Return the product of the two halves of the channels."""
    first, second = x.chunk(2, dim=1)
    return first * second


class ReferenceNAFBlock(nn.Module):
    """NAFNet's block: (b, channels, h, w) -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.conv1 = nn.Conv2d(channels, wide, 1)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))
        self.conv4 = nn.Conv2d(channels, wide, 1)
        self.conv5 = nn.Conv2d(channels, channels, 1)
        self.norm1 = ReferenceLayerNorm2d(channels)
        self.norm2 = ReferenceLayerNorm2d(channels)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = _gate(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.conv3(y * self.sca(y)) * self.beta
        return x + self.conv5(_gate(self.conv4(self.norm2(x)))) * self.gamma


class ReferenceNAFNet(nn.Module):
    """NAFNet with the arguments of sam4ir's; the image's sides must be multiples of 2^levels."""

    def __init__(
        self, width: int, middle_blk_num: int, enc_blk_nums: Sequence[int], dec_blk_nums: Sequence[int]
    ) -> None:
        super().__init__()
        channels = [width * 2**level for level in range(len(enc_blk_nums) + 1)]

        def blocks(c: int, n: int) -> nn.Sequential:
            return nn.Sequential(*(ReferenceNAFBlock(c) for _ in range(n)))

        self.intro = nn.Conv2d(3, width, 3, padding=1)
        self.ending = nn.Conv2d(width, 3, 3, padding=1)
        self.encoders = nn.ModuleList(blocks(c, n) for c, n in zip(channels, enc_blk_nums, strict=False))
        self.decoders = nn.ModuleList(blocks(c, n) for c, n in zip(channels[-2::-1], dec_blk_nums, strict=True))
        self.middle_blks = blocks(channels[-1], middle_blk_num)
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, 2 * c, 1, bias=False), nn.PixelShuffle(2)) for c in channels[:0:-1]
        )
        self.downs = nn.ModuleList(nn.Conv2d(c, 2 * c, 2, stride=2) for c in channels[:-1])

    def forward(self, image: Tensor) -> Tensor:
        x, skips = self.intro(image), []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle_blks(x)
        for decoder, up, skip in zip(self.decoders, self.ups, skips[::-1], strict=True):
            x = decoder(up(x) + skip)
        return image + self.ending(x)


class ReferenceConvBlock(nn.Module):
    """HINet's block; the network itself applies `downsample`."""

    def __init__(self, before: int, channels: int, downsample: bool, csff: bool, hin: bool) -> None:
        super().__init__()
        self.identity = nn.Conv2d(before, channels, 1)
        self.conv_1 = nn.Conv2d(before, channels, 3, padding=1)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        if csff:
            self.csff_enc = nn.Conv2d(channels, channels, 3, padding=1)
            self.csff_dec = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.InstanceNorm2d(channels // 2, affine=True) if hin else None
        if downsample:
            self.downsample = nn.Conv2d(channels, channels, 4, stride=2, padding=1, bias=False)

    def forward(self, x: Tensor, stage_1: tuple[Tensor, Tensor] | None = None) -> Tensor:
        y = self.conv_1(x)
        if self.norm is not None:
            first, second = y.chunk(2, dim=1)
            y = torch.cat([self.norm(first), second], dim=1)
        y = F.leaky_relu(y, 0.2)
        y = F.leaky_relu(self.conv_2(y), 0.2)
        y = y + self.identity(x)
        if stage_1 is not None:
            y = y + self.csff_enc(stage_1[0]) + self.csff_dec(stage_1[1])
        return y


class ReferenceUpBlock(nn.Module):
    """HINet's upward step: a transposed convolution, joined with the skip, then a block."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(before, channels, 2, stride=2)
        self.conv_block = ReferenceConvBlock(before, channels, False, False, False)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv_block(torch.cat([self.up(x), skip], dim=1))


class ReferenceAttention(nn.Module):
    """HINet's supervised attention between the two stages."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, 3, 3, padding=1)
        self.conv3 = nn.Conv2d(3, channels, 3, padding=1)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        restored = self.conv2(x) + image
        return self.conv1(x) * torch.sigmoid(self.conv3(restored)) + x, restored


class ReferenceHINet(nn.Module):
    """HINet with the arguments of sam4ir's; the image's sides must be multiples of 16 and at least 32."""

    def __init__(self, wf: int, depth: int = 5, hin_position_left: int = 0, hin_position_right: int = 4) -> None:
        super().__init__()
        widths = [wf * 2**level for level in range(depth)]
        self.conv_01 = nn.Conv2d(3, wf, 3, padding=1)
        self.conv_02 = nn.Conv2d(3, wf, 3, padding=1)
        self.down_path_1 = nn.ModuleList()
        self.down_path_2 = nn.ModuleList()
        for level, (before, width) in enumerate(zip([wf, *widths], widths, strict=False)):
            down, hin = level + 1 < depth, hin_position_left <= level <= hin_position_right
            self.down_path_1.append(ReferenceConvBlock(before, width, down, False, hin))
            self.down_path_2.append(ReferenceConvBlock(before, width, down, down, hin))
        skips = widths[-2::-1]
        self.up_path_1 = nn.ModuleList(ReferenceUpBlock(2 * w, w) for w in skips)
        self.up_path_2 = nn.ModuleList(ReferenceUpBlock(2 * w, w) for w in skips)
        self.skip_conv_1 = nn.ModuleList(nn.Conv2d(w, w, 3, padding=1) for w in skips)
        self.skip_conv_2 = nn.ModuleList(nn.Conv2d(w, w, 3, padding=1) for w in skips)
        self.sam12 = ReferenceAttention(wf)
        self.cat12 = nn.Conv2d(2 * wf, wf, 1)
        self.last = nn.Conv2d(wf, 3, 3, padding=1)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.conv_01(image)
        encoded, decoded = self._stage(x, self.down_path_1, self.up_path_1, self.skip_conv_1, None)
        features, restored = self.sam12(decoded[-1], image)
        x = self.cat12(torch.cat([self.conv_02(image), features], dim=1))
        pairs = list(zip(encoded, decoded[::-1], strict=True))
        _, decoded = self._stage(x, self.down_path_2, self.up_path_2, self.skip_conv_2, pairs)
        return [restored, self.last(decoded[-1]) + image]

    def _stage(
        self,
        x: Tensor,
        downs: nn.ModuleList,
        ups: nn.ModuleList,
        skips: nn.ModuleList,
        stage_1: list[tuple[Tensor, Tensor]] | None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        encoded: list[Tensor] = []
        decoded: list[Tensor] = []
        for level, block in enumerate(list(downs)[:-1]):
            assert isinstance(block, ReferenceConvBlock)
            encoded.append(block(x, None if stage_1 is None else stage_1[level]))
            x = block.downsample(encoded[-1])
        x = downs[-1](x)
        for up, skip, features in zip(ups, skips, encoded[::-1], strict=True):
            x = up(x, skip(features))
            decoded.append(x)
        return encoded, decoded


class ReferenceNorm(nn.Module):
    """Restormer's WithBias normalisation of (b, c, h, w), done as (b, h w, c); its parameters are under `body`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.ParameterDict(
            {"weight": nn.Parameter(torch.ones(channels)), "bias": nn.Parameter(torch.zeros(channels))}
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(b, h * w, c)
        mean, variance = rows.mean(-1, keepdim=True), rows.var(-1, keepdim=True, unbiased=False)
        weight, bias = self.body["weight"], self.body["bias"]
        rows = (rows - mean) / torch.sqrt(variance + 1e-5) * weight + bias
        return rows.reshape(b, h, w, c).permute(0, 3, 1, 2)


class ReferenceChannelAttention(nn.Module):
    """Restormer's transposed attention, with query, key and value as chunks."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        heads = self.temperature.shape[0]
        q, k, v = (part.reshape(b, heads, c // heads, h * w) for part in self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attention = (q @ k.transpose(-2, -1) * self.temperature).softmax(dim=-1)
        return self.project_out((attention @ v).reshape(b, c, h, w))


class ReferenceFeedForward(nn.Module):
    """Restormer's gated feed-forward network."""

    def __init__(self, channels: int, expansion: float) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, y = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * y)


class ReferenceTransformerBlock(nn.Module):
    """Restormer's block: (b, channels, h, w) -> the same shape."""

    def __init__(self, channels: int, heads: int, expansion: float) -> None:
        super().__init__()
        self.norm1 = ReferenceNorm(channels)
        self.attn = ReferenceChannelAttention(channels, heads)
        self.norm2 = ReferenceNorm(channels)
        self.ffn = ReferenceFeedForward(channels, expansion)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


def _body(module: nn.Module) -> nn.Module:
    """Return the module with its parameters under `body`."""
    holder = nn.Sequential()
    holder.add_module("body", module)
    return holder


class ReferenceRestormer(nn.Module):
    """Restormer with the arguments of sam4ir's; the image's sides must be multiples of 8."""

    def __init__(
        self,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
    ) -> None:
        super().__init__()

        def stage(channels: int, level: int, number: int) -> nn.Sequential:
            return nn.Sequential(*(ReferenceTransformerBlock(channels, heads[level], 2.66) for _ in range(number)))

        def down(c: int) -> nn.Module:
            return _body(nn.Sequential(nn.Conv2d(c, c // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2)))

        def up(c: int) -> nn.Module:
            return _body(nn.Sequential(nn.Conv2d(c, 2 * c, 3, padding=1, bias=False), nn.PixelShuffle(2)))

        self.patch_embed = nn.Sequential()
        self.patch_embed.add_module("proj", nn.Conv2d(3, dim, 3, padding=1, bias=False))
        self.encoder_level1, self.down1_2 = stage(dim, 0, num_blocks[0]), down(dim)
        self.encoder_level2, self.down2_3 = stage(2 * dim, 1, num_blocks[1]), down(2 * dim)
        self.encoder_level3, self.down3_4 = stage(4 * dim, 2, num_blocks[2]), down(4 * dim)
        self.latent, self.up4_3 = stage(8 * dim, 3, num_blocks[3]), up(8 * dim)
        self.reduce_chan_level3 = nn.Conv2d(8 * dim, 4 * dim, 1, bias=False)
        self.decoder_level3, self.up3_2 = stage(4 * dim, 2, num_blocks[2]), up(4 * dim)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=False)
        self.decoder_level2, self.up2_1 = stage(2 * dim, 1, num_blocks[1]), up(2 * dim)
        self.decoder_level1 = stage(2 * dim, 0, num_blocks[0])
        self.refinement = stage(2 * dim, 0, num_refinement_blocks)
        self.output = nn.Conv2d(2 * dim, 3, 3, padding=1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        level1 = self.encoder_level1(self.patch_embed(image))
        level2 = self.encoder_level2(self.down1_2(level1))
        level3 = self.encoder_level3(self.down2_3(level2))
        x = self.up4_3(self.latent(self.down3_4(level3)))
        x = self.decoder_level3(self.reduce_chan_level3(torch.cat([x, level3], 1)))
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(x), level2], 1)))
        x = self.refinement(self.decoder_level1(torch.cat([self.up2_1(x), level1], 1)))
        return self.output(x) + image


def training_step(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    clip: float,
    lq: Tensor,
    gt: Tensor,
    autocast: torch.autocast,
) -> None:
    """Take one step in BasicSR's order: clear gradients, forward, loss summed over outputs, backward, clip, update."""
    optimiser.zero_grad()
    with autocast:
        output = network(lq)
    outputs = output if isinstance(output, list) else [output]
    total = torch.stack([loss(image, gt) for image in outputs]).sum()
    total.backward()
    nn.utils.clip_grad_norm_(network.parameters(), clip)
    optimiser.step()


def read_png_pair(gt: Path, lq: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return both whole images of a pair of files, (h, w, 3) BGR float32 in [0, 1]."""
    return decode_whole(gt.read_bytes()), decode_whole(lq.read_bytes())


def decode_whole(data: bytes) -> np.ndarray:
    """Return all pixels of an encoded image, (h, w, 3) BGR float32 in [0, 1]."""
    pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return pixels.astype(np.float32) / 255.0


def crop_and_turn(image: np.ndarray, top: int, left: int, patch: int, flips: tuple[bool, bool, bool]) -> Tensor:
    """Return a crop of a decoded image as (3, patch, patch) RGB.

    flips: horizontal, vertical, transpose, each done in a separate step.
    """
    crop: Any = image[top : top + patch, left : left + patch, ...]
    if flips[0]:
        crop = cv2.flip(crop, 1)
    if flips[1]:
        crop = cv2.flip(crop, 0)
    if flips[2]:
        crop = crop.transpose(1, 0, 2)
    return torch.from_numpy(cv2.cvtColor(crop, cv2.COLOR_BGR2RGB).transpose(2, 0, 1).copy()).float()


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "NAFNet": ReferenceNAFNet,
    "HINet": ReferenceHINet,
    "Restormer": ReferenceRestormer,
}
