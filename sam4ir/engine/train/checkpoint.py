"""Checkpoints: whole files, read with weights_only, that hold everything a bit-exact continuation needs.

models/net_<label>_<iteration>.pth = {params, params_ema} holds the weights that users take away, or, with
logger.save_format: safetensors, net_<label>_<iteration>.safetensors the deployed ones (the average where there is one)
and net_<label>_<iteration>_params.safetensors those that were averaged; all of them name their iteration.
training_states/<iteration>.state holds the rest and is written last, so that a state always has its weights. It also
holds a digest of each weights file, so that the files of one checkpoint are not taken for those of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sam4ir.config.paths import RunPaths
from sam4ir.config.yaml_text import parse
from sam4ir.engine.train.parts import TrainingParts
from sam4ir.engine.weights import reading
from sam4ir.errors import UserError
from sam4ir.utils.archive import ArchiveError, contents_digest
from sam4ir.utils.files import atomic, link_or_copy, sha256_of, write_bytes
from sam4ir.utils.weights import RUN_ENTRY, SAVE_FORMATS, safetensors_bytes

STATE_FORMAT = 2
NO_DIGESTS = 1  # the format before the digests, which is still read
PARAMS = "_params"  # in the name of a file of the weights that were averaged
_MISSHAPED = (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError)


class CheckpointError(UserError):
    """A checkpoint that a run cannot go on from; the message names the file."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose files are damaged or do not belong together; the one before it may be whole."""


@dataclass
class Progress:
    """The progress of a run. A checkpoint saves all of it.

    iteration: the last one computed. sample: number of the next sample in the data stream. validated: iteration of the
    last validation. skipped: steps that were not taken; skipped_in_a_row: those since the last one taken.
    best: {data set/metric: {value, iter}}, the best records. compiled: labels of the networks that run compiled; None
    before compiling was tried. processes: how many trained it; None in older checkpoints.
    """

    iteration: int = 0
    sample: int = 0
    validated: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best: dict[str, dict[str, float]] = field(default_factory=dict)
    compiled: list[str] | None = None
    processes: int | None = None


class Checkpoint(NamedTuple):
    """The content of a loaded checkpoint beside weights and moments: the progress, and the options as YAML."""

    progress: Progress
    options: str


def save_tensors(content: Mapping[str, Any], path: Path) -> None:
    """Write a file with torch.save, atomically. Raises FileError naming the file where the disk is full."""
    with atomic(path) as part:
        torch.save(dict(content), part)


def _cpu_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the network's state, on the CPU and contiguous."""
    state = {}
    for name, tensor in network.state_dict().items():
        state[name] = tensor.detach().cpu().contiguous()
    return state


def save_checkpoint(paths: RunPaths, parts: TrainingParts, progress: Progress, options_text: str) -> Path:
    """Write the checkpoint of progress.iteration; return its state file. options_text: the options as YAML."""
    digests: dict[str, str] = {}
    for label in parts.model.networks:
        digests |= save_weights(paths, parts, label, progress.iteration, progress.iteration, options_text)
    state = {
        "format": STATE_FORMAT,
        "save_format": parts.save_format,
        "progress": vars(progress),
        "weights": digests,
        "optimizers": {label: optimiser.state_dict() for label, optimiser in parts.optimisers.items()},
        "ema_updates": {label: ema.updates for label, ema in parts.emas.items()},
        "model": parts.model.state(),
        "scaler": parts.scaler.state_dict(),
        "options": options_text,
        "rng": torch.get_rng_state(),
        "rng_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    save_tensors(state, paths.state(progress.iteration))
    return paths.state(progress.iteration)


def save_weights(
    paths: RunPaths,
    parts: TrainingParts,
    label: str,
    name: int | str,
    iteration: int,
    options_text: str,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Write the weights of a network; return {label: digest}, and {label_params: digest} for a second file.

    name: in the file name, mostly the iteration. facts: what the file says of its weights beside their iteration.
    """
    network, ema = parts.model.networks[label], parts.emas[label]
    path = paths.network(label, name, parts.save_format)
    run = {"iteration": iteration, **(facts or {})}
    if parts.save_format == "pth":
        weights: dict[str, Any] = {"params": _cpu_state(network), **parts.metadata, RUN_ENTRY: run}
        if ema.on:
            weights["params_ema"] = _cpu_state(ema.module)
        save_tensors(weights, path)
        return {label: contents_digest(path)}
    description = _description(parts, label, iteration, options_text)
    description[RUN_ENTRY] = run
    digests = {label: _save_safetensors(ema.module if ema.on else network, path, description)}
    if ema.on:
        beside = _beside(path)
        digests[f"{label}{PARAMS}"] = _save_safetensors(network, beside, description)
    return digests


def _beside(path: Path) -> Path:
    """Return the file of the weights that were averaged, beside that of their average."""
    return path.with_name(f"{path.stem}{PARAMS}{path.suffix}")


def _save_safetensors(network: nn.Module, path: Path, description: Mapping[str, Any]) -> str:
    """Write a network's weights under their own keys; return the file's SHA-256."""
    write_bytes(path, safetensors_bytes(network.state_dict(), description))
    return sha256_of(path)


def _description(parts: TrainingParts, label: str, iteration: int, options_text: str) -> dict[str, Any]:
    """Return what a safetensors file says of its weights, with the keys of sam4ir.export.metadata.read_metadata."""
    description: dict[str, Any] = {"iteration": iteration, **parts.metadata}
    options = parse(options_text)[0]
    if isinstance(options, Mapping) and isinstance(options.get(f"network_{label}"), Mapping):
        description["network"] = dict(options[f"network_{label}"])
        description["scale"] = options.get("scale", 1)
    return description


def publish_latest(paths: RunPaths, parts: TrainingParts, iteration: int) -> None:
    """Write models/net_<label>_latest, the weights of an iteration again; one of another format is removed.

    They are links where the file system has them, so that they take neither time nor space.
    """
    for label in parts.model.networks:
        source = paths.network(label, iteration, parts.save_format)
        latest = paths.network(label, "latest", parts.save_format)
        copies = {source: latest, _beside(source): _beside(latest)}
        for file, copy in copies.items():
            if file.is_file():
                link_or_copy(file, copy)
            else:
                copy.unlink(missing_ok=True)
        for save_format in SAVE_FORMATS:
            if save_format != parts.save_format:
                stale = paths.network(label, "latest", save_format)
                stale.unlink(missing_ok=True)
                _beside(stale).unlink(missing_ok=True)


def load_checkpoint(state_file: Path, parts: TrainingParts) -> Checkpoint:
    """Load a checkpoint into `parts`; its weights lie in ../models beside the state's folder.

    Threads verify the tensors of its files while they are copied. Where a file turns out to be damaged, `parts` holds
    values of no use, and the caller loads another checkpoint or ends.

    Raises WeightsFileError or DamagedCheckpointError naming the file that is damaged or belongs to another checkpoint,
    and CheckpointError for a checkpoint of another network.
    """
    with ExitStack() as files:
        state = files.enter_context(reading(state_file))
        if not isinstance(state, Mapping) or "format" not in state:
            raise DamagedCheckpointError(f"{state_file}: is no training state, but another file with its name")
        if state["format"] not in (NO_DIGESTS, STATE_FORMAT):
            raise CheckpointError(f"{state_file}: is no training state of this version")
        try:
            return _load(state, state_file, parts, files)
        except UserError:
            raise
        except _MISSHAPED as error:
            reason = f"{type(error).__name__} {error}".splitlines()[0]
            raise DamagedCheckpointError(f"{state_file}: is damaged, or of another kind of run ({reason})") from error


def _load(state: Mapping[str, Any], state_file: Path, parts: TrainingParts, files: ExitStack) -> Checkpoint:
    """Load a state and its networks' weights. files: gets the weights files, which are verified when it closes."""
    progress = Progress(**state["progress"])
    if state_file.stem.isdecimal() and int(state_file.stem) != progress.iteration:
        raise DamagedCheckpointError(
            f"{state_file}: holds iteration {progress.iteration}; a file of another iteration was given its name"
        )
    weights = {}
    for label in parts.model.networks:
        weights[label] = _read_network(state, state_file, label, progress.iteration, files)
    for label, network in parts.model.networks.items():
        _fill(network, weights[label]["params"], state_file)
        if parts.emas[label].on:
            if "params_ema" not in weights[label]:
                raise CheckpointError(f"{state_file}: was trained without EMA; set train.ema_decay to 0 to go on")
            _fill(parts.emas[label].module, weights[label]["params_ema"], state_file)
            parts.emas[label].updates = state["ema_updates"][label]
        if label not in state["optimizers"]:
            raise CheckpointError(
                f"{state_file}: has no optimiser for net_{label}; resume with the run's own model_type"
            )
        parts.optimisers[label].load_state_dict(state["optimizers"][label])
    parts.model.load_state(state["model"])
    if parts.scaler.is_enabled() and state.get("scaler"):
        parts.scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["rng"])
    if torch.cuda.is_available() and len(state["rng_cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["rng_cuda"])
    return Checkpoint(progress, str(state["options"]))


def _read_network(
    state: Mapping[str, Any], state_file: Path, label: str, iteration: int, files: ExitStack
) -> Mapping[str, Any]:
    """Return the content of a weights file; raise DamagedCheckpointError where it is another checkpoint's."""
    save_format = state.get("save_format", "pth")
    if save_format not in SAVE_FORMATS:
        raise CheckpointError(f"{state_file}: names an unknown format of weights ({save_format!r:.40})")
    path = state_file.parent.parent / "models" / f"net_{label}_{iteration}.{save_format}"
    if save_format == "safetensors":
        return _read_safetensors(state, state_file, label, path, files)
    weights: Mapping[str, Any] = files.enter_context(reading(path, mapped=True))
    if not isinstance(weights, Mapping) or "params" not in weights:
        raise DamagedCheckpointError(f"{path}: holds no params, so it is no file of this checkpoint")
    if state["format"] != NO_DIGESTS and label in state["weights"] and _digest(path) != state["weights"][label]:
        raise _foreign(path, state_file)
    return weights


def _read_safetensors(
    state: Mapping[str, Any], state_file: Path, label: str, path: Path, files: ExitStack
) -> Mapping[str, Any]:
    """Return {params, params_ema} of the safetensors files of a network; without an average {params} alone.

    Such files have no checksums, so their digest is that of all bytes.
    """
    averaged = f"{label}{PARAMS}" in state["weights"]
    entries = {"params": (label, path)}
    if averaged:
        entries = {"params_ema": (label, path), "params": (f"{label}{PARAMS}", _beside(path))}
    weights = {}
    for entry, (name, file) in entries.items():
        weights[entry] = files.enter_context(reading(file))
        if sha256_of(file) != state["weights"][name]:
            raise _foreign(file, state_file)
    return weights


def _foreign(path: Path, state_file: Path) -> DamagedCheckpointError:
    """Return the error of a weights file that is not the one of its checkpoint."""
    return DamagedCheckpointError(
        f"{path}: was changed, or is a file of another checkpoint: it is not the one that was written with "
        f"{state_file.name}. Put that one back; to train from these weights name them in path.pretrain_network_g"
    )


def _digest(path: Path) -> str:
    """Return the digest of a weights file that was read before; '' for one that is no zip file."""
    try:
        return contents_digest(path)
    except ArchiveError:
        return ""


def _fill(network: nn.Module, params: Mapping[str, Tensor], state_file: Path) -> None:
    """Load all parameters; raise CheckpointError naming the state file where they are another network's."""
    try:
        network.load_state_dict(params, strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(
            f"{state_file}: belongs to another network ({reason}); resume with the run's own options"
        ) from None
