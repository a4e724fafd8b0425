"""Options -> the reconstruction losses of a training run, by the names of the log."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sam4ir.config.schema import Block, TrainOptions
from sam4ir.engine.build import build_part, to_device
from sam4ir.errors import UserError
from sam4ir.losses.perceptual import Variant
from sam4ir.models.restoration import Loss, LossInParts, Reconstruction
from sam4ir.registry import LOSSES

PIXEL, PERCEPTUAL = "pix", "percep"  # log names of pixel_opt and of perceptual_opt, as in BasicSR
STYLE = {"percep_style": "style"}  # BasicSR's log name of the style part of perceptual_opt
REFINER = "refine"  # log name of the refiner's pixel loss, and the beginning of those of its further losses


@dataclass(frozen=True)
class LossBuilder:
    """Builder of the losses of one run.

    channels: of the restored images.
    """

    device: torch.device
    channels: int = 3

    def build(self, block: Block, place: str) -> Loss | LossInParts:
        """Return the loss that a block names. Raises BuildError that names `place`, the key of the block."""
        loss: Loss | LossInParts = build_part(LOSSES, block, place, build_features=self._build_features)
        if isinstance(loss, nn.Module):
            return loss.to(self.device)
        return loss

    def _build_features(
        self, variant: Variant, layers: tuple[str, ...], weights: str | None, normalise: bool
    ) -> nn.Module:
        """Return a frozen VGG on the device (losses.perceptual.BuildFeatures)."""
        from sam4ir.priors.features import VGGFeatures

        if self.channels != 3:
            raise UserError(
                f"the VGG reads RGB images, but the restored images have {self.channels} channel(s); leave the loss out"
            )
        return to_device(VGGFeatures(variant, layers, weights, normalise), self.device)


def build_reconstruction(train: TrainOptions, builder: LossBuilder) -> Reconstruction:
    """Return the losses of the deployed network: pixel_opt, each entry of train.losses, and perceptual_opt."""
    losses: dict[str, Loss | LossInParts] = {}
    if train.pixel_opt is not None:
        losses[PIXEL] = builder.build(train.pixel_opt, "train.pixel_opt")
    for name, block in train.losses.items():
        losses[name] = builder.build(block, f"train.losses.{name}")
    if train.perceptual_opt is None:
        return Reconstruction(losses)
    losses[PERCEPTUAL] = builder.build(train.perceptual_opt, "train.perceptual_opt")
    return Reconstruction(losses, STYLE)


def build_refinement(train: TrainOptions, student: Reconstruction, builder: LossBuilder) -> Reconstruction:
    """Return the losses of the refiner: refine_opt, or else those of the student under the refiner's names."""
    if train.refine_opt is not None:
        return Reconstruction({REFINER: builder.build(train.refine_opt, "train.refine_opt")})
    losses = {_of_refiner(name): loss for name, loss in student.losses.items()}
    renamed = {_of_refiner(name): _of_refiner(log_name) for name, log_name in student.renamed.items()}
    return Reconstruction(losses, renamed)


def _of_refiner(name: str) -> str:
    """Return the refiner's name of a loss of the student: refine for pix, refine_<name> for another one."""
    if name == PIXEL:
        return REFINER
    return f"{REFINER}_{name}"
