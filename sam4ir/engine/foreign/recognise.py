"""Which network of spandrel a state dict belongs to, for weights that fit no network of ours."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from sam4ir.engine.foreign.library import PREFIX, detected, installed, kinds, version
from sam4ir.engine.foreign.network import network, plain_value
from sam4ir.utils.state_dicts import Weights

log = logging.getLogger(__name__)


def foreign_block(weights: Weights) -> dict[str, Any] | None:
    """Return {type: spandrel:NAME, argument ...} of the network that spandrel finds for weights; None for none.

    The keys are tried as the file has them, and then without their wrappers (Weights.stages). None also where spandrel
    is not installed, and where the network takes a mask beside the image or arguments that no option file can hold.
    """
    if not installed():
        return None
    for state in weights.stages or (weights.state,):
        descriptor = detected(state)
        if descriptor is not None:
            return _block(descriptor)
    return None


def announce(block: Mapping[str, Any]) -> None:
    """Log that spandrel, and not we, found the network of weights."""
    log.info("spandrel %s knows these weights: they are of its network %s", version(), block["type"])


def _block(descriptor: Any) -> dict[str, Any] | None:
    """Return the block of a descriptor's network, without arguments that are the defaults."""
    its_class, hyperparameters = type(descriptor.model), descriptor.model.hyperparameters
    for kind in kinds().values():
        if its_class is kind.network:
            arguments = _arguments(kind.name, hyperparameters)
            if arguments is None:
                return None
            return {"type": f"{PREFIX}{kind.name}", **arguments}
    return None


def _arguments(name: str, hyperparameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of a network that differ from its defaults; None where one cannot be written down."""
    parameters = network(name).__signature__.parameters  # type: ignore[attr-defined]
    arguments: dict[str, Any] = {}
    for argument, value in hyperparameters.items():
        if argument not in parameters:
            continue  # a class or function, which spandrel leaves at its default
        if not plain_value(value):
            return None
        if value != parameters[argument].default:
            arguments[argument] = _as_yaml(value)
    return arguments


def _as_yaml(value: Any) -> Any:
    """Return a value with lists for tuples, as an option file has it."""
    if isinstance(value, (list, tuple)):
        return list(map(_as_yaml, value))
    return value
