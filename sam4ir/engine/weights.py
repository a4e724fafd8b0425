"""Loading weights from a file or the zoo; where they do not fit, the message names the network that would."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sam4ir.archs.infer import infer, shapes_of
from sam4ir.registry import near_miss
from sam4ir.utils.weights import WeightsFileError, read_file, read_weights

__all__ = ["WeightsFileError", "flow", "load_weights", "locate", "network_block", "read_file"]

log = logging.getLogger(__name__)

ZOO = "zoo:"
WEIGHTS_SUFFIXES = (".pth", ".pt", ".safetensors", ".state", ".ckpt")


def locate(source: str | Path) -> Path:
    """Return the file that `source` names: a path, `zoo:NAME`, or a bare NAME of the zoo where no such file is there.

    Weights of the zoo are fetched unless the cache holds them. Raises WeightsFileError for what is neither, and
    priors.zoo.weights.WeightsError where the zoo cannot give them.
    """
    name = zoo_name(source)
    if name is None:
        return Path(source)
    from sam4ir.priors.zoo import weights as zoo  # a file needs no zoo

    if name not in zoo.ENTRIES and not str(source).startswith(ZOO):
        near = near_miss(name, zoo.ENTRIES) or ";"
        listed = "scripts/fetch_weights.py list prints the names of the zoo"
        raise WeightsFileError(f"{source}: no such weights file, nor weights of the zoo{near} {listed}")
    return zoo.resolve(name)


def zoo_name(source: str | Path) -> str | None:
    """Return the name that `source` may have in the zoo; None where it is a file or a path."""
    text = str(source)
    if text.startswith(ZOO):
        return text.removeprefix(ZOO)
    path = Path(text)
    return None if path.exists() or path.name != text or path.suffix in WEIGHTS_SUFFIXES else text


def load_weights(network: nn.Module, source: str | Path, key: str | None = None, strict: bool = True) -> None:
    """Load weights into `network`; the log names the file, its entry, and the tensors left out.

    source: see locate. key: the entry to take; None prefers params_ema (see utils.weights). A network may translate
    keys of other programs into its own (its method `adapted`).
    Raises WeightsFileError where names or shapes do not fit, with a short difference, and with the network and the
    arguments that would fit, where one of ours does. With strict False all that fits is loaded; that nothing fits is
    still an error.
    """
    weights = read_weights(locate(source), key)
    adapted: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = getattr(network, "adapted", dict)
    state, own = adapted(weights.state), network.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    complete = len(fitting) == len(own) == len(state)
    if not fitting or (strict and not complete):
        raise WeightsFileError(f"{weights}: does not fit {type(network).__name__}: {_misfit(network, own, state)}")
    if not complete:
        rest = _difference(own, state)
        log.warning("%s: %d of the network's %d tensors were taken; %s", weights, len(fitting), len(own), rest)
    network.load_state_dict(fitting, strict=False)
    log.info("%s loaded the weights %s", type(network).__name__, weights)


def metadata_of(source: str | Path, entry: str) -> Mapping[str, Any]:
    """Return the plain values that a weights file holds under `entry`, beside its weights; {} where it holds none."""
    content = read_file(locate(source))
    metadata = content.get(entry) if isinstance(content, Mapping) else None
    return metadata if isinstance(metadata, Mapping) else {}


def network_block(source: str | Path) -> dict[str, Any]:
    """Return {type, argument ...} of the network that weights belong to, by the zoo's entry or by their shapes.

    Raises WeightsFileError where no network of ours fits, and what `locate` raises.
    """
    name, path = zoo_name(source), locate(source)
    if name is not None:
        from sam4ir.priors.zoo.weights import find

        network = find(name).network
        if network is not None:
            return network.block
    weights = read_weights(path)
    fit = infer(shapes_of(weights.state))
    if fit is None:
        reason = "its keys and shapes are those of no network that is known here; give an option file with network_g"
        raise WeightsFileError(f"{weights}: {reason}")
    return {"type": fit.network.__name__, **fit.arguments}


def flow(block: Mapping[str, Any]) -> str:
    """Return a block as one line of YAML."""
    return "{" + ", ".join(f"{k}: {v if isinstance(v, str) else json.dumps(v)}" for k, v in block.items()) + "}"


def _difference(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Return in one short line what the network (own) and the weights do not share."""
    missing = [k for k in own if k not in state]
    unknown = [k for k in state if k not in own]
    shapes = [k for k in own if k in state and state[k].shape != own[k].shape]
    parts = [
        _grouped("missing", missing),
        _grouped("unknown", unknown),
        _few("of another shape", [f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}" for k in shapes]),
    ]
    return "; ".join(filter(None, parts))


def _misfit(network: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Return what differs, and the network that would fit; another network differs in everything."""
    fit = infer(shapes_of(state))
    if fit is None:
        return f"{_difference(own, state)}; network_g of the option file must be the network that was trained"
    same = isinstance(network, fit.network)  # NAFNetLocal has NAFNet's weights
    name = type(network).__name__ if same else fit.network.__name__
    problem = _difference(own, state) if same else f"the weights are those of {name}"
    undetermined = f" ({', '.join(fit.undetermined)} leaves no trace in weights)" if fit.undetermined else ""
    return f"{problem}; network_g: {flow({'type': name, **fit.arguments})} would fit{undetermined}"


def _few(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


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
    heads = [members[0] if len(members) == 1 else f"{head}.* {len(members)}" for head, members in largest]
    return f"{len(names)} {what} ({', '.join(heads[:3])}{', ...' if len(heads) > 3 else ''})"
