"""Options -> the losses and distillation terms of a training run."""

from __future__ import annotations

import torch
from torch import nn

from sam4ir.config.schema import Block, SgrOptions, SpdOptions, TermOptions
from sam4ir.distill.balance import TermWeight
from sam4ir.distill.sgr import SemanticGuidedRelation
from sam4ir.distill.spd import SemanticPriorsDistillation
from sam4ir.engine.build import (
    make,
    naming,
    to_device,
)
from sam4ir.models.restoration import Loss
from sam4ir.models.sam_distill import Term
from sam4ir.registry import LOSSES

DEFAULT_BALANCE = {"spd": 0.3, "sgr": 0.05}


def build_loss(block: Block, place: str, device: torch.device) -> Loss:
    loss: Loss = make(LOSSES, block, place)
    return loss.to(device) if isinstance(loss, nn.Module) else loss


def _weight(term: TermOptions, name: str) -> TermWeight:
    if term.loss_weight is not None:
        return TermWeight(fixed=term.loss_weight)
    return TermWeight(share=term.balance if term.balance is not None else DEFAULT_BALANCE[name])


def build_spd(block: SpdOptions | None) -> tuple[SemanticPriorsDistillation, Term] | None:
    if block is None or block.off:
        return None
    return SemanticPriorsDistillation(block.criterion, block.gate), Term(block.target, _weight(block, "spd"))


def build_sgr(block: SgrOptions | None, device: torch.device) -> tuple[SemanticGuidedRelation, Term] | None:
    if block is None or block.off:
        return None
    from sam4ir.priors.features import VGGFeatures

    with naming("train.sgr_opt"):
        analyser = VGGFeatures(variant=block.variant, layers=block.layers, weights=block.weights)
    analyser = to_device(analyser, device)
    relation = SemanticGuidedRelation(analyser, analyser.strides, block.min_cells, block.bf16)
    return relation, Term(block.target, _weight(block, "sgr"), block.every)
