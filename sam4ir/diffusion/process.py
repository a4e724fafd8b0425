"""The forward process of SAM-DiffSR and what its network learns: x_t, the target, and x_0 back from it.

x_0 is the residual clip(2 (HR - LRup), -1, 1), E the structural position encoding (SPE) of its masks. In all modes

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps'

with eps' = eps in plain diffusion (`none`). The modes differ in how E shifts eps', and in what the network predicts.
With a zero SPE each of them is plain DDPM bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from sam4ir.diffusion.schedule import NoiseSchedule
from sam4ir.errors import UserError

Modulation = Literal["none", "released", "paper", "invertible"]
Target = Literal["noise", "x_0", "v"]
SamplerName = Literal["ddpm", "ddim", "dpm_solver_2m"]

# g_t of `invertible`, before it is scaled to a mean square of 1
PROFILES: dict[str, Callable[[NoiseSchedule], Tensor]] = {
    "flat": lambda schedule: torch.ones_like(schedule.betas),
    "signal": lambda schedule: schedule.alpha_bar.sqrt(),
    "noise": lambda schedule: (1 - schedule.alpha_bar).sqrt(),
    "released": lambda schedule: schedule.mask_coefficient,
}


@dataclass(frozen=True, eq=False)
class Process:
    """A forward process: it makes x_t and the target of the network, and derives x_0 from a prediction.

    modulation (docs/method.md#modulations); `strength` scales E in all of them:
      none        plain SRDiff, E is not used.
      released    eps' = eps + c_t E, c_t = sqrt(1 - abar_t) beta_t; the network learns eps' (released code).
      paper       x_t has phi_t E added and the network learns eps + sqrt((1 - abar_t) / beta_t) E: with that target
                  the ancestral step in epsilon form has exactly the mean of q(x_{t-1} | x_t, x_0, E). x_0 does not
                  follow from it without E: the target is `noise` only, the sampler `ddpm` only.
      invertible  eps' = eps + g_t E / s_E, s_E the RMS of E in training; the network learns eps', and x_0 follows
                  exactly (ours).
    target: of the network: `noise` (eps'), `x_0`, or `v` = sqrt(abar_t) eps' - sqrt(1 - abar_t) x_0 (Salimans & Ho).
    profile: g_t of `invertible`: a name (flat, signal: sqrt(abar_t), noise: sqrt(1 - abar_t), released: c_t) or T
      numbers; scaled so that the mean of g_t^2 over t is 1 (flat: g_t = 1).

    Raises UserError for names not in these lists, a strength that is negative or not finite, `paper` with another
    target than noise, and a profile that is not T finite numbers or is all 0.
    """

    schedule: NoiseSchedule
    modulation: Modulation = "none"
    strength: float = 1.0
    target: Target = "noise"
    profile: str | tuple[float, ...] = "flat"
    _tables: dict[tuple[str, torch.device, torch.dtype], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        _check_choice("modulation", self.modulation, get_args(Modulation))
        _check_choice("target", self.target, get_args(Target))
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise UserError(f"strength is {self.strength}, expected a finite number from 0 on")
        if self.modulation == "paper" and self.target != "noise":
            raise UserError(
                f"target is {self.target!r} with modulation 'paper', which is defined for 'noise' only "
                "(its target adds the SPE to the noise); 'released' and 'invertible' take every target"
            )
        _profile(self.profile, self.schedule)

    @property
    def needs_spe(self) -> bool:
        """Whether training pairs depend on the SPE."""
        return self.modulation != "none" and self.strength > 0

    @property
    def timesteps(self) -> int:
        """T, the number of steps."""
        return self.schedule.timesteps

    def training_pair(
        self, x_0: Tensor, t: Tensor, noise: Tensor, spe: Tensor | None = None, spe_rms: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Return x_t and the network's target for it, both (b, c, h, w) of x_0's type.

        x_0: (b, c, h, w) in [-1, 1]; t: (b,) int64 in 0..T-1; noise: eps ~ N(0, I), of x_0's shape; spe: E,
        (b, 1, h, w), 0 where no mask lies; spe_rms: s_E > 0, used by `invertible` only.
        Raises UserError for other shapes, and for a missing spe where `needs_spe`.
        """
        self._check_shapes(x_0, t, noise, spe)
        signal, sigma = self._at("signal", t, x_0), self._at("sigma", t, x_0)
        if spe is None or not self.needs_spe:
            return signal * x_0 + sigma * noise, self._target(x_0, t, noise)
        encoding = spe.to(x_0.dtype)
        if self.modulation == "paper":
            x_t = signal * x_0 + self._at("phi", t, x_0) * encoding + sigma * noise
            return x_t, noise + self._at("paper_target", t, x_0) * encoding
        if self.modulation == "invertible":
            if isinstance(spe_rms, float) and not spe_rms > 0:
                raise UserError(f"spe_rms is {spe_rms}, expected more than 0: do the training images have masks?")
            encoding = encoding / spe_rms
        shifted = noise + self._at(self.modulation, t, x_0) * encoding
        return signal * x_0 + sigma * shifted, self._target(x_0, t, shifted)

    def x_0(self, x_t: Tensor, t: Tensor, predicted: Tensor) -> Tensor:
        """Return the x_0 that a prediction implies, not clipped, (b, c, h, w) of x_t's type. t: (b,) int64.

        Raises UserError for `paper`, where it would be off by (phi_t - (1 - abar_t)/sqrt(beta_t))/sqrt(abar_t) E.
        """
        if self.modulation == "paper":
            raise UserError(
                "modulation 'paper' does not give x_0 from its prediction without the SPE; "
                "sample with 'ddpm', or train 'released' or 'invertible'"
            )
        predicted = predicted.to(x_t.dtype)
        if self.target == "x_0":
            return predicted
        signal, sigma = self._at("signal", t, x_t), self._at("sigma", t, x_t)
        if self.target == "v":
            return signal * x_t - sigma * predicted
        return (x_t - sigma * predicted) / signal

    def noise(self, x_t: Tensor, t: Tensor, predicted: Tensor) -> Tensor:
        """Return the noise eps' that a prediction implies (for `paper`: its target), (b, c, h, w) of x_t's type."""
        predicted = predicted.to(x_t.dtype)
        if self.target == "noise":
            return predicted
        signal, sigma = self._at("signal", t, x_t), self._at("sigma", t, x_t)
        if self.target == "v":
            return sigma * x_t + signal * predicted
        return (x_t - signal * predicted) / sigma

    def check_sampler(self, name: str) -> None:
        """Raise UserError where no sampler has that name, or where it cannot sample this process."""
        _check_choice("sampler", name, get_args(SamplerName))
        if self.modulation == "paper" and name != "ddpm":
            raise UserError(
                f"sampler is {name!r} with modulation 'paper', which can be sampled by 'ddpm' only: "
                "its x_0 is not known without the SPE"
            )

    def _target(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return what the network should predict for x_0 and eps' at t."""
        if self.target == "noise":
            return noise
        if self.target == "x_0":
            return x_0
        return self._at("signal", t, x_0) * noise - self._at("sigma", t, x_0) * x_0

    def _at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """Return row t of a table as (b, 1, 1, 1) on the device and of the type of `like`; t stays on its device."""
        key = (name, like.device, like.dtype)
        if key not in self._tables:
            self._tables[key] = self._table(name).to(like.device, like.dtype)
        return self._tables[key][t].view(-1, 1, 1, 1)

    def _table(self, name: str) -> Tensor:
        """Return a table of coefficients by name, (T,) float64."""
        schedule = self.schedule
        if name == "signal":
            return schedule.alpha_bar.sqrt()
        if name == "sigma":
            return (1 - schedule.alpha_bar).sqrt()
        if name == "phi":
            return self.strength * schedule.phi
        if name == "paper_target":
            return self.strength * ((1 - schedule.alpha_bar) / schedule.betas).sqrt()
        if name == "released":
            return self.strength * schedule.mask_coefficient
        return self.strength * _profile(self.profile, schedule)

    def _check_shapes(self, x_0: Tensor, t: Tensor, noise: Tensor, spe: Tensor | None) -> None:
        b, _, h, w = x_0.shape
        if t.shape != (b,) or noise.shape != x_0.shape:
            raise UserError(
                f"x_0 is {tuple(x_0.shape)}, t {tuple(t.shape)}, noise {tuple(noise.shape)}; "
                f"expected t ({b},) and noise of x_0's shape"
            )
        if spe is None and self.needs_spe:
            raise UserError(
                f"modulation {self.modulation!r} needs the SPE of the batch (b, 1, h, w), zeros for an image without "
                "masks; with modulation 'none' or strength 0 no SPE is needed"
            )
        if spe is not None and spe.shape != (b, 1, h, w):
            raise UserError(f"spe is {tuple(spe.shape)}, expected {(b, 1, h, w)} as x_0 is {tuple(x_0.shape)}")


def _profile(profile: str | tuple[float, ...], schedule: NoiseSchedule) -> Tensor:
    """Return g_t, (T,) float64 with a mean square of 1. Raises UserError for an unusable profile."""
    if isinstance(profile, str):
        _check_choice("profile", profile, tuple(PROFILES))
        g = PROFILES[profile](schedule)
    else:
        g = torch.tensor(profile, dtype=torch.float64)
        if g.shape != schedule.betas.shape or not bool(g.isfinite().all()) or not bool(g.any()):
            raise UserError(
                f"profile has {g.numel()} numbers, expected {schedule.timesteps} (one for a step), finite and not all 0"
            )
    return g / g.square().mean().sqrt()


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UserError where the value is not one of the choices."""
    if value not in choices:
        raise UserError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
