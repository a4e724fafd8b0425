"""FID: the Frechet distance of Inception features, images resized as Parmar, Zhang, Zhu do (On aliased resizing and
surprising subtleties in GAN evaluation, CVPR 2022, "clean-fid")."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam4ir.metrics.frechet import frechet_distance
from sam4ir.metrics.inputs import MetricError, check_image
from sam4ir.metrics.kinds import SetMetric, Traits

SIDE = 299
# the network of the FID weights up to its pooled features, in the order in which an image passes through
_STEPS = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"),
)


def clean_resize(image: Tensor, side: int = SIDE) -> Tensor:
    """Resize a (c, h, w) float image in 0..255 to (c, side, side), as Pillow's bicubic filter does for float images.

    It is antialiased where it shrinks, with Keys' kernel and a = -0.5; values are clipped to 0..255 and not rounded.
    """
    exact = image.double()[None]  # in float32 the positions of pixels are off by up to a ten thousandth
    resized = F.interpolate(exact, (side, side), mode="bicubic", align_corners=False, antialias=True)
    return resized[0].clamp(0, 255).float()


class FrechetDistance(nn.Module, SetMetric):
    """The Frechet distance of a network's features of images.

    network: (1, 3, 299, 299) images in 0..255 -> (1, dimensions).
    """

    def __init__(self, network: nn.Module, dimensions: int) -> None:
        super().__init__()
        self.network = network
        self.dimensions = dimensions
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def features(self, image: Tensor, data_range: float) -> Tensor:
        """Return the features (dimensions,) of an image (c, h, w) in [0, data_range], float32 on the CPU."""
        check_image(image, data_range)
        device = next((parameter.device for parameter in self.parameters()), torch.device("cpu"))
        pixels = image.to(device, torch.float32) * (255.0 / data_range)
        features: Tensor = self.network(clean_resize(pixels).expand(3, -1, -1)[None])
        return features.reshape(self.dimensions).float().cpu()

    def distance(self, images: Tensor, references: Tensor) -> float:
        """Return the Frechet distance of the features of two sets of images, (n, dimensions) each."""
        return frechet_distance(images, references)


class Fid(FrechetDistance):
    """FID with the usual Inception network of 2015-12-05, from the package torch-fidelity.

    state: the network's weights, as in torch-fidelity's release v0.2.0. Raises MetricError for weights of another
    network.
    """

    traits: ClassVar[Traits] = Traits(
        lower_is_better=True,
        definition=(
            "Frechet distance of the 2048 pooled features of the FID Inception (2015-12-05), images resized to "
            "299 x 299 by antialiased bicubic (a = -0.5, as Pillow's), clipped to 0..255, not rounded"
        ),
        weights="inception_fid",
        needs=(("torch_fidelity", 'pip install -e ".[fid]"'),),
    )

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__(_Inception(state), dimensions=2048)


class _Inception(nn.Module):
    """The pooled features (b, 2048) of images (b, 3, 299, 299) in 0..255, whole numbers or not.

    The package's own forward takes whole numbers only, and resizes by itself.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
            FeatureExtractorInceptionV3,
        )

        weights = io.BytesIO()  # the package reads a file
        torch.save(dict(state), weights)
        weights.seek(0)
        try:
            network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=weights)
        except RuntimeError as error:
            raise MetricError(f"fid: {str(error).splitlines()[0]}") from error
        self.steps = nn.Sequential(*(getattr(network, name) for name in _STEPS))

    def forward(self, image: Tensor) -> Tensor:
        """Return the features (b, 2048)."""
        return self.steps((image - 128) / 128).flatten(1)
