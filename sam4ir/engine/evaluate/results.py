"""Read the results that sam4ir test wrote."""

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
from sam4ir.utils.tables import CsvRow, number_in, read_csv

KNOWN_COLUMNS = ("iter", "dataset", "stage", "image")  # `stage` holds the output
_LARGEST = 1e150  # a score that a file may hold
SAMPLE = "sample"  # column of tables with several samples an image

Values = dict[str, dict[str, dict[str, dict[str, float]]]]  # {dataset: {output: {image: {metric: value}}}}
SetValues = dict[str, dict[str, dict[str, float]]]  # {dataset: {output: {metric: value}}}


class ResultError(UserError):
    """Scores that cannot be read; the message names their file."""


@dataclass(frozen=True)
class Result:
    """Scores of one network. Where an image has several samples, its value is their mean.

    protocols: {metric: definition}; empty where only a CSV is left, with no summary.json beside it.
    sets: values of metrics of whole sets, which a CSV does not hold. lower: metrics where a lower value is better.
    """

    name: str
    protocols: Mapping[str, str]
    values: Values
    sets: SetValues = field(default_factory=dict)
    lower: frozenset[str] = frozenset()

    def metrics(self) -> list[str]:
        """Return the metrics of images, in the result's order."""
        names: dict[str, None] = {}
        for outputs in self.values.values():
            for rows in outputs.values():
                for row in rows.values():
                    names.update(dict.fromkeys(row))
        return list(names)

    def set_metrics(self) -> list[str]:
        """Return the metrics of whole sets, in the result's order."""
        names: dict[str, None] = {}
        for outputs in self.sets.values():
            for row in outputs.values():
                names.update(dict.fromkeys(row))
        return list(names)

    def outputs(self) -> set[str]:
        """Return the names of the outputs of all data sets."""
        names: set[str] = set()
        for outputs in self.values.values():
            names.update(outputs)
        for set_outputs in self.sets.values():
            names.update(set_outputs)
        return names

    def images(self, output: str) -> dict[tuple[str, str], Mapping[str, float]]:
        """Return {(dataset, image): {metric: value}} of an output, in the result's order."""
        images: dict[tuple[str, str], Mapping[str, float]] = {}
        for dataset, outputs in self.values.items():
            for image, row in outputs.get(output, {}).items():
                images[dataset, image] = row
        return images


def read_results(paths: Sequence[Path]) -> list[Result]:
    """Read results by their folders or files; named after the folders, or by whole paths where these agree."""
    names = [_folder_of(path).resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    results: list[Result] = []
    for path, name in zip(paths, names, strict=True):
        earlier = names[: len(results)].count(name)
        if earlier:
            name = f"{name} ({earlier + 1})"
        results.append(read_result(path, name))
    return results


def _folder_of(path: Path) -> Path:
    """Return a folder itself, and the folder of a file."""
    if path.is_dir():
        return path
    return path.parent


def read_result(path: Path, name: str) -> Result:
    """Read results/<name> of sam4ir test, its summary.json or metrics.csv, or a validation.csv (last iteration)."""
    if path.is_dir():
        return read_result(_file_in(path), name)
    if not path.is_file():
        raise ResultError(f"{path}: no such file or folder; name a results/<name> folder of sam4ir test")
    summary = _Summary({}, {})
    if path.suffix == ".json":
        summary, values = _read_summary(path)
    elif path.suffix == ".csv":
        beside = path.with_name("summary.json")
        if path.name == "metrics.csv" and beside.is_file():
            summary = _read_summary(beside)[0]
        values = _read_table(path)
    else:
        raise ResultError(f"{path}: expected a results/<name> folder, its summary.json or its metrics.csv")
    result = Result(name, summary.protocols, values, summary.sets)
    names = [*result.metrics(), *result.set_metrics()]
    if not names:
        raise ResultError(f"{path}: holds no scores; was the test set without ground truth, or val.metrics empty?")
    if summary.lower is None:
        return replace(result, lower=_lower_by_type(names))
    return replace(result, lower=frozenset(summary.lower))


def _file_in(folder: Path) -> Path:
    """Return the file of a results/<name> folder that holds its scores."""
    for file in (folder / "summary.json", folder / "metrics.csv"):
        if file.is_file():
            return file
    several = sorted(file.parent.name for file in folder.glob("*/summary.json"))
    if several:
        names = ", ".join(several)
        raise ResultError(f"{folder}: holds results of several weights; name one of its folders: {names}")
    raise ResultError(f"{folder}: holds neither summary.json nor metrics.csv; name a results/<name> folder")


class _Summary(NamedTuple):
    """The content of a summary.json beside the values of images. lower: None where an older file lacks it."""

    protocols: dict[str, str]
    sets: SetValues
    lower: Sequence[str] | None = None


def read_summary(path: Path) -> dict[str, Any]:
    """Return the content of a summary.json of sam4ir test. Raises ResultError for any other file."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _no_summary(path, error) from error
    if not isinstance(summary, dict):
        raise ResultError(f"{path}: is no whole summary.json of sam4ir test (a {type(summary).__name__})")
    return summary


def _no_summary(path: Path, error: Exception) -> ResultError:
    return ResultError(f"{path}: is no whole summary.json of sam4ir test ({type(error).__name__}: {error})")


def _read_summary(path: Path) -> tuple[_Summary, Values]:
    """Return the content of a summary.json, and its values of images."""
    content = read_summary(path)
    try:
        protocols = {}
        for metric, text in content["protocols"].items():
            protocols[str(metric)] = str(text)
        values: Values = {}
        for dataset, images in content["images"].items():
            for image, outputs in images.items():
                for output, row in outputs.items():
                    values.setdefault(dataset, {}).setdefault(output, {})[image] = numbers_of(row)
        lower = content.get("lower_is_better")
        if lower is not None:
            lower = [str(metric) for metric in lower]
        summary = _Summary(protocols, _set_values(content), lower)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise _no_summary(path, error) from error
    return summary, values


def _set_values(summary: Mapping[str, Any]) -> SetValues:
    """Return the values of metrics of whole sets, which a summary lists among the means."""
    of_sets = set(summary.get("of_sets", ()))
    values: SetValues = {}
    if not of_sets:
        return values
    for dataset, outputs in summary.get("mean", {}).items():
        for output, row in outputs.items():
            for metric, value in row.items():
                if metric in of_sets:
                    values.setdefault(dataset, {}).setdefault(output, {})[metric] = _score(float(value))
    return values


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of a summary as numbers: JSON holds infinity and NaN as texts.

    Raises ValueError for what is no score, TypeError for what is no number.
    """
    return {metric: _score(float(value)) for metric, value in row.items()}


def _score(value: float) -> float:
    """Return a score. Raises ValueError for a finite number so large that no metric gives it."""
    if _LARGEST < abs(value) < math.inf:
        raise ValueError(f"{value:g} is no score")
    return value


def _lower_by_type(names: Sequence[str]) -> frozenset[str]:
    """Return the metrics, named as their type is, where a lower value is better; for results without a summary."""
    lower = set()
    for name in names:
        if name in METRICS and traits_of(METRICS.get(name)).lower_is_better:
            lower.add(name)
    return frozenset(lower)


def _read_table(path: Path) -> Values:
    """Return the values of a metrics.csv of sam4ir test, or of the last iteration in a validation.csv."""
    samples: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}
    for line, row in _last_iteration(path, _rows(path)):
        place = (row["dataset"] or "", row["stage"] or "", row["image"] or "")
        of_image = samples.setdefault(place, {})
        sample = row.get(SAMPLE) or ""
        if sample in of_image:
            raise ResultError(f"{path}: line {line}: {row['dataset']}/{row['image']}, {row['stage']} is there twice")
        of_image[sample] = {}
        for metric, text in row.items():
            if metric not in (*KNOWN_COLUMNS, SAMPLE) and text != "":
                of_image[sample][metric] = _number(path, line, metric, text)
    values: Values = {}
    for (dataset, output, image), of_image in samples.items():
        values.setdefault(dataset, {}).setdefault(output, {})[image] = _mean(list(of_image.values()))
    return values


def _last_iteration(path: Path, rows: list[CsvRow]) -> list[CsvRow]:
    """Return the rows of the last iteration; all rows of a table without iterations."""
    if not rows or "iter" not in rows[0].cells:
        return rows
    by_iteration: dict[float, list[CsvRow]] = {}
    for line, row in rows:
        iteration = _number(path, line, "iter", row["iter"])
        by_iteration.setdefault(iteration, []).append(CsvRow(line, row))
    return by_iteration[max(by_iteration)]


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over the samples of an image."""
    means = {}
    for metric in rows[0]:
        values = []
        for row in rows:
            values.append(row.get(metric, math.nan))
        total = sum(values)
        if math.isfinite(total):
            total = math.fsum(values)  # which adds no infinities
        means[metric] = total / len(values)
    return means


def _rows(path: Path) -> list[CsvRow]:
    """Return the rows of a table of scores."""
    try:
        table = read_csv(path)
    except csv.Error as error:
        raise ResultError(f"{path}: is no table of text ({error})") from error
    missing = [column for column in KNOWN_COLUMNS[1:] if column not in table.columns]
    if missing:
        raise ResultError(f"{path}: has no column {', '.join(missing)}; expected a metrics.csv of sam4ir test")
    return table.rows


def _number(path: Path, line: int, metric: str, text: str | None) -> float:
    try:
        return _score(number_in(text or ""))
    except ValueError:
        raise ResultError(f"{path}: line {line}: {metric}: {text!r} is no number") from None
