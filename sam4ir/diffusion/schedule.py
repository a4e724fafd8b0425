"""Noise schedules and the tables that follow from their betas, all in float64.

Steps are counted from 0 as in code: `betas[t]` belongs to the step from x_{t-1} to x_t, and x_{-1} is the clean image
(abar_{-1} = 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from sam4ir.errors import UserError

ScheduleName = Literal["cosine", "linear"]


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The betas of a diffusion process and the tables that follow from them: (T,) float64 on the CPU.

    Raises UserError unless betas are a finite one-dimensional table between 0 and 1 (both excluded).
    """

    betas: Tensor

    def __post_init__(self) -> None:
        betas = torch.as_tensor(self.betas, dtype=torch.float64, device="cpu")
        if betas.ndim != 1 or not len(betas):
            raise UserError(f"betas: shape is {tuple(betas.shape)}, expected (T,) with at least one step")
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise UserError(f"betas: from {betas.min().item():.4g} to {betas.max().item():.4g}, expected 0 < beta < 1")
        object.__setattr__(self, "betas", betas)

    @property
    def timesteps(self) -> int:
        """T, the number of steps."""
        return len(self.betas)

    @cached_property
    def alpha_bar(self) -> Tensor:
        """abar_t = prod_{i<=t} (1 - beta_i)  (DDPM, eq. 4)."""
        return (1 - self.betas).cumprod(0)

    @cached_property
    def alpha_bar_prev(self) -> Tensor:
        """abar_{t-1}, 1 at t = 0."""
        return torch.cat([self.betas.new_ones(1), self.alpha_bar[:-1]])

    @cached_property
    def posterior_variance(self) -> Tensor:
        """beta_t (1 - abar_{t-1}) / (1 - abar_t), 0 at t = 0  (DDPM, eq. 7)."""
        return self.betas * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    @cached_property
    def posterior_mean_x0(self) -> Tensor:
        """Weight of x_0 in the posterior mean: beta_t sqrt(abar_{t-1}) / (1 - abar_t)  (DDPM, eq. 7)."""
        return self.betas * self.alpha_bar_prev.sqrt() / (1 - self.alpha_bar)

    @cached_property
    def posterior_mean_xt(self) -> Tensor:
        """Weight of x_t in the posterior mean: sqrt(alpha_t) (1 - abar_{t-1}) / (1 - abar_t)  (DDPM, eq. 7)."""
        return (1 - self.betas).sqrt() * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    @cached_property
    def mask_coefficient(self) -> Tensor:
        """c_t = sqrt(1 - abar_t) beta_t, the SPE's weight in noise units (docs/method.md#modulations)."""
        return (1 - self.alpha_bar).sqrt() * self.betas

    @cached_property
    def phi(self) -> Tensor:
        """phi_t = sum_{i<=t} sqrt(abar_t beta_i / abar_i), the SPE's weight in x_t (SAM-DiffSR, arXiv 2402.17133).

        Summed as phi_t = sqrt(alpha_t) phi_{t-1} + sqrt(beta_t): no division by an abar that nears 0. It grows to
        6.56 at t = 78 of cosine-100 and falls to 1.08 at the last step, whose alpha is 0.001.
        """
        total, table = 0.0, []
        for beta in self.betas.tolist():
            total = math.sqrt(1 - beta) * total + math.sqrt(beta)
            table.append(total)
        return torch.tensor(table, dtype=torch.float64)

    @cached_property
    def log_snr(self) -> Tensor:
        """lambda_t = ln(sqrt(abar_t) / sqrt(1 - abar_t)), falling in t  (DPM-Solver, arXiv 2206.00927)."""
        return 0.5 * (self.alpha_bar.log() - (1 - self.alpha_bar).log())


def cosine_schedule(timesteps: int = 100, s: float = 0.008) -> NoiseSchedule:
    """Return the schedule with abar(u) = cos^2((u + s)/(1 + s) pi/2), betas up to 0.999  (Nichol & Dhariwal, 2021).

    u runs over linspace(0, T + 1, T + 1) / (T + 1), as in the released code (docs/method.md#noise-schedule): the steps
    are 1/T wide.
    """
    _check_timesteps(timesteps)
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    alpha_bar = ((u + s) / (1 + s) * math.pi / 2).cos().square()
    return NoiseSchedule((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999))


def linear_schedule(
    timesteps: int = 100, beta_start: float = 1e-4, beta_end: float = 0.02, last_beta: float | None = 0.999
) -> NoiseSchedule:
    """Return a schedule whose betas lie on a line (DDPM).

    last_beta: replaces the last beta, as the released code does for residuals, because 100 such steps keep 0.6 of the
    signal but sampling starts from pure noise; None keeps the line.
    """
    _check_timesteps(timesteps)
    betas = torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
    if last_beta is not None:
        betas[-1] = last_beta
    return NoiseSchedule(betas)


def noise_schedule(
    name: ScheduleName = "cosine",
    timesteps: int = 100,
    s: float = 0.008,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    last_beta: float | None = 0.999,
) -> NoiseSchedule:
    """Return a schedule by name: `cosine` takes s, `linear` takes beta_start, beta_end and last_beta."""
    if name == "cosine":
        return cosine_schedule(timesteps, s)
    if name == "linear":
        return linear_schedule(timesteps, beta_start, beta_end, last_beta)
    raise UserError(f"schedule is {name!r}, expected one of {', '.join(get_args(ScheduleName))}")


def _check_timesteps(timesteps: int) -> None:
    if timesteps < 1:
        raise UserError(f"timesteps is {timesteps}, expected at least 1")
