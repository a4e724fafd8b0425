"""Files of weights, of every layout that the field's tools write: what they hold, read without running their code.

Understood without being told: {params}, {params_ema}, {state_dict}, {state_dict: {model}} (SRDiff, SAM-DiffSR),
{model}, a bare state dict, any other single state dict beside plain values; `module.` and `_orig_mod.` before the keys;
.pth, .pt (zip and the older format) and .safetensors (told by content). Where a file holds both averages and raw
weights, params_ema is taken.
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
    """state: tensors by key, on the CPU. entry: where they stood in the file; None where the file is a state dict."""

    state: dict[str, Tensor]
    path: Path
    entry: str | None

    def __str__(self) -> str:
        return f"{self.entry} of {self.path}" if self.entry else str(self.path)


def read_weights(path: Path, key: str | None = None) -> Weights:
    """The state dict of a weights file; see read_file and find_state."""
    return find_state(read_file(path), path, key)


def read_file(path: Path) -> Any:
    """What a .pth, .pt, .state or .safetensors file holds: tensors, plain values and numpy numbers (which come as plain
    values), on the CPU. Nothing else is admitted (weights_only).

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
    """The state dict inside a weights file, without `module.` and the like.

    key: which entry to take; None takes the first of params_ema, params, state_dict, model, or the file itself where it
    is a bare state dict, or its only entry with tensors. Raises WeightsFileError naming the entries there are.
    """
    if not isinstance(content, Mapping):
        raise WeightsFileError(f"{path}: holds no named weights but a {type(content).__name__}")
    if key is not None and key not in content:
        entries = ", ".join(map(str, list(content)[:5]))
        raise WeightsFileError(f"{path}: has no entry {key!r} (it has {entries}); leave out param_key_g to find it")
    found = key or _entry(content)
    tensors = _tensors(content if found is None else content[found])
    if found is not None and not tensors and isinstance(content[found], Mapping):
        tensors = _tensors(content[found].get("model"))
    if not tensors:
        raise WeightsFileError(f"{path}: holds no weights" + (f" under {found!r}" if found else ""))
    return Weights({_bare(k): v for k, v in tensors.items()}, path, found)


def _entry(content: Mapping[str, Any]) -> str | None:
    """The entry with the state dict; None where the content is one itself, or where several could be meant."""
    preferred = [k for k in PREFERRED if isinstance(content.get(k), Mapping)]
    if preferred or _tensors(content):
        return preferred[0] if preferred else None
    others = [k for k, value in content.items() if _tensors(value)]
    return others[0] if len(others) == 1 else None


def _tensors(state: Any) -> dict[str, Tensor]:
    return {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}


def _bare(key: str) -> str:
    while key.startswith(PREFIXES):
        key = key.split(".", 1)[1]
    return key


def _is_safetensors(path: Path) -> bool:
    """By the suffix, or by its header of JSON, which begins at the ninth byte; a pickle or zip never has it there."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        head = file.read(10)
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _refused(error: Exception) -> str:
    """What reading with weights_only did not admit; torch's own text is long and advises to read it all the same."""
    text = str(error).rsplit("WeightsUnpickler error:", 1)[-1]
    named = re.search(r"GLOBAL (\S+)", text) or re.search(r"<class '([^']+)'>", text)
    if named is None:
        return f"is no weights file ({_first_line(text)})"
    return (
        f"holds {named[1]}, and reading such objects could run code; only tensors and plain values are admitted. "
        "If you trust its author, load it with torch.load(..., weights_only=False) and save its state dict alone"
    )


def _first_line(error: Exception | str) -> str:
    """The beginning of an error's text, which torch makes long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:100]


class _NumberType:
    """Stands for numpy.dtype in a pickle: the kind and size of a number and its byte order, and nothing else."""

    def __init__(self, kind: str, align: bool = False, copy: bool = False) -> None:
        if not re.fullmatch(r"[fiub]\d{1,2}", kind):
            raise pickle.UnpicklingError(f"is a numpy type {kind!r}, no number")
        self.kind = kind
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _number(kind: _NumberType, data: bytes) -> Any:
    """Stands for numpy's reconstruction of a scalar: the plain value that the bytes spell."""
    return np.frombuffer(data, np.dtype(kind.order + kind.kind))[0].item()


# what tools leave beside weights, such as the best PSNR; numpy 1 and 2 spell the module differently
_NUMPY_NUMBERS: list[Any] = [
    (_NumberType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]
