"""The report of a study: a text for the terminal, JSON, and one HTML file."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sam4ir.engine.evaluate.report import columns
from sam4ir.engine.report.charts import Curve, line_chart
from sam4ir.engine.report.markup import Markup, element, table
from sam4ir.engine.report.page import whole_page
from sam4ir.engine.report.run_section import notes_list
from sam4ir.engine.study.findings import ArmFinding, ComparisonFinding, StudyFindings
from sam4ir.engine.study.scores import RunScores
from sam4ir.engine.study.statistics import MOST_SEEDS, SeedDifference

_ARMS = ("arm", "seeds", "mean", "sd", "headroom", "masks of the", "steps", "s a step", "hours")
_DIFFERENCES = (
    "better - than",
    "seeds",
    "difference",
    "interval (t)",
    "seeds and images",
    "p (Holm)",
    "more seeds",
    "says",
)


def study_text(findings: StudyFindings) -> str:
    """Return the report for a terminal."""
    study = findings.scores.plan.study
    lines = [f"Study {study.name}: {study.score.metric} of the {study.score.output} images"]
    lines.append(f"{study.score.metric}: {findings.scores.protocol}; {len(findings.scores.images())} images")
    lines += ["", *columns([_ARMS, *map(_arm_cells, findings.arms)])]
    if findings.comparisons:
        rows = [_difference_cells(each) for each in findings.comparisons]
        lines += ["", *columns([_DIFFERENCES, *rows])]
        lines += ["", *_explanations(findings)]
    for each in findings.comparisons:
        if each.bands:
            lines += ["", f"{_pair(each)} by part of the images, not corrected:"]
            lines += columns([("part", "difference", "interval (t)"), *_band_rows(each)])
    if findings.stop:
        lines += ["", findings.stop]
    if findings.notes:
        lines += ["", *(f"note: {note}" for note in findings.notes)]
    return "\n".join(lines) + "\n"


def _explanations(findings: StudyFindings) -> list[str]:
    study = findings.scores.plan.study
    count = len(study.comparisons)
    level = f"{study.alpha:g}"
    if count > 1:
        level = f"{study.alpha:g} / {count}, at which Holm's correction begins"
    return [
        "Differences are paired by seed, on the images that all runs have scored. Interval (t): "
        f"{_share(study.alpha)}, over seeds; it decides. Seeds and images: a bootstrap of both, for other images of "
        f"the same kind; with 3 seeds it covers less than the {_share(study.alpha)} that it is made for, so it is "
        "shown only.",
        f"p is two-sided, with Holm's correction over {count} declared comparisons. More seeds: beside those there "
        f"are, to see a difference that matters with probability {study.power:g}, by a test at {level}.",
    ]


def _share(alpha: float) -> str:
    """Return what an interval covers, such as '95 %'."""
    return f"{100 * (1 - alpha):g} %"


def _arm_cells(arm: ArmFinding) -> tuple[str, ...]:
    headroom = "-"
    if arm.headroom:
        values = list(arm.headroom.values())
        headroom = f"{sum(values) / len(values):+.3f}"
    return (
        arm.arm,
        str(len(arm.means)),
        f"{arm.mean:.4f}",
        _number(arm.deviation, ".4f"),
        headroom,
        arm.masks or "-",
        f"{arm.iterations:,}",
        _number(arm.step, ".3g"),
        f"{arm.hours:.2f}",
    )


def _pair(each: ComparisonFinding) -> str:
    return f"{each.declared.better} - {each.declared.than}"


def _difference_cells(each: ComparisonFinding) -> tuple[str, ...]:
    difference = each.difference
    if difference is None:
        return (_pair(each), "0", "-", "-", "-", "-", "-", "no seed has both")
    more = "-"
    if difference.seeds > 1:
        more = f"over {MOST_SEEDS}" if difference.more_seeds is None else str(difference.more_seeds)
    return (
        _pair(each),
        str(difference.seeds),
        f"{difference.mean:+.4f}",
        _interval(difference.low, difference.high),
        _interval(difference.both_low, difference.both_high),
        _number(each.corrected, ".3g"),
        more,
        _said(each),
    )


def _said(each: ComparisonFinding) -> str:
    """Return the verdict in words."""
    matters = f"{each.declared.matters:g}"
    words = {
        "one seed": "nothing: one seed",
        "better": "better",
        "worse": "worse",
        "too small to matter": f"smaller than {matters} either way",
        "not decided": f"not decided (would see {_number(_visible(each.difference), '.2g')}; {matters} matters)",
    }
    return words[each.verdict or "not decided"]


def _visible(difference: SeedDifference | None) -> float:
    return math.nan if difference is None else difference.visible


def _interval(low: float, high: float) -> str:
    if math.isnan(low):
        return "-"
    return f"[{low:+.4f}, {high:+.4f}]"


def _number(value: float, form: str) -> str:
    if math.isnan(value):
        return "-"
    return format(value, form)


def _band_rows(each: ComparisonFinding) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for part, difference in each.bands.items():
        rows.append((part, f"{difference.mean:+.4f}", _interval(difference.low, difference.high)))
    return rows


def study_json(findings: StudyFindings) -> str:
    """Return all figures as JSON; a number that is none is null."""
    scores = findings.scores
    arms: dict[str, Any] = {}
    for arm in findings.arms:
        arms[arm.arm] = dataclasses.asdict(arm)
        runs = scores.by_arm[arm.arm]
        arms[arm.arm]["images"] = {}
        for seed, run in runs.items():
            arms[arm.arm]["images"][seed] = {f"{name}/{image}": value for (name, image), value in run.values.items()}
    comparisons = []
    for each in findings.comparisons:
        comparisons.append(
            {
                "better": each.declared.better,
                "than": each.declared.than,
                "matters": each.declared.matters,
                "seen": None if each.difference is None else dataclasses.asdict(each.difference),
                "corrected": each.corrected,
                "verdict": each.verdict,
                "bands": {part: dataclasses.asdict(difference) for part, difference in each.bands.items()},
            }
        )
    content = {
        "study": scores.plan.study.model_dump(mode="json"),
        "protocol": scores.protocol,
        "lower_is_better": scores.lower_is_better,
        "arms": arms,
        "comparisons": comparisons,
        "stop": findings.stop,
        "missing": list(scores.missing),
        "notes": list(findings.notes),
    }
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Return plain values with null in place of numbers that JSON has not."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return value


def study_page(findings: StudyFindings) -> str:
    """Return the report as an HTML document."""
    study = findings.scores.plan.study
    parts = [element("h2", "Scores", id="scores")]
    if study.note:
        parts.append(element("p", study.note))
    if findings.stop:
        parts.append(element("p", element("strong", findings.stop)))
    parts.append(notes_list(findings.notes))
    count = len(findings.scores.images())
    words = f"{study.score.metric} of the {study.score.output} images: {findings.scores.protocol}; {count} images."
    parts.append(element("p", words, class_="soft"))
    parts.append(table(_ARMS, map(_arm_cells, findings.arms), "numbers"))
    seeds = study.all_seeds
    parts.append(element("h3", "Each seed"))
    rows = []
    for arm in findings.arms:
        rows.append((arm.arm, *(_number(arm.means.get(seed, math.nan), ".4f") for seed in seeds)))
    parts.append(table(("arm", *(f"seed {seed}" for seed in seeds)), rows, "numbers"))
    if findings.comparisons:
        parts.append(element("h3", "Declared comparisons"))
        cells = [_difference_cells(each) for each in findings.comparisons]
        parts.append(table(_DIFFERENCES, cells, "numbers"))
        parts += [element("p", line, class_="soft") for line in _explanations(findings)]
    for each in findings.comparisons:
        if each.bands:
            parts.append(element("h3", f"{_pair(each)}, by part of the images"))
            parts.append(table(("part", "difference", "interval (t)"), _band_rows(each), "numbers"))
    scores = element("section", *parts, aria_labelledby="scores")
    return whole_page(f"Study {study.name}", [scores, _curves(findings)])


def _curves(findings: StudyFindings) -> Markup:
    """Return the section of curves: the metric by steps, and by hours of training."""
    score = findings.scores.plan.study.score
    key = score.metric + ("_refiner" if score.output == "refined" else "")
    by_steps, by_time = [], []
    for colour, (arm, runs) in enumerate(findings.scores.by_arm.items()):
        points = _mean_curve(list(runs.values()), key)
        by_steps.append(Curve(arm, points, colour))
        hours = [run.seconds / 3600 / run.iterations for run in runs.values() if run.seconds is not None]
        if hours:
            pace = sum(hours) / len(hours)
            by_time.append(Curve(arm, [(at * pace, value) for at, value in points], colour))
    charts = [
        line_chart(f"{key}, mean over seeds, by iteration", by_steps),
        line_chart(f"{key}, mean over seeds, by hours of training", by_time, below="hours"),
    ]
    if not any(charts):
        return Markup("")
    return element(
        "section",
        element("h2", "Training", id="training"),
        element("div", *charts, class_="plots"),
        aria_labelledby="training",
    )


def _mean_curve(runs: Sequence[RunScores], key: str) -> list[tuple[float, float]]:
    """Return (iteration, mean over runs and data sets) of the validations that all runs have."""
    values: dict[int, list[float]] = {}
    for run in runs:
        for means in run.curve:
            of_sets = [value[key] for value in means.sets.values() if key in value]
            if of_sets:
                values.setdefault(means.iteration, []).append(sum(of_sets) / len(of_sets))
    points = []
    for iteration in sorted(values):
        if len(values[iteration]) == len(runs):
            points.append((float(iteration), sum(values[iteration]) / len(runs)))
    return points
