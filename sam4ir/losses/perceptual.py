"""Perceptual and style loss in the features of a frozen network (Johnson, Alahi, Fei-Fei: arXiv 1603.08155).

Names, arguments and scales are those of BasicSR's PerceptualLoss; restored image x, ground truth y, features f_j:

    L_percep = perceptual_weight * sum_j w_j d(f_j(x), f_j(y))
    L_style  = style_weight * sum_j w_j d(G(f_j(x)), G(f_j(y)))    G(f) = f f^T / (c h w), f as a (c, h w) matrix
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam4ir.errors import UserError

Criterion = Literal["l1", "l2", "fro"]
Variant = Literal["vgg16", "vgg19"]


class BuildFeatures(Protocol):
    """Builder of frozen feature networks."""

    def __call__(self, variant: Variant, layers: tuple[str, ...], weights: str | None, normalise: bool) -> nn.Module:
        """Return a network: images (b, 3, h, w) -> layer name -> features (b, c, h', w').

        Raises UserError for unknown layers, for weights that do not fit, and where images are not RGB.
        """


class PerceptualLoss(nn.Module):
    """Perceptual loss of RGB images in the features of a frozen VGG, with BasicSR's arguments (arXiv 1603.08155).

    It computes in float32, under autocast too. Raises UserError for a layer or a criterion that it does not know, for
    negative weights, and where perceptual_weight and style_weight are both 0.

    build_features: builds the frozen network (priors.features.VGGFeatures); the engine hands it over.

    Args:
        layer_weights: Weight of each VGG layer by its name, such as {conv5_4: 1}; conv is before the ReLU, relu behind
            it, pool behind the pooling of a block.
        vgg_type: Network of the features, with ImageNet weights of torchvision.
        use_input_norm: Whether images are normalised by ImageNet's mean and standard deviation first.
        range_norm: Whether images are mapped from [-1, 1] to [0, 1] first; those of this project are in [0, 1].
        perceptual_weight: Factor of the perceptual part, which compares features; 0 switches it off.
        style_weight: Factor of the style part, which compares Gram matrices of features; 0 switches it off.
        criterion: Distance of features: mean absolute difference (l1), mean squared difference (l2) or Frobenius norm
            of the difference over the whole batch (fro).
        weights: Weights file of the VGG with torchvision's keys, or random for tests; without it the weights come from
            the zoo.
    """

    def __init__(
        self,
        build_features: BuildFeatures,
        layer_weights: dict[str, float],
        vgg_type: Variant = "vgg19",
        use_input_norm: bool = True,
        range_norm: bool = False,
        perceptual_weight: float = 1.0,
        style_weight: float = 0.0,
        criterion: Criterion = "l1",
        weights: str | None = None,
    ) -> None:
        super().__init__()
        _check_weights({"perceptual_weight": perceptual_weight, "style_weight": style_weight})
        _check_weights({f"layer_weights.{layer}": weight for layer, weight in layer_weights.items()})
        if perceptual_weight == 0 and style_weight == 0:
            raise UserError("PerceptualLoss: perceptual_weight and style_weight are both 0; leave the loss out instead")
        if criterion not in DISTANCES:
            raise UserError(f"PerceptualLoss: criterion is {criterion!r}, expected {', '.join(DISTANCES)}")
        self.layer_weights = dict(layer_weights)
        self.range_norm = range_norm
        self.perceptual_weight = perceptual_weight
        self.style_weight = style_weight
        self.distance = DISTANCES[criterion]
        self.features = build_features(vgg_type, tuple(layer_weights), weights, use_input_norm)

    def forward(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the scalar losses of two (b, 3, h, w) images: '' for the perceptual part, 'style' for the style part.

        A part of weight 0 is absent. The gradient flows to `prediction` alone. Raises UserError where the shapes differ
        or the images are smaller than a feature cell of the deepest layer.
        """
        if prediction.shape != target.shape:
            raise UserError(
                f"PerceptualLoss: prediction is {tuple(prediction.shape)}, target is {tuple(target.shape)}: "
                "they must be equal (does the network's scale match the dataset's?)"
            )
        with torch.autocast(prediction.device.type, enabled=False):
            with torch.no_grad():
                wanted = self._features(target)
            own = self._features(prediction)
            losses = {}
            if self.perceptual_weight:
                losses[""] = self.perceptual_weight * self._sum(own, wanted)
            if self.style_weight:
                losses["style"] = self.style_weight * self._sum(_gram_matrices(own), _gram_matrices(wanted))
        return losses

    def _features(self, image: Tensor) -> Mapping[str, Tensor]:
        """Return the features of (b, 3, h, w) images by layer name, in float32 at least."""
        image = image.to(torch.promote_types(image.dtype, torch.float32))
        if self.range_norm:
            image = (image + 1) / 2
        features: Mapping[str, Tensor] = self.features(image)
        return features

    def _sum(self, features: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of the distances in all layers."""
        distances = []
        for layer, weight in self.layer_weights.items():
            distances.append(weight * self.distance(features[layer], target[layer]))
        return torch.stack(distances).sum()


def gram_matrix(features: Tensor) -> Tensor:
    """Return f f^T / (c h w) of features (b, c, h, w): (b, c, c)."""
    channels, height, width = features.shape[1:]
    matrix = features.flatten(2)
    return matrix @ matrix.transpose(1, 2) / (channels * height * width)


def _gram_matrices(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {layer: gram_matrix(f) for layer, f in features.items()}


def _frobenius(features: Tensor, target: Tensor) -> Tensor:
    """Return the Frobenius norm of the difference over all elements of the batch; its gradient at equality is 0."""
    return torch.linalg.vector_norm(features - target)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": F.l1_loss, "l2": F.mse_loss, "fro": _frobenius}


def _check_weights(weights: Mapping[str, float]) -> None:
    """Raise UserError for a negative weight."""
    for name, weight in weights.items():
        if weight < 0:
            raise UserError(f"PerceptualLoss: {name} is {weight}, expected 0 or more")
