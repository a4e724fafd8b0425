"""The noise of sampling, drawn from seeds, so that an image's noise depends on its own seed only.

Every draw is a function of (seed, step). The order of calls, the other images of the batch and the device do not
change it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sam4ir.errors import UserError
from sam4ir.utils.rng import derived_seed


class SeededNoise:
    """Normal noise for a batch of images, one seed for each image; drawn on the CPU and moved to the device.

    seeds: b integers of any size and sign. shape: (c, h, w) of one image. device: None for the CPU.
    Raises UserError without seeds and for another shape.
    """

    def __init__(
        self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device | str | None = None
    ) -> None:
        if not len(seeds) or len(shape) != 3:
            raise UserError(
                f"noise of {len(seeds)} seeds and shape {tuple(shape)}; expected a seed an image and (c, h, w)"
            )
        self.seeds = tuple(int(seed) for seed in seeds)
        self.shape = tuple(shape)
        self.device = torch.device("cpu" if device is None else device)

    def start(self) -> Tensor:
        """Return x_T ~ N(0, I): (b, c, h, w) float32."""
        return self._draw(-1)

    def __call__(self, i: int) -> Tensor:
        """Return the noise of step i = 0, 1, ... of the chain, (b, c, h, w) float32; the same for the same i."""
        return self._draw(i)

    def _draw(self, step: int) -> Tensor:
        noise = torch.empty((len(self.seeds), *self.shape), dtype=torch.float32)
        for seed, image in zip(self.seeds, noise, strict=True):
            generator = torch.Generator().manual_seed(derived_seed(seed, "diffusion", step))
            image.copy_(torch.randn(self.shape, generator=generator, dtype=torch.float32))
        return noise.to(self.device)
