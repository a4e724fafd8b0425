"""The frozen VGG whose features SGR compares: Simonyan, Zisserman (arXiv 1409.1556), torchvision's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam4ir.errors import UserError
from sam4ir.priors.zoo.weights import WeightsError, load_state
from sam4ir.registry import near_miss

Variant = Literal["vgg16", "vgg19"]

BLOCK_CHANNELS = (64, 128, 256, 512, 512)
BLOCK_CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RANDOM_SEED = 0


class VGGFeatures(nn.Module):
    """Activations of a frozen VGG, built only as deep as the deepest layer asked for.

    variant: vgg16 or vgg19. layers: any of relu1_1 .. relu5_3 (vgg16) or relu5_4 (vgg19), relu{block}_{number}.
    weights: None for the ImageNet weights of the variant (priors/zoo, fetched once), a file with torchvision's
    keys, or 'random' for He-initialised weights of a fixed seed: for tests, meaningless as a prior.
    It always stays in eval mode, and no parameter takes a gradient; the gradient flows to the image only.
    Raises ValueError for unknown, repeated or no layers, WeightsError for weights that cannot be had or do not fit.

    channels, strides: for each layer its channel count and the pixels per feature cell, 2^(block - 1).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        variant: Variant = "vgg16",
        layers: Sequence[str] = ("relu2_2", "relu3_3", "relu4_3"),
        weights: str | None = None,
    ) -> None:
        super().__init__()
        blocks = _blocks(variant)
        _check_layers(variant, layers, list(blocks))
        self.variant = variant
        self.layers = tuple(layers)
        self.strides = {layer: 2 ** (blocks[layer] - 1) for layer in layers}
        self.channels = {layer: BLOCK_CHANNELS[blocks[layer] - 1] for layer in layers}
        names = list(blocks)
        depth = max(names.index(layer) for layer in layers) + 1
        self._plan = [(name, blocks[name]) for name in names[:depth]]
        self.features = nn.ModuleDict(_convolutions(self._plan))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self._load(weights)
        self.to(memory_format=torch.channels_last)
        self.requires_grad_(False)
        self.eval()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Features by layer name, in the order of `layers`.

        image: (b, 3, h, w) RGB in [0, 1], not clamped; at least as large as the deepest layer's stride.
        Returns (b, channels[layer], h // strides[layer], w // strides[layer]) each; bf16 under bf16 autocast.
        """
        self._check_image(image)
        x = (image - self.mean) / self.std
        found: dict[str, Tensor] = {}
        block_before = 1
        for (name, block), convolution in zip(self._plan, self.features.values(), strict=True):
            if block != block_before:
                x = F.max_pool2d(x, kernel_size=2)
                block_before = block
            x = F.relu(convolution(x), inplace=True)  # overwrites the convolution's output, which nothing else holds
            if name in self.strides:
                found[name] = x
        return {layer: found[layer] for layer in self.layers}

    def train(self, mode: bool = True) -> VGGFeatures:
        """Stays in eval mode, whatever the model around it does."""
        return super().train(False)

    def _check_image(self, image: Tensor) -> None:
        least = max(self.strides.values())
        if image.ndim != 4 or image.shape[1] != 3 or min(image.shape[-2:]) < least:
            raise UserError(
                f"VGGFeatures: image is {tuple(image.shape)}, expected (b, 3, h, w) with h and w at least {least} "
                f"for {', '.join(self.layers)}"
            )

    def _load(self, weights: str | None) -> None:
        wanted = {name: parameter.shape for name, parameter in self.named_parameters()}
        if weights == "random":
            state = _he_weights(wanted)
        else:
            source = weights or self.variant
            state = load_state(source)
            unfit = [name for name, shape in wanted.items() if name not in state or state[name].shape != shape]
            if unfit:
                raise WeightsError(f"{source}: does not hold {self.variant}'s {', '.join(unfit[:3])} in its shape")
        self.load_state_dict({name: state[name].float() for name in wanted}, assign=True)


def _blocks(variant: str) -> dict[str, int]:
    """Layer name -> block (1..5), in the network's order."""
    if variant not in BLOCK_CONVOLUTIONS:
        raise UserError(f"VGGFeatures: variant is {variant!r}, expected vgg16 or vgg19")
    counts = BLOCK_CONVOLUTIONS[variant]
    return {f"relu{block}_{i}": block for block, count in enumerate(counts, 1) for i in range(1, count + 1)}


def _check_layers(variant: str, layers: Sequence[str], known: list[str]) -> None:
    if isinstance(layers, str) or not layers or len(set(layers)) != len(layers):
        raise UserError(f"VGGFeatures: layers is {layers!r}, expected a list of different names")
    for layer in layers:
        if layer not in known:
            near = near_miss(layer, known) or ";"
            raise UserError(f"VGGFeatures: {variant} has no layer {layer!r}{near} known: {', '.join(known)}")


def _convolutions(plan: Sequence[tuple[str, int]]) -> dict[str, nn.Module]:
    """Index in torchvision's `features` -> convolution; on the meta device, as the weights are assigned afterwards
    and an initialisation would draw from the global random stream."""
    found: dict[str, nn.Module] = {}
    channels = 3
    for position, (_, block) in enumerate(plan):
        index = 2 * position + block - 1  # each convolution has its ReLU, each finished block its pooling
        found[str(index)] = nn.Conv2d(channels, BLOCK_CHANNELS[block - 1], kernel_size=3, padding=1, device="meta")
        channels = BLOCK_CHANNELS[block - 1]
    return found


def _he_weights(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(RANDOM_SEED)
    state = {}
    for name, shape in shapes.items():
        fan_in = shape[1:].numel()
        weight = torch.randn(shape, generator=random) * (2.0 / fan_in) ** 0.5
        state[name] = weight if len(shape) > 1 else torch.zeros(shape)
    return state
