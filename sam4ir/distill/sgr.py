"""SGR: semantic-guided relation (SAM4IR, arXiv 2403.16368).

The paper keeps the semantic feature space of the two restored images consistent with a frozen VGG. Prototypes and their
relation matrix are our definition (docs/method.md#sgr), after RKD, CIRKD and FAKD.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Protocol

import annotated_types
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam4ir.distill.lesson import Lesson
from sam4ir.distill.pool import cell_coverage
from sam4ir.utils.precision import AUTO, bf16_support

PROTOTYPE_EPS = 1e-6

Variant = Literal["vgg16", "vgg19"]
Layers = Annotated[tuple[str, ...], annotated_types.MinLen(1)]
Cells = Annotated[float, annotated_types.Ge(0)]


class Analyser(Protocol):
    """A frozen network whose features SGR compares (priors.features.VGGFeatures). It normalises images itself."""

    @property
    def strides(self) -> Mapping[str, int]:
        """Layer -> pixels that one feature cell spans."""

    def __call__(self, image: Tensor) -> Mapping[str, Tensor]:
        """Return layer -> features (b, c, h_l, w_l) of images (b, 3, h, w) in [0, 1], unclamped."""


class BuildAnalyser(Protocol):
    """How SGR gets its analyser; the engine hands it over, so that this module knows no VGG."""

    def __call__(self, variant: Variant, layers: Sequence[str], weights: str | None) -> Analyser:
        """Return the analyser on the device of the training. weights: as `weights` of SGR."""


def prototypes(features: Tensor, weights: Tensor) -> Tensor:
    """Return the unit-length mean feature of each region: (b, c, h, w) and (b, n, h w) -> (b, n, c) float32.

    weights: coverage divided by its sum, so that a row sums to 1 (or 0 for an empty region).
    """
    cells = features.float().permute(0, 2, 3, 1).flatten(1, 2)
    return F.normalize(weights @ cells, dim=-1, eps=PROTOTYPE_EPS)


def relation_distance(student: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the mean over i != j of |R1 - R2|, R = P P^T, averaged over images; 0 below two valid regions.

    student, target: (b, n, c) prototypes; valid: (b, n) bool.
    """
    pairs = valid.unsqueeze(1) & valid.unsqueeze(2)
    pairs = pairs & ~torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    distance = (student @ student.transpose(1, 2) - target @ target.transpose(1, 2)).abs()
    per_image = (distance * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)
    return per_image.mean()


class SemanticGuidedRelation(nn.Module):
    """L1 distance of the region-relation matrices of two images in the features of a frozen VGG.

    Args:
        variant: Network of the features, with ImageNet weights of torchvision.
        layers: Layers of the VGG whose features are compared.
        weights: Weights file of the VGG; without it the weights come from the zoo; random is for tests.
        min_cells: Least area of a region in feature cells; a smaller region is left out of that layer, in both images.
        bf16: Whether the VGG alone runs in bfloat16, whatever the precision of the run; auto means where it is fast.

    build_analyser: builds the frozen network; the engine hands it over.
    """

    default_balance: ClassVar[float] = 0.05

    def __init__(
        self,
        build_analyser: BuildAnalyser,
        variant: Variant = "vgg16",
        layers: Layers = ("relu2_2", "relu3_3", "relu4_3"),
        weights: str | None = None,
        min_cells: Cells = 4.0,
        bf16: bool | Literal["auto"] = False,
    ) -> None:
        super().__init__()
        self.analyser = build_analyser(variant, layers, weights)
        self.strides = dict(self.analyser.strides)
        self.min_cells = min_cells
        self.bf16 = bf16

    def forward(self, target: Tensor, lesson: Lesson) -> Tensor:
        """Return the loss, a scalar, averaged over images and layers."""
        student, labels, count = lesson.student, lesson.labels, lesson.region_count
        if count < 2:
            return student.new_zeros((), dtype=torch.float32)
        with torch.no_grad():
            wanted = self._features(target)
        distances = []
        for layer, features in self._features(student).items():
            distances.append(self._layer(features, wanted[layer], labels, count, layer))
        return torch.stack(distances).mean()

    def _features(self, image: Tensor) -> Mapping[str, Tensor]:
        in_bf16 = self.bf16
        if in_bf16 == AUTO:
            in_bf16 = bf16_support(image.device).fast
        if not in_bf16:
            return self.analyser(image)
        with torch.autocast(image.device.type, dtype=torch.bfloat16):
            return self.analyser(image)

    def _layer(self, student: Tensor, target: Tensor, labels: Tensor, count: int, name: str) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            coverage = cell_coverage(labels, count, (student.shape[-2], student.shape[-1]), self.strides[name])
            cells = coverage.sum(-1)
            weights = coverage / cells.clamp(min=PROTOTYPE_EPS).unsqueeze(-1)
            valid = (cells >= self.min_cells) & (cells > 0)  # no empty region counts, with min_cells 0 either
            return relation_distance(prototypes(student, weights), prototypes(target, weights), valid)
