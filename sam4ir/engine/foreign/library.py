"""The package spandrel: which networks it has, and what it says about a network with given weights.

spandrel is imported when one of its networks is named, or when weights fit none of ours. spandrel_extra_arches, whose
networks have restrictive licences, takes part only where the user has installed it. Weights reach spandrel as tensors
that our own reader has verified, never as a file.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sam4ir.registry import UnknownNameError, near_miss

log = logging.getLogger(__name__)

PREFIX = "spandrel:"  # before the name of a network in an option file
PACKAGE, EXTRA_PACKAGE = "spandrel", "spandrel_extra_arches"
INSTALL = "pip install spandrel (in a checkout: pip install -e '.[spandrel]')"
MISSING = f"needs the package spandrel: {INSTALL}"


class ForeignKind(NamedTuple):
    """A class of networks.

    name: as option files write it behind the prefix. network: its class. architecture: spandrel's reader of its
    weights. restricted: whether it comes from spandrel_extra_arches.
    """

    name: str
    network: type[nn.Module]
    architecture: Any
    restricted: bool = False


def installed() -> bool:
    """Return whether spandrel can be imported."""
    try:
        _package()
    except UnknownNameError:
        return False
    return True


@functools.cache
def kinds() -> dict[str, ForeignKind]:
    """Return name -> ForeignKind of all networks that restore an image from the image alone, in spandrel's order.

    Raises UnknownNameError where spandrel is not installed.
    """
    spandrel = _package()
    extra = _extra_package()
    known: dict[str, ForeignKind] = {}
    for registry, restricted in ((spandrel.MAIN_REGISTRY, False), (getattr(extra, "EXTRA_REGISTRY", ()), True)):
        for support in registry:
            for name, network in _networks_of(support.architecture):
                known.setdefault(name, ForeignKind(name, network, support.architecture, restricted))
    return known


def kind_called(name: str) -> ForeignKind:
    """Return the ForeignKind of this name. Raises UnknownNameError with the nearest name, or without spandrel."""
    try:
        known = kinds()
    except UnknownNameError as error:
        raise UnknownNameError(f"{PREFIX}{name} {error}") from error
    if name not in known:
        hint = near_miss(name, known) or ";"
        more = ""
        if _extra_package() is None:
            more = f"; {EXTRA_PACKAGE}, which is not installed, has a few more"
        raise UnknownNameError(f"spandrel has no network called {name!r}{hint} known: {', '.join(sorted(known))}{more}")
    return known[name]


def descriptor_of(kind: ForeignKind, state: Mapping[str, Any]) -> Any:
    """Return spandrel's descriptor of the network with this state dict. Raises what spandrel raises.

    No random number is drawn from the caller's stream, and `state` stays as it is.
    """
    with torch.random.fork_rng(devices=[]):
        return kind.architecture.load(dict(state))


def detected(state: Mapping[str, Tensor]) -> Any:
    """Return the descriptor of the first of spandrel's architectures that takes this state dict; None for none.

    An architecture that recognises some keys and then fails on others is passed over.
    """
    spandrel = _package()
    supports = spandrel.MAIN_REGISTRY.architectures("detection")
    extra = _extra_package()
    if extra is not None:
        supports += extra.EXTRA_REGISTRY.architectures("detection")
    for support in supports:
        try:
            if support.detect(dict(state)):
                with torch.random.fork_rng(devices=[]):
                    return support.architecture.load(dict(state))
        except Exception as error:  # spandrel's readers expect whole networks, and fail on others in any way
            log.debug("spandrel: %s does not take these weights: %s", support.architecture.name, error)
    return None


def licence_line(kind: ForeignKind) -> str:
    """Return what is to be said about the licence of a network; '' where nothing is."""
    if not kind.restricted:
        return ""
    return (
        f"{PREFIX}{kind.name} comes from {EXTRA_PACKAGE}: its licence may forbid commercial use or demand that your "
        "code is published; read it before you use or share results and weights"
    )


def version() -> str:
    """Return spandrel's version."""
    return str(_package().__version__)


def _package() -> Any:
    """Return the module spandrel. Raises UnknownNameError where it is not installed, or is too old."""
    try:
        spandrel = _imported(PACKAGE)
    except ModuleNotFoundError as error:
        raise UnknownNameError(MISSING) from error
    if not hasattr(spandrel, "MAIN_REGISTRY") or not hasattr(spandrel, "ImageModelDescriptor"):
        raise UnknownNameError("needs spandrel 0.4 or newer: pip install -U spandrel")
    return spandrel


def _extra_package() -> Any:
    """Return the module spandrel_extra_arches, or None where it is not installed."""
    try:
        return _imported(EXTRA_PACKAGE)
    except ModuleNotFoundError:
        return None


def _imported(package: str) -> Any:
    """Import a package without the warnings that its own code causes in newer versions of torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(package)


def _networks_of(architecture: Any) -> list[tuple[str, type[nn.Module]]]:
    """Return (name, class) of the networks of an architecture, under the names that its module exports."""
    module = sys.modules[type(architecture).__module__]
    networks = []
    for name in module.__all__:
        network = getattr(module, name)
        if inspect.isclass(network) and issubclass(network, nn.Module) and _takes_images(architecture):
            networks.append((name, network))
    return networks


def _takes_images(architecture: Any) -> bool:
    """Return whether the networks of an architecture take an image alone; those that inpaint take a mask too."""
    returned = str(inspect.signature(type(architecture).load).return_annotation)
    return "MaskedImageModelDescriptor" not in returned
