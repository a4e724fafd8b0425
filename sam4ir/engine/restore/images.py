"""Restore images with a trained network, for sam4ir restore, sam4ir make-masks and sam4ir.load."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sam4ir.config.schema import Options
from sam4ir.diffusion.samplers import OnStep
from sam4ir.engine import build
from sam4ir.engine.devices import choose_device
from sam4ir.engine.restore import build as restore_build
from sam4ir.engine.restore.one_pass import OnTile, PlainRestorer, Restorer
from sam4ir.engine.restore.within_memory import WithinMemory
from sam4ir.engine.weights import load_weights
from sam4ir.errors import UserError, first_line
from sam4ir.utils.image import NOT_FINITE, ImageError, grey_of, to_float_tensor, to_grey, to_image
from sam4ir.utils.memory import out_of_memory, release

log = logging.getLogger(__name__)

LARGEST_WHOLE = 4_000_000  # pixels that scripts/restore.py gives to a network at once; NAFNet of width 32 needs 5 GB
LARGE_TILE = 512  # side of the tiles of larger images


class PictureRestorer(Protocol):
    """A restorer of images (h, w, c), uint8 or uint16: a network, or one with what refines its images."""

    @property
    def channels(self) -> Literal[1, 3]:
        """The channels of its images, 3 (RGB) or 1 (grey)."""

    @property
    def alone(self) -> ImageRestorer:
        """The network by itself, which also restores what has no masks: the transparency of an image."""

    def __call__(self, image: np.ndarray, key: str = "", sample: int = 0) -> np.ndarray:
        """Return the restored image, of the same type and channels; arguments as for ImageRestorer."""


@dataclass(frozen=True)
class ImageRestorer:
    """A Restorer for uint8 and uint16 arrays. channels: 3 for a network of RGB images, 1 for one of grey images.

    within_memory: takes smaller tiles where memory runs out. whole_up_to: the most pixels (height times width) that a
    network of one pass takes at once where no tiles were asked for; a larger image is restored in tiles of LARGE_TILE.
    None: there is no such limit.
    """

    restorer: Restorer
    device: torch.device
    channels: Literal[1, 3]
    within_memory: WithinMemory = field(default_factory=WithinMemory)
    whole_up_to: int | None = None

    @property
    def alone(self) -> ImageRestorer:
        """Itself; see PictureRestorer."""
        return self

    def __call__(self, image: np.ndarray, key: str = "", sample: int = 0) -> np.ndarray:
        """Restore an image (h, w, 3) RGB or (h, w, 1), uint8 or uint16, to one of the same type.

        An RGB image goes through a grey network as its luma, and comes back as RGB; a grey image goes through a network
        of RGB images three times repeated, and comes back as luma. key, sample: as for a Restorer.
        """
        return self.arrays([image], key, sample)[0]

    @torch.inference_mode()
    def arrays(self, images: Sequence[np.ndarray], key: str = "", sample: int = 0) -> list[np.ndarray]:
        """Restore images of one size, channels and type, as a call does for one; keys are those of `tensors`."""
        pixels = []
        for image in images:
            pixels.append(self.to_tensor(image))
        restored = []
        for values in self.tensors(torch.stack(pixels), key, sample):
            restored.append(self.to_array(values, images[0]))
        return restored

    def to_tensor(self, image: np.ndarray) -> Tensor:
        """Return an image (h, w, 1 or 3), uint8 or uint16, as the network takes it: (channels, h, w) in [0, 1]."""
        if image.shape[2] > self.channels:
            image = to_grey(image)
        elif image.shape[2] < self.channels:
            image = np.repeat(image, 3, axis=2)
        return to_float_tensor(image)

    def to_array(self, values: Tensor, like: np.ndarray) -> np.ndarray:
        """Return values (channels, h, w) of the network as an image of the type and the channels of `like`.

        Raises ImageError for values that are not finite.
        """
        image = to_image(values.cpu(), like.dtype)
        if like.shape[2] > self.channels:
            return np.repeat(image, 3, axis=2)
        if like.shape[2] < self.channels:
            return to_grey(image)
        return image

    @torch.inference_mode()
    def floats(self, images: Tensor, key: str = "", sample: int = 0) -> Tensor:
        """Restore (b, 1 or 3, h, w) in [0, 1] to (b, the same, h scale, w scale) float32, clamped, on the device.

        Channels are changed as in a call, without rounding. Raises ImageError for values that are not finite.
        """
        channels = images.shape[1]
        if channels > self.channels:
            images = grey_of(images)
        restored = self.tensors(images.expand(-1, self.channels, -1, -1), key, sample)
        if not restored.isfinite().all():
            raise ImageError(NOT_FINITE)
        restored = restored.clamp(0, 1)
        if channels < self.channels:
            return grey_of(restored)
        return restored.expand(-1, channels, -1, -1)

    @torch.inference_mode()
    def tensors(self, images: Tensor, key: str = "", sample: int = 0) -> Tensor:
        """Restore (b, channels, h, w) in [0, 1] to (b, channels, h scale, w scale) float32, unclamped, on the device.

        A batch goes through a plain network at once where it needs no tiles and memory suffices, else image by image.
        Image i of several has the key <key>_<i>, so that a diffusion network draws other noise for it.
        """
        images = images.to(self.device)
        restorer = self._for_size(images.shape[2] * images.shape[3], key)
        if len(images) == 1:
            return self.within_memory(restorer, images, key, sample)
        if isinstance(restorer, PlainRestorer) and restorer.takes_batch(*images.shape[-2:]):
            try:
                return restorer(images, key, sample)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                log.info(
                    "memory ran out for %d images at once (%s); they go one by one", len(images), first_line(error)
                )
            release()
        restored = []
        for number, image in enumerate(images):
            restored.append(self.within_memory(restorer, image.unsqueeze(0), f"{key}_{number}", sample))
        return torch.cat(restored)

    def _for_size(self, pixels: int, key: str) -> Restorer:
        """Return the Restorer of an image of so many pixels."""
        restorer = self.restorer
        if self.whole_up_to is None or pixels <= self.whole_up_to:
            return restorer
        if not isinstance(restorer, PlainRestorer) or restorer.tile is not None:
            return restorer
        tiled = restorer.in_tiles(LARGE_TILE)
        if tiled is None:
            return restorer
        log.info(
            "%s: %.1f megapixels are more than %.1f, so it is restored in blended tiles of %d; --tile 0 takes it whole",
            key,
            pixels / 1e6,
            self.whole_up_to / 1e6,
            LARGE_TILE,
        )
        return tiled


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with its weights on its device. channels: of its images, 3 (RGB) or 1 (grey). scale: of its images."""

    network: nn.Module
    device: torch.device
    channels: Literal[1, 3]
    scale: int

    def restorer(
        self, recipe: restore_build.RestoreRecipe, on_step: OnStep | None = None, on_tile: OnTile | None = None
    ) -> Restorer:
        """Return the Restorer that follows a recipe. on_step, on_tile: as for image_restorer."""
        recipe = dataclasses.replace(recipe, scale=self.scale)
        network = restore_build.for_inference(recipe, self.network)
        return restore_build.build_restorer(recipe, network, on_step, on_tile)


def load_network(options: Options, weights: str) -> LoadedNetwork:
    """Build the option file's network with these weights (a file or a name of the zoo), and try it on a small image.

    Raises UserError where weights do not fit the network, and for a network that restores no images of 3 channels or 1.
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
    return LoadedNetwork(network, device, channels, scale)


def image_restorer(
    options: Options,
    weights: str,
    on_step: OnStep | None = None,
    on_tile: OnTile | None = None,
    whole_up_to: int | None = None,
    recipe: restore_build.RestoreRecipe | None = None,
) -> ImageRestorer:
    """Build the option file's network with these weights (a file or a name of the zoo); it restores as `val` says.

    on_step: called with (steps done, all steps) after each step of a diffusion network. on_tile: the same for the tiles
    of other networks. whole_up_to: see ImageRestorer. recipe: in place of the option file's, in another number format.
    Raises ValueError where weights or images do not fit the network.
    """
    loaded = load_network(options, weights)
    restorer = loaded.restorer(recipe or restore_build.restore_recipe(options), on_step, on_tile)
    return ImageRestorer(restorer, loaded.device, loaded.channels, whole_up_to=whole_up_to)


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
