"""Results that test.py wrote, read back."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from sam4ir.errors import UserError
from sam4ir.metrics.kinds import traits_of
from sam4ir.registry import METRICS

KNOWN_COLUMNS = ("iter", "dataset", "stage", "image")
SAMPLE = "sample"  # of tables with several samples an image

Values = dict[str, dict[str, dict[str, dict[str, float]]]]  # {dataset: {stage: {image: {metric: value}}}}
SetValues = dict[str, dict[str, dict[str, float]]]  # {dataset: {stage: {metric: value}}}


class ResultError(UserError):
    """Scores that cannot be read; the message names their file."""


@dataclass(frozen=True)
class Result:
    """Scores of one network. Of several samples an image its value is their mean.

    protocols: {metric: definition}; empty where only a CSV is left, with no summary.json beside it.
    sets: values of metrics of whole sets, which a CSV does not hold. lower: metrics of which less is better.
    """

    name: str
    protocols: Mapping[str, str]
    values: Values
    sets: SetValues = field(default_factory=dict)
    lower: frozenset[str] = frozenset()

    def metrics(self) -> list[str]:
        """Names of the metrics of images, in the result's order."""
        images = (row for stages in self.values.values() for rows in stages.values() for row in rows.values())
        return list(dict.fromkeys(metric for row in images for metric in row))

    def set_metrics(self) -> list[str]:
        """Names of the metrics of whole sets, in the result's order."""
        rows = (row for stages in self.sets.values() for row in stages.values())
        return list(dict.fromkeys(metric for row in rows for metric in row))

    def stages(self) -> set[str]:
        """Names of the stages of any data set."""
        return {stage for held in (self.values, self.sets) for stages in held.values() for stage in stages}

    def images(self, stage: str) -> dict[tuple[str, str], Mapping[str, float]]:
        """{(dataset, image): {metric: value}} of a stage, in the result's order."""
        return {
            (dataset, image): row
            for dataset, stages in self.values.items()
            for image, row in stages.get(stage, {}).items()
        }


def read_results(paths: Sequence[Path]) -> list[Result]:
    """Results by their folders or files, named after the folder, or by the whole path where folders share a name."""
    names = [(path if path.is_dir() else path.parent).resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    read: list[Result] = []
    for path, name in zip(paths, names, strict=True):
        again = names[: len(read)].count(name)
        read.append(read_result(path, f"{name} ({again + 1})" if again else name))
    return read


def read_result(path: Path, name: str) -> Result:
    """A results/<name> folder of test.py, its summary.json or metrics.csv, or a validation.csv (last iteration)."""
    if path.is_dir():
        for file in (path / "summary.json", path / "metrics.csv"):
            if file.is_file():
                return read_result(file, name)
        several = ", ".join(sorted(file.parent.name for file in path.glob("*/summary.json")))
        if several:
            raise ResultError(f"{path}: holds results of several weights; name one of its folders: {several}")
        raise ResultError(f"{path}: holds neither summary.json nor metrics.csv; name a results/<name> folder")
    if not path.is_file():
        raise ResultError(f"{path}: no such file or folder; name a results/<name> folder of test.py")
    told = _Told({}, {})
    if path.suffix == ".json":
        told, values = _of_summary(path)
    elif path.suffix == ".csv":
        beside = path.with_name("summary.json")
        if path.name == "metrics.csv" and beside.is_file():
            told = _of_summary(beside)[0]
        values = _of_table(path)
    else:
        raise ResultError(f"{path}: expected a results/<name> folder, its summary.json or its metrics.csv")
    result = Result(name, told.protocols, values, told.sets)
    names = [*result.metrics(), *result.set_metrics()]
    if not names:
        raise ResultError(f"{path}: holds no scores; was the test set without ground truth, or val.metrics empty?")
    return replace(result, lower=_known_lower(names) if told.lower is None else frozenset(told.lower))


class _Told(NamedTuple):
    """What a summary tells beside the values of images. lower: None where an older one does not tell it."""

    protocols: dict[str, str]
    sets: SetValues
    lower: Sequence[str] | None = None


def read_summary(path: Path) -> dict[str, Any]:
    """What a summary.json of test.py holds. Raises ResultError for what is none."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{path}: is no whole summary.json of test.py ({type(error).__name__}: {error})") from error
    if not isinstance(summary, dict):
        raise ResultError(f"{path}: is no whole summary.json of test.py (a {type(summary).__name__})")
    return summary


def _of_summary(path: Path) -> tuple[_Told, Values]:
    """(what it tells, values of images) of test.py's summary.json."""
    summary = read_summary(path)
    try:
        protocols = {str(metric): str(text) for metric, text in summary["protocols"].items()}
        values: Values = {}
        for dataset, images in summary["images"].items():
            for image, stages in images.items():
                for stage, row in stages.items():
                    numbers = {metric: float(value) for metric, value in row.items()}
                    values.setdefault(dataset, {}).setdefault(stage, {})[image] = numbers
        told = _Told(protocols, _sets(summary), summary.get("lower_is_better"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultError(f"{path}: is no whole summary.json of test.py ({type(error).__name__}: {error})") from error
    return told, values


def _sets(summary: Mapping[str, Any]) -> SetValues:
    """The values of metrics of whole sets, which stand among the means."""
    of_sets = set(summary.get("of_sets", ()))
    found: SetValues = {}
    for dataset, stages in summary.get("mean", {}).items() if of_sets else ():
        for stage, row in stages.items():
            numbers = {metric: float(value) for metric, value in row.items() if metric in of_sets}
            if numbers:
                found.setdefault(dataset, {})[stage] = numbers
    return found


def _known_lower(names: Sequence[str]) -> frozenset[str]:
    """Of metrics whose summary is not there: those of which less is better by the name of their type."""
    return frozenset(name for name in names if name in METRICS and traits_of(METRICS.get(name)).lower_is_better)


def _of_table(path: Path) -> Values:
    """The values of test.py's metrics.csv, or of the last iteration in a validation.csv."""
    rows = _rows(path)
    if rows and "iter" in rows[0][1]:
        iterations = [_number(path, line, "iter", row["iter"]) for line, row in rows]
        rows = [row for row, iteration in zip(rows, iterations, strict=True) if iteration == max(iterations)]
    several = bool(rows) and SAMPLE in rows[0][1]
    samples: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}
    for line, row in rows:
        place = row["dataset"], row["stage"], row["image"]
        of_image, sample = samples.setdefault(place, {}), row[SAMPLE] if several else ""
        if sample in of_image:
            raise ResultError(f"{path}: line {line}: {row['dataset']}/{row['image']}, {row['stage']} is there twice")
        cells = {m: v for m, v in row.items() if m not in (*KNOWN_COLUMNS, SAMPLE) and v != ""}
        of_image[sample] = {m: _number(path, line, m, v) for m, v in cells.items()}
    values: Values = {}
    for (dataset, stage, image), of_image in samples.items():
        values.setdefault(dataset, {}).setdefault(stage, {})[image] = _mean(list(of_image.values()))
    return values


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over the samples of an image."""
    return {m: math.fsum(row.get(m, math.nan) for row in rows) / len(rows) for m in rows[0]}


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, cells by column) of a table of scores."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [column for column in KNOWN_COLUMNS[1:] if column not in (reader.fieldnames or ())]
            rows = [(reader.line_num, row) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ResultError(f"{path}: is no table of text ({error})") from error
    if missing:
        raise ResultError(f"{path}: has no column {', '.join(missing)}; expected a metrics.csv of test.py")
    return rows


def _number(path: Path, line: int, metric: str, text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        raise ResultError(f"{path}: line {line}: {metric}: {text!r} is no number") from None
