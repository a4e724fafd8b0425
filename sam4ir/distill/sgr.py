"""SGR: semantic-guided relation (SAM4IR, arXiv 2403.16368).

The paper keeps the semantic feature space of the two restored images consistent with a frozen VGG;
prototypes and their relation matrix are our definition ([D]; after RKD, CIRKD and FAKD).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam4ir.distill.pool import cell_coverage

PROTOTYPE_EPS = 1e-6


def prototypes(features: Tensor, weights: Tensor) -> Tensor:
    """Unit-length mean feature of each region: (b, c, h, w) and (b, n, h w) -> (b, n, c) float32.

    weights: coverage divided by its sum, so that a row sums to 1 (or 0 for an empty region).
    """
    cells = features.float().permute(0, 2, 3, 1).flatten(1, 2)
    return F.normalize(weights @ cells, dim=-1, eps=PROTOTYPE_EPS)


def relation_distance(student: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """mean over i != j of |R1 - R2|, R = P P^T, averaged over images; 0 where fewer than two regions are valid.

    student, target: (b, n, c) prototypes; valid: (b, n) bool.
    """
    pairs = valid.unsqueeze(1) & valid.unsqueeze(2)
    pairs = pairs & ~torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    distance = (student @ student.transpose(1, 2) - target @ target.transpose(1, 2)).abs()
    per_image = (distance * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)
    return per_image.mean()


class SemanticGuidedRelation(nn.Module):
    """L1 distance of the region-relation matrices of two images in the features of a frozen analyser.

    analyser: image (b, 3, h, w) in [0, 1], unclamped -> {layer: (b, c, h_l, w_l)}; its normalisation is its own.
    strides: layer -> pixels a feature cell spans.
    min_cells: a region that covers less than this many cells of a layer is left out there, for both images.
    bf16: the analyser runs under bf16 autocast also where the rest of the step does not.
    """

    def __init__(
        self,
        analyser: Callable[[Tensor], Mapping[str, Tensor]],
        strides: Mapping[str, int],
        min_cells: float = 4.0,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.analyser = analyser
        self.strides = dict(strides)
        self.min_cells = min_cells
        self.bf16 = bf16

    def forward(self, student: Tensor, target: Tensor, labels: Tensor, count: int) -> Tensor:
        """Scalar loss, averaged over images and layers; gradient flows to `student` alone.

        student, target: (b, 3, h, w); labels: (b, h, w) int64 dense region labels; count: regions at most.
        """
        if count < 2:
            return student.new_zeros((), dtype=torch.float32)
        with torch.no_grad():
            wanted = self._features(target)
        distances = [self._layer(f, wanted[name], labels, count, name) for name, f in self._features(student).items()]
        return torch.stack(distances).mean()

    def _features(self, image: Tensor) -> Mapping[str, Tensor]:
        if not self.bf16:
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
