"""Weights by name: what they are, where they come from, and the local file.

Cache: $SAM4IR_HOME/weights, or ~/.cache/sam4ir/weights. Sources are tried in order, the official one first; a file
that is in the cache is used without the network, and the official one is preferred there too.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from sam4ir.priors.zoo.download import Inspect, UnreachableError, WeightsError
from sam4ir.priors.zoo.entries import ROWS, Entry, Network
from sam4ir.registry import ARCHS, WEIGHT_CHECKS, near_miss
from sam4ir.utils.weights import WeightsFileError, read_weights

__all__ = ["ENTRIES", "Entry", "Network", "WeightsError", "cache_folder", "cached", "find", "load_state", "resolve"]


ENTRIES: Mapping[str, Entry] = {entry.name: entry for entry in ROWS}


def cache_folder() -> Path:
    """$SAM4IR_HOME/weights, or ~/.cache/sam4ir/weights."""
    home = os.environ.get("SAM4IR_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "sam4ir") / "weights"


def resolve(name: str, cache: Path | None = None, download: bool = True) -> Path:
    """The local file of the weights called `name`, fetched where it is missing.

    cache: the folder that holds the files; default cache_folder(). download: False looks into the cache only.
    Several processes may ask at once: one fetches, the others wait for it.
    Raises WeightsError for an unknown name, a wrong hash, and, saying which file to put where, when no source can
    be reached.
    """
    folder = cache or cache_folder()
    path = cached(name, folder)
    if path is not None:
        return path
    if not download:
        raise _missing(find(name), folder, ["not looked for: downloading is off"])
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        return cached(name, folder) or _fetch(find(name), folder)


def cached(name: str, cache: Path | None = None) -> Path | None:
    """The local file of the weights called `name`, or None where it is not in the cache; the network is not asked.

    Raises WeightsError for an unknown name, and where another file has the right one's name.
    """
    entry, folder = find(name), cache or cache_folder()
    inspect = _inspection(entry)
    return next((folder / source.file for source in entry.sources if source.is_cached(folder, inspect)), None)


def find(name: str) -> Entry:
    """The entry called `name`. Raises WeightsError with the near miss and the known names."""
    if name not in ENTRIES:
        near = near_miss(name, ENTRIES) or ";"
        raise WeightsError(f"no weights are called {name!r}{near} known: {', '.join(ENTRIES)}")
    return ENTRIES[name]


def load_state(name_or_path: str | Path) -> dict[str, Tensor]:
    """The state dict of weights in the zoo, or of a file of any layout that utils.weights reads, on the CPU.

    Raises WeightsError for what `resolve` raises it for, and utils.weights.WeightsFileError for a file that is
    missing, broken or without weights.
    """
    path = resolve(str(name_or_path)) if name_or_path in ENTRIES else Path(name_or_path)
    if not path.is_file():
        raise WeightsError(f"{name_or_path}: no such file, nor the name of weights; known: {', '.join(ENTRIES)}")
    return read_weights(path).state


def _fetch(entry: Entry, folder: Path) -> Path:
    reasons = []
    for source in entry.sources:
        try:
            source.fetch(folder, _inspection(entry))
        except UnreachableError as error:
            reasons.append(str(error))
        else:
            return folder / source.file
    raise _missing(entry, folder, reasons)


def _inspection(entry: Entry) -> Inspect | None:
    """What judges a file whose hash is not known: whether it would load strictly into what the row says it is."""
    if entry.sam is not None:
        return functools.partial(_require_sam, kind=entry.sam)
    return functools.partial(_require_network, network=entry.network) if entry.network is not None else None


def _require_sam(path: Path, kind: str) -> None:
    """Raise WeightsError unless a file would load strictly into a SAM of this kind."""
    try:
        WEIGHT_CHECKS.get("sam")(path=path, kind=kind)
    except WeightsFileError as error:
        raise WeightsError(str(error)) from error


def _require_network(path: Path, network: Network) -> None:
    """Raise WeightsError unless a file would load strictly into the network, which is built on the meta device."""
    try:
        state = read_weights(path).state
    except WeightsFileError as error:
        raise WeightsError(str(error)) from error
    with torch.device("meta"):
        wanted = ARCHS.get(network.type)(**network.arguments).state_dict()
    differ = [k for k in {**wanted, **state} if k not in wanted or k not in state or wanted[k].shape != state[k].shape]
    if differ:
        raise WeightsError(
            f"{path}: is not the {network.type} it should be: {len(differ)} of {len(wanted)} tensors are missing, "
            f"unknown or of another shape ({', '.join(differ[:3])}{', ...' if len(differ) > 3 else ''})"
        )


def _missing(entry: Entry, folder: Path, reasons: list[str]) -> WeightsError:
    """The offline hint: what was tried, and which file to put where."""
    official = entry.sources[0]
    return WeightsError(
        f"the weights {entry.name!r} are not in {folder} and could not be fetched:\n"
        + "".join(f"  - {reason}\n" for reason in reasons)
        + f"Fetch {official.describe()}\nelsewhere and put it here: {folder / official.by_hand}"
    )
