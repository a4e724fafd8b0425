"""What the folder of a run says: curves, best scores, options, environment, weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam4ir.config.load import load_options
from sam4ir.config.schema import Options
from sam4ir.engine.evaluate.results import Result, read_result
from sam4ir.engine.run_record import REFINER, ValidationMeans, iteration_of, validations
from sam4ir.errors import UserError
from sam4ir.metrics.kinds import traits_of
from sam4ir.registry import METRICS
from sam4ir.utils.files import read_text, sha256_of
from sam4ir.utils.tables import text_lines

OPTIONS_FILE = "options.yml"
LOG = "log.jsonl"
VALIDATION = "validation.csv"
_LARGEST_OPTIONS = 1 << 24  # bytes of an option file
_RATES = re.compile(r"\[epoch: *\d+, iter: *([\d,]+), lr:\(([^)]*)\)\]")
_VERSIONS = re.compile(r"INFO: Versions: (.+); computes on (.+)\.$")
_STARTED = re.compile(r"INFO: Starting .* on (.+)\.$")  # in logs of earlier versions, which name no versions
_WEIGHTS = ("latest", "best")

Series = dict[str, list[tuple[float, float]]]


class ReportError(UserError):
    """Runs or results that no report can be made of; the message names the file."""


@dataclass(frozen=True)
class Best:
    """The best validation score of a metric. metric: with its ending _refiner where it is the refiner's."""

    dataset: str
    metric: str
    value: float
    iteration: int
    last: float
    lower_is_better: bool


@dataclass(frozen=True)
class WeightsFile:
    """A weights file of a run, its iteration where it is known, and its SHA-256."""

    name: str
    iteration: int | None
    size: int
    sha256: str


@dataclass(frozen=True)
class RunFacts:
    """What the folder of a run says.

    series: values over iterations by name, as log.jsonl has them. rates: learning rates by network, as the log of the
    console has them. options: None where the file cannot be read; `problem` then says why. text: the file itself.
    validation: the scores of images in the last validation, None without one. environment: by name.
    """

    name: str
    folder: Path
    series: Series
    rates: Series
    validations: list[ValidationMeans]
    best: list[Best]
    options: Options | None
    text: str
    problem: str = ""
    validation: Result | None = None
    iteration: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    weights: tuple[WeightsFile, ...] = ()
    notes: tuple[str, ...] = ()


def is_run(path: Path) -> bool:
    """Return whether a folder is one of a run: it has a log, or options beside weights."""
    if not path.is_dir():
        return False
    return (path / LOG).is_file() or ((path / OPTIONS_FILE).is_file() and (path / "models").is_dir())


def read_run(folder: Path, name: str) -> RunFacts:
    """Read the folder of a run. Raises ReportError for a damaged log, ResultError for a damaged validation.csv."""
    options, text, problem = read_options(folder / OPTIONS_FILE)
    log_text = _console_log(folder)
    means = validations(folder / LOG)
    notes = []
    validation, iteration = None, None
    table = folder / VALIDATION
    if means and table.is_file():
        validation = read_result(table, name)
        iteration = means[-1].iteration
    elif not means:
        notes.append("no validation yet")
    return RunFacts(
        name,
        folder,
        _series(folder / LOG),
        _rates(log_text),
        means,
        _best(means, options),
        options,
        text,
        problem,
        validation,
        iteration,
        _environment(log_text, options),
        tuple(_weights(folder / "models")),
        tuple(notes),
    )


def read_options(path: Path) -> tuple[Options | None, str, str]:
    """Return the options of a file, its text, and why it cannot be used ('' where it can); never loads plugins."""
    if not path.is_file():
        return None, "", f"{path} is missing"
    text = ""
    try:
        text = read_text(path, _LARGEST_OPTIONS)
        return load_options(path, named_by_user=False), text, ""
    except UserError as error:
        return None, text, " ".join(str(error).split())


def _series(log: Path) -> Series:
    """Return the numbers of a log.jsonl by name; scores of validations are left out.

    Raises ReportError for a line that is no record, unless it is the last one, which a killed run did not end.
    """
    series: Series = {}
    if not log.is_file():
        return series
    lines = text_lines(read_text(log))
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            iteration = int(record["iter"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            if number == len(lines):
                break
            raise ReportError(
                f"{log}: line {number} is no record of a run ({type(error).__name__}: {error}); restore the file, or "
                "remove that line"
            ) from None
        for name, value in record.items():
            if name != "iter" and not name.startswith("metrics/"):
                _append(series, name, iteration, value)
    return series


def _append(series: Series, name: str, iteration: int, value: Any) -> None:
    """Append a number to its series; infinity and NaN stand in a log as texts, and other texts are no numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return
    try:
        series.setdefault(name, []).append((iteration, float(value)))
    except (ValueError, OverflowError):
        return


def _console_log(folder: Path) -> str:
    """Return the text of the run's train_NAME.log, '' without one."""
    texts = []
    for path in sorted(folder.glob("train_*.log")):
        texts.append(path.read_text(encoding="utf-8", errors="replace"))
    return "".join(texts)


def _rates(log_text: str) -> Series:
    """Return the learning rates that the log shows, by the place of the network in its lines."""
    by_iteration: dict[int, list[float]] = {}
    for line in text_lines(log_text):
        match = _RATES.search(line)
        if match:
            numbers = [number for number in match[2].split(",") if number.strip()]
            try:
                by_iteration[int(match[1].replace(",", ""))] = list(map(float, numbers))
            except ValueError:
                continue
    series: Series = {}
    for iteration in sorted(by_iteration):
        for number, rate in enumerate(by_iteration[iteration]):
            series.setdefault(("student", "refiner")[min(number, 1)], []).append((iteration, rate))
    return series


def _environment(log_text: str, options: Options | None) -> dict[str, str]:
    """Return device, versions and number format of the run; of several starts the last one counts."""
    facts = {}
    for line in text_lines(log_text):
        started, versions = _STARTED.search(line), _VERSIONS.search(line)
        if versions:
            facts["versions"], facts["device"] = versions.groups()
        elif started:
            facts.setdefault("device", started[1])
    if options is not None:
        facts["precision"] = options.precision
        facts.setdefault("device", f"{options.device or 'auto'} (by the options)")
        facts["deterministic"] = str(options.deterministic).lower()
    facts.setdefault("versions", "not recorded")
    return facts


def lower_metrics(options: Options | None, names: list[str]) -> set[str]:
    """Return the metrics where a lower value is better; by their options, else by their names."""
    types = {name: name for name in names}
    if options is not None and options.val is not None:
        for name, block in options.val.metrics.items():
            types[name] = block.type
    lower = set()
    for name, type_name in types.items():
        if type_name in METRICS and traits_of(METRICS.get(type_name)).lower_is_better:
            lower.add(name)
    return lower


def _best(means: list[ValidationMeans], options: Options | None) -> list[Best]:
    """Return the best score of each set and metric."""
    curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for validation in means:
        for dataset, values in validation.sets.items():
            for metric, value in values.items():
                curves.setdefault((dataset, metric), []).append((validation.iteration, value))
    lower = lower_metrics(options, [metric.removesuffix(REFINER) for _, metric in curves])
    records = []
    for (dataset, metric), points in curves.items():
        is_lower = metric.removesuffix(REFINER) in lower
        numbers = [point for point in points if not math.isnan(point[1])]
        if numbers:
            pick = min if is_lower else max
            iteration, value = pick(numbers, key=lambda point: point[1])
            records.append(Best(dataset, metric, value, iteration, points[-1][1], is_lower))
    return records


def _weights(folder: Path) -> list[WeightsFile]:
    """Return the newest and the best weights of each network of a run."""
    files = []
    for path in sorted(folder.glob("net_*.*")):
        kind = path.stem.rpartition("_")[2]
        if kind in _WEIGHTS and path.is_file():
            files.append(WeightsFile(path.name, _iteration(path), path.stat().st_size, sha256_of(path)))
    return files


def _iteration(path: Path) -> int | None:
    """Return the iteration of a weights file, None where the file cannot be read."""
    try:
        return iteration_of(path)
    except UserError:
        return None
