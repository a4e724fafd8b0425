"""Results that test.py wrote, read back."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KNOWN_COLUMNS = ("iter", "dataset", "stage", "image")

Values = dict[str, dict[str, dict[str, dict[str, float]]]]  # {dataset: {stage: {image: {metric: value}}}}


class ResultError(ValueError):
    """Scores that cannot be read; the message names their file."""


@dataclass(frozen=True)
class Result:
    """Scores of one network.

    protocols: {metric: definition}; empty where only a CSV is left, with no summary.json beside it.
    """

    name: str
    protocols: Mapping[str, str]
    values: Values

    def metrics(self) -> list[str]:
        """Names of the metrics, in the result's order."""
        images = (row for stages in self.values.values() for rows in stages.values() for row in rows.values())
        return list(dict.fromkeys(metric for row in images for metric in row))

    def stages(self) -> set[str]:
        """Names of the stages of any data set."""
        return {stage for stages in self.values.values() for stage in stages}

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
        raise ResultError(f"{path}: holds neither summary.json nor metrics.csv; name a results/<name> folder")
    if not path.is_file():
        raise ResultError(f"{path}: no such file or folder; name a results/<name> folder of test.py")
    if path.suffix == ".json":
        protocols, values = _of_summary(path)
    elif path.suffix == ".csv":
        beside = path.with_name("summary.json")
        told = path.name == "metrics.csv" and beside.is_file()
        protocols, values = _of_summary(beside)[0] if told else {}, _of_table(path)
    else:
        raise ResultError(f"{path}: expected a results/<name> folder, its summary.json or its metrics.csv")
    result = Result(name, protocols, values)
    if not result.metrics():
        raise ResultError(f"{path}: holds no scores; was the test set without ground truth, or val.metrics empty?")
    return result


def _of_summary(path: Path) -> tuple[dict[str, str], Values]:
    """(protocols, values) of test.py's summary.json."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        protocols = {str(metric): str(text) for metric, text in summary["protocols"].items()}
        values: Values = {}
        for dataset, images in summary["images"].items():
            for image, stages in images.items():
                for stage, row in stages.items():
                    numbers = {metric: float(value) for metric, value in row.items()}
                    values.setdefault(dataset, {}).setdefault(stage, {})[image] = numbers
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultError(f"{path}: is no whole summary.json of test.py ({type(error).__name__}: {error})") from error
    return protocols, values


def _of_table(path: Path) -> Values:
    """The values of test.py's metrics.csv, or of the last iteration in a validation.csv."""
    rows = _rows(path)
    if rows and "iter" in rows[0][1]:
        iterations = [_number(path, line, "iter", row["iter"]) for line, row in rows]
        rows = [row for row, iteration in zip(rows, iterations, strict=True) if iteration == max(iterations)]
    values: Values = {}
    for line, row in rows:
        images = values.setdefault(row["dataset"], {}).setdefault(row["stage"], {})
        if row["image"] in images:
            raise ResultError(f"{path}: line {line}: {row['dataset']}/{row['image']}, {row['stage']} is there twice")
        images[row["image"]] = {m: _number(path, line, m, v) for m, v in row.items() if m not in KNOWN_COLUMNS}
    return values


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
