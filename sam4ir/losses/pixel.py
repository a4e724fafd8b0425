"""Reconstruction losses between a restored image and its ground truth, with BasicSR's names and arguments.

All take prediction and target of one shape, (b, c, h, w), and return a scalar. They compute in float32 (float64 for
float64 inputs), under autocast too: bf16 keeps 8 bits, so half a grey level of a bright image is lost.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from sam4ir.errors import UserError

Reduction = Literal["mean", "sum"]

# BT.601 studio swing for R, G, B in [0, 1], on the 0..255 scale
LUMA_WEIGHTS = (65.481, 128.553, 24.966)


class _PixelLoss(nn.Module):
    """loss_weight times the mean or the sum of `_elements` of the difference.

    Args:
        loss_weight: Factor of the loss.
        reduction: How the elements become one number: mean or sum over batch, channels and pixels.
    """

    def __init__(self, loss_weight: float, reduction: Reduction) -> None:
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise UserError(f"{type(self).__name__}: reduction is {reduction!r}, expected 'mean' or 'sum'")
        self.loss_weight = loss_weight
        self.reduction = reduction

    def _elements(self, difference: Tensor) -> Tensor:
        """Return the distance of each element, of the difference's shape."""
        raise NotImplementedError

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of two tensors of one shape. Raises UserError where the shapes differ."""
        elements = self._elements(_difference(self, prediction, target))
        if self.reduction == "mean":
            return self.loss_weight * elements.mean()
        return self.loss_weight * elements.sum()


class L1Loss(_PixelLoss):
    """loss_weight * mean |prediction - target|; its gradient at equality is 0."""

    def __init__(self, loss_weight: float = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__(loss_weight, reduction)

    def _elements(self, difference: Tensor) -> Tensor:
        return difference.abs()


class MSELoss(_PixelLoss):
    """loss_weight * mean (prediction - target)^2."""

    def __init__(self, loss_weight: float = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__(loss_weight, reduction)

    def _elements(self, difference: Tensor) -> Tensor:
        return difference.square()


class CharbonnierLoss(_PixelLoss):
    """loss_weight * mean sqrt((prediction - target)^2 + eps)  (Lai et al., CVPR 2017; eps as in BasicSR).

    Equal images give sqrt(eps), with gradient 0. Raises UserError for an eps of 0 or less.

    Args:
        eps: Number that is added to the squared difference, more than 0; images are in [0, 1].
    """

    def __init__(self, loss_weight: float = 1.0, reduction: Reduction = "mean", eps: float = 1e-12) -> None:
        super().__init__(loss_weight, reduction)
        if not eps > 0:
            raise UserError(f"CharbonnierLoss: eps is {eps}, expected more than 0 (the root has no gradient at 0)")
        self.eps = eps

    def _elements(self, difference: Tensor) -> Tensor:
        return (difference.square() + self.eps).sqrt()


class PSNRLoss(nn.Module):
    """loss_weight * 10/ln 10 * mean over images of ln(MSE + 1e-8): minus the mean PSNR in dB of [0, 1] images (HINet).

    Raises UserError for another reduction than mean.

    Args:
        loss_weight: Factor of the loss; with 1 the loss of one image is minus its PSNR in dB.
        reduction: How the images of a batch become one number; mean alone is defined.
        toY: Whether the error is measured on luma (BT.601 studio swing) of RGB images instead of on all channels.
    """

    EPS = 1e-8
    luma: Tensor

    def __init__(self, loss_weight: float = 1.0, reduction: Literal["mean"] = "mean", toY: bool = False) -> None:
        super().__init__()
        if reduction != "mean":
            raise UserError(f"PSNRLoss: reduction is {reduction!r}, only 'mean' is defined")
        self.loss_weight = loss_weight
        self.to_y = toY
        self.register_buffer("luma", torch.tensor(LUMA_WEIGHTS).view(1, 3, 1, 1) / 255.0, persistent=False)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the scalar loss of two (b, c, h, w) tensors.

        Raises UserError for other shapes, and with toY where c is not 3.
        """
        if prediction.ndim != 4 or (self.to_y and prediction.shape[1] != 3):
            expected = "(b, 3, h, w)" if self.to_y else "(b, c, h, w)"
            raise UserError(f"PSNRLoss: prediction is {tuple(prediction.shape)}, expected {expected}")
        difference = _difference(self, prediction, target)
        if self.to_y:  # the offset of 16 cancels in the difference
            difference = (difference * self.luma.to(difference)).sum(dim=1, keepdim=True)
        mse = difference.square().mean(dim=(1, 2, 3))
        return self.loss_weight * 10.0 / math.log(10.0) * (mse + self.EPS).log().mean()


def _difference(loss: nn.Module, prediction: Tensor, target: Tensor) -> Tensor:
    """Return prediction - target in float32 at least. Raises UserError where the shapes differ (no broadcasting)."""
    if prediction.shape != target.shape:
        raise UserError(
            f"{type(loss).__name__}: prediction is {tuple(prediction.shape)}, target is {tuple(target.shape)}: "
            "they must be equal (does the network's scale match the dataset's?)"
        )
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    return prediction.to(dtype) - target.to(dtype)
