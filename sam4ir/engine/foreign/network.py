"""spandrel's networks as networks of an option file: `network_g: {type: spandrel:SCUNet, dim: 64}`.

Such a network keeps the class of spandrel below it and so the keys of its weights: what a training saves can be read
by spandrel and by the programs that use it.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam4ir.config.signature import argument_hints
from sam4ir.engine.foreign.library import PREFIX, ForeignKind, descriptor_of, kind_called, licence_line
from sam4ir.errors import UserError, first_line
from sam4ir.utils.rng import torch_stream

log = logging.getLogger(__name__)

# an argument by which a class would read a file itself, past our own reader
FILE_ARGUMENTS = {"decoder_load_path"}
# networks whose call in spandrel takes one image, and those that draw noise while they restore
ONE_AT_A_TIME = {"DRUNet", "DDColor"}
DRAWING = {"AuraSR", "GFPGAN"}

Call = Callable[[Any, Tensor], Tensor]  # (network, image) -> restored image


class ForeignTraits(NamedTuple):
    """What spandrel knows of a network.

    call: runs the network on an image in [0, 1]. channels: of that image. scale: output pixels per input pixel.
    minimum, multiple, square: each side of an image must be `minimum` at least and divisible by `multiple`, and both
    equal where `square`.
    tiles_advised: whether the network does as well on a tile as on the whole image. half: whether it runs in float16.
    """

    call: Call
    channels: int
    scale: int
    minimum: int
    multiple: int
    square: bool
    tiles_advised: bool
    half: bool


class ForeignNetwork(nn.Module):
    """The part that all of spandrel's networks get: images of any size, in [0, 1], and one image as output.

    (b, c, h, w) -> (b, c', h scale, w scale), not clamped. An image whose size the network does not take is padded at
    the bottom and right by reflection.
    """

    kind: ForeignKind
    traits: ForeignTraits

    def forward(self, image: Tensor) -> Tensor:
        """Return the restored image."""
        traits = self.traits
        height, width = image.shape[-2:]
        own = image.clone(memory_format=torch.contiguous_format)  # RCAN changes its input in place
        output = self._restored(_Plain(self, super().forward), with_size(own, traits))
        return output[..., : height * traits.scale, : width * traits.scale]

    def _restored(self, plain: _Plain, images: Tensor) -> Tensor:
        """Return what spandrel's call makes of images of a size that the network takes."""
        call, name = self.traits.call, self.kind.name
        one = name in ONE_AT_A_TIME or getattr(self, "mode", None) == "FDnCNN"  # DnCNN with a map of noise levels
        if one and len(images) > 1:
            return torch.cat([call(plain, image) for image in images.split(1)])
        if name in DRAWING and not self.training:
            with torch_stream(0, "spandrel"):
                return call(plain, images)
        return call(plain, images)

    def adapted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state dict under this network's keys, where spandrel translates it; else as it is."""
        if state.keys() == self.state_dict().keys():
            return dict(state)
        try:
            if not self.kind.architecture.detect(dict(state)):
                return dict(state)
            own = descriptor_of(self.kind, state).model.state_dict()
        except Exception:  # spandrel's readers fail in any way on weights of another network
            return dict(state)
        return dict(own)


class _Plain:
    """A network of spandrel without what ForeignNetwork adds, as spandrel's own call expects it."""

    def __init__(self, network: nn.Module, forward: Callable[..., Any]) -> None:
        self.network = network
        self.forward = forward

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self.forward(*inputs, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


def with_size(image: Tensor, traits: ForeignTraits) -> Tensor:
    """Return (b, c, h, w) padded at the bottom and right to a size that the network takes.

    The image is reflected as far as it reaches; its last row and column are repeated beyond.
    """
    height, width = image.shape[-2:]
    sides = []
    for side in (height, width):
        side = max(side, traits.minimum)
        sides.append(side + -side % traits.multiple)
    if traits.square:
        sides = [max(sides)] * 2
    bottom, right = sides[0] - height, sides[1] - width
    if not bottom and not right:
        return image
    reflected_bottom, reflected_right = min(bottom, height - 1), min(right, width - 1)
    image = F.pad(image, (0, reflected_right, 0, reflected_bottom), mode="reflect")
    return F.pad(image, (0, right - reflected_right, 0, bottom - reflected_bottom), mode="replicate")


@functools.cache
def network(name: str) -> Callable[..., nn.Module]:
    """Return the function that builds spandrel's network `name` from the arguments of its class.

    Arguments that no option file can hold (classes, functions) are left out of its signature. Raises UnknownNameError
    for another name, and where spandrel is not installed.
    """
    kind = kind_called(name)
    # the class itself keeps its name in messages
    combined: type[nn.Module] = type(kind.name, (ForeignNetwork, kind.network), {"__module__": __name__})
    parameters = _plain_parameters(kind.network)

    def build(**arguments: Any) -> nn.Module:
        return _built(kind, combined, _converted(arguments, parameters))

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"Network {name} of spandrel, with the arguments of its class there."
    build.__annotations__ = _hints(kind.network, parameters)
    build.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    return build


def plain_value(value: Any) -> bool:
    """Return whether an option file can hold a value."""
    if isinstance(value, (list, tuple)):
        return all(map(plain_value, value))
    if isinstance(value, Mapping):
        return all(map(plain_value, (*value.keys(), *value.values())))
    return value is None or isinstance(value, (bool, int, float, str))


def _plain_parameters(network_class: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class that an option file can give, without their annotations."""
    parameters = {}
    for name, parameter in inspect.signature(network_class).parameters.items():
        many = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        required = parameter.default is parameter.empty
        if not many and name not in FILE_ARGUMENTS and (required or plain_value(parameter.default)):
            parameters[name] = parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=parameter.empty)
    return parameters


def _hints(network_class: type[nn.Module], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Return the annotations of a class's plain arguments; none where they exist for a type checker alone."""
    try:
        hints = argument_hints(network_class)
    except (NameError, AttributeError, TypeError, SyntaxError):
        return {}
    return {name: hint for name, hint in hints.items() if name in parameters}


def _converted(arguments: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Return the arguments with tuples for lists where the class has a tuple by default."""
    converted = {}
    for name, value in arguments.items():
        if isinstance(value, list) and isinstance(parameters[name].default, tuple):
            value = tuple(value)
        converted[name] = value
    return converted


def _built(kind: ForeignKind, combined: type[nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """Build a network and attach what spandrel knows of it.

    Raises UserError for arguments that its class refuses, or whose weights spandrel itself would not read again.
    """
    line = licence_line(kind)
    if line:
        log.warning(line)
    try:
        network = combined(**arguments)
    except Exception as error:  # the class checks little of what it gets
        raise UserError(f"{PREFIX}{kind.name} refuses these arguments: {_cause(error)}") from error
    try:
        descriptor = descriptor_of(kind, network.state_dict())
    except Exception as error:
        raise UserError(
            f"{PREFIX}{kind.name}: spandrel does not read the weights of a network with these arguments "
            f"({_cause(error)}); take those of a published model of this architecture"
        ) from error
    if type(descriptor.model) is not kind.network:
        other = type(descriptor.model).__name__
        raise UserError(f"{PREFIX}{kind.name}: spandrel would read the weights of this network as those of {other}")
    network.kind = kind  # type: ignore[assignment]
    network.traits = foreign_traits(descriptor)  # type: ignore[assignment]
    return network


def foreign_traits(descriptor: Any) -> ForeignTraits:
    """Return what a descriptor of spandrel says of its network."""
    size = descriptor.size_requirements
    return ForeignTraits(
        call=descriptor._call_fn,
        channels=descriptor.input_channels,
        scale=descriptor.scale,
        minimum=size.minimum,
        multiple=size.multiple_of,
        square=size.square,
        tiles_advised=descriptor.tiling.name == "SUPPORTED",
        half=descriptor.supports_half,
    )


def _cause(error: Exception) -> str:
    """Return the kind of an error and the first line of its text."""
    return f"{type(error).__name__}: {first_line(error)}"[:200]
