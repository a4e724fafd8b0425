"""NAFNet and Baseline (Chen et al., Simple Baselines for Image Restoration, ECCV 2022, arXiv 2204.04676).

Each has a local form, whose channel attention averages over windows.

Modules and keyword arguments have the official names, so official checkpoints load strictly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam4ir.archs.layers import Blocks, LayerNorm2d, NetworkBlock, Pointwise, simple_gate, window_mean
from sam4ir.archs.size import SizeRule, pad, unpad


class _Block(NetworkBlock):
    """A depthwise branch with channel attention, then a feed-forward branch: (b, channels, h, w) -> the same.

    Each is added with a learnt scale (beta, gamma) that starts at zero. wide, hidden: channels inside the two branches.
    halved: by how much `activation` divides them. attention_key: the name of the attention in official weights.
    """

    attention_key: str
    halved: int

    def __init__(self, channels: int, wide: int, hidden: int) -> None:
        super().__init__()
        attended = wide // self.halved
        self.conv1 = Pointwise(channels, wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.conv3 = Pointwise(attended, channels)
        self.add_module(self.attention_key, self.build_attention(attended))
        self.conv4 = Pointwise(channels, hidden)
        self.conv5 = Pointwise(hidden // self.halved, channels)
        self.norm1 = LayerNorm2d(channels)
        self.norm2 = LayerNorm2d(channels)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    @property
    def attention(self) -> nn.Sequential:
        """The channel attention, which begins with its pooling."""
        attention: nn.Sequential = getattr(self, self.attention_key)
        return attention

    @staticmethod
    def build_attention(channels: int) -> nn.Sequential:
        """Return the channel attention: (b, channels, h, w) -> (b, channels, 1, 1)."""
        raise NotImplementedError

    @staticmethod
    def activation(x: Tensor) -> Tensor:
        """Return what follows the convolutions of both branches."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, channels, h, w): x with both halves of the block added."""
        y = self.activation(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.conv3.attended(y, self.attention(y), self.beta)
        y = self.activation(self.conv4(self.norm2(x)))
        return x + self.conv5.scaled(y, self.gamma)


class NAFBlock(_Block):
    """The block of NAFNet's Fig. 3c: both branches are gated, and the channel attention is the simplified one."""

    attention_key = "sca"
    halved = 2

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 2 * channels, 2 * channels)

    @staticmethod
    def activation(x: Tensor) -> Tensor:
        """Return the product of the two halves of the channels."""
        return simple_gate(x)

    @staticmethod
    def build_attention(channels: int) -> nn.Sequential:
        """Return the simplified channel attention: a pooling and a convolution."""
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), Pointwise(channels, channels))


class BaselineBlock(_Block):
    """The block of the paper's Fig. 3b, with GELU and squeeze-and-excitation.

    Its branches have dw_expand * channels and ffn_expand * channels.
    """

    attention_key = "se"
    halved = 1

    def __init__(self, channels: int, dw_expand: int = 1, ffn_expand: int = 2) -> None:
        super().__init__(channels, dw_expand * channels, ffn_expand * channels)

    @staticmethod
    def activation(x: Tensor) -> Tensor:
        """Return GELU of x."""
        return F.gelu(x)

    @staticmethod
    def build_attention(channels: int) -> nn.Sequential:
        """Return squeeze-and-excitation: a pooling and two convolutions, with half of the channels between them."""
        half = channels // 2
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(1), Pointwise(channels, half), nn.ReLU(), Pointwise(half, channels), nn.Sigmoid()
        )


class _BlockUNet(nn.Module):
    """A U-shaped network of blocks: (b, img_channel, h, w) -> the same, for any h and w.

    block: makes a block of so many channels. The others are the arguments of NAFNet.
    """

    def __init__(
        self,
        block: Callable[[int], _Block],
        img_channel: int,
        width: int,
        middle_blk_num: int,
        enc_blk_nums: Sequence[int],
        dec_blk_nums: Sequence[int],
    ) -> None:
        super().__init__()
        levels = len(enc_blk_nums)
        if len(dec_blk_nums) != levels:
            raise ValueError(
                f"enc_blk_nums {list(enc_blk_nums)} and dec_blk_nums {list(dec_blk_nums)} differ in length; "
                "give both one number a level"
            )
        self.intro = nn.Conv2d(img_channel, width, 3, padding=1)
        self.ending = nn.Conv2d(width, img_channel, 3, padding=1)
        channels = [width * 2**level for level in range(levels + 1)]
        blocks = functools.partial(_blocks, block)
        self.encoders = nn.ModuleList(map(blocks, channels[:-1], enc_blk_nums))
        self.decoders = nn.ModuleList(map(blocks, channels[-2::-1], dec_blk_nums))
        self.middle_blks = blocks(channels[-1], middle_blk_num)
        self.ups = nn.ModuleList(map(_up, channels[:0:-1]))
        self.downs = nn.ModuleList(map(_down, channels[:-1]))
        self.size = SizeRule(multiple=2**levels, mode="zeros")

    def forward(self, image: Tensor) -> Tensor:
        """Return the restored image (b, img_channel, h, w)."""
        padded = pad(image, self.size)
        x = self.intro(padded.contiguous(memory_format=torch.channels_last))
        x = x.contiguous(memory_format=torch.channels_last)
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle_blks(x)
        for decoder, up, skip in zip(self.decoders, self.ups, reversed(skips), strict=True):
            x = decoder(up(x) + skip)
        return unpad(padded + self.ending(x), (image.shape[-2], image.shape[-1]))

    def blocks(self) -> Iterator[tuple[int, _Block]]:
        """Yield (level, block) of all blocks; level 0 is full resolution."""
        groups = [*self.encoders, self.middle_blks, *self.decoders]
        coarsest = len(self.encoders)
        for i, group in enumerate(groups):
            for block in group.children():
                assert isinstance(block, _Block)
                yield coarsest - abs(coarsest - i), block


class NAFNet(_BlockUNet):
    """NAFNet, a U-shaped network of NAFBlocks: (b, img_channel, h, w) -> the same, for any h and w.

    The output is float32 where the input is. Raises ValueError if encoder and decoder differ in their number of levels.

    Args:
        img_channel: Channels of the image, 3 for RGB.
        width: Channels at full resolution; each level doubles them.
        middle_blk_num: Number of blocks at the coarsest level.
        enc_blk_nums: Number of blocks at each level of the encoder, from fine to coarse.
        dec_blk_nums: Number of blocks at each level of the decoder, from coarse to fine.
    """

    def __init__(
        self,
        img_channel: int = 3,
        width: int = 16,
        middle_blk_num: int = 1,
        enc_blk_nums: Sequence[int] = (),
        dec_blk_nums: Sequence[int] = (),
    ) -> None:
        super().__init__(NAFBlock, img_channel, width, middle_blk_num, enc_blk_nums, dec_blk_nums)


class NAFNetLocal(NAFNet):
    """NAFNet whose channel attention averages over local windows of 1.5 times the training size (TLC).

    Source: Chu et al., Improving Image Restoration by Revisiting Global Information Aggregation, ECCV 2022, arXiv
    2112.04491. Weights and keys are NAFNet's, and so is the output for images no larger than the windows.
    Raises ValueError for a train_size that is not four positive integers.

    Args:
        train_size: Shape (b, c, h, w) of the training patches; only h and w count.
        fast_imp: Whether windows slide over a subsampled map, which is faster on large images but not exact.
    """

    def __init__(
        self,
        *,
        train_size: Sequence[int] = (1, 3, 256, 256),
        fast_imp: bool = False,
        img_channel: int = 3,
        width: int = 16,
        middle_blk_num: int = 1,
        enc_blk_nums: Sequence[int] = (),
        dec_blk_nums: Sequence[int] = (),
    ) -> None:
        super().__init__(img_channel, width, middle_blk_num, enc_blk_nums, dec_blk_nums)
        _average_locally(self, train_size, fast_imp)


class Baseline(_BlockUNet):
    """Baseline, the U-shaped network of BaselineBlocks from which NAFNet comes: the shapes are NAFNet's.

    The output is float32 where the input is. Raises ValueError if encoder and decoder differ in their number of levels.

    Args:
        img_channel: Channels of the image, 3 for RGB.
        width: Channels at full resolution; each level doubles them.
        middle_blk_num: Number of blocks at the coarsest level.
        enc_blk_nums: Number of blocks at each level of the encoder, from fine to coarse.
        dec_blk_nums: Number of blocks at each level of the decoder, from coarse to fine.
        dw_expand: Channels of a block's depthwise branch over those of its level.
        ffn_expand: Channels of a block's feed-forward branch over those of its level.
    """

    def __init__(
        self,
        img_channel: int = 3,
        width: int = 16,
        middle_blk_num: int = 1,
        enc_blk_nums: Sequence[int] = (),
        dec_blk_nums: Sequence[int] = (),
        dw_expand: int = 1,
        ffn_expand: int = 2,
    ) -> None:
        block = functools.partial(BaselineBlock, dw_expand=dw_expand, ffn_expand=ffn_expand)
        super().__init__(block, img_channel, width, middle_blk_num, enc_blk_nums, dec_blk_nums)


class BaselineLocal(Baseline):
    """Baseline whose channel attention averages over local windows, as NAFNetLocal's does.

    Raises ValueError as Baseline does, and for a train_size that is not four positive numbers.

    Args:
        train_size: Batch, channels, height and width of the training patches; the last two set the windows.
        fast_imp: Whether each window takes only some rows and columns, TLC's faster approximation.
        img_channel: Channels of the image, 3 for RGB.
        width: Channels at full resolution; each level doubles them.
        middle_blk_num: Number of blocks at the coarsest level.
        enc_blk_nums: Number of blocks at each level of the encoder, from fine to coarse.
        dec_blk_nums: Number of blocks at each level of the decoder, from coarse to fine.
        dw_expand: Channels of a block's depthwise branch over those of its level.
        ffn_expand: Channels of a block's feed-forward branch over those of its level.
    """

    def __init__(
        self,
        *,
        train_size: Sequence[int] = (1, 3, 256, 256),
        fast_imp: bool = False,
        img_channel: int = 3,
        width: int = 16,
        middle_blk_num: int = 1,
        enc_blk_nums: Sequence[int] = (),
        dec_blk_nums: Sequence[int] = (),
        dw_expand: int = 1,
        ffn_expand: int = 2,
    ) -> None:
        super().__init__(img_channel, width, middle_blk_num, enc_blk_nums, dec_blk_nums, dw_expand, ffn_expand)
        _average_locally(self, train_size, fast_imp)


def _average_locally(network: _BlockUNet, train_size: Sequence[int], fast: bool) -> None:
    """Let the channel attention of all blocks average over local windows; see NAFNetLocal."""
    if len(train_size) != 4 or min(train_size) < 1:
        raise ValueError(f"train_size {list(train_size)}: give (b, c, h, w) of the training patches")
    h, w = train_size[-2:]
    padded_h, padded_w = network.size.padded(h, w)
    for level, block in network.blocks():
        at_level = padded_h >> level, padded_w >> level
        window = at_level[0] * int(1.5 * h) // h, at_level[1] * int(1.5 * w) // w
        longest_step = max(1, 5 * at_level[0] // h), max(1, 5 * at_level[1] // w)
        mean: nn.Module = LocalMean(window)
        if fast:
            mean = SubsampledLocalMean(window, longest_step)
        block.attention[0] = mean


class LocalMean(nn.Module):
    """The mean over each window (kh, kw) inside the map: (b, c, h, w) -> (b, c, h - kh + 1, w - kw + 1).

    A window that covers the map gives the global mean (b, c, 1, 1). The caller replicates the border (`replicate_to`).
    """

    def __init__(self, window: tuple[int, int]) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """Return the means (b, c, h - kh + 1, w - kw + 1)."""
        return window_mean(x, self.window)


class SubsampledLocalMean(nn.Module):
    """TLC's faster approximation of LocalMean.

    Its windows take each r-th row and column, r <= longest_step, from the second one on; each mean is repeated r times.
    """

    def __init__(self, window: tuple[int, int], longest_step: tuple[int, int]) -> None:
        super().__init__()
        self.window = window
        self.longest_step = longest_step

    def forward(self, x: Tensor) -> Tensor:
        """Return the means, each repeated r times, or (b, c, 1, 1) where the window covers the map."""
        h, w = x.shape[-2:]
        if self.window[0] >= h and self.window[1] >= w:
            return x.mean((2, 3), keepdim=True)
        rows, columns = _step(h, self.longest_step[0]), _step(w, self.longest_step[1])
        x = x[:, :, ::rows, ::columns]
        x = x[:, :, min(1, x.shape[2] - 1) :, min(1, x.shape[3] - 1) :]
        means = window_mean(x, (max(1, self.window[0] // rows), max(1, self.window[1] // columns)))
        return means.repeat_interleave(rows, 2).repeat_interleave(columns, 3)


def _step(side: int, longest: int) -> int:
    """Return how many rows (or columns) of a side lie between two that count: a divisor up to 5, and `longest` at most.

    A side of one step or less is taken whole.
    """
    step = 5
    while side % step:
        step -= 1
    step = min(longest, step)
    if side <= step:
        return 1
    return step


def _up(channels: int) -> nn.Sequential:
    """Return the layers from a level to the next finer one: (b, c, h, w) -> (b, c / 2, 2h, 2w)."""
    return nn.Sequential(Pointwise(channels, 2 * channels, bias=False), nn.PixelShuffle(2))


def _down(channels: int) -> nn.Conv2d:
    """Return the layer from a level to the next coarser one: (b, c, h, w) -> (b, 2c, h / 2, w / 2)."""
    return nn.Conv2d(channels, 2 * channels, 2, stride=2)


def _blocks(block: Callable[[int], _Block], channels: int, number: int) -> Blocks:
    """Return `number` blocks of one level."""
    return Blocks(*(block(channels) for _ in range(number)))
