"""Find weights by name: their entry in the zoo, and their local file, fetched if it is missing.

The cache is $SAM4IR_HOME/weights, or ~/.cache/sam4ir/weights. Sources are tried in order, the official one first. A
file in the cache is used without any connection; there too the official file comes first.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from sam4ir.priors.zoo.cache import cache_folder
from sam4ir.priors.zoo.download import Inspect, UnreachableError, WeightsError
from sam4ir.priors.zoo.entries import ROWS, Entry, ZooNetwork
from sam4ir.registry import ARCHS, WEIGHT_CHECKS, near_miss
from sam4ir.utils.files import make_folder
from sam4ir.utils.weights import WeightsFileError, read_weights

__all__ = ["ENTRIES", "Entry", "WeightsError", "ZooNetwork", "cache_folder", "cached", "find", "load_state", "resolve"]


ENTRIES: Mapping[str, Entry] = {entry.name: entry for entry in ROWS}


def resolve(name: str, cache: Path | None = None, download: bool = True) -> Path:
    """Return the local file of the weights called `name`; fetch it if it is missing.

    cache: the folder that holds the files; default cache_folder(). download: False looks into the cache only.
    Several processes may call this at the same time: one fetches, the others wait for it.
    Raises WeightsError for an unknown name and for a wrong hash. If no source can be reached, the message says which
    file to put where.
    """
    folder = cache or cache_folder()
    path = cached(name, folder)
    if path is not None:
        return path
    if not download:
        raise _missing(find(name), folder, ["not tried: downloading is off"])
    make_folder(folder)
    with FileLock(folder / f"{name}.lock"):
        return cached(name, folder) or _fetch(find(name), folder)


def cached(name: str, cache: Path | None = None) -> Path | None:
    """Return the local file of the weights called `name`, or None if the cache lacks it. Opens no connection.

    Raises WeightsError for an unknown name, and if another file has the name of the right one.
    """
    entry, folder = find(name), cache or cache_folder()
    inspect = _inspection(entry)
    for source in entry.sources:
        if source.is_cached(folder, inspect):
            return folder / source.file
    return None


def find(name: str) -> Entry:
    """Return the entry called `name`. Raises WeightsError with the nearest name and all names."""
    if name not in ENTRIES:
        near = near_miss(name, ENTRIES) or ";"
        raise WeightsError(f"no weights are called {name!r}{near} known: {', '.join(ENTRIES)}")
    return ENTRIES[name]


def load_state(name_or_path: str | Path) -> dict[str, Tensor]:
    """Return the state dict of weights in the zoo, or of a file of any layout that utils.weights reads, on the CPU.

    Raises WeightsError as `resolve` does, and utils.weights.WeightsFileError for a file that is missing, broken or
    without weights.
    """
    path = Path(name_or_path)
    if name_or_path in ENTRIES:
        path = resolve(str(name_or_path))
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
    """Return the check for a file whose hash is not published: it must load strictly into the entry's network."""
    if entry.sam is not None:
        return functools.partial(_require_sam, kind=entry.sam)
    if entry.network is not None:
        return functools.partial(_require_network, network=entry.network)
    return None


def _require_sam(path: Path, kind: str) -> None:
    """Raise WeightsError unless a file would load strictly into a SAM of this kind."""
    try:
        WEIGHT_CHECKS.get("sam")(path=path, kind=kind)
    except WeightsFileError as error:
        raise WeightsError(str(error)) from error


def _require_network(path: Path, network: ZooNetwork) -> None:
    """Raise WeightsError unless a file would load strictly into the network; it is built on the meta device."""
    try:
        state = read_weights(path).state
    except WeightsFileError as error:
        raise WeightsError(str(error)) from error
    with torch.device("meta"):
        wanted = ARCHS.get(network.type)(**network.arguments).state_dict()
    differing = []
    for name in {**wanted, **state}:
        if name not in wanted or name not in state or wanted[name].shape != state[name].shape:
            differing.append(name)
    if differing:
        examples = ", ".join(differing[:3])
        if len(differing) > 3:
            examples += ", ..."
        raise WeightsError(
            f"{path}: is not the {network.type} it should be: {len(differing)} of {len(wanted)} tensors are missing, "
            f"unknown or of another shape ({examples})"
        )


def _missing(entry: Entry, folder: Path, reasons: list[str]) -> WeightsError:
    """Return the error for weights that could not be fetched: what was tried, and which file to put where."""
    official = entry.sources[0]
    lines = [f"the weights {entry.name!r} are not in {folder} and could not be fetched:"]
    lines += [f"  - {reason}" for reason in reasons]
    lines.append(f"Fetch {official.describe()}\nelsewhere and put it here: {folder / official.by_hand}")
    return WeightsError("\n".join(lines))
