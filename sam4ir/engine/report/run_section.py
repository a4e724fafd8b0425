"""The part of a report on runs: curves, best scores, training, environment, options and their differences."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from sam4ir.config.load import option_values
from sam4ir.engine.describe import metric_in_words
from sam4ir.engine.evaluate.report import titled
from sam4ir.engine.report.charts import Curve, line_chart
from sam4ir.engine.report.fingerprint import data_fingerprints
from sam4ir.engine.report.markup import Markup, details, element, joined, table
from sam4ir.engine.report.run_facts import RunFacts
from sam4ir.engine.run_record import REFINER, training_of
from sam4ir.engine.train.step_log import GRADIENT_NORM

_LOSS = "l_"
_UNSET = "-"  # an option that a run lacks, or that is null
_FREE_OPTIONS = ("name", "path")  # first words of keys that differ between any two runs


def run_section(runs: Sequence[RunFacts]) -> Markup:
    """Return the section on runs, '' without one."""
    if not runs:
        return Markup("")
    parts = [element("h2", "Training", id="training")]
    problems = []
    for run in runs:
        problems += [f"{run.name}: {note}" for note in run.notes]
        if run.problem:
            problems.append(f"{run.name}: its options cannot be read: {run.problem}")
    parts.append(notes_list(problems))
    parts += [_best_scores(runs), _facts(runs)]
    parts += [_curves("Validation scores", _validation_charts(runs)), _curves("Losses", _series_charts(runs, _is_loss))]
    parts.append(_curves("Rates and gradient norms", _rate_charts(runs)))
    parts.append(_curves("Measures of the training", _series_charts(runs, _is_measure)))
    parts.append(_options(runs))
    return element("section", *parts, aria_labelledby="training")


def notes_list(notes: Sequence[str]) -> Markup:
    """Return a list of notes, '' without one."""
    if not notes:
        return Markup("")
    return element("ul", *(element("li", note) for note in dict.fromkeys(notes)), class_="notes")


def _best_scores(runs: Sequence[RunFacts]) -> Markup:
    """Return the table of the best validation scores with their iterations."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    heads = {}
    for run in runs:
        for best in run.best:
            place = best.dataset, best.metric
            heads[place] = titled(metric_in_words(best.metric), best.lower_is_better)
            cells.setdefault(place, {})[run.name] = f"{best.value:.4f} at {best.iteration:,} (last: {best.last:.4f})"
    if not cells:
        return Markup("")
    rows = []
    for place, by_run in cells.items():
        rows.append([heads[place], place[0], *(by_run.get(run.name, "-") for run in runs)])
    return joined(
        [
            element("h3", "Best validation scores"),
            table(["metric", "data set", *(run.name for run in runs)], rows, "numbers"),
        ]
    )


def _facts(runs: Sequence[RunFacts]) -> Markup:
    """Return the table of training, environment, data and weights, a column for each run."""
    columns: list[dict[str, str]] = []
    for run in runs:
        facts = {"folder": str(run.folder)}
        if run.options is not None:
            facts |= training_of(run.options)
            facts.pop("run", None)
        facts |= run.environment
        if run.options is not None:
            for name, words in data_fingerprints(run.options).items():
                facts[f"fingerprint of {name}"] = words
        for file in run.weights:
            iteration = "" if file.iteration is None else f"iteration {file.iteration:,}, "
            facts[file.name] = f"{iteration}{file.size:,} bytes, SHA-256 {file.sha256}"
        columns.append(facts)
    names: dict[str, None] = {}
    for facts in columns:
        names.update(dict.fromkeys(facts))
    rows = [[name, *(facts.get(name, "-") for facts in columns)] for name in names]
    body = table(["", *(run.name for run in runs)], rows, "facts")
    return details("Training, environment, data and weights", body, open_=len(runs) == 1)


def _curves(title: str, charts: Sequence[Markup]) -> Markup:
    """Return charts below a title, '' where all are empty."""
    full = [chart for chart in charts if chart]
    if not full:
        return Markup("")
    return joined([element("h3", title), element("div", *full, class_="plots")])


def _validation_charts(runs: Sequence[RunFacts]) -> list[Markup]:
    """Return a chart for each set and metric: each run, and its refiner dashed."""
    curves: dict[tuple[str, str], list[Curve]] = {}
    for number, run in enumerate(runs):
        points: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for validation in run.validations:
            for dataset, values in validation.sets.items():
                for metric, value in values.items():
                    points.setdefault((dataset, metric), []).append((validation.iteration, value))
        for (dataset, metric), line in points.items():
            refiner = metric.endswith(REFINER)
            name = f"{run.name}, refiner" if refiner else run.name
            curve = Curve(name, line, number, dashed=refiner, marked=len(line) <= 40)
            curves.setdefault((dataset, metric.removesuffix(REFINER)), []).append(curve)
    return [line_chart(f"{metric}, {dataset}", group) for (dataset, metric), group in curves.items()]


def _is_loss(name: str) -> bool:
    return name.startswith(_LOSS)


def _is_measure(name: str) -> bool:
    return not name.startswith((_LOSS, GRADIENT_NORM))


def _series_charts(runs: Sequence[RunFacts], wanted: Callable[[str], bool]) -> list[Markup]:
    """Return a chart for each series of the log, with a curve for each run."""
    curves: dict[str, list[Curve]] = {}
    for number, run in enumerate(runs):
        for name, points in run.series.items():
            if wanted(name):
                curves.setdefault(name, []).append(Curve(run.name, points, number))
    return [line_chart(name, group) for name, group in curves.items()]


def _rate_charts(runs: Sequence[RunFacts]) -> list[Markup]:
    """Return the charts of learning rates and of gradient norms."""
    rates: list[Curve] = []
    norms: list[Curve] = []
    for number, run in enumerate(runs):
        for place, (network, points) in enumerate(run.rates.items()):
            rates.append(Curve(f"{run.name}, {network}", points, number, dashed=place > 0))
        networks = [name for name in run.series if name.startswith(GRADIENT_NORM)]
        for place, name in enumerate(networks):
            label = f"{run.name}, net_{name.removeprefix(GRADIENT_NORM)}"
            norms.append(Curve(label, run.series[name], number, dashed=place > 0))
    return [line_chart("learning rate", rates, rates=True), line_chart("gradient norm", norms, rates=True)]


def _options(runs: Sequence[RunFacts]) -> Markup:
    """Return the differences of the runs' options, and the options themselves."""
    parts = [element("h3", "Options")]
    if len(runs) > 1:
        parts.append(_differences(runs))
    for run in runs:
        if run.text:
            parts.append(details(f"options of {run.name}", element("pre", run.text, tabindex="0")))
    return joined(parts)


def _option_text(value: object) -> str:
    """Return the value of an option as YAML has it."""
    if value is None or value == []:
        return _UNSET
    if isinstance(value, str):
        return value
    return json.dumps(value)


def _differences(runs: Sequence[RunFacts]) -> Markup:
    """Return the table of options that differ, but for names and paths."""
    values = []
    for run in runs:
        own: dict[str, str] = {}
        if run.options is not None:
            for place, value in option_values(run.options).items():
                if place[0] not in _FREE_OPTIONS:
                    own[".".join(place)] = _option_text(value)
        values.append(own)
    places: dict[str, None] = {}
    for own in values:
        places.update(dict.fromkeys(own))
    rows = []
    for name in places:
        texts = [own.get(name, _UNSET) for own in values]
        if len(set(texts)) > 1:
            rows.append([name, *texts])
    if not rows:
        return element("p", "The options of the runs differ in name and paths alone.", class_="soft")
    return table(["option that differs", *(run.name for run in runs)], rows, "facts")
