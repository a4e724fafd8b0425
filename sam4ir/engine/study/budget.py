"""The iterations of each arm where arms shall have equal time or equal compute instead of equal steps."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from filelock import FileLock

from sam4ir.config.schema import Options
from sam4ir.config.study import StudyOptions
from sam4ir.engine.build import build_dataset
from sam4ir.engine.study.plan import StudyError, StudyPlan, plan_of
from sam4ir.engine.train.check import estimate_run
from sam4ir.utils.files import make_folder, read_text, sha256_of, write_text

PATIENCE = 6.0  # seconds of steps in each phase of a training
FILE = "budget.json"


def plan_with_budget(study: StudyOptions, file: Path, device: str | None = None) -> StudyPlan:
    """Return the plan of a study with the iterations that its budget gives each arm.

    Costs are measured once, by the first process, and kept in the study's folder, so that all shards agree. The data
    sets of all arms must be there. device: that of the measurement; None for that of the option files.
    """
    equal = plan_of(study, file)
    if study.budget == "equal_steps":
        return equal
    make_folder(equal.folder)
    record = equal.folder / FILE
    with FileLock(equal.folder / f"{FILE}.lock", is_singleton=False):
        lengths = _kept(equal)
        if lengths is None:
            lengths = _measured(equal, device)
            content = {"facts": _facts(equal), "rule": study.budget, "lengths": lengths}
            write_text(record, json.dumps(content, indent=1))
    return plan_of(study, file, lengths)


def plan_as_kept(study: StudyOptions, file: Path) -> StudyPlan:
    """Return the plan with the iterations that were measured before; with those of the option files where none were."""
    equal = plan_of(study, file)
    lengths = _kept(equal)
    if lengths is None:
        return equal
    return plan_of(study, file, lengths)


def is_measured(plan: StudyPlan) -> bool:
    """Return whether the budget of a study needs no measurement any more."""
    return plan.study.budget == "equal_steps" or _kept(plan) is not None


def _facts(plan: StudyPlan) -> str:
    """Return the hash of what the costs depend on."""
    parts = plan.study.model_dump(mode="json", include={"budget", "mask_compute", "set", "shared", "arms", "control"})
    files = sorted({sha256_of(job.base) for job in plan.jobs.values() if job.base is not None})
    return hashlib.sha256(json.dumps([parts, files], sort_keys=True).encode()).hexdigest()


def _kept(plan: StudyPlan) -> dict[str, float] | None:
    """Return {arm: factor of its iterations} as it was measured before; None where nothing was.

    Raises StudyError where it was measured for another study file.
    """
    record = plan.folder / FILE
    if plan.study.budget == "equal_steps" or not record.is_file():
        return None
    stated = json.loads(read_text(record))
    if stated["facts"] != _facts(plan):
        raise StudyError(
            f"{record}: was measured for other options than the study file has now. Give the changed study another "
            "name, or remove this file if no arm has been trained"
        )
    lengths: dict[str, float] = stated["lengths"]
    return lengths


def _measured(plan: StudyPlan, device: str | None) -> dict[str, float]:
    """Take a few steps of each arm; return the factor of its iterations, which is 1 for the control."""
    study = plan.study
    costs, fixed = {}, {}
    for arm in study.arms:
        options = plan.run_of(arm, study.all_seeds[0]).options()
        estimate = estimate_run(_untrained(options, device), PATIENCE)
        fixed[arm] = 0.0
        costs[arm] = estimate.training
        if study.budget == "equal_compute":
            costs[arm] = estimate.multiply_adds
            fixed[arm] = _masks(study, options)
    control = study.control_arm
    budget = costs[control] + fixed[control]
    lengths = {}
    for arm, cost in costs.items():
        lengths[arm] = 1.0
        if arm != control:
            lengths[arm] = (budget - fixed[arm]) / cost
        if lengths[arm] <= 0:
            raise StudyError(f"{plan.file}: the masks of {arm} cost more than the whole training of {control}")
    return lengths


def _masks(study: StudyOptions, options: Options) -> float:
    """Return the multiply-adds of the masks that an arm reads in its training."""
    images = 0
    if options.train is not None and options.train.distill.masks == "store":
        for key, block in options.phase("train").items():
            if block.masks is not None:
                images += len(build_dataset(key, block, options.scale))
    return study.mask_compute * 1e9 * images


def _untrained(options: Options, device: str | None) -> Options:
    """Return the options on a device, without weights of shared trainings, which need not be there yet."""
    path = options.path.model_copy(update={"pretrain_network_g": None})
    return options.model_copy(update={"path": path, "device": device or options.device})
