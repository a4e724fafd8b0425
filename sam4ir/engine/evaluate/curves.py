"""Scores of several weights, such as every checkpoint of a run: a folder of results each, a table, curves.

The table is a function of the summaries in results/<name>/<weights>/, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam4ir.config.schema import Options
from sam4ir.engine import build
from sam4ir.engine.evaluate.chart import Line, chart
from sam4ir.engine.evaluate.published import origin, rows_of
from sam4ir.engine.evaluate.report import BASELINES, columns, titled
from sam4ir.engine.evaluate.results import ResultError, read_summary
from sam4ir.engine.evaluate.score import (
    ResultsExistError,
    TestBed,
    begin,
    build_test_bed,
    published_table,
    saved_text,
    write,
)
from sam4ir.engine.weights import locate
from sam4ir.errors import UserError
from sam4ir.utils.dist import World
from sam4ir.utils.files import atomic, read_text, write_text
from sam4ir.utils.image import write_image

log = logging.getLogger(__name__)

_CHECKPOINT = re.compile(r"net_g_(\d+)\.pth")
_ITERATION = re.compile(r"(?:net_\w+|iter|model|model_ckpt_steps)_(\d+)")
CHUNK = 1 << 20


class WeightsListError(UserError):
    """Weights to score that are not there."""


@dataclass(frozen=True)
class Candidate:
    """Weights to score: what the user named, the name of their results, and the iteration that the name tells."""

    source: str
    name: str
    iteration: int | None


@dataclass(frozen=True)
class Point:
    """What the summary of one candidate tells. means: {dataset: {stage: {metric: value}}}."""

    name: str
    iteration: int | None
    means: Mapping[str, Mapping[str, Mapping[str, float]]]
    protocols: Mapping[str, str]
    lower: Sequence[str]


def with_weights(options: Options, source: str) -> Options:
    """The options with other weights (a file or a name of the zoo)."""
    return options.model_copy(update={"path": options.path.model_copy(update={"pretrain_network_g": source})})


def checkpoints(folder: Path) -> list[str]:
    """net_g_<iteration>.pth of a run, experiments/<name> or its models folder, by iteration.

    Raises WeightsListError where there is none.
    """
    models = folder / "models" if (folder / "models").is_dir() else folder
    found = {int(m.group(1)): path for path in models.glob("net_g_*.pth") if (m := _CHECKPOINT.fullmatch(path.name))}
    if not found:
        raise WeightsListError(
            f"--checkpoints {folder}: holds no net_g_<iteration>.pth; name experiments/<name> of a run"
        )
    return [str(path) for _, path in sorted(found.items())]


def candidates(sources: Sequence[str]) -> list[Candidate]:
    """Weights with names that differ: of the file, and of as many folders above it as it takes.

    Raises WeightsListError for one that is named twice, and for a file that is not there.
    """
    files = [locate(source) for source in sources]
    for source, file in zip(sources, files, strict=True):
        if not file.is_file():
            raise WeightsListError(f"--weights {source}: no such file")
    if len({file.resolve() for file in files}) < len(files):
        raise WeightsListError(f"--weights {' '.join(sources)}: names a file twice")
    parts = [file.resolve().with_suffix("").parts for file in files]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    names = [_file_name("_".join(p for p in part[-depth:] if p != "/")) for part in parts]
    return [Candidate(s, n, _iteration(p[-1])) for s, n, p in zip(sources, names, parts, strict=True)]


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+-]", "_", text)


def _iteration(stem: str) -> int | None:
    found = _ITERATION.fullmatch(stem)
    return int(found.group(1)) if found else None


def score_all(options: Options, sources: Sequence[str], overwrite: bool = False, world: World = build.ALONE) -> str:
    """Score weights one after the other; returns the table that is also written.

    sources: files or names of the zoo. What results/<name> holds already is not scored again unless `overwrite`.
    Writes results/<name>/{curve.csv, curve.txt, curve_<metric>.png, options.yml}, and below it for each of the weights
    a folder with what `score` writes. Raises ValueError as `score`, and where a file changed since it was scored.
    """
    own = options.model_copy(update={"path": options.path.model_copy(update={"pretrain_network_g": None})})
    folder, text = build.run_paths(options).results, saved_text(own)
    begin(options, folder, text, overwrite, world)
    listed = candidates(sources)
    due: list[Candidate] = []

    def decide() -> None:
        if overwrite:
            _forget(folder, listed, text)
        due.extend(_due(folder, listed))
        write_text(folder / "options.yml", text)

    world.main_first(decide)
    due = world.from_main(due)
    if due:
        _score_due(own, due, folder, world)
    if not world.main:
        return ""
    table = _publish(folder, options)
    return f"{table}results: {folder}\n"


def _score_due(options: Options, due: Sequence[Candidate], folder: Path, world: World) -> None:
    on = build_test_bed(options, world)
    for number, candidate in enumerate(due, 1):
        log.info("%s, %d of %d.", candidate.source, number, len(due))
        _score_one(on, candidate, folder / candidate.name)
        if world.main:
            _publish(folder, options)


def _score_one(on: TestBed, candidate: Candidate, folder: Path) -> None:
    found = on.score(with_weights(on.options, candidate.source), folder, candidate.name)
    if on.world.main:
        write(folder, found, on.metrics, on.published(found), _origin(candidate))


def _origin(candidate: Candidate) -> dict[str, str]:
    """What a summary says of its weights: enough to see whether a file of that name is still the same."""
    digest = hashlib.sha256()
    with locate(candidate.source).open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return {"source": candidate.source, "sha256": digest.hexdigest()}


def _forget(folder: Path, listed: Sequence[Candidate], text: str) -> None:
    """Remove summaries that are to be made anew: those of the list, and all where the options were others."""
    known = folder / "options.yml"
    same = known.is_file() and read_text(known) == text
    names = {candidate.name for candidate in listed}
    for summary in folder.glob("*/summary.json"):
        if not same or summary.parent.name in names:
            summary.unlink()


def _due(folder: Path, listed: Sequence[Candidate]) -> list[Candidate]:
    """Those without a summary. Raises ResultsExistError where one is of another file."""
    due = []
    for candidate in listed:
        summary = folder / candidate.name / "summary.json"
        if not summary.is_file():
            due.append(candidate)
        elif read_summary(summary).get("weights", {}).get("sha256") != _origin(candidate)["sha256"]:
            raise ResultsExistError(
                f"{summary.parent}: holds scores of another file than {candidate.source} is now. Nothing was changed. "
                "Add --overwrite to replace them"
            )
        else:
            log.info("%s is scored already.", candidate.source)
    return due


def _publish(folder: Path, options: Options) -> str:
    """Write curve.csv, curve.txt and the pictures of all summaries; returns the text."""
    points = _points(folder)
    lower = {metric for point in points for metric in point.lower}
    metrics = list(dict.fromkeys(row[3] for row in _rows(points)))
    with atomic(folder / "curve.csv") as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["iter", "weights", "dataset", "stage", "metric", "value"])
        for point in points:
            iteration = "" if point.iteration is None else str(point.iteration)
            writer.writerows([iteration, *row] for row in _rows([point]))
    for metric in metrics:
        if picture := _picture(points, metric, metric in lower):
            write_image(folder / f"curve_{_file_name(metric)}.png", chart(*picture))
    text = _text(points, metrics, lower, options)
    write_text(folder / "curve.txt", text)
    return text


def _points(folder: Path) -> list[Point]:
    """The points of all summaries, by iteration and then by name."""
    points = []
    for path in sorted(folder.glob("*/summary.json")):
        summary = read_summary(path)
        if "weights" not in summary:
            continue
        name = path.parent.name
        try:
            means, protocols = _numbers(summary["mean"]), dict(summary["protocols"])
            iteration = _iteration(Path(summary["weights"]["source"]).stem)
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise ResultError(f"{path}: is no whole summary.json of test.py ({error})") from error
        points.append(Point(name, iteration, means, protocols, summary.get("lower_is_better", ())))
    return sorted(points, key=lambda p: (p.iteration is None, p.iteration or 0, p.name))


def _numbers(means: Any) -> dict[str, dict[str, dict[str, float]]]:
    return {d: {s: {m: float(v) for m, v in row.items()} for s, row in stages.items()} for d, stages in means.items()}


def _rows(points: Sequence[Point]) -> Iterator[tuple[str, str, str, str, float]]:
    """(weights, dataset, stage, metric, value)"""
    for point in points:
        for dataset, stages in point.means.items():
            for stage, row in stages.items():
                for metric, value in row.items():
                    yield point.name, dataset, stage, metric, value


def _text(points: Sequence[Point], metrics: Sequence[str], lower: set[str], options: Options) -> str:
    """A table a data set: first what no network had a part in, then the weights, the best value marked with *.

    Published figures, where the options ask for them, come last.
    """
    table = published_table(options)
    protocols = {metric: text for point in points for metric, text in point.protocols.items()}
    lines = []
    datasets = dict.fromkeys(dataset for point in points for dataset in point.means)
    for dataset in datasets:
        rows = [(point, stage, row) for point in points for stage, row in point.means.get(dataset, {}).items()]
        own = [(point.name, stage, row) for point, stage, row in rows if stage not in BASELINES]
        without = {stage: ("-", stage, row) for _, stage, row in rows if stage in BASELINES}
        best = {(s, m): _best([row for _, t, row in own if t == s], m, m in lower) for _, s, _ in own for m in metrics}
        cells = [["weights", "stage", *(titled(m, m in lower) for m in metrics)]]
        for name, stage, row in [*without.values(), *own]:
            values = [_cell(row.get(m), row.get(m) == best.get((stage, m))) for m in metrics]
            cells.append([name, stage, *values])
        for method, row in rows_of(table, dataset, protocols).items() if table is not None else ():
            cells.append([method, "published", *(_cell(row.get(m), False) for m in metrics)])
        lines += [dataset, *columns(cells), ""]
    lines += [f"{metric}: {text}" for metric, text in protocols.items()]
    return "\n".join([*lines, *(["", *origin(table, options.scale)] if table is not None else [])]) + "\n"


def _cell(value: float | None, best: bool) -> str:
    return "-" if value is None else f"{value:.4f}{' *' if best else ''}"


def _best(rows: Sequence[Mapping[str, float]], metric: str, lower: bool) -> float | None:
    """The best value of several, None of one."""
    values = [row[metric] for row in rows if metric in row and not math.isnan(row[metric])]
    return (min(values) if lower else max(values)) if len(values) > 1 else None


def _picture(points: Sequence[Point], metric: str, lower: bool) -> tuple[str, str, list[Line], list[str]] | None:
    """What `chart` draws of a metric: a line a data set and stage; None where there is nothing to draw."""
    iterations = {point.iteration for point in points}
    by_iteration = None not in iterations and len(iterations) == len(points)
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for number, point in enumerate(points):
        x = float(point.iteration or 0) if by_iteration else float(number)
        for _, dataset, stage, name, value in _rows([point]):
            if name == metric and math.isfinite(value):
                lines.setdefault((dataset, stage), []).append((x, value))
    if not lines:
        return None
    drawn = [Line(f"{d} {s}", values, dashed=s in BASELINES) for (d, s), values in lines.items()]
    names = [] if by_iteration else [point.name for point in points]
    return f"{metric} ({'lower' if lower else 'higher'} is better)", "iteration" if by_iteration else "", drawn, names
