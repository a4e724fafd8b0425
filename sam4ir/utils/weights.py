"""Read weights files of every layout that the field's tools write, without running code that they hold.

These layouts are recognised: {params}, {params_ema}, {state_dict}, {state_dict: {model}} (SRDiff, SAM-DiffSR), {model},
a plain state dict, and any other single state dict beside plain values; `module.` and `_orig_mod.` before the keys;
.pth, .pt (zip and the older format) and .safetensors (recognised by content). If a file holds averaged and raw weights,
the averaged ones (params_ema) are read.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sam4ir.errors import UserError

PREFERRED = ("params_ema", "params", "state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")


class WeightsFileError(UserError):
    """A weights file that cannot be read or does not fit; the message names it."""


class Weights(NamedTuple):
    """A state dict and its origin.

    state: tensors by key, on the CPU. entry: the file's entry that held them; None where the file is a state dict.
    """

    state: dict[str, Tensor]
    path: Path
    entry: str | None

    def __str__(self) -> str:
        return f"{self.entry} of {self.path}" if self.entry else str(self.path)


def read_weights(path: Path, key: str | None = None) -> Weights:
    """Read the state dict of a weights file; see read_file and find_state."""
    return find_state(read_file(path), path, key)


def read_file(path: Path) -> Any:
    """Read the content of a .pth, .pt, .state or .safetensors file.

    Returns tensors on the CPU and plain values; numpy numbers become plain values. Nothing else is admitted
    (weights_only).

    Raises WeightsFileError for a missing or damaged file and for one that holds objects.
    """
    if not path.is_file():
        raise WeightsFileError(f"{path}: no such weights file")
    try:
        if _is_safetensors(path):
            from safetensors.torch import load_file

            return load_file(str(path))
        with torch.serialization.safe_globals(_NUMPY_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsFileError(f"{path}: {_refused(error)}") from None
    except Exception as error:  # damaged bytes make the unpickler fail in nearly any way
        raise WeightsFileError(f"{path}: is truncated or no weights file ({_first_line(error)})") from error


def find_state(content: Any, path: Path, key: str | None = None) -> Weights:
    """Find the state dict inside the content of a weights file; prefixes such as `module.` are removed from its keys.

    key: the entry to read. None reads the first of params_ema, params, state_dict, model; or the content itself if it
    is a state dict; or its only entry with tensors. Raises WeightsFileError naming the entries that the file has.
    """
    if not isinstance(content, Mapping):
        raise WeightsFileError(f"{path}: holds no named weights but a {type(content).__name__}")
    if key is not None and key not in content:
        entries = ", ".join(map(str, list(content)[:5]))
        raise WeightsFileError(f"{path}: has no entry {key!r} (it has {entries}); leave out param_key_g to find it")
    entry = key or _entry(content)
    if entry is None:
        tensors = _tensors(content)
    else:
        tensors = _tensors(content[entry])
        if not tensors and isinstance(content[entry], Mapping):
            tensors = _tensors(content[entry].get("model"))
    if not tensors:
        place = f" under {entry!r}" if entry else ""
        raise WeightsFileError(f"{path}: holds no weights{place}")
    return Weights({_without_prefix(name): tensor for name, tensor in tensors.items()}, path, entry)


def _entry(content: Mapping[str, Any]) -> str | None:
    """Return the entry with the state dict; None if the content is one itself, or if several entries could be meant."""
    for name in PREFERRED:
        if isinstance(content.get(name), Mapping):
            return name
    if _tensors(content):
        return None
    others = [name for name, value in content.items() if _tensors(value)]
    if len(others) == 1:
        return others[0]
    return None


def _tensors(state: Any) -> dict[str, Tensor]:
    """Return the tensors of a mapping; none of anything else."""
    if not isinstance(state, Mapping):
        return {}
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def _without_prefix(key: str) -> str:
    while key.startswith(PREFIXES):
        key = key.split(".", 1)[1]
    return key


def _is_safetensors(path: Path) -> bool:
    """Recognise the format by suffix, or by the JSON header at the ninth byte, where no pickle or zip has one."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        head = file.read(10)
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _refused(error: Exception) -> str:
    """Say what weights_only did not admit; torch's own text is long and advises to read the file all the same."""
    text = str(error).rsplit("WeightsUnpickler error:", 1)[-1]
    named = re.search(r"GLOBAL (\S+)", text) or re.search(r"<class '([^']+)'>", text)
    if named is None:
        return f"is no weights file ({_first_line(text)})"
    return (
        f"holds {named[1]}, and reading such objects could run code; only tensors and plain values are admitted. "
        "If you trust its author, load it with torch.load(..., weights_only=False) and save its state dict alone"
    )


def _first_line(error: Exception | str) -> str:
    """Return the beginning of an error's text; torch's texts are long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:100]


class _NumberType:
    """Replace numpy.dtype in a pickle: hold the kind, size and byte order of a number, and nothing else."""

    def __init__(self, kind: str, align: bool = False, copy: bool = False) -> None:
        if not re.fullmatch(r"[fiub]\d{1,2}", kind):
            raise pickle.UnpicklingError(f"is a numpy type {kind!r}, no number")
        self.kind = kind
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _number(kind: _NumberType, data: bytes) -> Any:
    """Replace numpy's reconstruction of a scalar: return the plain value of the bytes."""
    return np.frombuffer(data, np.dtype(kind.order + kind.kind))[0].item()


# tools store numbers such as the best PSNR beside weights; numpy 1 and 2 spell the module differently
_NUMPY_NUMBERS: list[Any] = [
    (_NumberType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]
