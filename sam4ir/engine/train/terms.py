"""Options -> the distillation terms of a training run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sam4ir.config.schema import Block, TermOptions, TrainOptions
from sam4ir.distill.balance import TermWeight
from sam4ir.distill.sgr import Analyser, BuildAnalyser, Variant
from sam4ir.distill.teachers import BuildTeacher
from sam4ir.engine.build import build_network, build_part, to_device
from sam4ir.engine.weights import load_weights, network_block
from sam4ir.models.restoration import last_output
from sam4ir.models.sam_distill import Term
from sam4ir.registry import TERMS


def build_terms(train: TrainOptions, device: torch.device) -> dict[str, Term]:
    """Return the distillation terms by name, without those that are switched off.

    Raises BuildError naming the key of a term that cannot be built.
    """
    terms = {}
    for name, (path, block) in train.terms.items():
        if not block.off:
            place = ".".join(path)
            builders = {"build_analyser": _analysers(device), "build_teacher": _teachers(device)}
            loss = build_part(TERMS, block, place, **builders)
            if isinstance(loss, nn.Module):
                loss = loss.to(device)
            terms[name] = Term(loss, block.target, _weight(block), block.every, _fade(block, train.total_iter))
    return terms


def _fade(term: TermOptions, total_iter: int) -> tuple[int, int] | None:
    """Return the iterations between which the weight of a term falls to 0; None where it stays."""
    if term.fade == 0:
        return None
    return round(total_iter * (1 - term.fade)), total_iter


def _weight(term: TermOptions) -> TermWeight:
    """Return the weight of a term: fixed, or a share of the reconstruction's gradient."""
    if term.loss_weight is not None:
        return TermWeight(fixed=term.loss_weight)
    if term.balance is not None:
        return TermWeight(share=term.balance)
    return TermWeight(share=TERMS.get(term.type).default_balance)  # type: ignore[attr-defined]


def _teachers(device: torch.device) -> BuildTeacher:
    """Return a function that builds trained networks on the device, frozen."""

    def build(source: str) -> nn.Module:
        block = Block(**network_block(source))
        network = build_network(block, "g", device, seed=0)
        load_weights(network, source)
        return FrozenNetwork(network)

    return build


class FrozenNetwork(nn.Module):
    """A trained network in eval mode, without gradients, whatever mode the training sets; the last of its outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenNetwork:
        """Leave the network in eval mode."""
        return self

    def forward(self, lq: Tensor) -> Tensor:
        """Return the restored image (b, c, h, w) of a degraded one."""
        return last_output(self.network(lq))


def _analysers(device: torch.device) -> BuildAnalyser:
    """Return a function that builds frozen VGGs on the device."""

    def build(variant: Variant, layers: Sequence[str], weights: str | None) -> Analyser:
        from sam4ir.priors.features import VGGFeatures  # a run without SGR needs no VGG

        return to_device(VGGFeatures(variant=variant, layers=layers, weights=weights), device)

    return build
