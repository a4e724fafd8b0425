"""Load weights from a file or the zoo; where they do not fit, the message names the network that would."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sam4ir.archs.infer import Fit, infer, restoring, shapes_of, shared_keys, stereo
from sam4ir.engine.foreign.library import INSTALL, installed
from sam4ir.engine.foreign.recognise import announce, foreign_block
from sam4ir.registry import ARCHS, STEREO, near_miss
from sam4ir.utils.weights import (
    Weights,
    WeightsFileError,
    is_hub_name,
    is_safetensors,
    read_file,
    read_weights,
    reading,
    safetensors_description,
)

__all__ = ["WeightsFileError", "flow", "load_weights", "locate", "network_block", "read_file", "reading"]

log = logging.getLogger(__name__)

ZOO = "zoo:"
WEIGHTS_SUFFIXES = (".pth", ".pt", ".safetensors", ".state", ".ckpt")


_OF_REFINER = ("network", "spf")  # what the keys of a refiner's weights begin with
_IS_REFINER = (
    "holds a refiner (spf.* and network.*), which restores nothing without masks; the deployed network is net_g of the "
    "same run, and sam4ir restore takes both: --weights net_g... --refine net_r..."
)


def locate(source: str | Path) -> Path:
    """Return the file that `source` names: a path, `zoo:NAME`, `hf:OWNER/NAME`, or a bare NAME of the zoo.

    A bare name is one of the zoo where no such file is there. Weights of the zoo and of a hub are fetched unless the
    cache holds them. Raises WeightsFileError for any other name, and
    priors.zoo.weights.WeightsError where the zoo cannot give them.
    """
    if is_hub_name(source):
        from sam4ir.priors.zoo.hub import hub_weights  # a file needs no hub

        return hub_weights(source)
    name = zoo_name(source)
    if name is None:
        return Path(source)
    from sam4ir.priors.zoo import weights as zoo  # a file needs no zoo

    if name not in zoo.ENTRIES and not str(source).startswith(ZOO):
        near = near_miss(name, zoo.ENTRIES) or ";"
        listed = "sam4ir weights list prints the names of the zoo"
        raise WeightsFileError(f"{source}: no such weights file, nor weights of the zoo{near} {listed}")
    return zoo.resolve(name)


def zoo_name(source: str | Path) -> str | None:
    """Return the name that `source` may have in the zoo; None where it is a file, a path or a name of a hub."""
    text = str(source)
    if is_hub_name(text):
        return None
    if text.startswith(ZOO):
        return text.removeprefix(ZOO)
    path = Path(text)
    if path.exists() or path.name != text or path.suffix in WEIGHTS_SUFFIXES:
        return None
    return text


def load_weights(
    network: nn.Module, source: str | Path, key: str | None = None, strict: bool = True, average: bool = True
) -> None:
    """Load weights into `network`; the log names the file, its entry, and the tensors left out.

    source: see locate. key, average: the entry to take (see utils.state_dicts.find_state). A network may translate keys
    of other programs into its own (its method `adapted`).
    Raises WeightsFileError where names or shapes do not fit, with a short difference, and with the network and the
    arguments that would fit, where one of ours does. With strict False all that fits is loaded; that nothing fits is
    still an error.
    """
    weights = read_weights(locate(source), key, average, mapped=True)
    own = network.state_dict()
    state = weights.named_as(own, getattr(network, "adapted", dict))
    fitting = {}
    for name, tensor in state.items():
        if name in own and tensor.shape == own[name].shape:
            fitting[name] = tensor
    complete = len(fitting) == len(own) == len(state)
    if not fitting or (strict and not complete):
        raise WeightsFileError(
            f"{weights}: does not fit {type(network).__name__}: {_misfit(network, own, state, weights)}"
        )
    if not complete:
        rest = _difference(own, state)
        log.warning("%s: %d of the network's %d tensors were taken; %s", weights, len(fitting), len(own), rest)
    _require_fractions(fitting, own, weights)
    network.load_state_dict(fitting, strict=False)
    log.info("%s loaded the weights %s", type(network).__name__, weights.description)


def _require_fractions(state: Mapping[str, Tensor], own: Mapping[str, Tensor], weights: Weights) -> None:
    """Raise WeightsFileError where whole numbers would become the values of a floating-point parameter."""
    for name, tensor in state.items():
        if own[name].is_floating_point() and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise WeightsFileError(
                f"{weights}: {name} holds {kind} numbers, the network's are {own[name].dtype}: quantised weights must "
                "be converted to floating-point numbers first"
            )


def holds_refiner(names: Iterable[str]) -> bool:
    """Return whether the keys of weights are those of a refiner: SPF and the second network, and nothing else."""
    return {name.split(".", 1)[0] for name in names} == set(_OF_REFINER)


def metadata_of(source: str | Path, entry: str) -> Mapping[str, Any]:
    """Return the plain values that a weights file holds under `entry`, beside its weights; {} where it holds none."""
    path = locate(source)
    content: Any
    if is_safetensors(path):
        content = safetensors_description(path)
    else:
        content = read_file(path, mapped=True)
    if not isinstance(content, Mapping):
        return {}
    metadata = content.get(entry)
    if not isinstance(metadata, Mapping):
        return {}
    return metadata


def network_block(source: str | Path) -> dict[str, Any]:
    """Return {type, argument ...} of the network that weights belong to.

    The zoo's entry names it, or the description that a .safetensors file of ours holds, or the shapes of the weights. A
    network of spandrel is returned where none of ours fits, and a line of the log says so.
    Raises WeightsFileError where none fits, and what `locate` raises.
    """
    name, path = zoo_name(source), locate(source)
    if name is not None:
        from sam4ir.priors.zoo.weights import find

        network = find(name).network
        if network is not None:
            return network.block
    described = metadata_of(path, "network") if is_safetensors(path) else {}
    if described.get("type") in ARCHS.names():
        return dict(described)
    weights = read_weights(path, mapped=True)
    if holds_refiner(weights.state):
        raise WeightsFileError(f"{weights}: {_IS_REFINER}")
    fit = infer(shapes_of(weights.state))
    if fit is not None and not shared_keys(fit):
        return _block_of(fit)
    block = foreign_block(weights)
    if block is not None:
        announce(block)
        return block
    if fit is not None:
        return _block_of(fit)
    if stereo(shapes_of(weights.state)):
        raise WeightsFileError(f"{weights}: holds NAFSSR, and {STEREO}")
    raise WeightsFileError(f"{weights}: its keys and shapes are those of no network that is known here; {_advice()}")


def _block_of(fit: Fit) -> dict[str, Any]:
    """Return {type, argument ...} of one of our networks."""
    fit = restoring(fit)
    return {"type": fit.network.__name__, **fit.arguments}


def _advice() -> str:
    """Return what helps where the network of weights is not known."""
    advice = "give an option file with network_g"
    if not installed():
        advice += f", or install spandrel, which knows many more: {INSTALL}"
    return advice


def flow(block: Mapping[str, Any]) -> str:
    """Return a block as one line of YAML."""
    items = []
    for name, value in block.items():
        text = value
        if not isinstance(value, str):
            text = json.dumps(value)
        items.append(f"{name}: {text}")
    return "{" + ", ".join(items) + "}"


def _difference(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Return one short line on the tensors that differ between the network (own) and the weights (state)."""
    missing, shapes = [], []
    for name, tensor in own.items():
        if name not in state:
            missing.append(name)
        elif state[name].shape != tensor.shape:
            shapes.append(f"{name} {tuple(state[name].shape)} for {tuple(tensor.shape)}")
    unknown = [name for name in state if name not in own]
    parts = [_grouped("missing", missing), _grouped("unknown", unknown), _few("of another shape", shapes)]
    return "; ".join(filter(None, parts))


def _misfit(network: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor], weights: Weights) -> str:
    """Return the difference between network and weights, and the network that would fit."""
    if holds_refiner(own):
        parts = "spf and network_r (network_g where it is left out)"
        return f"{_difference(own, state)}; {parts} of the option file must be those that were trained"
    if holds_refiner(state):
        return f"it {_IS_REFINER}"
    fit = infer(shapes_of(state))
    if fit is None:
        block = foreign_block(weights)
        if block is not None:
            return f"the weights are those of {block['type']}; network_g: {flow(block)} would fit"
        return f"{_difference(own, state)}; network_g of the option file must be the network that was trained"
    if isinstance(network, fit.network):  # NAFNetLocal has NAFNet's weights
        name = type(network).__name__
        problem = _difference(own, state)
    else:  # another network differs in everything
        name = fit.network.__name__
        problem = f"the weights are those of {name}"
    text = f"{problem}; network_g: {flow({'type': name, **fit.arguments})} would fit"
    if fit.undetermined:
        text += f" ({', '.join(fit.undetermined)} leaves no trace in weights)"
    return text


def _few(what: str, names: Sequence[str]) -> str:
    """Return a count and the first names, such as '4 unknown (a, b, c, ...)'; '' for no names."""
    if not names:
        return ""
    return f"{len(names)} {what} ({_first_of(names)})"


def _first_of(names: Sequence[str]) -> str:
    """Return the first three names, and dots for the others."""
    text = ", ".join(names[:3])
    if len(names) > 3:
        text += ", ..."
    return text


def _grouped(what: str, names: Sequence[str]) -> str:
    """Return a short count such as '168 missing (middle_blks.* 154, encoders.* 14)'.

    Names are counted by the first parts in which they differ.
    """
    if len(names) <= 3:
        return _few(what, names)
    groups: dict[str, list[str]] = {}
    for depth in range(1, max(name.count(".") for name in names) + 2):
        groups = {}
        for name in names:
            groups.setdefault(".".join(name.split(".")[:depth]), []).append(name)
        if len(groups) > 1:
            break
    largest = sorted(groups.items(), key=lambda group: -len(group[1]))
    heads = []
    for head, members in largest:
        if len(members) == 1:
            heads.append(members[0])
        else:
            heads.append(f"{head}.* {len(members)}")
    return f"{len(names)} {what} ({_first_of(heads)})"
