"""Restoring images with a trained network: what scripts/restore.py and scripts/make_masks.py share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from sam4ir.config.schema import Options
from sam4ir.engine import build
from sam4ir.engine.restore import build as restore_build
from sam4ir.engine.restore.one_pass import Restorer
from sam4ir.engine.restore.sampling import OnStep
from sam4ir.engine.weights import load_weights
from sam4ir.errors import UserError
from sam4ir.models.restoration import restore
from sam4ir.utils.image import to_float_tensor, to_grey, to_image


@dataclass(frozen=True)
class ImageRestorer:
    """A network on its device and how images go through it. channels: 3 for a network of RGB images, 1 for grey."""

    restorer: Restorer
    device: torch.device
    channels: Literal[1, 3]

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, key: str = "", sample: int = 0) -> np.ndarray:
        """(h, w, 3) RGB, or (h, w, 1), uint8 or uint16 -> the restored image, of the same type.

        An RGB image goes through a grey network as its luma, and comes back as RGB. key, sample: as for a Way.
        """
        grey = self.channels == 1 and image.shape[2] == 3
        lq = to_float_tensor(to_grey(image) if grey else image).unsqueeze(0).to(self.device)
        restored = to_image(self.restorer(lq, key, sample)[0].cpu(), image.dtype)
        return np.repeat(restored, 3, axis=2) if grey else restored


def image_restorer(options: Options, weights: str, on_step: OnStep | None = None) -> ImageRestorer:
    """The option file's network with these weights (a file or a name of the zoo); images go through it as `val` says.

    on_step: told (done, of how many) after each step of a diffusion network.
    Raises ValueError where weights or images do not fit the network.
    """
    device = build.device_of(options)
    network = build.network(options.network_g, "g", options, device)
    load_weights(network, weights)
    network.eval()
    if options.diffuses:
        restore_build.check_diffusion(options, weights)
        build.check_images(network, options, device)
        return ImageRestorer(restore_build.build_restorer(options, network, on_step), device, 3)
    with torch.inference_mode():
        channels = image_channels(network, device)
    return ImageRestorer(restore_build.build_restorer(options, network), device, channels)


def image_channels(network: nn.Module, device: torch.device) -> Literal[1, 3]:
    """3 for a network of RGB images, 1 for one of grey images. Raises ValueError for one of neither."""
    reason = ""
    for channels in (3, 1):
        try:
            restore(network, torch.zeros(1, channels, 16, 16, device=device))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
        else:
            return 3 if channels == 3 else 1
    raise UserError(f"network_g: {type(network).__name__} restores neither RGB nor grey images ({reason})")
