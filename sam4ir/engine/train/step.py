"""One optimiser step: it takes the micro-batches of this process and returns the values of all processes by name."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel

from sam4ir.data.sample import Batch
from sam4ir.engine.train.parts import TrainingParts
from sam4ir.errors import UserError
from sam4ir.utils.dist import ALONE, World, peers

_TYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class UnusedParametersError(UserError):
    """Parameters that no loss depends on; the message names them."""


class Outcome(NamedTuple):
    """The result of a step.

    values: the mean of each term (l_...) and measure over micro-batches and processes. finite: whether loss and
    gradient are; else no parameter was updated. overflow: float16 overflowed, which lowers the scale of the loss.
    norms: of the gradient of each network that trains, before it is clipped.
    """

    values: dict[str, float]
    finite: bool
    overflow: bool = False
    norms: Mapping[str, float] = MappingProxyType({})


class Step:
    """Forward, backward and update.

    Losses are means over micro-batches and processes, so gradients equal those of one large batch. With precision bf16
    and fp16 forward passes run under autocast; weights, gradients and losses stay fp32, and with fp16 the loss is
    scaled. channels_last: the layout of the degraded images. find_unused_parameters: whether parameters may take no
    part in the loss.
    """

    def __init__(
        self,
        parts: TrainingParts,
        device: torch.device,
        world: World = ALONE,
        *,
        precision: str = "fp32",
        channels_last: bool = True,
        find_unused_parameters: bool = False,
    ) -> None:
        self.parts = parts
        self.device = device
        self.world = world
        self.autocast = torch.autocast(device.type, dtype=_TYPES[precision], enabled=precision != "fp32")
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.wrapped = [network for network in parts.shared if isinstance(network, DistributedDataParallel)]
        self.find_unused = find_unused_parameters
        self.checked: set[str] = set()

    def __call__(self, batches: Sequence[Batch], iteration: int, measure: bool) -> Outcome:
        """Take one step. Where a value is not finite in any process, no process changes its parameters."""
        totals: dict[str, float] = {}
        with peers():
            self._settle(batches[0], iteration)
            for i, batch in enumerate(batches, 1):
                with self._in_step(last=i == len(batches)):
                    values = self._backward(batch, iteration, measure, len(batches))
                for name, value in values.items():
                    totals[name] = totals.get(name, 0.0) + value / len(batches)
        self._check_unused(iteration)
        means = self.world.mean(torch.tensor(list(totals.values()), dtype=torch.float64)).tolist()
        self.parts.model.end_step(self.world.mean)
        return self._update(iteration, dict(zip(totals, means, strict=True)))

    @contextlib.contextmanager
    def _in_step(self, last: bool) -> Iterator[None]:
        """Sum gradients with the other processes in the last micro-batch only."""
        with contextlib.ExitStack() as stack:
            if not last:
                for network in self.wrapped:
                    stack.enter_context(network.no_sync())
            yield

    def _backward(self, batch: Batch, iteration: int, measure: bool, rounds: int) -> dict[str, float]:
        on_device = batch.to(self.device, non_blocking=True)
        on_device.lq = on_device.lq.contiguous(memory_format=self.layout)
        with self.autocast:
            terms, measures = self.parts.model.losses(on_device, iteration, measure)
        loss = torch.stack(list(terms.values())).sum() / rounds
        self.parts.scaler.scale(loss).backward()
        values = torch.stack([t.detach().float() for t in terms.values()]).tolist()  # one transfer for all terms
        return {f"l_{name}": value for name, value in zip(terms, values, strict=True)} | measures

    def _settle(self, batch: Batch, iteration: int) -> None:
        """Run a backward pass and throw its result away, for networks that several processes train for the first time.

        DistributedDataParallel reorders its buckets after the first pass, and sums of three or more processes
        depend on the order: without this a resumed run would differ in its first step.
        """
        if not self.wrapped or self.find_unused or not set(self.parts.model.active(iteration)) - self.checked:
            return
        buffers = []
        for network in self.wrapped:
            for buffer in network.buffers():
                buffers.append((buffer, buffer.clone()))
        self._backward(batch, iteration, False, 1)
        self._check_unused(iteration)
        self.parts.model.end_step(lambda squares: squares * math.nan)  # its measurements do not count either
        for optimiser in self.parts.optimisers.values():
            optimiser.zero_grad()
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)

    def _check_unused(self, iteration: int) -> None:
        """Raise UnusedParametersError for parameters without a gradient.

        Other processes would wait for it, and a process by itself would never train them.
        """
        if self.find_unused:
            return
        labels = set(self.parts.model.active(iteration)) - self.checked
        unused = []
        for label in labels:
            for name, parameter in self.parts.model.networks[label].named_parameters():
                if parameter.requires_grad and parameter.grad is None:
                    unused.append(f"net_{label}.{name}")
        if unused:
            names = ", ".join(unused[:5])
            if len(unused) > 5:
                names += ", ..."
            raise UnusedParametersError(
                f"{len(unused)} parameters take no part in the loss: {names}. Remove them from "
                "the network, freeze them (requires_grad), or set find_unused_parameters: true"
            )
        self.checked |= labels

    def _update(self, iteration: int, values: dict[str, float]) -> Outcome:
        """Update the networks and their averages if loss and gradient are finite; drop the gradients."""
        active, scaler = self.parts.model.active(iteration), self.parts.scaler
        for label in active:
            scaler.unscale_(self.parts.optimisers[label].inner)
        norms = torch.stack([self.parts.optimisers[label].gradient_norm() for label in active]).tolist()
        finite_loss = _finite(values)
        finite = finite_loss and all(map(math.isfinite, norms))
        if finite:
            for label in active:
                self.parts.optimisers[label].step(iteration)
                self.parts.emas[label].update()
        scaler.update()
        for optimiser in self.parts.optimisers.values():
            optimiser.zero_grad()
        overflow = scaler.is_enabled() and finite_loss and not finite
        return Outcome(values, finite, overflow, dict(zip(active, norms, strict=True)))


def _finite(values: Mapping[str, float]) -> bool:
    """Return whether every term of the loss is finite."""
    return all(math.isfinite(value) for name, value in values.items() if name.startswith("l_"))
