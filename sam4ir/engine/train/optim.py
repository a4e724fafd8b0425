"""The optimiser of one network: its learning rate as a function of the iteration, and gradient clipping."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

Rate = Callable[[int], float]

_TYPES: dict[str, type[torch.optim.Optimizer]] = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}


def learning_rate(base_lr: float, schedule: Callable[[int, float], float], warmup_iter: int, start: int = 0) -> Rate:
    """Return the function iteration (from 1 on) -> learning rate.

    Iteration i has the schedule's rate after i - 1 steps; up to warmup_iter the rate rises from 0 on a line (BasicSR).
    start: iterations before this optimiser's phase begins.
    """

    def rate(iteration: int) -> float:
        step = max(iteration - start, 1)
        if step < warmup_iter:
            return base_lr * step / warmup_iter
        return schedule(step - 1, base_lr)

    return rate


class Optimiser:
    """An optimiser of torch with its learning rate and its clipping.

    parameters: those to train; frozen ones are left out. rate: iteration -> learning rate. clip: largest L2 norm
    of the gradient, or None.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        type_name: str,
        rate: Rate,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        clip: float | None = None,
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.rate = rate
        self.clip = clip
        fused = all(p.device.type in {"cpu", "cuda"} and p.is_floating_point() for p in self.parameters)
        self.inner = _TYPES[type_name](  # type: ignore[call-arg]
            self.parameters, lr=rate(1), betas=betas, weight_decay=weight_decay, eps=eps, fused=fused
        )

    def gradient_norm(self) -> Tensor:
        """Clip the gradient to `clip`, and return its L2 norm before that."""
        largest = float("inf") if self.clip is None else self.clip
        return nn.utils.clip_grad_norm_(self.parameters, largest)

    def step(self, iteration: int) -> None:
        """Update the parameters with the learning rate of this iteration."""
        for group in self.inner.param_groups:
            group["lr"] = self.rate(iteration)
        self.inner.step()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.inner.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the moments, as torch stores them."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the moments; betas, eps and weight decay stay those of the options."""
        settings = [dict(group) for group in self.inner.param_groups]
        self.inner.load_state_dict(state)
        for group, values in zip(self.inner.param_groups, settings, strict=True):
            del values["params"]
            group.update(values)
