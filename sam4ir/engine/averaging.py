"""Average the weights of several checkpoints of a run: their mean, or an exponential average after the fact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam4ir.engine.build import DIFFUSION_ENTRY
from sam4ir.engine.evaluate.candidates import checkpoints
from sam4ir.engine.weights import metadata_of
from sam4ir.errors import UserError
from sam4ir.utils.files import atomic, write_bytes
from sam4ir.utils.weights import RUN_ENTRY, Weights, read_weights, safetensors_bytes, safetensors_description

_KEPT = (DIFFUSION_ENTRY,)  # entries beside the weights that the result holds too


def sources_of(names: Sequence[str], last: int | None) -> list[Path]:
    """Return the weights files to average, sorted as given; of a run's folder its checkpoints by iteration.

    last: how many of them, the newest ones; None takes all. Raises UserError for fewer than two files.
    """
    files: list[Path] = []
    for name in names:
        if Path(name).is_dir():
            files += map(Path, checkpoints(Path(name)))
        else:
            files.append(Path(name))
    if last is not None:
        if last > len(files):
            raise UserError(f"--last {last}: there are {len(files)} weights files")
        files = files[-last:]
    if len(files) < 2:
        raise UserError(f"an average needs at least two weights files; there is {len(files)}")
    return files


def averaged(files: Sequence[Path], decay: float | None = None, key: str | None = None) -> dict[str, Tensor]:
    """Return the average of the weights of files, each tensor in its own type.

    decay: None gives each file the same weight. Otherwise the average moves through the files in order:
    average = decay * average + (1 - decay) * weights, from the weights of the first file. key: entry of the files, such
    as params; without it what sam4ir restore takes: their own average where there is one.
    Sums are in float64; whole numbers, such as counters, are those of the last file.
    Raises WeightsFileError for a file that cannot be read, and UserError where one is of another network.
    """
    sums: dict[str, Tensor] = {}
    first: Weights | None = None
    kinds: dict[str, torch.dtype] = {}
    for number, file in enumerate(files, 1):
        weights = read_weights(file, key, mapped=True)
        if first is None:
            first = weights
        _refuse_other(first, weights)
        share = 1 / number if decay is None else 1 - decay
        for name, tensor in weights.state.items():
            kinds[name] = tensor.dtype
            if number == 1 or not tensor.is_floating_point():
                sums[name] = tensor.clone().to(torch.float64 if tensor.is_floating_point() else tensor.dtype)
            else:
                sums[name].lerp_(tensor.to(torch.float64), share)
    return {name: total.to(kinds[name]) for name, total in sums.items()}


def _refuse_other(first: Weights, other: Weights) -> None:
    """Raise UserError where two files hold other keys or shapes, or an average and weights without one."""
    shapes = {name: tensor.shape for name, tensor in first.state.items()}
    others = {name: tensor.shape for name, tensor in other.state.items()}
    if shapes != others:
        different = sorted(name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name))
        raise UserError(
            f"{other.path}: holds another network than {first.path}: {len(different)} of its tensors differ in name or "
            f"shape, such as {different[0]}"
        )
    if first.entry != other.entry:
        raise UserError(
            f"{other.path}: its weights are {other.entry or 'without an entry'}, those of {first.path} are "
            f"{first.entry or 'without an entry'}; name one entry with --param-key"
        )


def write_average(files: Sequence[Path], state: Mapping[str, Tensor], decay: float | None, output: Path) -> None:
    """Write averaged weights as .pth ({params}) or .safetensors, with the names of the files that they come from."""
    run: dict[str, Any] = {"averaged": [file.name for file in files]}
    if decay is not None:
        run["decay"] = decay
    if output.suffix == ".safetensors":
        description = {}
        if files[-1].suffix == ".safetensors":
            description = {k: v for k, v in safetensors_description(files[-1]).items() if k != "iteration"}
        write_bytes(output, safetensors_bytes(state, {**description, RUN_ENTRY: run}))
        return
    content: dict[str, Any] = {"params": dict(state), RUN_ENTRY: run}
    for entry in _KEPT:
        held = metadata_of(files[-1], entry)
        if held:
            content[entry] = dict(held)
    with atomic(output) as part:
        torch.save(content, part)
