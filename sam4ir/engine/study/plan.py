"""The jobs of a study: which trainings and commands there are, what each needs, and what it is called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam4ir.config.load import Override, load_options
from sam4ir.config.paths import RunPaths
from sam4ir.config.schema import Block, Options
from sam4ir.config.study import StudyOptions, filled, placeholders
from sam4ir.errors import UserError
from sam4ir.utils.files import sha256_of
from sam4ir.utils.rng import generator
from sam4ir.utils.shipped import shipped

FOLDER = Path("studies")
BY = "the study"
BUDGET = "the budget of the study"
_SHIPPED = "{options}"  # in the hash of a job, for a folder that differs between installations


class StudyError(UserError):
    """A study that cannot be run or reported; the message names the file or the run."""


@dataclass(frozen=True)
class StudyJob:
    """A training or a command of a study.

    name: unique in the study. arm: None for shared work. seed: None for work that all seeds share. needs: names of jobs
    that must be done before. base, overrides: of a training. words: of a command of sam4ir, without `sam4ir`.
    """

    name: str
    arm: str | None
    seed: int | None
    needs: tuple[str, ...]
    base: Path | None = None
    overrides: tuple[Override, ...] = ()
    words: tuple[str, ...] = ()

    def options(self) -> Options:
        """Return the options of a training. Raises OptionsError for a key that is wrong."""
        assert self.base is not None
        return load_options(self.base, self.overrides, named_by_user=True)

    def paths(self) -> RunPaths:
        """Return the folders of a training."""
        options = self.options()
        return RunPaths(Path(options.path.root), options.name)

    @property
    def facts(self) -> str:
        """The hash of what the job does, by which a changed study file is told from an unchanged one."""
        changes = [[*each.keys, each.value] for each in self.overrides if each.keys[0] != "device"]
        file = "" if self.base is None else sha256_of(self.base)
        content = json.dumps([file, changes, list(self.words)], sort_keys=True, default=str)
        folder = json.dumps(shipped("options").as_posix())[1:-1]
        return hashlib.sha256(content.replace(folder, _SHIPPED).encode()).hexdigest()


@dataclass(frozen=True)
class StudyPlan:
    """All jobs of a study. study: its file's content. file: the file. folder: of the study's own records."""

    study: StudyOptions
    file: Path
    folder: Path
    jobs: Mapping[str, StudyJob] = field(default_factory=dict)

    def runs(self) -> list[StudyJob]:
        """Return the trainings of arms, in the random order in which they are done: a function of the study's name."""
        runs = [job for job in self.jobs.values() if job.arm is not None]
        order = generator(0, "study", self.study.name).permutation(len(runs))
        return [runs[number] for number in order]

    def share(self, shard: tuple[int, int], arms: Sequence[str] | None = None) -> list[StudyJob]:
        """Return the runs of one shard (i, n) and what they need, in an order that may be worked through.

        arms: those that count; None for all.
        """
        runs = [run for run in self.runs() if arms is None or run.arm in arms]
        chosen: dict[str, StudyJob] = {}
        for run in runs[shard[0] :: shard[1]]:
            for name in (*run.needs, run.name):
                chosen[name] = self.jobs[name]
        return list(chosen.values())

    def run_of(self, arm: str, seed: int) -> StudyJob:
        """Return the training of an arm with a seed."""
        return self.jobs[f"{arm}_s{seed}"]

    def firsts(self) -> list[StudyJob]:
        """Return the run of each arm with the first seed, and what these need, in an order that may be worked through.

        The runs of other seeds have the same options but for names and seeds.
        """
        chosen: dict[str, StudyJob] = {}
        for arm in self.study.arms:
            run = self.run_of(arm, self.study.all_seeds[0])
            for name in (*run.needs, run.name):
                chosen[name] = self.jobs[name]
        return list(chosen.values())


def plan_of(study: StudyOptions, file: Path, lengths: Mapping[str, float] | None = None) -> StudyPlan:
    """Return the jobs of a study.

    lengths: {arm: factor} by which the iterations of an arm differ from the option file's, for budgets. Raises
    OptionsError for a key that is wrong in some run, and StudyError for a base that is not there.
    """
    folder = FOLDER / study.name
    jobs: dict[str, StudyJob] = {}
    for seed in study.all_seeds:
        names = _names(study, file, folder, seed)
        for name in study.shared:
            job = _shared_job(study, file, name, seed, names)
            jobs.setdefault(job.name, job)
        for arm in study.arms:
            job = _arm_job(study, file, arm, seed, names, (lengths or {}).get(arm, 1.0))
            jobs[job.name] = job
    return StudyPlan(study, file, folder, jobs)


def _shared_job(study: StudyOptions, file: Path, name: str, seed: int, names: Mapping[str, str]) -> StudyJob:
    """Return the job of a shared step for a seed. names: what placeholders mean."""
    step = study.shared[name]
    own_seed = seed if step.every_seed else None
    for needed in study.needs(name):
        if own_seed is None and study.shared[needed].every_seed:
            raise StudyError(f"{file}: shared.{name}: every_seed: false, but it needs {needed}, which each seed has")
    if own_seed is None and "seed" in placeholders([step.set, step.command, step.output]):
        raise StudyError(f"{file}: shared.{name}: every_seed: false, but it names {{seed}}, which differs")
    needs = _job_names(study, study.needs(name), seed)
    if step.command is not None:
        words = tuple(filled(step.command, names))
        return StudyJob(_job_name(study, name, seed), None, own_seed, needs, words=words)
    base, overrides = _shared_training(study, file, name, seed, names)
    return StudyJob(_job_name(study, name, seed), None, own_seed, needs, base, overrides)


def _arm_job(study: StudyOptions, file: Path, arm: str, seed: int, names: Mapping[str, str], length: float) -> StudyJob:
    """Return the training of an arm with a seed. names: what placeholders mean."""
    base = base_file(study.base, file)
    name = f"{arm}_s{seed}"
    overrides = (
        *_own(study, name, seed),
        *_overrides(filled(study.set, names), f"`set` of {BY}"),
        *_overrides(filled(study.arms[arm], names), f"arm {arm} of {BY}"),
    )
    if length != 1.0:
        overrides += tuple(longer(load_options(base, overrides, named_by_user=True), length))
    return StudyJob(name, arm, seed, _job_names(study, study.needs(arm), seed), base, overrides)


def _job_name(study: StudyOptions, step: str, seed: int) -> str:
    """Return the name of a shared step's job."""
    if study.shared[step].every_seed:
        return f"{step}_s{seed}"
    return step


def _job_names(study: StudyOptions, steps: Iterable[str], seed: int) -> tuple[str, ...]:
    return tuple(_job_name(study, step, seed) for step in steps)


def _names(study: StudyOptions, file: Path, folder: Path, seed: int) -> dict[str, str]:
    """Return what placeholders mean for a seed: weights of shared trainings, outputs of shared commands."""
    names = {"seed": str(seed), "folder": folder.as_posix(), "options": shipped("options").as_posix()}
    for name in study.shared:
        _add_name(study, file, name, seed, names)
    return names


def _add_name(study: StudyOptions, file: Path, name: str, seed: int, names: dict[str, str]) -> None:
    """Add the meaning of a shared step, after those that it needs."""
    if name in names:
        return
    step = study.shared[name]
    for needed in study.needs(name):
        _add_name(study, file, needed, seed, names)
    if step.output is not None:
        names[name] = filled(step.output, names)
        return
    base, overrides = _shared_training(study, file, name, seed, names)
    options = load_options(base, overrides, named_by_user=True)
    paths = RunPaths(Path(options.path.root), options.name)
    names[name] = paths.network("g", "latest", options.logger.save_format).as_posix()


def _shared_training(
    study: StudyOptions, file: Path, name: str, seed: int, names: Mapping[str, str]
) -> tuple[Path, tuple[Override, ...]]:
    """Return the option file and the changed keys of a shared training.

    With a file of its own, the keys of the study's `set` do not count. Done once for all seeds, it has seed 0.
    """
    step = study.shared[name]
    own_seed = seed if step.every_seed else 0
    overrides = _own(study, _job_name(study, name, seed), own_seed)
    if step.base is None:
        overrides += _overrides(filled(study.set, names), f"`set` of {BY}")
    overrides += _overrides(filled(step.set or {}, names), f"shared.{name} of {BY}")
    return base_file(step.base or study.base, file), overrides


def _own(study: StudyOptions, name: str, seed: int) -> tuple[Override, ...]:
    """Return what the study itself sets in a run: its name and its seed."""
    return Override(("name",), f"{study.name}_{name}", BY), Override(("manual_seed",), seed, BY)


def _overrides(changes: Mapping[str, Any], by: str) -> tuple[Override, ...]:
    """Return the keys of a block of changes. by: where it stands, for messages."""
    return tuple(Override(tuple(key.split(":")), value, by) for key, value in changes.items())


def base_file(base: str, file: Path) -> Path:
    """Return the option file that a study names: beside the study file, or one that comes with sam4ir."""
    beside = file.parent / base
    if beside.is_file():
        return beside
    listed = shipped("options") / f"{base.removesuffix('.yml')}.yml"
    if listed.is_file():
        return listed
    raise StudyError(
        f"{file}: base: {base}: no such file beside the study file, and `sam4ir options list` has no such name either"
    )


_LENGTHS = ("T_max", "total_iter")
_LISTS = ("periods", "milestones", "restarts")


def longer(options: Options, factor: float) -> list[Override]:
    """Return the keys of a training that is longer by a factor: iterations, and whatever else counts in them.

    The intervals of validations and checkpoints stay.
    """
    train = options.train
    assert train is not None
    overrides = [_scaled(("train", "total_iter"), train.total_iter, factor)]
    if train.warmup_iter > 0:
        overrides.append(_scaled(("train", "warmup_iter"), train.warmup_iter, factor))
    for key in ("refine_iter", "start_iter"):
        value = getattr(train.distill, key)
        if value is not None:
            overrides.append(_scaled(("train", "distill", key), value, factor))
    for place, block in (("scheduler", train.scheduler), ("scheduler_r", train.scheduler_r)):
        if block is not None:
            overrides += _longer_schedule(("train", place), block, factor)
    for key, data in options.datasets.items():
        if data.iters is not None:
            overrides.append(_scaled_list(("datasets", key, "iters"), data.iters, factor))
    return overrides


def _longer_schedule(keys: tuple[str, ...], block: Block, factor: float) -> list[Override]:
    """Return the keys of a schedule that count iterations. keys: where its block stands."""
    overrides = []
    for key, value in block.arguments.items():
        if key in _LENGTHS and isinstance(value, (int, float)):
            overrides.append(_scaled((*keys, key), value, factor))
        elif key in _LISTS and isinstance(value, (list, tuple)):
            overrides.append(_scaled_list((*keys, key), value, factor))
    return overrides


def _scaled_list(keys: tuple[str, ...], values: Sequence[float], factor: float) -> Override:
    return Override(keys, [_count(each, factor) for each in values], BUDGET)


def _scaled(keys: tuple[str, ...], value: float, factor: float) -> Override:
    return Override(keys, _count(value, factor), BUDGET)


def _count(value: float, factor: float) -> int:
    """Return a number of iterations times a factor: 0 stays 0, and no other becomes 0."""
    if value == 0:
        return 0
    return max(round(value * factor), 1)
