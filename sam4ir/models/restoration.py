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
Mean = Callable[[Tensor], Tensor]


class TrainingBatch(Protocol):
    """What a model reads of a batch: degraded images lq (b, c, h, w), sample numbers, and what masks bring."""

    lq: Tensor
    numbers: list[int]

    @property
    def gt(self) -> Tensor | None:
        """Ground truth (b, c, h s, w s), or None; read-only here, so that a batch that always has one fits."""

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
    """terms: named scalars whose sum is minimised. measures: named scalars to log, without gradient."""

    terms: dict[str, Tensor]
    measures: dict[str, float]


class Model(Protocol):
    """The interface between a model and the training loop."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The networks that train and are saved, by label: net_<label>_<iteration>.pth."""

    def active(self, iteration: int) -> tuple[str, ...]:
        """Return the labels of the networks that train in this iteration (from 1 on)."""

    def losses(self, batch: TrainingBatch, iteration: int, measure: bool) -> Losses:
        """Return the loss terms of one micro-batch, and with `measure` the measures for the log."""

    def end_step(self, mean: Mean) -> None:
        """Use the measurements of a step's micro-batches, after the last one; `mean` averages over the processes."""

    def state(self) -> dict[str, Any]:
        """Return the plain values that a checkpoint must keep beside the weights."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the values that state() returned."""


def last_output(output: Tensor | list[Tensor]) -> Tensor:
    """Return the restored image of a network: its output, or the last of a list of stage outputs (HINet)."""
    return output[-1] if isinstance(output, (list, tuple)) else output


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside a DistributedDataParallel wrapper, or the network itself where there is no wrapper."""
    return network.module if isinstance(network, DistributedDataParallel) else network


@torch.no_grad()
def restore(network: nn.Module, lq: Tensor) -> Tensor:
    """Return the restored images of degraded images (b, c, h, w): float32, unclamped."""
    return last_output(network(lq)).float()


class Reconstruction:
    """The reconstruction losses of one network, by the names of the log.

    losses: name -> loss. Part P of a loss with several parts is called <name>_P, and the part '' has the loss's name.
    renamed: names of parts that are called otherwise -> their names in the log.
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
        outputs = output if isinstance(output, (list, tuple)) else [output]
        by_output = [self._of_one(image, gt) for image in outputs]
        if len(by_output) == 1:
            return by_output[0]
        return {name: torch.stack([terms[name] for terms in by_output]).sum() for name in by_output[0]}

    def _of_one(self, image: Tensor, gt: Tensor) -> dict[str, Tensor]:
        """Return name -> scalar for one image of the network."""
        terms: dict[str, Tensor] = {}
        for name, loss in self.losses.items():
            value = loss(image, gt)
            parts = {"": value} if isinstance(value, Tensor) else value
            if not parts:
                raise ValueError(f"loss {name}: {type(loss).__name__} returns no part, so it would train nothing")
            for part, scalar in parts.items():
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
    scalars = list(terms.values())
    return scalars[0] if len(scalars) == 1 else torch.stack(scalars).sum()


def ground_truth(batch: TrainingBatch) -> Tensor:
    """Return the batch's ground truth. Raises UserError where the training set has none."""
    if batch.gt is None:
        raise UserError("the training set has no ground-truth images; take a data set type with dataroot_gt")
    return batch.gt


@torch.no_grad()
def batch_psnr(restored: Tensor, gt: Tensor) -> float:
    """Return the mean over images of the PSNR in dB, for the log; images in [0, 1] as float32, unclamped."""
    mse = (restored.float() - gt.float()).square().mean(dim=(1, 2, 3))
    return (-10 * torch.log10(mse.clamp(min=1e-12))).mean().item()


@contextlib.contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Put the network into eval mode inside the block, without gradients; each module has its own mode afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


class OneNetwork:
    """Base of the models that train one network. network: wrapped where several processes train it."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        return {"g": unwrapped(self.network)}

    def active(self, iteration: int) -> tuple[str, ...]:
        return ("g",)

    def end_step(self, mean: Mean) -> None:
        return None

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        return None


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
        gt = ground_truth(batch)
        with torch_stream(self.seed, "g", batch.numbers[0]):
            output = self.network(batch.lq)
        measures = {"psnr": batch_psnr(last_output(output), gt)} if measure else {}
        return Losses(self.reconstruction(output, gt), measures)
