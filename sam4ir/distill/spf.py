"""SPF: semantic priors fusion (SAM4IR, arXiv 2403.16368).

The paper states that a restored image is fused with SAM's masks before a second network refines it. Its layers are not
available, so the layers here are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sam4ir.distill.pool import boundary_map, region_means_painted
from sam4ir.errors import UserError


class SemanticPriorsFusion(nn.Module):
    """Fuse a restored image Y1 with masks: Z = Y1 + z(Y1, e, r, d).

    e is an embedding of Y1, r its region means painted back, d the boundary map. The last convolution starts at zero,
    so that the refiner starts as f2(Y1). Raises UserError for a mask_dropout outside [0, 1).

    Args:
        channels: Channels of the restored image.
        width: Channels of the embedding.
        with_input: Whether the degraded image joins the concatenation.
        mask_dropout: Probability in [0, 1) with which training turns a region into "no region".
    """

    def __init__(self, channels: int = 3, width: int = 32, with_input: bool = False, mask_dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= mask_dropout < 1:
            raise UserError(f"mask_dropout is {mask_dropout}; a probability in [0, 1) would do")
        self.with_input = with_input
        self.mask_dropout = mask_dropout
        self.embed = nn.Conv2d(channels, width, 3, padding=1)
        self.mix = nn.Conv2d(channels * (2 if with_input else 1) + 2 * width + 1, 2 * width, 3, padding=1)
        self.out = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, restored: Tensor, labels: Tensor, count: int, degraded: Tensor) -> Tensor:
        """Return the input of the refiner's second network, (b, c, h, w) float32.

        restored, degraded: (b, c, h, w); labels: (b, h, w) int64 dense region labels, 0 for none;
        count: the largest number of regions of an image in the batch.
        """
        if self.training and self.mask_dropout > 0:
            labels = self._drop(labels, count)
        e = self.embed(restored)
        r = region_means_painted(e, labels, count).to(e.dtype)
        parts = [restored, e, r, boundary_map(labels)]
        if self.with_input:
            parts.append(degraded)
        left, right = self.mix(torch.cat([p.to(e.dtype) for p in parts], dim=1)).chunk(2, dim=1)
        return restored + self.out(left * right).float()

    def _drop(self, labels: Tensor, count: int) -> Tensor:
        keep = torch.rand(labels.shape[0], count + 1, device=labels.device) >= self.mask_dropout
        return labels * keep.gather(1, labels.flatten(1)).view_as(labels)
