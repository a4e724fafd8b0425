"""Plain restoration: one network and its reconstruction losses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sam4ir.errors import UserError
from sam4ir.utils.rng import torch_stream

Loss = Callable[[Tensor, Tensor], Tensor]  # (output, ground truth) -> scalar
LossInParts = Callable[[Tensor, Tensor], Mapping[str, Tensor]]  # part -> scalar, such as PerceptualLoss
Average = Callable[[Tensor], Tensor]  # averages a tensor over the processes


class TrainingBatch(Protocol):
    """The parts of a batch that a model reads: degraded images lq (b, c, h, w), sample numbers, and maps."""

    lq: Tensor
    numbers: list[int]

    @property
    def gt(self) -> Tensor | None:
        """The ground truth (b, c, h s, w s), or None; read-only here, so that a batch that always has one fits."""

    @property
    def maps(self) -> Mapping[str, Tensor]:
        """All maps by the names of their views: labels (b, h s, w s) int64, values (b, c, h s, w s) float32."""

    @property
    def counts(self) -> Mapping[str, int]:
        """The largest label of each map of labels."""

    @property
    def regions(self) -> Tensor | None:
        """maps["regions"], labels of SAM's regions, or None."""

    @property
    def region_count(self) -> int:
        """counts["regions"], or 0."""

    @property
    def spe(self) -> Tensor | None:
        """maps["spe"], position encodings (b, 1, h s, w s), or None."""


class Losses(NamedTuple):
    """The losses of one micro-batch.

    terms: named scalars whose sum is minimised. measures: named scalars to log, without gradient.
    """

    terms: dict[str, Tensor]
    measures: dict[str, float]


class Model(Protocol):
    """The interface between the training loop and a model."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The trained networks by label; each is saved as net_<label>_<iteration>.pth."""

    def active(self, iteration: int) -> tuple[str, ...]:
        """Return the labels of the networks that train in this iteration (from 1 on)."""

    def losses(self, batch: TrainingBatch, iteration: int, measure: bool) -> Losses:
        """Return the loss terms of one micro-batch; with `measure`, also the values for a log line."""

    def end_step(self, average: Average) -> None:
        """End a step after its micro-batches, whose measurements are averaged over the processes by `average`."""

    def state(self) -> dict[str, Any]:
        """Return the plain values beside the weights that a checkpoint must keep."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the values that state() returned."""


def last_output(output: Tensor | list[Tensor]) -> Tensor:
    """Return the restored image of a network: its output, or the last of a list of stage outputs (HINet)."""
    if isinstance(output, (list, tuple)):
        return output[-1]
    return output


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside a DistributedDataParallel wrapper; a network without a wrapper as it is."""
    if isinstance(network, DistributedDataParallel):
        return network.module
    return network


@torch.no_grad()
def restore(network: nn.Module, lq: Tensor) -> Tensor:
    """Return the restored images of (b, c, h, w) degraded ones, float32, unclamped."""
    return last_output(network(lq)).float()


class Reconstruction:
    """The reconstruction losses of one network, by the names of the log.

    losses: name -> loss. Part P of a loss with several parts is called <name>_P, and the part '' has the loss's name.
    renamed: names of parts -> their names in the log, where these differ.
    Raises UserError without a loss; a call raises it where two parts have one name, and ValueError for a loss that
    returns no part.
    """

    def __init__(self, losses: Mapping[str, Loss | LossInParts], renamed: Mapping[str, str] | None = None) -> None:
        if not losses:
            raise UserError("a network needs a reconstruction loss")
        self.losses = dict(losses)
        self.renamed = dict(renamed or {})

    def __call__(self, output: Tensor | list[Tensor], gt: Tensor) -> dict[str, Tensor]:
        """Return name -> scalar for a network's output (b, c, h, w); summed over stage outputs, as in HINet's recipe.

        output: the restored images, or a list of them, one for each stage output. gt: (b, c, h, w).
        """
        if isinstance(output, Tensor):
            return self._of_one(output, gt)
        by_name: dict[str, list[Tensor]] = {}
        for image in output:
            for name, scalar in self._of_one(image, gt).items():
                by_name.setdefault(name, []).append(scalar)
        return {name: _sum(scalars) for name, scalars in by_name.items()}

    def _of_one(self, image: Tensor, gt: Tensor) -> dict[str, Tensor]:
        """Return name -> scalar for one image of the network."""
        terms: dict[str, Tensor] = {}
        for name, loss in self.losses.items():
            value = loss(image, gt)
            if isinstance(value, Tensor):
                value = {"": value}
            if not value:
                raise ValueError(f"loss {name}: {type(loss).__name__} returns no part, so it would train nothing")
            for part, scalar in value.items():
                full = f"{name}_{part}" if part else name
                join_terms(terms, {self.renamed.get(full, full): scalar})
        return terms


def join_terms(terms: dict[str, Tensor], further: Mapping[str, Tensor]) -> None:
    """Add further terms to `terms`. Raises UserError for a name that both have: one of the two would not be summed."""
    for name, scalar in further.items():
        if name in terms:
            raise UserError(f"two terms of the loss have the log name l_{name}; give one of them another name")
        terms[name] = scalar


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of one or more scalars; a single one as it is."""
    return _sum(list(terms.values()))


def _sum(scalars: list[Tensor]) -> Tensor:
    if len(scalars) == 1:
        return scalars[0]
    return torch.stack(scalars).sum()


def ground_truth(batch: TrainingBatch) -> Tensor:
    """Return the batch's ground truth. Raises UserError for a training set without it."""
    if batch.gt is None:
        raise UserError("the training set has no ground-truth images; take a data set type with dataroot_gt")
    return batch.gt


@torch.no_grad()
def batch_psnr(restored: Tensor, gt: Tensor) -> float:
    """Return the mean over images of the PSNR in dB of unclamped images, nominally in [0, 1], for the log."""
    mse = (restored.float() - gt.float()).square().mean(dim=(1, 2, 3))
    return (-10 * torch.log10(mse.clamp(min=1e-12))).mean().item()


@contextlib.contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, without gradients, for the block; afterwards each module is as before."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


class OneNetwork:
    """The base of models that train one network in every iteration and keep no values beside its weights.

    network: wrapped where several processes train it.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The network as `g`, without its wrapper."""
        return {"g": unwrapped(self.network)}

    def active(self, iteration: int) -> tuple[str, ...]:
        """Return ('g',) for every iteration."""
        return ("g",)

    def end_step(self, average: Average) -> None:
        """Do nothing: the model measures nothing."""

    def state(self) -> dict[str, Any]:
        """Return {}: the model keeps nothing beside its weights."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Do nothing, as state() returns {}."""


class Restoration(OneNetwork):
    """A network that learns to restore from pairs.

    network: lq (b, c, h, w) -> restored or list of stage outputs; wrapped where several processes train it.
    reconstruction: the losses of its output.
    seed: the network's own random stream (dropout) is a function of it and the sample number.
    """

    def __init__(self, network: nn.Module, reconstruction: Reconstruction, seed: int = 0) -> None:
        super().__init__(network)
        self.reconstruction = reconstruction
        self.seed = seed

    def losses(self, batch: TrainingBatch, iteration: int, measure: bool) -> Losses:
        """Return the reconstruction losses of a micro-batch; with `measure`, also its PSNR."""
        gt = ground_truth(batch)
        with torch_stream(self.seed, "g", batch.numbers[0]):
            output = self.network(batch.lq)
        measures = {}
        if measure:
            measures["psnr"] = batch_psnr(last_output(output), gt)
        return Losses(self.reconstruction(output, gt), measures)
