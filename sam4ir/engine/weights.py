"""Network weights from files of every layout that the field's tools write."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PREFERRED = ("params_ema", "params", "state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")


class WeightsFileError(ValueError):
    """A weights file that cannot be read or does not fit; the message names it."""


def read_file(path: Path) -> Any:
    """What a .pth, .pt, .state or .safetensors file holds: tensors and plain values only, on the CPU."""
    if not path.is_file():
        raise WeightsFileError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(path))
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = "holds more than tensors and plain values, or is no weights file"
        raise WeightsFileError(f"{path}: {what} ({_first_line(error)})") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsFileError(f"{path}: is truncated or no weights file ({_first_line(error)})") from None
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise WeightsFileError(f"{path}: is truncated or no safetensors file ({error})") from None
        raise


def _first_line(error: Exception) -> str:
    """The beginning of an error's text, which torch makes long."""
    return (str(error) or type(error).__name__).splitlines()[0][:100]


def find_state(content: Any, path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The state dict inside a weights file, without `module.` and the like.

    key: which entry to take; None takes the first of params_ema, params, state_dict, model, or the
    file itself where it is a bare state dict. Raises WeightsFileError naming the entries there are.
    """
    if not isinstance(content, Mapping):
        raise WeightsFileError(f"{path}: holds no named weights but a {type(content).__name__}")
    found = next((k for k in PREFERRED if isinstance(content.get(k), Mapping)), None) if key is None else key
    if key is not None and key not in content:
        entries = ", ".join(map(str, list(content)[:5]))
        raise WeightsFileError(f"{path}: has no entry {key!r} (it has {entries}); leave out param_key_g to find it")
    state = content if found is None else content[found]
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    if not tensors:
        raise WeightsFileError(f"{path}: holds no weights" + (f" under {found!r}" if found else ""))
    return {_bare(k): v for k, v in tensors.items()}


def _bare(key: str) -> str:
    while key.startswith(PREFIXES):
        key = key.split(".", 1)[1]
    return key


def load_weights(network: nn.Module, path: Path, key: str | None = None, strict: bool = True) -> None:
    """Load a weights file into `network`.

    Raises WeightsFileError with a short difference where names or shapes do not fit; with strict False
    what fits is loaded, and nothing fitting is still an error.
    """
    state = find_state(read_file(path), path, key)
    own = network.state_dict()
    missing = [k for k in own if k not in state]
    unknown = [k for k in state if k not in own]
    shapes = [
        f"{k} {tuple(state[k].shape)} for {tuple(v.shape)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    if (strict and (missing or unknown or shapes)) or not fitting:
        parts = [_few("missing", missing), _few("unknown", unknown), _few("of another shape", shapes)]
        raise WeightsFileError(
            f"{path}: does not fit {type(network).__name__}: {'; '.join(p for p in parts if p)}; "
            "network_g of the option file must be the network that was trained"
        )
    network.load_state_dict(fitting, strict=False)


def _few(what: str, names: list[str]) -> str:
    if not names:
        return ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
