"""Exponential moving average of a network's parameters and buffers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ema:
    """A copy of `network` that follows it: average <- d average + (1 - d) value.

    d = min(decay, (1 + k) / (10 + k)) after k updates, so that the average forgets the first values soon; without
    `warmup` d = decay, as in BasicSR. Integer buffers are copied. With decay 0 there is no average, and `module` is
    `network` itself.
    """

    def __init__(self, network: nn.Module, decay: float, warmup: bool = True) -> None:
        self.source = network
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self.module = network
        if decay > 0:
            self.module = copy.deepcopy(network).eval().requires_grad_(False)

    def __str__(self) -> str:
        """Return the average in words: 'decay 0.999, constant as in BasicSR'."""
        course = "constant as in BasicSR"
        if self.warmup:
            course = "which it rises to in the first updates"
        return f"decay {self.decay:g}, {course}"

    @property
    def on(self) -> bool:
        """Whether an average is kept beside the network."""
        return self.module is not self.source

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network by one step."""
        if not self.on:
            return
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        weight = 1 - decay
        self.updates += 1
        # frozen parameters are equal already
        learned = [parameter.requires_grad for parameter in self.source.parameters()]
        averaged, values = _split(self.module, learned), _split(self.source, learned)
        torch._foreach_lerp_(averaged[0], values[0], weight)
        for average, value in zip(averaged[1], values[1], strict=True):
            average.copy_(value)


def _split(network: nn.Module, learned: Sequence[bool]) -> tuple[list[Tensor], list[Tensor]]:
    """Split learned parameters and buffers into those of floating point and the others."""
    floating, others = [], []
    for tensor in (*itertools.compress(network.parameters(), learned), *network.buffers()):
        if tensor.is_floating_point():
            floating.append(tensor.detach())
        else:
            others.append(tensor.detach())
    return floating, others
