"""Results of test.py against each other, paired image by image (scripts/compare.py)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sam4ir.engine.evaluate.report import BASELINES
from sam4ir.engine.evaluate.results import Result
from sam4ir.engine.evaluate.statistics import TIE, Paired, paired
from sam4ir.errors import UserError

LISTED = 20  # how many images a message names
WHOLE = "the whole set"


class CompareError(UserError):
    """Results that must not be compared; the message names them."""


@dataclass(frozen=True)
class Comparison:
    """One metric on one data set: `result` against `baseline`.

    units: what was paired: images, runs of a seed, or the whole set for a metric that is one number of it. a, b: their
    values, the baseline's first. lower_is_better: what `better` and `worse` of the statistics mean.
    """

    dataset: str
    stage: str
    metric: str
    protocol: str
    baseline: str
    result: str
    units: tuple[str, ...]
    a: tuple[float, ...]
    b: tuple[float, ...]
    statistics: Paired
    lower_is_better: bool = False


@dataclass(frozen=True)
class Choice:
    """What is compared.

    metrics: their names; None is all that every result has. common: leave out images that a result lacks.
    lower_is_better: metrics of which less is better, beside those that results tell.
    """

    stage: str = "restored"
    metrics: Sequence[str] | None = None
    common: bool = False
    lower_is_better: Collection[str] = ()


@dataclass(frozen=True)
class Shared:
    """What all results have of a choice: metrics with their definitions, and images by data set.

    of_sets: those of the metrics that are one number of a whole set. lower: those of which less is better.
    """

    protocols: Mapping[str, str]
    images: Mapping[str, Sequence[str]]
    notes: Sequence[str]
    of_sets: Collection[str] = ()
    lower: Collection[str] = ()


def shared(results: Sequence[Result], choice: Choice) -> Shared:
    """What can be compared between all results; the first is the baseline.

    Raises CompareError for a stage or metric that one lacks, for metrics of one name with two definitions and, unless
    choice.common, for images that one has and another has not.
    """
    for result in results:
        if choice.stage not in result.stages():
            known = ", ".join(sorted(result.stages()))
            raise CompareError(f"{result.name}: has no stage {choice.stage!r}; it has {known}; choose one by --stage")
    metrics, notes = _metrics(results, choice)
    protocols, more = _protocols(results, metrics)
    images, most = _images(results, choice)
    of_sets = {m for result in results for m in result.set_metrics()}
    if most and any(m in of_sets for m in metrics):
        protocols = {m: text for m, text in protocols.items() if m not in of_sets}
        most = [
            *most,
            f"{', '.join(m for m in metrics if m in of_sets)}: left out, as the sets are not of the same images",
        ]
    lower = {*choice.lower_is_better, *(m for result in results for m in result.lower)}
    notes = [*notes, *more, *most, *_inputs(results, metrics, images)]
    return Shared(protocols, images, notes, of_sets, lower)


def _metrics(results: Sequence[Result], choice: Choice) -> tuple[list[str], list[str]]:
    """(metrics to compare, notes on those left out)."""
    known = {result.name: [*result.metrics(), *result.set_metrics()] for result in results}
    everywhere = [m for m in known[results[0].name] if all(m in names for names in known.values())]
    for metric in (*(choice.metrics or ()), *choice.lower_is_better):
        for name, names in known.items():
            if metric not in names:
                raise CompareError(f"{name}: has no metric {metric!r}; it has {', '.join(names)}")
    if choice.metrics:
        return list(dict.fromkeys(choice.metrics)), []
    if not everywhere:
        listed = "\n".join(f"  {name}: {', '.join(names)}" for name, names in known.items())
        raise CompareError(f"no metric is in all results; they have\n{listed}")
    rest = dict.fromkeys(m for names in known.values() for m in names if m not in everywhere)
    return everywhere, [f"metric {m} is not in all results and left out" for m in rest]


def _protocols(results: Sequence[Result], metrics: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """({metric: definition}, notes on unknown ones)."""
    protocols, problems, notes = {}, [], []
    for metric in metrics:
        told = {result.name: result.protocols[metric] for result in results if metric in result.protocols}
        if len(set(told.values())) > 1:
            problems.append(
                "\n".join([f"metric {metric} is not the same in all:", *(f"  {n}: {t}" for n, t in told.items())])
            )
        unknown = [result.name for result in results if result.name not in told]
        if unknown:
            notes.append(f"the definition of {metric} is not known of {', '.join(unknown)} (a CSV does not hold it)")
        protocols[metric] = next(iter(told.values()), "unknown")
    if problems:
        advice = "Only equal definitions can be compared: test again with the same val.metrics and val.use_image"
        raise CompareError("\n".join([*problems, f"{advice}, or choose other metrics by --metric."]))
    return protocols, notes


def _images(results: Sequence[Result], choice: Choice) -> tuple[dict[str, list[str]], list[str]]:
    """({dataset: images that all results have}, notes on those left out)."""
    sets = [result.images(choice.stage) for result in results]
    union = list(dict.fromkeys(image for images in sets for image in images))
    gaps = []
    for result, images in zip(results, sets, strict=True):
        lacking = [f"{dataset}/{image}" for dataset, image in union if (dataset, image) not in images]
        if lacking:
            rest = f" and {len(lacking) - LISTED} more" if len(lacking) > LISTED else ""
            gaps.append(f"{result.name}: lacks {len(lacking)} of {len(union)}: {', '.join(lacking[:LISTED])}{rest}")
    if gaps and not choice.common:
        raise CompareError("\n".join(["results are not of the same images", *gaps, "--common compares what all have"]))
    common: dict[str, list[str]] = {}
    for dataset, image in union:
        if all((dataset, image) in images for images in sets):
            common.setdefault(dataset, []).append(image)
    if not common:
        raise CompareError("\n".join(["results have no image in common", *gaps]))
    return common, gaps


def _inputs(results: Sequence[Result], metrics: Sequence[str], images: Mapping[str, Sequence[str]]) -> list[str]:
    """A note where the degraded images themselves were scored and differ: then the networks had other tasks."""
    notes = []
    for result, stage in itertools.product(results[1:], BASELINES):
        baseline, inputs = results[0].images(stage), result.images(stage)
        pairs = [(d, i) for d, names in images.items() for i in names if (d, i) in baseline and (d, i) in inputs]
        differ = sum(
            any(m in baseline[p] and m in inputs[p] and not _same(baseline[p][m], inputs[p][m]) for m in metrics)
            for p in pairs
        )
        if differ:
            notes.append(
                f"{result.name}: {differ} of {len(pairs)} degraded images are not those of {results[0].name} "
                f"(stage {stage} differs), so the two were not given the same task"
            )
    return notes


def _same(a: float, b: float) -> bool:
    return a == b or abs(a - b) <= TIE or (math.isnan(a) and math.isnan(b))


def compare(results: Sequence[Result], choice: Choice) -> tuple[list[Comparison], list[str]]:
    """Every further result against the first, image by image: (comparisons by data set and metric, notes)."""
    base, *others = results
    of_all = shared(results, choice)
    notes = list(of_all.notes)
    comparisons = []
    for dataset, names in of_all.images.items():
        for metric in of_all.protocols:
            for other in others:
                a, b = (_column(result, dataset, choice.stage, names, metric, of_all) for result in (base, other))
                place = (dataset, choice.stage, metric, of_all.protocols[metric], base.name, other.name)
                units = (WHOLE,) if metric in of_all.of_sets else tuple(names)
                comparisons.append(_comparison(*place, units, a, b, of_all))
                notes += _not_finite(comparisons[-1])
    return comparisons, notes


def compare_seeds(a: Sequence[Result], b: Sequence[Result], choice: Choice) -> tuple[list[Comparison], list[str]]:
    """Runs b[i] against runs a[i] of the same seed, by their means over images: the pairs are runs, not images.

    Raises CompareError as `compare`, and where the sides have different numbers of runs.
    """
    if len(a) != len(b):
        raise CompareError(f"--a names {len(a)} results and --b {len(b)}; give one of each seed to both, in one order")
    of_all = shared([*a, *b], choice)
    notes = list(of_all.notes)
    comparisons = []
    runs = tuple(f"{first.name} -> {second.name}" for first, second in zip(a, b, strict=True))
    for dataset, names in of_all.images.items():
        for metric in of_all.protocols:
            place = (dataset, choice.stage, metric, of_all.protocols[metric])
            each = []
            for first, second in zip(a, b, strict=True):
                x, y = (_column(result, dataset, choice.stage, names, metric, of_all) for result in (first, second))
                units = (WHOLE,) if metric in of_all.of_sets else tuple(names)
                each.append(_comparison(*place, first.name, second.name, units, x, y, of_all))
                notes += _not_finite(each[-1])
            x, y = (tuple(getattr(c.statistics, mean) for c in each) for mean in ("mean_a", "mean_b"))
            sides = (f"{len(a)} runs of --a", f"{len(b)} runs of --b")
            comparisons.append(_comparison(*place, *sides, runs, x, y, of_all))
    return comparisons, notes


def _comparison(
    dataset: str,
    stage: str,
    metric: str,
    protocol: str,
    baseline: str,
    result: str,
    units: tuple[str, ...],
    a: tuple[float, ...],
    b: tuple[float, ...],
    of_all: Shared,
) -> Comparison:
    lower = metric in of_all.lower
    place = (dataset, stage, metric, protocol, baseline, result)
    return Comparison(*place, units, a, b, paired(a, b, lower_is_better=lower), lower)


def _column(
    result: Result, dataset: str, stage: str, images: Sequence[str], metric: str, of_all: Shared
) -> tuple[float, ...]:
    """The values of one metric; NaN where a row lacks it. Of a metric of the whole set its one value."""
    if metric in of_all.of_sets:
        return (result.sets.get(dataset, {}).get(stage, {}).get(metric, math.nan),)
    rows = result.values[dataset][stage]
    return tuple(rows[image].get(metric, math.nan) for image in images)


def _not_finite(comparison: Comparison) -> list[str]:
    """Notes on images that the mean leaves out."""
    c, notes = comparison, []
    for name, values, infinite in (
        (c.baseline, c.a, c.statistics.infinite_a),
        (c.result, c.b, c.statistics.infinite_b),
    ):
        place = f"{c.dataset}, {c.metric}: {name}"
        if infinite:
            notes.append(f"{place}: {infinite} of {len(values)} images infinite, left out of means and intervals")
        bad = [unit for unit, value in zip(c.units, values, strict=True) if math.isnan(value)]
        if bad:
            rest = f" and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
            notes.append(f"{place}: NaN for {', '.join(bad[:LISTED])}{rest}, left out of everything")
    return notes


def extremes(comparison: Comparison, count: int) -> list[tuple[str, float, float]]:
    """(image, a, b) of the largest differences both ways: up to `count` above from the largest, then as many below."""
    pairs = list(zip(comparison.units, comparison.a, comparison.b, strict=True))
    rising = sorted((p for p in pairs if p[2] > p[1] + TIE), key=lambda p: p[1] - p[2])
    falling = sorted((p for p in pairs if p[2] < p[1] - TIE), key=lambda p: p[2] - p[1])
    return [*rising[:count], *falling[:count]]


def record(comparison: Comparison) -> dict[str, Any]:
    """One flat row of everything but the pairs, for CSV and JSON."""
    s = comparison.statistics
    return {
        "dataset": comparison.dataset,
        "stage": comparison.stage,
        "metric": comparison.metric,
        "protocol": comparison.protocol,
        "lower_is_better": comparison.lower_is_better,
        "baseline": comparison.baseline,
        "result": comparison.result,
        "pairs": s.pairs,
        "averaged": s.finite,
        "mean_baseline": s.mean_a,
        "mean_result": s.mean_b,
        "difference": s.difference,
        "t_low": s.t[0],
        "t_high": s.t[1],
        "bootstrap_low": s.bootstrap[0],
        "bootstrap_high": s.bootstrap[1],
        "better": s.better,
        "worse": s.worse,
        "equal": s.equal,
        "wilcoxon_p": s.wilcoxon_p,
        "sign_p": s.sign_p,
        "infinite_baseline": s.infinite_a,
        "infinite_result": s.infinite_b,
        "nan": s.nan,
    }
