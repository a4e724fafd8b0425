"""The frozen VGG whose features SGR and the perceptual loss compare: Simonyan, Zisserman (arXiv 1409.1556).

Its weights are those of torchvision.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

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


class Layer(NamedTuple):
    """A layer of a VGG. block: 1 to 5. position: in torchvision's `features`."""

    kind: Literal["conv", "relu", "pool"]
    block: int
    position: int

    @property
    def channels(self) -> int:
        """Channels of its output."""
        return BLOCK_CHANNELS[self.block - 1]

    @property
    def stride(self) -> int:
        """Pixels of the image per cell of its output, along one side."""
        if self.kind == "pool":
            return int(2**self.block)
        return int(2 ** (self.block - 1))


class VGGFeatures(nn.Module):
    """Activations of a frozen VGG, which is built only as deep as the deepest layer that `layers` names.

    It always stays in eval mode, and no parameter takes a gradient; the gradient flows to the image only.
    Raises UserError for unknown, repeated or no layers, WeightsError for weights that cannot be fetched or do not fit.

    Args:
        variant: Network: vgg16 or vgg19.
        layers: Names of layers: conv{block}_{number} before the ReLU, relu{block}_{number} behind it, such as conv1_1
            to conv5_3 (vgg16) or conv5_4 (vgg19), and pool1 to pool5.
        weights: None for the variant's ImageNet weights of the zoo, a file with torchvision's keys, or random for
            He-initialised weights of a fixed seed: for tests, meaningless as a prior.
        normalise: Whether images are normalised by ImageNet's mean and standard deviation first.

    channels, strides: for each layer its channel count, and the pixels per feature cell along one side.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        variant: Variant = "vgg16",
        layers: Sequence[str] = ("relu2_2", "relu3_3", "relu4_3"),
        weights: str | None = None,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        network = _network(variant)
        _check_layers(variant, layers, list(network))
        self.variant = variant
        self.layers = tuple(layers)
        self.normalise = normalise
        self.strides: dict[str, int] = {}
        self.channels: dict[str, int] = {}
        depth = 0
        for name in layers:
            layer = network[name]
            self.strides[name] = layer.stride
            self.channels[name] = layer.channels
            depth = max(depth, layer.position + 1)
        self._plan = dict(list(network.items())[:depth])
        self.features = nn.ModuleDict(_convolutions(self._plan.values()))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self._load(weights)
        self.to(memory_format=torch.channels_last)
        self.requires_grad_(False)
        self.eval()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the features by layer name, in the order of `layers`.

        image: (b, 3, h, w) RGB in [0, 1], not clamped; at least as large as the deepest layer's stride.
        Returns (b, channels[layer], h // strides[layer], w // strides[layer]) each; bf16 under bf16 autocast.
        Raises UserError for images of another shape.
        """
        self._check_image(image)
        x = image
        if self.normalise:
            x = (image - self.mean) / self.std
        activations: dict[str, Tensor] = {}
        before = ""
        for name, layer in self._plan.items():
            if layer.kind == "conv":
                x = self.features[str(layer.position)](x)
            elif layer.kind == "relu":
                # overwrites the convolution's output where nothing else holds it
                x = F.relu(x, inplace=before not in activations)
            else:
                x = F.max_pool2d(x, kernel_size=2)
            if name in self.strides:
                activations[name] = x
            before = name
        return {name: activations[name] for name in self.layers}

    def train(self, mode: bool = True) -> VGGFeatures:
        """Stay in eval mode, whatever the model around it does."""
        return super().train(False)

    def _check_image(self, image: Tensor) -> None:
        least = max(self.strides.values())
        if image.ndim != 4 or image.shape[1] != 3 or min(image.shape[-2:]) < least:
            raise UserError(
                f"VGGFeatures: image is {tuple(image.shape)}, expected (b, 3, h, w) with h and w at least {least} "
                f"for {', '.join(self.layers)}"
            )

    def _load(self, weights: str | None) -> None:
        """Load the weights of the convolutions from the zoo, from a file, or draw them."""
        shapes = {}
        for name, parameter in self.named_parameters():
            shapes[name] = parameter.shape
        if weights == "random":
            state = _he_weights(shapes)
        else:
            source = weights or self.variant
            state = load_state(source)
            unfit = []
            for name, shape in shapes.items():
                if name not in state or state[name].shape != shape:
                    unfit.append(name)
            if unfit:
                raise WeightsError(f"{source}: does not hold {self.variant}'s {', '.join(unfit[:3])} in its shape")
        self.load_state_dict({name: state[name].float() for name in shapes}, assign=True)


def _network(variant: str) -> dict[str, Layer]:
    """Return name -> layer of a whole VGG, in the network's order."""
    if variant not in BLOCK_CONVOLUTIONS:
        raise UserError(f"VGGFeatures: variant is {variant!r}, expected vgg16 or vgg19")
    network: dict[str, Layer] = {}
    for block, count in enumerate(BLOCK_CONVOLUTIONS[variant], 1):
        for number in range(1, count + 1):
            network[f"conv{block}_{number}"] = Layer("conv", block, len(network))
            network[f"relu{block}_{number}"] = Layer("relu", block, len(network))
        network[f"pool{block}"] = Layer("pool", block, len(network))
    return network


def _check_layers(variant: str, layers: Sequence[str], known: list[str]) -> None:
    """Raise UserError unless `layers` names different layers of the network."""
    if isinstance(layers, str) or not layers or len(set(layers)) != len(layers):
        raise UserError(f"VGGFeatures: layers is {layers!r}, expected a list of different names")
    for layer in layers:
        if layer not in known:
            near = near_miss(layer, known) or ";"
            raise UserError(f"VGGFeatures: {variant} has no layer {layer!r}{near} known: {', '.join(known)}")


def _convolutions(plan: Iterable[Layer]) -> dict[str, nn.Module]:
    """Return position in torchvision's `features` -> convolution.

    They lie on the meta device: the weights are assigned afterwards, and an initialisation would draw from the global
    random stream.
    """
    convolutions: dict[str, nn.Module] = {}
    channels = 3
    for layer in plan:
        if layer.kind == "conv":
            convolutions[str(layer.position)] = nn.Conv2d(channels, layer.channels, 3, padding=1, device="meta")
            channels = layer.channels
    return convolutions


def _he_weights(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Return random weights of a fixed seed (He et al., arXiv 1502.01852) and biases of 0."""
    random = torch.Generator().manual_seed(RANDOM_SEED)
    state = {}
    for name, shape in shapes.items():
        fan_in = shape[1:].numel()
        weight = torch.randn(shape, generator=random) * (2.0 / fan_in) ** 0.5
        if len(shape) == 1:
            weight = torch.zeros(shape)
        state[name] = weight
    return state
