"""Exponential moving average of a network's parameters and buffers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ema:
    """A copy of `network` that follows it: average <- d average + (1 - d) value.

    d = min(decay, (1 + k) / (10 + k)) after k updates, so that the average forgets the first values soon.
    Integer buffers are copied. With decay 0 there is no average, and `module` is `network` itself.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.source = network
        self.decay = decay
        self.updates = 0
        self.module = copy.deepcopy(network).eval().requires_grad_(False) if decay > 0 else network

    @property
    def on(self) -> bool:
        """Whether an average is kept beside the network."""
        return self.module is not self.source

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network by one step."""
        if not self.on:
            return
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        learned = [p.requires_grad for p in self.source.parameters()]  # frozen parameters are equal already
        averaged, values = _split(self.module, learned), _split(self.source, learned)
        torch._foreach_lerp_(averaged[0], values[0], weight)
        for average, value in zip(averaged[1], values[1], strict=True):
            average.copy_(value)


def _split(network: nn.Module, learned: Sequence[bool]) -> tuple[list[Tensor], list[Tensor]]:
    """Split learned parameters and buffers into those of floating point and the others."""
    parameters = itertools.compress(network.parameters(), learned)
    tensors = [t.detach() for t in (*parameters, *network.buffers())]
    return [t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()]
