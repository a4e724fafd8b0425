"""The baseline of sam4ir benchmark diffusion: SAM-DiffSR's work in the layout of the released code, written again.

It has the same parameters under the same names as sam4ir.archs, so a state dict of ours loads strictly. Only the
benchmark uses it. It keeps the released form: contiguous (b, c, h, w) maps; Mish as x tanh(softplus(x)); every dense
block joins its maps from the start; the RRDB network keeps its up-sampling tail, whose image is unused; a training step
draws x_t for t and t - 1, and a posterior sample for the log only; Adam with torch's defaults; a chain projects the
condition at each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RES_RESCALE = 2.0


def mish(x: Tensor) -> Tensor:
    """Return x tanh(softplus(x))."""
    return x * torch.tanh(F.softplus(x))


class DenseBlock(nn.Module):
    """Five convolutions, each of all maps before it: (b, channels, h, w) -> the same shape."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        for i in range(5):
            after = growth if i < 4 else channels
            self.add_module(f"conv{i + 1}", nn.Conv2d(channels + i * growth, after, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        *first, last = self.children()
        maps = [x]
        for conv in first:
            maps.append(F.leaky_relu(conv(torch.cat(maps, 1)), 0.2, inplace=True))
        return last(torch.cat(maps, 1)) * 0.2 + x


class Rrdb(nn.Module):
    """Three dense blocks: (b, channels, h, w) -> the same shape."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        for i in (1, 2, 3):
            self.add_module(f"RDB{i}", DenseBlock(channels, growth))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for block in self.children():
            y = block(y)
        return y * 0.2 + x


class RrdbNet(nn.Module):
    """The RRDB network: (b, 3, h, w) in [-1, 1] -> (the image four times as large, all feature maps)."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, channels, 3, padding=1)
        self.RRDB_trunk = nn.Sequential(*(Rrdb(channels, channels // 2) for _ in range(blocks)))
        self.trunk_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.upconv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.upconv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.HRconv = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_last = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        first = self.conv_first((x + 1) / 2)
        y, maps = first, []
        for block in self.RRDB_trunk:
            y = block(y)
            maps.append(y)
        y = first + self.trunk_conv(y)
        maps.append(y)
        for conv in (self.upconv1, self.upconv2):
            y = F.leaky_relu(conv(F.interpolate(y, scale_factor=2, mode="nearest")), 0.2, inplace=True)
        y = self.conv_last(F.leaky_relu(self.HRconv(y), 0.2, inplace=True))
        return y.clamp(0, 1) * 2 - 1, maps


class Mish(nn.Module):
    """The function mish as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return mish(x)


def _padded_conv(before: int, after: int, stride: int = 1) -> list[nn.Module]:
    return [nn.ReflectionPad2d(1), nn.Conv2d(before, after, 3, stride=stride)]


def _holder(name: str, *modules: nn.Module) -> nn.Sequential:
    """Return the modules in sequence, with their parameters under NAME.0, NAME.1 ..."""
    holder = nn.Sequential()
    holder.add_module(name, nn.Sequential(*modules))
    return holder


def _block(before: int, after: int) -> nn.Sequential:
    return _holder("block", *_padded_conv(before, after), Mish())


class ResnetBlock(nn.Module):
    """The denoiser's block: (b, before, h, w) and the time (b, dim) -> (b, after, h, w)."""

    def __init__(self, before: int, after: int, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Mish(), nn.Linear(dim, after))
        self.block1, self.block2 = _block(before, after), _block(after, after)
        self.res_conv = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.block1(x) + self.mlp(time)[:, :, None, None]
        return self.block2(y) + self.res_conv(x)


class Unet(nn.Module):
    """The denoiser at x4, without attention and further conditions."""

    def __init__(self, dim: int, dim_mults: Sequence[int], joined: int) -> None:
        super().__init__()
        self.dim = dim
        pairs = list(pairwise([3, *(dim * m for m in dim_mults)]))
        deepest = pairs[-1][1]

        def two(before: int, after: int) -> list[nn.Module]:
            return [ResnetBlock(before, after, dim), ResnetBlock(after, after, dim)]

        def down(c: int, level: int) -> nn.Module:
            return _holder("conv", *_padded_conv(c, c, 2)) if level < len(pairs) else nn.Identity()

        def up(c: int) -> nn.Module:
            return _holder("conv", nn.ConvTranspose2d(c, c, 4, 2, 1))

        self.cond_proj = nn.ConvTranspose2d(joined, dim, 8, 4, 2)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), Mish(), nn.Linear(4 * dim, dim))
        self.downs = nn.ModuleList(nn.ModuleList([*two(a, b), down(b, i)]) for i, (a, b) in enumerate(pairs, 1))
        self.ups = nn.ModuleList(nn.ModuleList([*two(2 * b, a), up(a)]) for a, b in reversed(pairs[1:]))
        self.mid_block1, self.mid_block2 = ResnetBlock(deepest, deepest, dim), ResnetBlock(deepest, deepest, dim)
        self.final_conv = nn.Sequential(_block(dim, dim), nn.Conv2d(dim, 3, 1))

    def forward(self, x: Tensor, t: Tensor, maps: Sequence[Tensor]) -> Tensor:
        half = self.dim // 2
        rates = torch.exp(torch.arange(half, device=t.device) * -(math.log(10000) / (half - 1)))
        angles = t[:, None] * rates[None]
        time = self.mlp(torch.cat([angles.sin(), angles.cos()], 1))
        condition = self.cond_proj(torch.cat(list(maps[2::3]), 1))
        skips: list[Tensor] = []
        for first, second, down in map(_children, self.downs):
            x = second(first(x, time), time)
            if not skips:
                x = x + condition
            skips.append(x)
            x = down(x)
        x = self.mid_block2(self.mid_block1(x, time), time)
        for first, second, up in map(_children, self.ups):
            x = up(second(first(torch.cat([x, skips.pop()], 1), time), time))
        out: Tensor = self.final_conv(x)
        return out


def _children(level: nn.Module) -> list[nn.Module]:
    return list(level.children())


class ReferenceDiffusion(nn.Module):
    """The network and process of the released code.

    betas: (T,) of its cosine schedule. The other arguments are those of DiffSR.
    """

    def __init__(
        self,
        betas: Tensor,
        hidden_size: int = 64,
        dim_mults: Sequence[int] = (1, 2, 3, 4),
        rrdb_num_feat: int = 64,
        rrdb_num_block: int = 17,
    ) -> None:
        super().__init__()
        self.denoise_fn = Unet(hidden_size, dim_mults, rrdb_num_feat * ((rrdb_num_block + 1) // 3))
        self.rrdb = RrdbNet(rrdb_num_feat, rrdb_num_block)
        abar = (1 - betas).cumprod(0)
        before = torch.cat([abar.new_ones(1), abar[:-1]])
        tables = {
            "signal": abar.sqrt(),
            "sigma": (1 - abar).sqrt(),
            "offset": (1 - abar).sqrt() * betas,
            "to_x_t": (1 / abar).sqrt(),
            "to_noise": (1 / abar - 1).sqrt(),
            "mean_x_0": betas * before.sqrt() / (1 - abar),
            "mean_x_t": (1 - betas).sqrt() * (1 - before) / (1 - abar),
            "log_variance": (betas * (1 - before) / (1 - abar)).clamp(min=1e-20).log(),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

    def forward(self, x_t: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        """Return the noise estimate, as a training step computes it."""
        with torch.no_grad():
            _, maps = self.rrdb(lq * 2 - 1)
        estimate: Tensor = self.denoise_fn(x_t, t, maps)
        return estimate

    def at(self, table: str, t: Tensor) -> Tensor:
        """Return row t of a table as (b, 1, 1, 1)."""
        row: Tensor = self.get_buffer(table)[t]
        return row.view(-1, 1, 1, 1)

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor, spe: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_t and its noise shifted by the SPE."""
        shifted = noise + self.at("offset", t) * spe
        return self.at("signal", t) * x_0 + self.at("sigma", t) * shifted, shifted

    @torch.no_grad()
    def p_sample(self, x_t: Tensor, t: Tensor, estimate: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_{t-1} and the clipped x_0 that follow from a noise estimate."""
        x_0 = (self.at("to_x_t", t) * x_t - self.at("to_noise", t) * estimate).clamp(-1, 1)
        mean = self.at("mean_x_0", t) * x_0 + self.at("mean_x_t", t) * x_t
        not_last = (t > 0).float().view(-1, 1, 1, 1)
        return mean + not_last * (0.5 * self.at("log_variance", t)).exp() * noise, x_0

    def loss(self, gt: Tensor, lq: Tensor, lq_up: Tensor, spe: Tensor) -> Tensor:
        """Return the L1 loss of one training step's noise. gt, lq: in [0, 1]; lq_up: in [-1, 1]; spe: (b, 1, H, W)."""
        t = torch.randint(0, len(self.get_buffer("signal")), (len(gt),), device=gt.device)
        x_0 = ((2 * gt - 1 - lq_up) * RES_RESCALE).clamp(-1, 1)
        noise = torch.randn_like(x_0)
        x_t, target = self.q_sample(x_0, t, noise, spe)
        x_before, _ = self.q_sample(x_0, t - 1, noise, spe)
        estimate = self(x_t, t, lq).float()
        sampled = self.p_sample(x_t, t, estimate.detach(), torch.randn_like(x_0))
        for log_image in (x_t, x_before, *sampled):  # the released step makes these images for a log that is off
            image_of(log_image, lq_up)
        return (target - estimate).abs().mean()

    @torch.no_grad()
    def chain(self, lq: Tensor, lq_up: Tensor, start: Tensor, noise: Callable[[int], Tensor]) -> Tensor:
        """Return the image in [0, 1] (unclamped) by all steps of ancestral sampling."""
        _, maps = self.rrdb(lq * 2 - 1)
        x = start
        steps = len(self.get_buffer("signal"))
        for i in range(steps):
            t = torch.full((len(x),), steps - 1 - i, dtype=torch.int64, device=x.device)
            x, _ = self.p_sample(x, t, self.denoise_fn(x, t, maps).float(), noise(i))
        return (image_of(x, lq_up) + 1) / 2


def image_of(x_0: Tensor, lq_up: Tensor) -> Tensor:
    """Return the image in [-1, 1] (unclamped) of a residual x_0."""
    return x_0.clamp(-1, 1) / RES_RESCALE + lq_up


def optimiser(network: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return Adam over the trained parameters, those outside the RRDB network."""
    return torch.optim.Adam([p for name, p in network.named_parameters() if not name.startswith("rrdb.")], lr)
