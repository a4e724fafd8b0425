"""Clean images, degraded on the fly by a chain of models (noise.py, blur.py, rain.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sam4ir.data.cropped import Colour, CroppedDataset
from sam4ir.data.sample import Sample
from sam4ir.data.transforms import Placement
from sam4ir.data.views import MapReader
from sam4ir.errors import UserError
from sam4ir.utils.rng import generator

# (c, h, w) float32 and the sample's stream -> the same shape. An attribute `margin: int` is the distance in pixels that
# it looks around a pixel. One with an attribute `reader: MapReader` also gets that reader's map `labels` of its input.
Degrade = Callable[..., Tensor]


@dataclass(kw_only=True, eq=False)
class SyntheticDataset(CroppedDataset):
    """LQ = the degradations of GT, in their order; float32, neither clipped nor quantised unless one of them does it.

    A data set derives from it by `chain`, its degradations. Each takes (c, h, w) float32 and the sample's stream, and
    keeps the shape. Where one has a `margin`, its input is larger by that many pixels on each side, real neighbours as
    far as the image has them and mirrored ones beyond, and its result is cut: a patch equals the same place of the
    degraded whole image.

    Args:
        noise_seed: Seed for validation, with which a degradation depends on seed and image alone, whatever the order
            or the subset of images; left out, it is drawn anew for every sample.
        scale: 1; degradations change no size.
    """

    noise_seed: int | None = None

    def __post_init__(self) -> None:
        chain = self.chain()
        if not chain:
            raise UserError("degradations: name at least one, such as {type: GaussianNoise, sigma: 25}")
        if self.scale != 1:
            raise UserError(f"scale: {self.scale} must be 1 here; degradations change no size")
        self._chain: list[tuple[Degrade, int]] = []
        for degrade in chain:
            self._chain.append((degrade, int(getattr(degrade, "margin", 0))))
        super().__post_init__()

    def chain(self) -> Sequence[Degrade]:
        """Return the degradations, in their order."""
        raise NotImplementedError

    def get(self, index: int, rng: np.random.Generator) -> Sample:
        """Return a sample; window, flip and (without noise_seed) the degradations are drawn from rng, in this order."""
        key = self.keys[index]
        margin = sum(m for _, m in self._chain)
        with self.source.lend(key) as image:
            size = (image.shape[0], image.shape[1])
            placement = self.draw(size, rng)
            around = self.pixels(image, placement.grown(margin))
        labels = self._labels(key, size, placement.grown(margin))
        maps = self.maps(key, size, placement)
        if self.noise_seed is not None:
            rng = generator(self.noise_seed, "noise", key)
        gt = _cut(around, margin).clone(memory_format=torch.contiguous_format)  # a degradation may work in place
        return Sample(key, self._degrade(around, rng, labels), gt, maps)

    def _labels(self, key: str, size: tuple[int, int], placement: Placement) -> list[Tensor | None]:
        """Return the labels that each degradation reads, None for one that reads none."""
        labels: list[Tensor | None] = []
        for degrade, _ in self._chain:
            reader: MapReader | None = getattr(degrade, "reader", None)
            if reader is None:
                labels.append(None)
            else:
                labels.append(reader.read(key, self.source.where(key), size, placement)["labels"])
        return labels

    def _degrade(self, image: Tensor, rng: np.random.Generator, labels: Sequence[Tensor | None]) -> Tensor:
        """Return the degraded image, without the margins; raise UserError where a degradation changes the shape."""
        cut = 0
        for (degrade, margin), own in zip(self._chain, labels, strict=True):
            if own is None:
                degraded = degrade(image, rng)
            else:
                degraded = degrade(image, rng, _cut(own.unsqueeze(0), cut)[0])
            cut += margin
            if degraded.shape != image.shape:
                name = getattr(degrade, "__name__", type(degrade).__name__)
                raise UserError(
                    f"{name} turns {tuple(image.shape)} into {tuple(degraded.shape)}; a degradation keeps the shape"
                )
            image = _cut(degraded, margin)
        return image.contiguous()


@dataclass(kw_only=True, eq=False)
class DegradedImageDataset(SyntheticDataset):
    """Clean images, and their degraded versions by the degradations of the option file.

    Args:
        degradations: Degradations in their order, a list of {type: NAME, argument: value ...}.
        channels: 3 for RGB; 1 for grey, the luma of what the files hold.
    """

    degradations: Sequence[Degrade]
    channels: Colour = 3

    def chain(self) -> Sequence[Degrade]:
        """Return the degradations of the option file."""
        return self.degradations


def _cut(image: Tensor, margin: int) -> Tensor:
    """Return (c, h, w) without `margin` pixels on each side."""
    if margin == 0:
        return image
    return image[:, margin : image.shape[1] - margin, margin : image.shape[2] - margin]
