"""Checkpoints: whole files, weights_only, everything for a bit-exact continuation.

models/net_<label>_<iteration>.pth = {params, params_ema} is what users take away;
training_states/<iteration>.state holds the rest and is written last, so that a state always has its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from sam4ir.config.paths import RunPaths
from sam4ir.engine.train.parts import TrainingParts
from sam4ir.engine.weights import WeightsFileError, read_file
from sam4ir.errors import UserError
from sam4ir.utils.files import atomic, write_text

FORMAT = 1
MARK = ".launch"


class RunExistsError(UserError):
    """A fresh start into a folder that holds a run."""


class CheckpointError(UserError):
    """A checkpoint that cannot be continued from."""


@dataclass
class Progress:
    """Where a run is. Everything here is saved and comes back."""

    iteration: int = 0
    sample: int = 0
    validated: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best: dict[str, dict[str, float]] = field(default_factory=dict)
    compiled: list[str] | None = None  # labels of the networks that run compiled; None before that was tried


def save_tensors(content: Mapping[str, Any], path: Path) -> None:
    """torch.save, atomically. Raises OSError naming the file where the disk takes no more."""
    try:
        with atomic(path) as part:
            torch.save(dict(content), part)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        raise OSError(
            f"{path}: cannot be written ({str(error).splitlines()[0]}); what was there before is whole"
        ) from error


def _cpu(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}


def save(paths: RunPaths, parts: TrainingParts, progress: Progress, options_text: str) -> Path:
    """Write the checkpoint of progress.iteration; returns its state file."""
    for label, network in parts.model.networks.items():
        weights: dict[str, Any] = {"params": _cpu(network), **parts.metadata}
        if parts.emas[label].on:
            weights["params_ema"] = _cpu(parts.emas[label].module)
        save_tensors(weights, paths.network(label, progress.iteration))
    state = {
        "format": FORMAT,
        "progress": vars(progress),
        "optimizers": {label: o.state_dict() for label, o in parts.optimisers.items()},
        "ema_updates": {label: e.updates for label, e in parts.emas.items()},
        "model": parts.model.state(),
        "scaler": parts.scaler.state_dict(),
        "options": options_text,
        "rng": torch.get_rng_state(),
        "rng_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    save_tensors(state, paths.state(progress.iteration))
    return paths.state(progress.iteration)


def publish_latest(paths: RunPaths, parts: TrainingParts, iteration: int) -> None:
    """models/net_<label>_latest.pth: the last weights of the run under one name."""
    for label in parts.model.networks:
        source = paths.network(label, iteration)
        with atomic(paths.network(label, "latest")) as part:
            part.write_bytes(source.read_bytes())


def load(state_file: Path, parts: TrainingParts) -> tuple[Progress, str]:
    """Take up a checkpoint; the weights lie in ../models beside the state's folder.

    Returns where the run was, and the options (YAML) it was trained with.

    Raises WeightsFileError or CheckpointError naming the file that is not whole or does not fit.
    """
    state = read_file(state_file)
    if not isinstance(state, Mapping) or state.get("format") != FORMAT:
        raise CheckpointError(f"{state_file}: is no training state of this version")
    iteration = state["progress"]["iteration"]
    models = state_file.parent.parent / "models"
    weights = {n: read_file(models / f"net_{n}_{iteration}.pth") for n in parts.model.networks}
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
    return Progress(**state["progress"]), str(state["options"])


def _fill(network: nn.Module, params: Mapping[str, Tensor], state_file: Path) -> None:
    try:
        network.load_state_dict(params, strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(
            f"{state_file}: belongs to another network ({reason}); resume with the run's own options"
        ) from None


def find_resume(paths: RunPaths, parts: TrainingParts, log: Any) -> tuple[Progress, str] | None:
    """The newest checkpoint of a run that is whole, loaded; None where there is none.

    One that is torn (a full disk, a copy cut short) is passed over with a warning for the one before.
    """
    states = [paths.state(i) for i in paths.saved_iterations()]
    for state_file in states:
        try:
            return load(state_file, parts)
        except WeightsFileError as error:
            log.warning("%s; trying the checkpoint before it", error)
    if states:
        raise CheckpointError(f"{paths.states}: none of {len(states)} checkpoints can be read; see the warnings above")
    return None


def refuse_overwrite(paths: RunPaths, resume_state: str | None = None) -> None:
    """Raise RunExistsError where a start would write into a run that has checkpoints or weights.

    Going on from resume_state is fine where that is the run's own newest checkpoint.
    """
    states = paths.saved_iterations()
    if resume_state and states and Path(resume_state).resolve() == paths.state(states[0]).resolve():
        return
    weights = sorted(paths.models.glob("net_*.pth"))
    if not states and not weights:
        return
    last = f"checkpoints up to iteration {states[0]}" if states else f"{len(weights)} weight files"
    raise RunExistsError(
        f"{paths.run}: holds a run with {last}. Nothing was changed. To go on with it add --auto_resume; "
        f"to train anew give another name, such as --force_yml name={paths.name}_2"
    )


def begun_by(paths: RunPaths, launch: str | None) -> bool:
    """Whether this launch (utils/dist.launch) began or resumed the run, so that its restart may go on with it."""
    mark = paths.run / MARK
    return launch is not None and mark.is_file() and mark.read_text(encoding="utf-8") == launch


def mark_run(paths: RunPaths, launch: str | None) -> None:
    """Note which launch the run belongs to."""
    mark = paths.run / MARK
    if launch is not None:
        write_text(mark, launch)
    else:
        mark.unlink(missing_ok=True)


def lock_run(paths: RunPaths) -> FileLock:
    """Holds <run>/.lock while this process writes the run, so that two runs cannot mix in one folder."""
    paths.run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(paths.run / ".lock", is_singleton=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        message = "another process is training this run; wait for it or give another name"
        raise RunExistsError(f"{paths.run}: {message}") from None
    for half in paths.run.rglob(".*.part"):  # left by a kill -9 in the middle of writing
        half.unlink()
    return lock
