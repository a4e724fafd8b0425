"""What a study has found: means of arms, differences, verdicts, headroom and costs, as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import numpy as np

from sam4ir.config.study import DeclaredComparison
from sam4ir.engine.study.bands import BORDER, INSIDE, OUTSIDE, SIZES, BandReader, Bands
from sam4ir.engine.study.plan import StudyError
from sam4ir.engine.study.scores import RunScores, StudyScores, finite_in_all, table_of
from sam4ir.engine.study.statistics import SeedDifference, SeedVerdict, holm, judge, paired_difference


@dataclass(frozen=True)
class ArmFinding:
    """What an arm reached. means: of each seed over images. mean, deviation: over seeds, NaN where there are too few.

    headroom: the refiner's mean minus the deployed network's by seed, {} where one of both was not scored. masks: which
    image its masks were made of. step: seconds of an iteration, NaN where it is not known. iterations: of its runs.
    """

    arm: str
    means: Mapping[int, float]
    mean: float
    deviation: float
    headroom: Mapping[int, float]
    masks: str
    step: float
    iterations: int
    hours: float


@dataclass(frozen=True)
class ComparisonFinding:
    """A declared comparison. difference: None where no seed has both arms. bands: {part of images: its difference}."""

    declared: DeclaredComparison
    difference: SeedDifference | None
    corrected: float
    verdict: SeedVerdict | None
    bands: Mapping[str, SeedDifference] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyFindings:
    """All that a report says. stop: the stop rule in words, '' without one or before it can be judged."""

    scores: StudyScores
    arms: Sequence[ArmFinding]
    comparisons: Sequence[ComparisonFinding]
    stop: str = ""
    notes: Sequence[str] = ()


def findings_of(scores: StudyScores) -> StudyFindings:
    """Return the findings of the runs that are done. Raises StudyError where none is."""
    if not scores.by_arm:
        raise StudyError(f"{scores.plan.file}: none of its runs is done; sam4ir study run trains them")
    arms = []
    for arm, runs in scores.by_arm.items():
        arms.append(_arm(scores, arm, runs))
    comparisons = _comparisons(scores)
    notes = list(scores.notes)
    if len(scores.plan.study.all_seeds) < 2:
        notes.append("one seed: no difference is called, since another seed can turn it round")
    if scores.missing:
        notes.append(f"{len(scores.missing)} runs are not done yet: {', '.join(scores.missing)}")
    return StudyFindings(scores, arms, comparisons, _stop(scores, comparisons), notes)


def _arm(scores: StudyScores, arm: str, runs: Mapping[int, RunScores]) -> ArmFinding:
    images = scores.images()
    means, headroom, steps, hours = {}, {}, [], 0.0
    for seed, run in runs.items():
        means[seed] = float(table_of([run.values], images).mean())
        if run.other:
            rest = float(table_of([run.other], images).mean())
            gain = means[seed] - rest
            headroom[seed] = gain if scores.plan.study.score.output == "refined" else -gain
        if run.seconds is not None:
            steps.append(run.seconds / run.iterations)
            hours += run.seconds / 3600
    values = list(means.values())
    return ArmFinding(
        arm,
        means,
        fmean(values),
        stdev(values) if len(values) > 1 else math.nan,
        headroom,
        _masks(next(iter(runs.values()))),
        fmean(steps) if steps else math.nan,
        next(iter(runs.values())).iterations,
        hours,
    )


def _masks(run: RunScores) -> str:
    """Return which masks a run read, in words; '' for one that reads none."""
    options = run.job.options()
    if not options.distills or options.train is None:
        return ""
    if options.train.distill.masks == "empty":
        return "empty"
    for block in options.phase("train").values():
        if block.masks is not None and block.masks.store:
            return _source(str(block.masks.store))
    return ""


def _source(store: str) -> str:
    """Return what a store's masks were made of; its name where that cannot be read."""
    from sam4ir.data.masks.control import GENERATORS
    from sam4ir.data.masks.store import MaskStore
    from sam4ir.errors import UserError

    try:
        meta: Mapping[str, Any] = MaskStore(store).meta
    except (UserError, OSError):
        return store
    source = str(meta.get("source", "unknown"))
    words = {"gt": "clean image", "lq": "degraded image", "restored": "restored image"}.get(source, source)
    for kind, generator in GENERATORS.items():
        if meta.get("generator") == generator:
            return f"{words}, {kind} (a control)"
    if source == "gt":
        return f"{words} (an oracle)"
    return words


def _comparisons(scores: StudyScores) -> list[ComparisonFinding]:
    """Return the declared comparisons with Holm's correction over all of them."""
    study = scores.plan.study
    differences: list[SeedDifference | None] = []
    for declared in study.comparisons:
        seeds, better, than = scores.paired(declared.better, declared.than)
        if not seeds or not better.size:
            differences.append(None)
            continue
        differences.append(_difference(scores, declared, better, than))
    corrected = holm([math.nan if each is None else each.p for each in differences])
    parts = _bands(scores)
    findings = []
    for declared, each, p in zip(study.comparisons, differences, corrected, strict=True):
        said: SeedVerdict | None = None
        if each is not None:
            said = judge(each, p, declared.matters, study.alpha, lower_is_better=scores.lower_is_better)
        findings.append(ComparisonFinding(declared, each, p, said, _band_differences(scores, declared, parts)))
    return findings


def _bands(scores: StudyScores) -> dict[str, dict[int, Bands]]:
    """Return the bands of all runs by arm and seed; {} where the study asks for none."""
    study = scores.plan.study
    if study.bands is None:
        return {}
    reader = BandReader(study.bands)
    parts: dict[str, dict[int, Bands]] = {}
    for arm, runs in scores.by_arm.items():
        for seed, run in runs.items():
            parts.setdefault(arm, {})[seed] = reader.of_run(run, study.score.output)
    return parts


def _band_differences(
    scores: StudyScores, declared: DeclaredComparison, parts: Mapping[str, Mapping[int, Bands]]
) -> dict[str, SeedDifference]:
    """Return the difference of each part of the images that the runs of both arms have."""
    better, than = parts.get(declared.better, {}), parts.get(declared.than, {})
    seeds = [seed for seed in better if seed in than]
    differences = {}
    for part in (BORDER, INSIDE, OUTSIDE, *(f"{size} regions" for size in SIZES)):
        first = [better[seed].get(part, {}) for seed in seeds]
        second = [than[seed].get(part, {}) for seed in seeds]
        images = finite_in_all([*first, *second])
        if images:
            differences[part] = _difference(scores, declared, table_of(first, images), table_of(second, images))
    return differences


def _difference(
    scores: StudyScores, declared: DeclaredComparison, better: np.ndarray, than: np.ndarray
) -> SeedDifference:
    """Return the difference of two arrays (seeds, images) by the rules that the study declares."""
    study = scores.plan.study
    return paired_difference(
        better,
        than,
        matters=declared.matters,
        alpha=study.alpha,
        power=study.power,
        comparisons=len(study.comparisons),
    )


def _stop(scores: StudyScores, comparisons: Sequence[ComparisonFinding]) -> str:
    """Return the stop rule and whether it holds, in words."""
    rule = scores.plan.study.stop
    if rule is None:
        return ""
    for each in comparisons:
        if (each.declared.better, each.declared.than) != (rule.better, rule.than):
            continue
        if each.difference is None or each.difference.seeds < len(scores.plan.study.all_seeds):
            done = 0 if each.difference is None else each.difference.seeds
            return f"The stop rule waits for all {len(scores.plan.study.all_seeds)} seeds ({done} are done)."
        gain = each.difference.mean
        if scores.lower_is_better:
            gain = -gain
        words = f"{rule.better} is better than {rule.than} by {gain:+.3f}; declared before: at least {rule.least:g}."
        if gain < rule.least:
            return f"STOP: {words} So: {rule.then}"
        return f"Go on: {words}"
    return ""
