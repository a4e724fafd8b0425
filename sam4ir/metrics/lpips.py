"""LPIPS: Zhang, Isola, Efros, Shechtman, Wang: The unreasonable effectiveness of deep features as a perceptual metric,
CVPR 2018 (arXiv 1801.03924), version 0.1 of its authors' weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam4ir.metrics.inputs import MetricError, check_pair
from sam4ir.metrics.kinds import Traits

# torchvision's alexnet.features: (index, in, out, kernel, stride, padding, whether pooled before, 3 x 3, stride 2)
_LAYERS = (
    (0, 3, 64, 11, 4, 2, False),
    (3, 64, 192, 5, 1, 2, True),
    (6, 192, 384, 3, 1, 1, True),
    (8, 384, 256, 3, 1, 1, False),
    (10, 256, 256, 3, 1, 1, False),
)
SMALLEST = 31  # pixels of a side, below which nothing is left after the second pooling
SHIFT = (-0.030, -0.088, -0.188)  # ImageNet's mean and deviation, for images in [-1, 1]
SCALE = (0.458, 0.448, 0.450)
EPS = 1e-10


class LpipsAlex(nn.Module):
    """LPIPS 0.1 with AlexNet: the distance of deep features of the two images, at their own size.

    It is the sum over relu1..relu5 of the spatial mean of w_l . (y_l - y0_l)^2  (eq. 1), where y_l are the features of
    a layer, unit-normalised over channels, and w_l the learned, non-negative heads.
    state: features.{0,3,6,8,10}.{weight,bias} of torchvision's AlexNet and lin{0..4}.model.1.weight (1, c, 1, 1).
    Raises MetricError if state lacks one of them or has it in another shape.
    """

    traits: ClassVar[Traits] = Traits(
        lower_is_better=True,
        definition="LPIPS 0.1, AlexNet of torchvision, whole image at its own size",
        weights="lpips_alex",
    )
    shift: Tensor
    scale: Tensor

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.features = nn.ModuleDict()
        self.heads = nn.ParameterDict()
        for number, (index, channels, width, kernel, stride, padding, _) in enumerate(_LAYERS):
            layer = nn.Conv2d(channels, width, kernel, stride, padding, device="meta")
            shapes = {f"features.{index}.{part}": p.shape for part, p in layer.named_parameters()}
            head = f"lin{number}.model.1.weight"
            _require(state, {**shapes, head: torch.Size((1, width, 1, 1))})
            own = {part: state[f"features.{index}.{part}"].float() for part in ("weight", "bias")}
            layer.load_state_dict(own, assign=True)
            self.features[str(index)] = layer
            self.heads[str(number)] = nn.Parameter(state[head].float())
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, image: Tensor, reference: Tensor, data_range: float = 255.0) -> float:
        """Return the distance of two (3, h, w) RGB or (1, h, w) grey images in [0, data_range]; 0 for equal images.

        Raises MetricError for different shapes and for a side of less than 31 pixels.
        """
        check_pair(image, reference, data_range)
        h, w = image.shape[-2:]
        if min(h, w) < SMALLEST:
            raise MetricError(f"image is {h} x {w}; lpips_alex needs {SMALLEST} pixels a side")
        pair = torch.stack([image, reference]).to(self.shift.device, torch.float32).expand(-1, 3, -1, -1)
        x = (pair / data_range * 2 - 1 - self.shift) / self.scale
        total = x.new_zeros(())
        for (index, *_, pooled), head in zip(_LAYERS, self.heads.values(), strict=True):
            if pooled:
                x = F.max_pool2d(x, kernel_size=3, stride=2)
            x = F.relu(self.features[str(index)](x))
            unit = x / (x.square().sum(dim=1, keepdim=True).sqrt() + EPS)
            total += F.conv2d((unit[:1] - unit[1:]).square(), head).mean()
        return float(total)


def _require(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    """Raise MetricError naming the entries of `shapes` that `state` lacks or holds in another shape."""
    misfits = []
    for name, shape in shapes.items():
        if name not in state or state[name].shape != shape:
            misfits.append(name)
    if misfits:
        raise MetricError(f"lpips_alex: its weights do not hold {', '.join(misfits)} in the shape of AlexNet's")
