"""The denoising U-Net of SAM-DiffSR (Wang et al., arXiv 2402.17133), which is SRDiff's (Li et al., Neurocomputing 2022,
arXiv 2104.14951): no normalisation, Mish, reflection padding, a condition added after the first level.

Modules have the names of the released code, so released checkpoints load strictly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam4ir.archs.layers import NetworkBlock, Pointwise, run_block, without_autocast
from sam4ir.archs.mish import mish

MAPS = 3  # each third map of the RRDB network is a condition
ATTENTION_HEADS = 4
ATTENTION_WIDTH = 32


class ReflectConv(nn.Conv2d):
    """3x3 convolution over the map reflected by one pixel: (b, i, h, w) -> (b, o, h / stride, w / stride)."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__(before, after, 3, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of the reflected map."""
        with without_autocast(x):  # a CPU's autocast would pad in float32
            padded = _reflected(x)
        return super().forward(padded)


def _reflected(x: Tensor) -> Tensor:
    """Reflect (b, c, h, w) to (b, c, h + 2, w + 2); CUDA's own backward pass adds in no fixed order."""
    if not (x.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return F.pad(x, (1, 1, 1, 1), mode="reflect")
    rows = torch.cat([x[..., 1:2, :], x, x[..., -2:-1, :]], -2)
    return torch.cat([rows[..., 1:2], rows, rows[..., -2:-1]], -1)


class ConvMish(nn.Module):
    """A convolution and Mish, a `block` in the released code: (b, i, h, w) -> (b, o, h, w)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Identity(), ReflectConv(before, after), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Return mish of the convolution."""
        return mish(self.block[1](x))


class ResnetBlock(NetworkBlock):
    """Two ConvMish with the time between them, and a residual: (b, before, h, w) -> (b, after, h, w)."""

    def __init__(self, before: int, after: int, time_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Mish(), nn.Linear(time_dim, after))
        self.block1 = ConvMish(before, after)
        self.block2 = ConvMish(after, after)
        self.res_conv: nn.Module = nn.Identity()
        if before != after:
            self.res_conv = Pointwise(before, after)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return (b, after, h, w). time: mish of the time embedding, (b, time_dim)."""
        y = self.block1(x)
        with without_autocast(time):
            shift = self.mlp[1](time)
        y = self.block2(y.add_(shift[:, :, None, None].to(y.dtype)))
        return y.add_(self.res_conv(x))


class Downsample(nn.Module):
    """3x3 convolution of stride 2: (b, c, h, w) -> (b, c, h / 2, w / 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Identity(), ReflectConv(channels, channels, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the map at half its sides, which are even."""
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """Transposed 4x4 convolution of stride 2: (b, c, h, w) -> (b, c, 2h, 2w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.ConvTranspose2d(channels, channels, 4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the map at twice its sides."""
        out: Tensor = self.conv(x)
        return out


class LinearAttention(nn.Module):
    """Attention whose time is linear in the number of pixels: (b, c, h, w) -> the same.

    Keys are a distribution over pixels (Shen et al., Efficient Attention, WACV 2021, without their softmax of queries).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = ATTENTION_HEADS * ATTENTION_WIDTH
        self.to_qkv = nn.Conv2d(channels, 3 * width, 1, bias=False)
        self.to_out = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended map, (b, c, h, w)."""
        b, _, h, w = x.shape
        q, k, v = self.to_qkv(x).reshape(b, 3, ATTENTION_HEADS, ATTENTION_WIDTH, h * w).unbind(1)
        context = k.softmax(-1) @ v.transpose(-2, -1)  # (b, heads, width of k, width of v)
        return self.to_out((context.transpose(-2, -1) @ q).reshape(b, -1, h, w))


class Rezero(nn.Module):
    """A module times a learnt number, g f(x), with g zero at the start (Bachlechner et al., UAI 2021)."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.zeros(1))
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """Return g f(x), in the type of f(x)."""
        y: Tensor = self.fn(x)
        return y * self.g.to(y.dtype)


class Shortcut(nn.Module):
    """A module with a shortcut around it: x + f(x)."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """Return x + f(x)."""
        y: Tensor = self.fn(x)
        return x + y


class DiffSRUnet(nn.Module):
    """The denoising U-Net alone: it estimates the noise (or another target) of a noisy residual.

    Its inputs are the residual, the time step and feature maps of an RRDB network. The attribute `multiple` is the
    number that the sides H and W must be multiples of; they are at least twice as long, or denoise raises ValueError.
    Raises ValueError for an odd sr_scale, for an empty dim_mults, and for a dim that is odd or below 4.

    Args:
        dim: Channels at full resolution, an even number of at least 4.
        out_dim: Channels of the estimate.
        dim_mults: Factor of dim at each level, from fine to coarse.
        cond_dim: Channels of the RRDB network's feature maps.
        rrdb_num_block: Number of blocks of the RRDB network; its maps 3, 6, 9 and so on are the condition.
        sr_scale: Side of the HR image over side of the LR image, an even number.
        use_attn: Whether the coarsest level has linear attention.
        up_input: Whether the up-sampled LR image is a condition too.
        cond_sam: Whether the map of masks is mixed into the condition, so that sampling needs masks.
    """

    def __init__(
        self,
        dim: int = 64,
        out_dim: int = 3,
        dim_mults: Sequence[int] = (1, 2, 3, 4),
        cond_dim: int = 64,
        rrdb_num_block: int = 17,
        sr_scale: int = 4,
        use_attn: bool = False,
        up_input: bool = False,
        cond_sam: bool = False,
    ) -> None:
        super().__init__()
        _check(dim, dim_mults, rrdb_num_block, sr_scale)
        widths = [3, *(dim * m for m in dim_mults)]
        pairs = list(itertools.pairwise(widths))
        self.dim = dim
        self.multiple = 2 ** (len(pairs) - 1)
        # the order of the released state dict
        self.sam_conv = None
        if cond_sam:
            self.sam_conv = nn.Sequential(nn.Conv2d(dim + 1, dim, 1), nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1))
        maps = (rrdb_num_block + 1) // 3
        self.cond_proj = nn.ConvTranspose2d(cond_dim * maps, dim, 2 * sr_scale, sr_scale, sr_scale // 2)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim))
        self.downs = nn.ModuleList()
        for level, (before, after) in enumerate(pairs, 1):
            blocks = _two(before, after, dim)
            down: nn.Module = nn.Identity()
            if level < len(pairs):
                down = Downsample(after)
            self.downs.append(nn.ModuleList([*blocks, down]))
        self.ups = nn.ModuleList()
        for before, after in reversed(pairs[1:]):
            self.ups.append(nn.ModuleList([*_two(2 * after, before, dim), Upsample(before)]))
        deepest = widths[-1]
        self.mid_block1 = ResnetBlock(deepest, deepest, dim)
        self.mid_attn = None
        if use_attn:
            self.mid_attn = Shortcut(Rezero(LinearAttention(deepest)))
        self.mid_block2 = ResnetBlock(deepest, deepest, dim)
        self.final_conv = nn.Sequential(ConvMish(dim, dim), Pointwise(dim, out_dim))
        self.up_proj = None
        if up_input:
            self.up_proj = nn.Sequential(nn.Identity(), ReflectConv(3, dim))

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        cond: Sequence[Tensor],
        img_lr_up: Tensor | None = None,
        sam_mask: Tensor | None = None,
    ) -> Tensor:
        """Project and denoise at once. cond: feature maps of the RRDB network; the others as in those methods."""
        return self.denoise(x, time, self.project(cond, sam_mask), img_lr_up)

    def project(self, feats: Sequence[Tensor], sam_mask: Tensor | None = None) -> Tensor:
        """Return the condition (b, dim, H, W), which is the same at each step.

        feats: rrdb_num_block + 1 maps of the RRDB network, (b, cond_dim, h, w) each. sam_mask: (b, 1, H, W), used and
        needed with cond_sam only.
        """
        return self.projected(feats[MAPS - 1 :: MAPS], sam_mask)

    def projected(self, maps: Sequence[Tensor], sam_mask: Tensor | None = None) -> Tensor:
        """Return the condition as `project` does, from maps number 3, 6, 9 ... alone."""
        condition: Tensor = self.cond_proj(torch.cat(list(maps), 1))
        if self.sam_conv is None:
            return condition
        if sam_mask is None:
            raise ValueError("this network was made with cond_sam: it needs sam_mask (b, 1, H, W), in sampling too")
        mixed: Tensor = self.sam_conv(torch.cat([condition, sam_mask.to(condition.dtype)], 1))
        return mixed

    def denoise(self, x: Tensor, time: Tensor, projected: Tensor, img_lr_up: Tensor | None = None) -> Tensor:
        """Return the estimate (b, out_dim, H, W), in x's type.

        x: (b, 3, H, W); time: steps (b,); projected: the condition (b, dim, H, W) from `project`; img_lr_up: the
        up-sampled LR image (b, 3, H, W) in [-1, 1], used and needed with up_input only.
        """
        self._check_input(x, projected)
        t = F.mish(self.embedded(time))
        y = x.contiguous(memory_format=torch.channels_last)
        skips: list[Tensor] = []
        for first, second, down in map(_parts, self.downs):
            y = run_block(second, run_block(first, y, t), t)
            if not skips:
                y = self._conditioned(y, projected, img_lr_up)
            skips.append(y)
            y = down(y)
        y = run_block(self.mid_block1, y, t)
        if self.mid_attn is not None:
            y = self.mid_attn(y)
        y = run_block(self.mid_block2, y, t)
        for first, second, up in map(_parts, self.ups):
            y = run_block(second, run_block(first, torch.cat([y, skips.pop()], 1), t), t)
            y = up(y)
        return self.final_conv(y).to(x.dtype).contiguous()

    def embedded(self, time: Tensor) -> Tensor:
        """Embed time steps (b,) as (b, dim) by sinusoids and two layers, in the parameters' precision at least."""
        half = self.dim // 2
        precision = self.cond_proj.weight.dtype
        steps = torch.arange(half, device=time.device, dtype=torch.float32)
        angles = time[:, None] * torch.exp(steps * (-math.log(10000) / (half - 1)))
        with without_autocast(time):
            out: Tensor = self.mlp(torch.cat([angles.sin(), angles.cos()], 1).to(precision))
        return out

    def _conditioned(self, y: Tensor, projected: Tensor, img_lr_up: Tensor | None) -> Tensor:
        y = y.add_(projected.to(y.dtype))
        if self.up_proj is None:
            return y
        if img_lr_up is None:
            raise ValueError("this network was made with up_input: it needs img_lr_up (b, 3, H, W)")
        return y.add_(self.up_proj(img_lr_up.contiguous(memory_format=torch.channels_last)))

    def _check_input(self, x: Tensor, projected: Tensor) -> None:
        h, w = x.shape[-2:]
        m = self.multiple
        if h % m or w % m or h < 2 * m or w < 2 * m:
            raise ValueError(f"x of {h}x{w}: sides must be multiples of {m}, {2 * m} at least; pad the LR image")
        if projected.shape[-2:] != x.shape[-2:]:
            raise ValueError(f"x is {h}x{w}, its condition {tuple(projected.shape[-2:])}: they must be of one size")


def _two(before: int, after: int, time_dim: int) -> list[ResnetBlock]:
    return [ResnetBlock(before, after, time_dim), ResnetBlock(after, after, time_dim)]


def _parts(level: nn.Module) -> list[nn.Module]:
    """Return the two blocks of a level and the module that leads to the next level."""
    return list(level.children())


def _check(dim: int, dim_mults: Sequence[int], rrdb_num_block: int, sr_scale: int) -> None:
    if dim % 2 or dim < 4:
        raise ValueError(f"dim {dim}: give an even number, 4 at least (half of it are frequencies of the time)")
    if not dim_mults or min(dim_mults) < 1:
        raise ValueError(f"dim_mults {list(dim_mults)}: give one positive factor a level")
    if rrdb_num_block < 2:
        raise ValueError(f"rrdb_num_block {rrdb_num_block}: the condition is each third map, so give 2 at least")
    if sr_scale < 2 or sr_scale % 2:
        raise ValueError(f"sr_scale {sr_scale}: the condition is enlarged by an even factor")
