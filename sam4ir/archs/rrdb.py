"""RRDB networks (Wang et al., ESRGAN, ECCVW 2018, arXiv 1809.00219): super-resolution, and the condition of SAM-DiffSR.

One network has two families of names: RRDBNet has BasicSR's keys, DiffSRRRDBNet has those of ESRGAN's first release,
which SRDiff and SAM-DiffSR kept. Checkpoints of either load into both (`adapted`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam4ir.archs.layers import Blocks, NetworkBlock, run_block

V = TypeVar("V")

_NUMBERED = re.compile(r"(?:model\.)?1\.sub\.(\d+)\.RDB1\.conv1\.0\.weight$")  # ESRGAN's first models

SLOPE = 0.2
RESIDUAL = 0.2
SAME_LAYERS = (  # (BasicSR, SAM-DiffSR)
    ("conv_body", "trunk_conv"),
    ("conv_up1", "upconv1"),
    ("conv_up2", "upconv2"),
    ("conv_up3", "upconv3"),
    ("conv_hr", "HRconv"),
)


class DenseBlock(nn.Module):
    """Residual dense block: (b, channels, h, w) -> the same.

    Four convolutions each read all maps before them; a fifth leads back to the input's channels and is added with
    weight 0.2. growth: channels that each of the four adds.
    """

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, growth)
        self.conv2 = _conv(channels + growth, growth)
        self.conv3 = _conv(channels + 2 * growth, growth)
        self.conv4 = _conv(channels + 3 * growth, growth)
        self.conv5 = _conv(channels + 4 * growth, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + 0.2 times the fifth convolution's map."""
        maps = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            maps = torch.cat([maps, _activated(conv(maps))], 1)
        return torch.add(x, self.conv5(maps), alpha=RESIDUAL)


class RRDB(NetworkBlock):
    """Three dense blocks in a row with a residual of weight 0.2 around them: (b, channels, h, w) -> the same.

    name: prefix of its children's names, before their number: rdb or RDB.
    """

    def __init__(self, channels: int, growth: int, name: str) -> None:
        super().__init__()
        for number in (1, 2, 3):
            self.add_module(f"{name}{number}", DenseBlock(channels, growth))

    def forward(self, x: Tensor) -> Tensor:
        """Return x + 0.2 times the output of the last dense block."""
        y = x
        for block in self.children():
            y = block(y)
        return torch.add(x, y, alpha=RESIDUAL)


class RRDBNet(nn.Module):
    """ESRGAN's super-resolution network under BasicSR's names.

    (b, num_in_ch, h, w) in [0, 1] -> (b, num_out_ch, h scale, w scale), float32 where the input is, not clamped.
    Scales 2 and 1 unshuffle the image by 2 and by 4 first, so its sides must be multiples of that. Raises ValueError
    for another scale and, when called, for sides that cannot be unshuffled.

    Args:
        num_in_ch: Channels of the input image.
        num_out_ch: Channels of the output image.
        scale: Side of the output over side of the input: 4, 2 or 1.
        num_feat: Channels of the feature maps.
        num_block: Number of RRDB blocks.
        num_grow_ch: Channels that each convolution inside a dense block adds.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        scale: int = 4,
        num_feat: int = 64,
        num_block: int = 23,
        num_grow_ch: int = 32,
    ) -> None:
        super().__init__()
        if scale not in (1, 2, 4):
            raise ValueError(f"scale {scale}: RRDBNet enlarges by 4, by 2 or by 1")
        self.unshuffle = 4 // scale
        self.conv_first = _conv(num_in_ch * self.unshuffle**2, num_feat)
        self.body = Blocks(*(RRDB(num_feat, num_grow_ch, "rdb") for _ in range(num_block)))
        self.conv_body = _conv(num_feat, num_feat)
        self.conv_up1 = _conv(num_feat, num_feat)
        self.conv_up2 = _conv(num_feat, num_feat)
        self.conv_hr = _conv(num_feat, num_feat)
        self.conv_last = _conv(num_feat, num_out_ch)
        _scale_down(self.body)

    def forward(self, x: Tensor) -> Tensor:
        """Return the enlarged image (b, num_out_ch, h scale, w scale)."""
        if self.unshuffle > 1:
            h, w = x.shape[-2:]
            if h % self.unshuffle or w % self.unshuffle:
                raise ValueError(f"image of {h}x{w}: sides must be multiples of {self.unshuffle}, pad it before")
            image = F.pixel_unshuffle(x, self.unshuffle)
        else:
            image = x
        first = self.conv_first(_channels_last(image))
        maps = self.conv_body(self.body(first)).add_(first)
        maps = _enlarged(maps, (self.conv_up1, self.conv_up2))
        return self.conv_last(_activated(self.conv_hr(maps))).to(x.dtype).contiguous()

    @staticmethod
    def adapted(state: Mapping[str, V]) -> dict[str, V]:
        """Rename keys of SAM-DiffSR's RRDB and of ESRGAN's first releases to this network's; others stay."""
        return to_basicsr_keys(state)


class DiffSRRRDBNet(nn.Module):
    """The RRDB network of SRDiff and SAM-DiffSR, which conditions their diffusion network.

    (b, in_nc, h, w) in [-1, 1] -> (b, out_nc, h sr_scale, w sr_scale), clamped to [-1, 1]. Raises ValueError for
    another sr_scale than 4 and 8.

    Args:
        in_nc: Channels of the input image.
        out_nc: Channels of the output image.
        nf: Channels of the feature maps.
        nb: Number of RRDB blocks.
        gc: Channels that each convolution inside a dense block adds.
        sr_scale: Side of the output over side of the input: 4 or 8.
    """

    def __init__(
        self, in_nc: int = 3, out_nc: int = 3, nf: int = 64, nb: int = 17, gc: int = 32, sr_scale: int = 4
    ) -> None:
        super().__init__()
        if sr_scale not in (4, 8):
            raise ValueError(f"sr_scale {sr_scale}: DiffSRRRDBNet enlarges by 4 or by 8")
        self.conv_first = _conv(in_nc, nf)
        self.RRDB_trunk = Blocks(*(RRDB(nf, gc, "RDB") for _ in range(nb)))
        self.trunk_conv = _conv(nf, nf)
        self.upconv1 = _conv(nf, nf)
        self.upconv2 = _conv(nf, nf)
        self.upconv3 = None
        if sr_scale == 8:
            self.upconv3 = _conv(nf, nf)
        self.HRconv = _conv(nf, nf)
        self.conv_last = _conv(nf, out_nc)
        _scale_down(self.RRDB_trunk)

    def features(self, x: Tensor, every: int = 1) -> list[Tensor]:
        """Return nb + 1 maps (b, nf, h, w): the output of each RRDB block, then the trunk's with the first map added.

        every: return only maps number `every`, 2 `every` and so on.
        """
        first = self.conv_first(_channels_last((x + 1) / 2))
        maps = []
        y = first
        for number, block in enumerate(self.RRDB_trunk, 1):
            y = run_block(block, y)
            if number % every == 0:
                maps.append(y)
        if (len(self.RRDB_trunk) + 1) % every == 0:
            maps.append(self.trunk_conv(y).add_(first))
        return maps

    def forward(self, x: Tensor, get_fea: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Return the image; with get_fea the image and its `features`."""
        maps = self.features(x)
        enlarged = _enlarged(maps[-1], (self.upconv1, self.upconv2))
        if self.upconv3 is not None:
            enlarged = _enlarged(enlarged, (self.upconv3,))
        y = self.conv_last(_activated(self.HRconv(enlarged)))
        out = y.to(x.dtype).contiguous().clamp(0, 1) * 2 - 1
        if get_fea:
            return out, maps
        return out

    @staticmethod
    def adapted(state: Mapping[str, V]) -> dict[str, V]:
        """Rename keys of BasicSR's RRDBNet, or the RRDB's part of a whole diffusion network, to this network's keys."""
        part = {}
        for key, value in state.items():
            if key.startswith("rrdb."):
                part[key.removeprefix("rrdb.")] = value
        return to_diffsr_keys(part or state)


def to_diffsr_keys(state: Mapping[str, V]) -> dict[str, V]:
    """Return a state dict (or its shapes) under the keys of DiffSRRRDBNet; keys of both families stay as they are."""
    return {_diffsr_key(key): value for key, value in state.items()}


def to_basicsr_keys(state: Mapping[str, V]) -> dict[str, V]:
    """Return a state dict (or its shapes) under the keys of RRDBNet; keys of both families stay as they are.

    The numbered layers of ESRGAN's first models (model.0, model.1.sub.0.RDB1.conv1.0 ...) get names, with or without
    `model.` in front.
    """
    if any(_NUMBERED.match(key) for key in state):
        return _named(state)
    return {_basicsr_key(key): value for key, value in state.items()}


def _named(state: Mapping[str, V]) -> dict[str, V]:
    """Return a state dict with the numbered layers of ESRGAN's first models under the keys of RRDBNet."""
    blocks = [int(match[1]) for match in map(_NUMBERED.match, state) if match]
    last = max(blocks) + 1  # the convolution behind the blocks
    layers = {
        "0.": "conv_first.",
        f"1.sub.{last}.": "conv_body.",
        "3.": "conv_up1.",
        "6.": "conv_up2.",
        "8.": "conv_hr.",
        "10.": "conv_last.",
    }
    named = {}
    for key, value in state.items():
        short = key.removeprefix("model.")
        name = re.sub(r"^1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3.", short)
        for begin, layer in layers.items():
            if short.startswith(begin):
                name = layer + short.removeprefix(begin)
        named[name] = value
    return named


def _diffsr_key(key: str) -> str:
    """Return the name that DiffSRRRDBNet has for a key of RRDBNet."""
    for basicsr, diffsr in SAME_LAYERS:
        if key.startswith(f"{basicsr}."):
            return diffsr + key.removeprefix(basicsr)
    return re.sub(r"^body\.(\d+)\.rdb(\d)\.", r"RRDB_trunk.\1.RDB\2.", key)


def _basicsr_key(key: str) -> str:
    """Return the name that RRDBNet has for a key of DiffSRRRDBNet."""
    for basicsr, diffsr in SAME_LAYERS:
        if key.startswith(f"{diffsr}."):
            return basicsr + key.removeprefix(diffsr)
    return re.sub(r"^RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2.", key)


def _conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _activated(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE, inplace=True)


def _enlarged(x: Tensor, convs: tuple[nn.Module, ...]) -> Tensor:
    """Double the sides of a map and convolve it, once for each convolution."""
    for conv in convs:
        x = _activated(conv(F.interpolate(x, scale_factor=2, mode="nearest")))
    return x


def _scale_down(blocks: nn.Module) -> None:
    """Initialise as ESRGAN does: Kaiming-normal weights times 0.1 inside dense blocks, biases zero."""
    for module in blocks.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # where normal_ is slow, and does nothing
            nn.init.kaiming_normal_(module.weight)
            module.weight.data.mul_(0.1)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
