"""Restore images with a trained network, for sam4ir restore and sam4ir make-masks."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import nn

from sam4ir.config.schema import Options
from sam4ir.diffusion.samplers import OnStep
from sam4ir.engine import build
from sam4ir.engine.devices import choose_device
from sam4ir.engine.restore import build as restore_build
from sam4ir.engine.restore.one_pass import Restorer
from sam4ir.engine.restore.within_memory import WithinMemory
from sam4ir.engine.weights import load_weights
from sam4ir.errors import UserError
from sam4ir.utils.image import to_float_tensor, to_grey, to_image
from sam4ir.utils.memory import out_of_memory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageRestorer:
    """A Restorer for uint8 and uint16 arrays. channels: 3 for a network of RGB images, 1 for one of grey images.

    within_memory: takes smaller tiles where memory runs out.
    """

    restorer: Restorer
    device: torch.device
    channels: Literal[1, 3]
    within_memory: WithinMemory = field(default_factory=WithinMemory)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, key: str = "", sample: int = 0) -> np.ndarray:
        """Restore an image (h, w, 3) RGB or (h, w, 1), uint8 or uint16, to one of the same type.

        An RGB image goes through a grey network as its luma, and comes back as RGB. key, sample: as for a Restorer.
        """
        as_grey = self.channels == 1 and image.shape[2] == 3
        pixels = to_grey(image) if as_grey else image
        lq = to_float_tensor(pixels).unsqueeze(0).to(self.device)
        restored = to_image(self.within_memory(self.restorer, lq, key, sample)[0].cpu(), image.dtype)
        if as_grey:
            return np.repeat(restored, 3, axis=2)
        return restored


def image_restorer(options: Options, weights: str, on_step: OnStep | None = None) -> ImageRestorer:
    """Build the option file's network with these weights (a file or a name of the zoo); it restores as `val` says.

    on_step: called with (steps done, all steps) after each step of a diffusion network.
    Raises ValueError where weights or images do not fit the network.
    """
    device = choose_device(options.device)
    network = build.build_network(
        options.network_g, "g", device, seed=options.manual_seed, channels_last=options.channels_last
    )
    key = options.path.param_key_g or options.path.param_key
    load_weights(network, weights, key, average=options.reads_average)
    network.eval()
    recipe = restore_build.restore_recipe(options)
    if recipe.diffusion is not None:
        restore_build.check_diffusion(recipe.diffusion, weights)
    with build.naming("network_g"):
        channels, scale = image_form(network, device, recipe)
    if "scale" in options.model_fields_set and scale != options.scale:
        raise build.BuildError(build.other_scale(network, scale, options.scale))
    if scale != options.scale:
        log.info("scale: %d, as the network's images show; the option file names none", scale)
    recipe = dataclasses.replace(recipe, scale=scale)
    network = restore_build.for_inference(recipe, network)
    return ImageRestorer(restore_build.build_restorer(recipe, network, on_step), device, channels)


def image_form(
    network: nn.Module, device: torch.device, recipe: restore_build.RestoreRecipe
) -> tuple[Literal[1, 3], int]:
    """Return the channels of a network's images, 3 (RGB) or 1 (grey), and their scale, by restoring a small image.

    Raises UserError for a network of other images.
    """
    diffusion, multiple = recipe.diffusion is not None, restore_build.build_inference(recipe).multiple
    if diffusion:
        return 3, build.measured_scale(network, device, diffusion=True)
    reason = ""
    channels: Literal[1, 3]
    for channels in (3, 1):
        try:
            return channels, build.measured_scale(network, device, channels, multiple=multiple)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
    raise UserError(f"{type(network).__name__} restores neither RGB nor grey images ({reason})")
