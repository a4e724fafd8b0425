"""Read weights files of every layout that the field's tools write, without running code that they hold.

.pth, .pt (zip and the older format) and .safetensors are recognised by content. `utils.state_dicts` finds the state
dict inside. Files of torch.save are verified by their checksums before anything of them is used; the older format and
safetensors have none, so only their structure is verified.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam4ir.errors import first_line
from sam4ir.utils.archive import ArchiveError, verifying
from sam4ir.utils.file_kinds import foreign_kind, zip_kind
from sam4ir.utils.state_dicts import Weights, WeightsFileError, find_state

__all__ = ["Weights", "WeightsFileError", "find_state", "read_file", "read_weights", "reading"]

SAVE_FORMATS = ("pth", "safetensors")  # of checkpoints
HUB = "hf:"  # before the name of a model of a hub
RUN_ENTRY = "run"  # the entry of a weights file that says at which iteration of a training they were
DESCRIPTION = "sam4ir"  # the entry of a file's metadata that describes its network, as JSON
LARGEST_DESCRIPTION = 1 << 20  # characters

# A tensor may repeat its values (torch's expand), and several may share them; these bound what a small file can claim.
REPEATED = 1 << 20  # bytes that all tensors of a file may take beyond their own storages
SHARED = 16  # how often the file's bytes may be used by several tensors
SMALL = 16 << 20  # bytes that any file may claim


def read_weights(path: Path, key: str | None = None, average: bool = True, mapped: bool = False) -> Weights:
    """Read the state dict of a weights file; see read_file and find_state."""
    return find_state(read_file(path, mapped), path, key, average)


def read_file(path: Path, mapped: bool = False) -> Any:
    """Read the content of a .pth, .pt, .state or .safetensors file.

    mapped: the tensors may stay in the pages of the file instead of memory. That saves a copy for a caller that copies
    them at once; nobody may write the file meanwhile.

    Returns tensors on the CPU and plain values; numpy numbers become plain values. Nothing else is admitted
    (weights_only).

    Raises WeightsFileError for a missing or damaged file, for one of another kind (a web page, an ONNX model), for one
    that holds objects, and for one whose tensors claim far more memory than the file has bytes.
    """
    with reading(path, mapped) as content:
        pass
    return content


@contextmanager
def reading(path: Path, mapped: bool = False) -> Iterator[Any]:
    """Yield the content of a file as read_file does, while threads still verify its large tensors.

    The block may copy tensors, which hides the time of verifying; what it copied counts only once the block has ended
    without WeightsFileError.
    """
    if not path.is_file():
        raise WeightsFileError(f"{path}: no such weights file")
    foreign = foreign_kind(path)
    if foreign is not None:
        raise WeightsFileError(f"{path}: {foreign}")
    zipped = _is_zip(path)
    verified = _verified(path) if zipped else nullcontext(False)
    try:
        with verified as plain:
            content = _content(path, zipped, mapped and plain)
            _require_bounded(content, path)
            yield content
    except ArchiveError as error:
        raise WeightsFileError(f"{path}: {error}; copy or fetch it again") from None


def safetensors_description(path: Path) -> Mapping[str, Any]:
    """Return what the metadata of a .safetensors file says of its network; {} where it says nothing.

    Its keys are those of sam4ir.export.metadata.read_metadata. Raises WeightsFileError for a file of another kind.
    """
    from safetensors import safe_open

    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
    except Exception as error:  # its errors have several classes
        raise WeightsFileError(f"{path}: is truncated or no safetensors file ({_short(error)})") from error
    return parsed_description(metadata.get(DESCRIPTION, "")) or {}


def parsed_description(text: str) -> dict[str, Any] | None:
    """Return what the text of a description says; None for one that is none.

    Files come from anywhere, so a description has at most LARGEST_DESCRIPTION characters, its `network` names a type,
    and `scale` and `channels` are whole numbers above 0, where it has them.
    """
    if len(text) > LARGEST_DESCRIPTION:
        return None
    try:
        description = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(description, dict):
        return None
    network = description.get("network", {"type": ""})
    if not isinstance(network, dict) or not isinstance(network.get("type"), str):
        return None
    for name in ("scale", "channels"):
        number = description.get(name, 1)
        if type(number) is not int or number < 1:
            return None
    return description


def description_text(description: Mapping[str, Any]) -> str:
    """Return a description as the JSON text that files hold."""
    return json.dumps(dict(description), sort_keys=True)


def safetensors_bytes(state: Mapping[str, Tensor], description: Mapping[str, Any]) -> bytes:
    """Return the content of a .safetensors file: tensors under their own keys, and the description of their network."""
    from safetensors.torch import save

    copies = {}
    for name, tensor in state.items():
        copies[name] = tensor.detach().cpu().contiguous().clone()  # the format refuses tensors that share memory
    return save(copies, {"format": "pt", DESCRIPTION: description_text(description)})


def is_hub_name(source: str | Path) -> bool:
    """Return whether a name of weights is one of a hub."""
    return str(source).startswith(HUB)


def is_safetensors(path: Path) -> bool:
    """Return whether a file is one of safetensors: by its suffix, or by its content under another name."""
    return path.is_file() and _is_safetensors(path)


@contextmanager
def _verified(path: Path) -> Iterator[bool]:
    """Verify a zip file, see archive.verifying; yield whether its records are not compressed."""
    with verifying(path) as records:
        other = zip_kind(record.name for record in records)
        if other is not None:
            raise ArchiveError(other)
        yield all(record.plain for record in records)


def _content(path: Path, zipped: bool, mapped: bool) -> Any:
    """Read a file that is of none of the foreign kinds."""
    try:
        if not zipped and _is_safetensors(path):
            from safetensors.torch import load_file

            return load_file(str(path))
        with torch.serialization.safe_globals(_NUMPY_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise WeightsFileError(f"{path}: {_refused(error)}") from None
    except Exception as error:  # damaged bytes make the unpickler fail in nearly any way
        raise WeightsFileError(f"{path}: is truncated or no weights file ({_short(error)})") from error


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _require_bounded(content: Any, path: Path) -> None:
    """Raise WeightsFileError where the tensors of a file claim far more memory than the file has bytes."""
    held = path.stat().st_size
    claimed = sum(tensor.nbytes for tensor in _all_tensors(content))
    if claimed <= held:
        return
    repeated = 0
    for tensor in _all_tensors(content):
        repeated += max(0, tensor.nbytes - tensor.untyped_storage().nbytes())
    if repeated > REPEATED or claimed > SHARED * held + SMALL:
        raise WeightsFileError(
            f"{path}: its tensors claim {claimed:,} bytes, the file has {held:,}: they repeat values (torch's expand). "
            "No trained weights do; save them with .clone() if you know them to be right"
        )


def _all_tensors(content: Any) -> Iterator[Tensor]:
    """Yield the tensors with memory of their own in nested dictionaries, lists and tuples, each container once.

    Those without (meta device, sparse) are no weights that a network loads.
    """
    waiting, known = [content], set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            if value.layout == torch.strided and not value.is_meta:
                yield value
        elif isinstance(value, (dict, list, tuple, set)) and id(value) not in known:
            known.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


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
        return f"is no weights file ({_short(text)})"
    return (
        f"holds {named[1]}, and reading such objects could run code; only tensors and plain values are admitted. "
        "If you trust its author, load it with torch.load(..., weights_only=False) and save its state dict alone"
    )


def _short(error: Exception | str) -> str:
    """Return the beginning of an error's text; torch's texts are long."""
    return first_line(error)[:100]


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
