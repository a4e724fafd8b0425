"""Which file holds the refiner that a user names, and which option file describes it."""

from __future__ import annotations

import re
from pathlib import Path

from sam4ir.engine.restore.settings import file_of_run
from sam4ir.engine.weights import holds_refiner, locate, metadata_of
from sam4ir.errors import UserError
from sam4ir.utils.weights import RUN_ENTRY, SAVE_FORMATS, is_hub_name, read_weights

_CHECKPOINT = re.compile(r"net_r_(\d+)\.(?:pth|safetensors)")


def refiner_file(source: str, student: str) -> Path:
    """Return the file of the refiner that --refine names: a file, or the folder of a run.

    student: the weights of the student. Of a run the refiner of the student's iteration is taken, else the latest one.
    Raises UserError for what is neither, and for weights that are no refiner's.
    """
    path = Path(source)
    if path.is_dir():
        path = _of_run(path, stated_iteration(student))
    if not path.is_file():
        raise UserError(
            f"--refine: {source}: no such file or run; name net_r_<iteration> in the folder models of a SAM4IR run"
        )
    weights = read_weights(path, mapped=True)
    if not any(map(holds_refiner, weights.stages)):
        raise UserError(
            f"--refine: {weights}: holds no refiner (spf.* and network.*), but another network; "
            "the refiner of a SAM4IR run is net_r_<iteration>, beside the student net_g_<iteration>"
        )
    return path


def _of_run(run: Path, iteration: int | None) -> Path:
    """Return the refiner of a run: that of an iteration, the latest, or the last checkpoint."""
    models = run / "models"
    names = []
    if iteration is not None:
        names.append(str(iteration))
    for name in (*names, "latest"):
        for save_format in SAVE_FORMATS:
            file = models / f"net_r_{name}.{save_format}"
            if file.is_file():
                return file
    checkpoints = []
    for file in models.glob("net_r_*"):
        match = _CHECKPOINT.fullmatch(file.name)
        if match:
            checkpoints.append((int(match[1]), file))
    if not checkpoints:
        raise UserError(f"--refine: {run}: holds no models/net_r_<iteration>; only runs of SAM4IRModel have a refiner")
    return max(checkpoints)[1]


def stated_iteration(weights: str | Path) -> int | None:
    """Return the iteration that a weights file states; None where it states none."""
    if not Path(weights).is_file():
        return None
    iteration = metadata_of(weights, RUN_ENTRY).get("iteration")
    if isinstance(iteration, int):
        return iteration
    return None


def refiner_options_file(refiner: Path, student: str, named: Path | None) -> Path:
    """Return the option file that describes a refiner: the one that the user names, or that of its run.

    student: the weights of the student. Raises UserError where there is no such file, and where the student lies in
    another run.
    """
    beside = file_of_run(str(refiner))
    if beside is not None and not is_hub_name(student):
        of_student = file_of_run(str(locate(student)))
        if of_student is not None and of_student != beside:
            raise UserError(
                f"--refine: {refiner} was trained in {beside.parent}, and the student {student} in "
                f"{of_student.parent}; a refiner goes with the student of its own run: give --weights {beside.parent}"
            )
    if named is not None:
        return named
    if beside is None:
        raise UserError(
            f"--refine: {refiner}: no options.yml of its run lies beside it ({refiner.resolve().parent.parent}), which "
            "describes SPF and its network; give -opt, the option file that it was trained with"
        )
    return beside
