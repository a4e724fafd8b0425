"""Compare results of sam4ir test, paired image by image (sam4ir compare)."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sam4ir.engine.evaluate.report import BASELINES
from sam4ir.engine.evaluate.results import Result
from sam4ir.engine.evaluate.statistics import TIE, Paired, paired
from sam4ir.errors import UserError

MAX_LISTED = 20  # images that a message names
WHOLE_SET = "the whole set"


class CompareError(UserError):
    """Results that cannot be compared; the message names them."""


@dataclass(frozen=True)
class Comparison:
    """One metric of one output on one data set: `result` against `baseline`.

    units: names of the pairs: images, runs of a seed, or the whole set for a metric that is one number of it.
    a, b: the values of baseline and result. lower_is_better: whether `better` in the statistics means lower.
    """

    dataset: str
    output: str
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
class CompareChoice:
    """The scores that the user wants to compare.

    output: restored, refined, bicubic or input. metrics: their names; None for all that every result has. common: leave
    out images that a result lacks. lower_is_better: metrics where a lower value is better, beside those that the
    results name.
    """

    output: str = "restored"
    metrics: Sequence[str] | None = None
    common: bool = False
    lower_is_better: Collection[str] = ()


@dataclass(frozen=True)
class Shared:
    """The scores of a choice that all results have: metrics with their definitions, and images by data set.

    of_sets: the metrics that are one number of a whole set. lower: the metrics where a lower value is better.
    """

    protocols: Mapping[str, str]
    images: Mapping[str, Sequence[str]]
    notes: Sequence[str]
    of_sets: Collection[str] = ()
    lower: Collection[str] = ()


def shared(results: Sequence[Result], choice: CompareChoice) -> Shared:
    """Return the scores that can be compared between all results; the first is the baseline.

    Raises CompareError for an output or a metric that a result lacks, for a metric with two definitions and, unless
    choice.common, for images that some results lack.
    """
    for result in results:
        if choice.output not in result.outputs():
            names = ", ".join(sorted(result.outputs()))
            raise CompareError(f"{result.name}: has no stage {choice.output!r}; it has {names}; choose one by --stage")
    metrics, metric_notes = _metrics(results, choice)
    protocols, protocol_notes = _protocols(results, metrics)
    images, image_notes = _images(results, choice)
    of_sets, lower = set[str](), set(choice.lower_is_better)
    for result in results:
        of_sets.update(result.set_metrics())
        lower.update(result.lower)
    if image_notes:
        image_notes += _drop_set_metrics(protocols, of_sets)
    notes = [*metric_notes, *protocol_notes, *image_notes, *_inputs(results, metrics, images)]
    return Shared(protocols, images, notes, of_sets, lower)


def _drop_set_metrics(protocols: dict[str, str], of_sets: Collection[str]) -> list[str]:
    """Remove the metrics of whole sets from the protocols, where the sets are of different images; return a note."""
    dropped = [metric for metric in protocols if metric in of_sets]
    for metric in dropped:
        del protocols[metric]
    if not dropped:
        return []
    return [f"{', '.join(dropped)}: left out, as the sets are not of the same images"]


def _metrics(results: Sequence[Result], choice: CompareChoice) -> tuple[list[str], list[str]]:
    """Return the metrics to compare, and notes on those left out."""
    by_result: dict[str, list[str]] = {}
    for result in results:
        by_result[result.name] = list(dict.fromkeys([*result.metrics(), *result.set_metrics()]))
    for metric in (*(choice.metrics or ()), *choice.lower_is_better):
        for name, names in by_result.items():
            if metric not in names:
                raise CompareError(f"{name}: has no metric {metric!r}; it has {', '.join(names)}")
    if choice.metrics:
        return list(dict.fromkeys(choice.metrics)), []
    counts = Counter(itertools.chain.from_iterable(by_result.values()))
    everywhere, notes = [], []
    for metric, count in counts.items():
        if count == len(by_result):
            everywhere.append(metric)
        else:
            notes.append(f"metric {metric} is not in all results and left out")
    if not everywhere:
        lines = ["no metric is in all results; they have"]
        for name, names in by_result.items():
            lines.append(f"  {name}: {', '.join(names)}")
        raise CompareError("\n".join(lines))
    return everywhere, notes


def _protocols(results: Sequence[Result], metrics: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return {metric: definition}, and notes on definitions that a result lacks."""
    protocols, problems, notes = {}, [], []
    for metric in metrics:
        texts: dict[str, str] = {}
        unknown = []
        for result in results:
            if metric in result.protocols:
                texts[result.name] = result.protocols[metric]
            else:
                unknown.append(result.name)
        if len(set(texts.values())) > 1:
            problems.append(f"metric {metric} is not the same in all:")
            problems += [f"  {name}: {text}" for name, text in texts.items()]
        if unknown:
            notes.append(f"the definition of {metric} is not known of {', '.join(unknown)} (a CSV does not hold it)")
        protocols[metric] = next(iter(texts.values()), "unknown")
    if problems:
        advice = "Only equal definitions can be compared: test again with the same val.metrics and val.use_image"
        raise CompareError("\n".join([*problems, f"{advice}, or choose other metrics by --metric."]))
    return protocols, notes


def _images(results: Sequence[Result], choice: CompareChoice) -> tuple[dict[str, list[str]], list[str]]:
    """Return {dataset: images that all results have}, and notes on those left out."""
    sets = [result.images(choice.output) for result in results]
    counts = Counter(itertools.chain.from_iterable(sets))  # in order of appearance
    union = list(counts)
    gaps = []
    for result, images in zip(results, sets, strict=True):
        lacking = ["/".join(place) for place in union if place not in images]
        if lacking:
            gaps.append(f"{result.name}: lacks {len(lacking)} of {len(union)}: {_first_of(lacking)}")
    if gaps and not choice.common:
        raise CompareError("\n".join(["results are not of the same images", *gaps, "--common compares what all have"]))
    common: dict[str, list[str]] = {}
    for dataset, image in union:
        if counts[dataset, image] == len(sets):
            common.setdefault(dataset, []).append(image)
    if not common:
        raise CompareError("\n".join(["results have no image in common", *gaps]))
    return common, gaps


def _first_of(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    text = ", ".join(names[:MAX_LISTED])
    if len(names) > MAX_LISTED:
        text += f" and {len(names) - MAX_LISTED} more"
    return text


def _inputs(results: Sequence[Result], metrics: Sequence[str], images: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a note for each result whose degraded images were scored and differ: its network had another task."""
    notes = []
    for result, output in itertools.product(results[1:], BASELINES):
        baseline, inputs = results[0].images(output), result.images(output)
        compared, differing = 0, 0
        for dataset, names in images.items():
            for image in names:
                first, second = baseline.get((dataset, image)), inputs.get((dataset, image))
                if first is not None and second is not None:
                    compared += 1
                    differing += _differ(first, second, metrics)
        if differing:
            notes.append(
                f"{result.name}: {differing} of {compared} degraded images are not those of {results[0].name} "
                f"(stage {output} differs), so the two were not given the same task"
            )
    return notes


def _differ(a: Mapping[str, float], b: Mapping[str, float], metrics: Sequence[str]) -> bool:
    """Return whether two images differ in a metric that both have."""
    return any(metric in a and metric in b and not _same(a[metric], b[metric]) for metric in metrics)


def _same(a: float, b: float) -> bool:
    return a == b or abs(a - b) <= TIE or (math.isnan(a) and math.isnan(b))


def compare(results: Sequence[Result], choice: CompareChoice) -> tuple[list[Comparison], list[str]]:
    """Compare every further result with the first, image by image.

    Returns comparisons by data set and metric, and notes.
    """
    base, *others = results
    of_all = shared(results, choice)
    notes = list(of_all.notes)
    comparisons = []
    for dataset in of_all.images:
        for metric in of_all.protocols:
            for other in others:
                comparison = _compare_two(base, other, dataset, choice.output, metric, of_all)
                comparisons.append(comparison)
                notes += _not_finite(comparison)
    return comparisons, notes


def compare_seeds(
    a: Sequence[Result], b: Sequence[Result], choice: CompareChoice
) -> tuple[list[Comparison], list[str]]:
    """Compare runs b[i] with runs a[i] of the same seed, by their means over images: the pairs are runs, not images.

    Raises CompareError as `compare`, and where the sides have different numbers of runs.
    """
    if len(a) != len(b):
        raise CompareError(f"--a names {len(a)} results and --b {len(b)}; give one of each seed to both, in one order")
    of_all = shared([*a, *b], choice)
    notes = list(of_all.notes)
    comparisons = []
    runs = []
    for first, second in zip(a, b, strict=True):
        runs.append(f"{first.name} -> {second.name}")
    for dataset in of_all.images:
        for metric, protocol in of_all.protocols.items():
            means_a, means_b = [], []
            for first, second in zip(a, b, strict=True):
                of_seed = _compare_two(first, second, dataset, choice.output, metric, of_all)
                means_a.append(of_seed.statistics.mean_a)
                means_b.append(of_seed.statistics.mean_b)
                notes += _not_finite(of_seed)
            lower = metric in of_all.lower
            comparisons.append(
                Comparison(
                    dataset=dataset,
                    output=choice.output,
                    metric=metric,
                    protocol=protocol,
                    baseline=f"{len(a)} runs of --a",
                    result=f"{len(b)} runs of --b",
                    units=tuple(runs),
                    a=tuple(means_a),
                    b=tuple(means_b),
                    statistics=paired(means_a, means_b, lower_is_better=lower),
                    lower_is_better=lower,
                )
            )
    return comparisons, notes


def _compare_two(
    baseline: Result, result: Result, dataset: str, output: str, metric: str, of_all: Shared
) -> Comparison:
    """Compare one metric of two results, image by image or, for a metric of the whole set, by its one value."""
    a = _column(baseline, dataset, output, metric, of_all)
    b = _column(result, dataset, output, metric, of_all)
    lower = metric in of_all.lower
    units: tuple[str, ...] = (WHOLE_SET,)
    if metric not in of_all.of_sets:
        units = tuple(of_all.images[dataset])
    return Comparison(
        dataset=dataset,
        output=output,
        metric=metric,
        protocol=of_all.protocols[metric],
        baseline=baseline.name,
        result=result.name,
        units=units,
        a=a,
        b=b,
        statistics=paired(a, b, lower_is_better=lower),
        lower_is_better=lower,
    )


def _column(result: Result, dataset: str, output: str, metric: str, of_all: Shared) -> tuple[float, ...]:
    """Return the values of one metric, NaN where a row lacks it; of a metric of the whole set its one value."""
    if metric in of_all.of_sets:
        return (result.sets.get(dataset, {}).get(output, {}).get(metric, math.nan),)
    values = []
    for image in of_all.images[dataset]:
        row = result.values[dataset][output][image]
        values.append(row.get(metric, math.nan))
    return tuple(values)


def _not_finite(comparison: Comparison) -> list[str]:
    """Return notes on images that the mean leaves out."""
    c, notes = comparison, []
    for name, values, infinite in (
        (c.baseline, c.a, c.statistics.infinite_a),
        (c.result, c.b, c.statistics.infinite_b),
    ):
        place = f"{c.dataset}, {c.metric}: {name}"
        if infinite:
            notes.append(f"{place}: {infinite} of {len(values)} images infinite, left out of means and intervals")
        bad = []
        for unit, value in zip(c.units, values, strict=True):
            if math.isnan(value):
                bad.append(unit)
        if bad:
            notes.append(f"{place}: NaN for {_first_of(bad)}, left out of everything")
    return notes


def extremes(comparison: Comparison, count: int) -> list[tuple[str, float, float]]:
    """Return (unit, a, b) of the largest differences: up to `count` where b is above a, then as many below."""
    rising, falling = [], []
    for unit, a, b in zip(comparison.units, comparison.a, comparison.b, strict=True):
        if b > a + TIE:
            rising.append((unit, a, b))
        elif b < a - TIE:
            falling.append((unit, a, b))
    rising.sort(key=lambda pair: pair[1] - pair[2])
    falling.sort(key=lambda pair: pair[2] - pair[1])
    return [*rising[:count], *falling[:count]]


def flat_row(comparison: Comparison) -> dict[str, Any]:
    """Return all but the pairs as one flat row, for CSV and JSON; the column of the output is called `stage`."""
    s = comparison.statistics
    return {
        "dataset": comparison.dataset,
        "stage": comparison.output,
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
