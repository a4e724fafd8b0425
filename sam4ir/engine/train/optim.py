"""One optimiser a trained network: learning rate as a function of the iteration, clipping, skipping."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

Rate = Callable[[int], float]

_TYPES: dict[str, type[torch.optim.Optimizer]] = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}


def learning_rate(base_lr: float, schedule: Callable[[int, float], float], warmup_iter: int, start: int = 0) -> Rate:
    """lr of iteration i (from 1 on): the schedule after i - 1 steps; up to warmup_iter a line from 0 (BasicSR).

    start: iterations before this optimiser's phase begins.
    """

    def rate(iteration: int) -> float:
        own = max(iteration - start, 1)
        return base_lr * own / warmup_iter if own < warmup_iter else schedule(own - 1, base_lr)

    return rate


class Optimiser:
    """An optimiser of torch with its rate and its clipping.

    parameters: what it trains. rate: iteration -> lr. clip: largest L2 norm of the gradient, or None.
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
        self.parameters = [p for p in parameters if p.requires_grad]
        self.rate = rate
        self.clip = clip
        fused = all(p.device.type in {"cpu", "cuda"} and p.is_floating_point() for p in self.parameters)
        self.inner = _TYPES[type_name](  # type: ignore[call-arg]
            self.parameters, lr=rate(1), betas=betas, weight_decay=weight_decay, eps=eps, fused=fused
        )

    def gradient_norm(self) -> Tensor:
        """L2 norm of the gradient, which is clipped to `clip` on the way."""
        return nn.utils.clip_grad_norm_(self.parameters, self.clip if self.clip is not None else float("inf"))

    def step(self, iteration: int) -> None:
        """Update the parameters with the rate of this iteration."""
        for group in self.inner.param_groups:
            group["lr"] = self.rate(iteration)
        self.inner.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.inner.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """The moments, as torch keeps them."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the moments; betas, eps and weight decay stay as the options say."""
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.inner.param_groups]
        self.inner.load_state_dict(state)
        for group, own in zip(self.inner.param_groups, settings, strict=True):
            group.update(own)
