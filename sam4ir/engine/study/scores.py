"""The scores of a study's runs: those of the last validation of each, image by image."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sam4ir.config.paths import RunPaths
from sam4ir.config.schema import Options
from sam4ir.config.study import ScoreOptions, StudyOptions
from sam4ir.engine.evaluate.build import build_metrics
from sam4ir.engine.evaluate.metric import protocols_of
from sam4ir.engine.evaluate.results import Result, read_result
from sam4ir.engine.report.run_facts import lower_metrics
from sam4ir.engine.run_record import ValidationMeans, validations
from sam4ir.engine.study.plan import StudyError, StudyJob, StudyPlan
from sam4ir.engine.study.run import is_done, seconds_of

Images = dict[tuple[str, str], float]  # {(data set, image): value}


@dataclass(frozen=True)
class RunScores:
    """The scores of a run. values: {(set, image): value} of the study's metric and output.

    other: the same of the other output, the deployed network's beside the refiner's, {} without one. iterations: of the
    run. seconds: of its training; None where they are not known. curve: means of all validations.
    """

    job: StudyJob
    paths: RunPaths
    values: Images
    other: Images
    iterations: int
    seconds: float | None
    curve: Sequence[ValidationMeans] = ()


@dataclass(frozen=True)
class StudyScores:
    """The scores of all runs that are done. by_arm: {arm: {seed: its scores}}. missing: names of runs to come.

    protocol: the definition of the metric. lower_is_better: whether a lower value is better.
    """

    plan: StudyPlan
    by_arm: Mapping[str, Mapping[int, RunScores]]
    missing: Sequence[str] = ()
    protocol: str = ""
    lower_is_better: bool = False
    notes: Sequence[str] = field(default_factory=tuple)

    def paired(self, better: str, than: str) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Return the seeds that both arms have, and their values as arrays (seeds, images) of the same images."""
        first, second = self.by_arm.get(better, {}), self.by_arm.get(than, {})
        seeds = [seed for seed in self.plan.study.all_seeds if seed in first and seed in second]
        images = self.images()
        return (
            seeds,
            table_of([first[s].values for s in seeds], images),
            table_of([second[s].values for s in seeds], images),
        )

    def images(self) -> list[tuple[str, str]]:
        """Return the images that all runs have scored with a finite value, in the order of the first run."""
        runs = [run.values for seeds in self.by_arm.values() for run in seeds.values()]
        return finite_in_all(runs)


def finite_in_all(rows: Sequence[Images]) -> list[tuple[str, str]]:
    """Return the images that all rows have with a finite value: a PSNR of infinity has no mean and no difference."""
    if not rows:
        return []
    images = []
    for image in rows[0]:
        if all(math.isfinite(row.get(image, math.nan)) for row in rows):
            images.append(image)
    return images


def table_of(rows: Sequence[Images], images: Sequence[tuple[str, str]]) -> np.ndarray:
    """Return the values of some images as an array (rows, images)."""
    return np.array([[row[image] for image in images] for row in rows]).reshape(len(rows), len(images))


def refuse_unscored(plan: StudyPlan) -> None:
    """Raise StudyError where a run would end without the scores that the study compares, before it is trained.

    The runs of one seed are looked at. Raises OptionsError for an option file that cannot be used.
    """
    for job in plan.firsts():
        if job.base is None:
            continue
        options = job.options()
        problem = ""
        if options.train is None:
            problem = "its option file has no block `train`"
        elif job.arm is not None:
            problem = _unscored(plan.study, options)
        if problem:
            raise StudyError(f"{plan.file}: {job.name}: {problem}")


def _unscored(study: StudyOptions, options: Options) -> str:
    """Return why a run would have no score, or ''."""
    val, score = options.val, study.score
    sets = [block.name or key for key, block in options.phase("val").items()]
    if val is None or val.val_freq is None or not sets:
        return "has no validation, by which the study scores it; set val:val_freq and a data set `val`"
    metrics = protocols_of(build_metrics(val, options.basicsr))
    if score.metric not in metrics:
        return f"score.metric: {score.metric} is none of val.metrics: {', '.join(metrics) or 'there are none'}"
    if score.output == "refined" and not val.refiner:
        return "score.output: refined needs val:refiner: true in the study's `set`"
    unknown = [name for name in score.sets or () if name not in sets]
    if unknown:
        return f"score.sets: {unknown[0]} is none of its validation sets: {', '.join(sets)}"
    if val.patience is not None:
        return "val.patience may end it early, and runs of different lengths are not compared; set val:patience: null"
    if study.bands is not None and not val.save_img:
        return "bands need `val:save_img: true` in the study's `set`"
    return ""


def read_scores(plan: StudyPlan, arms: Sequence[str] | None = None) -> StudyScores:
    """Read the scores of all runs that are done. Raises StudyError for a run whose scores are not those of its end.

    arms: that are read; without them all.
    """
    by_arm: dict[str, dict[int, RunScores]] = {}
    missing = []
    for job in plan.jobs.values():
        if job.arm is None or (arms is not None and job.arm not in arms):
            continue
        assert job.seed is not None
        if not is_done(plan, job):
            missing.append(job.name)
            continue
        by_arm.setdefault(job.arm, {})[job.seed] = _run_scores(plan, job)
    score = plan.study.score
    options = plan.firsts()[-1].options()
    lower = score.metric in lower_metrics(options, [score.metric])
    protocols = protocols_of(build_metrics(options.val, options.basicsr))
    if score.metric not in protocols:
        raise StudyError(f"{plan.file}: score.metric: {score.metric} is none of val.metrics: {', '.join(protocols)}")
    scores = StudyScores(plan, by_arm, missing, protocols[score.metric], lower)
    return dataclasses.replace(scores, notes=_notes(scores))


def _notes(scores: StudyScores) -> list[str]:
    """Return what is said of images that do not count. Raises StudyError where none does."""
    runs = [run.values for seeds in scores.by_arm.values() for run in seeds.values()]
    if not runs:
        return []
    every, shared = set().union(*runs), set(runs[0]).intersection(*runs)
    counted = len(scores.images())
    if not counted:
        raise StudyError(f"{scores.plan.file}: its runs have scored no image in common with a finite value")
    notes = []
    if len(every) > len(shared):
        notes.append(f"runs scored {len(every)} images, of which only the {len(shared)} count that all have")
    if len(shared) > counted:
        metric = scores.plan.study.score.metric
        notes.append(f"{len(shared) - counted} images do not count, since their {metric} is not finite in some run")
    return notes


def _run_scores(plan: StudyPlan, job: StudyJob) -> RunScores:
    """Return the scores of a run, those of its last validation."""
    options, paths = job.options(), job.paths()
    assert options.train is not None
    curve = validations(paths.run / "log.jsonl")
    total = options.train.total_iter
    if not curve or curve[-1].iteration != total:
        last = curve[-1].iteration if curve else "none"
        raise StudyError(
            f"{paths.run}: its last validation is {last}, not at its end ({total}); is val.val_freq set, and does the "
            "run have a validation set?"
        )
    result = read_result(paths.run / "validation.csv", job.name)
    score = plan.study.score
    values = _values(result, score.output, score, paths.run)
    other_name = "restored" if score.output == "refined" else "refined"
    other: Images = {}
    if other_name in result.outputs():
        other = _values(result, other_name, score, paths.run)
    return RunScores(job, paths, values, other, total, seconds_of(plan, job), curve)


def _values(result: Result, output: str, score: ScoreOptions, folder: Path) -> Images:
    """Return the values of an output by image. Raises StudyError where there are none."""
    values: Images = {}
    for (dataset, image), row in result.images(output).items():
        if (score.sets is None or dataset in score.sets) and score.metric in row:
            values[dataset, image] = row[score.metric]
    if not values:
        raise StudyError(f"{folder}: its validation has no {score.metric} of the output {output}")
    return values
