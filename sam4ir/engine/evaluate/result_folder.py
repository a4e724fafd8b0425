"""The folder results/<name> that sam4ir test writes: its options, metrics.csv, summary.json, summary.txt."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from sam4ir.engine.evaluate.metric import Metric, lower_is_better, protocols_of
from sam4ir.engine.evaluate.report import Score, means, plain, text_table
from sam4ir.engine.evaluate.testbed import Scores
from sam4ir.errors import UserError
from sam4ir.utils.files import read_text, write_text
from sam4ir.utils.shell import force_yml
from sam4ir.utils.tables import write_csv

log = logging.getLogger(__name__)

OPTIONS_FILE = "options.yml"
NOT_SCORED = "not_scored"  # key of summary.json: images at fault; the same command scores them later

ImageValues = dict[str, dict[str, dict[str, dict[str, float | str]]]]  # {dataset: {image: {output: {metric: value}}}}


class ResultsExistError(UserError):
    """Results of the same name that were computed with other options or from another file."""


def holds_options(folder: Path, options_text: str) -> bool:
    """Return whether the results in a folder were computed with these options (YAML)."""
    file = folder / OPTIONS_FILE
    return file.is_file() and read_text(file) == options_text


def refuse_other_options(folder: Path, options_text: str) -> None:
    """Raise ResultsExistError where a folder holds results of other options."""
    if (folder / OPTIONS_FILE).is_file() and not holds_options(folder, options_text):
        raise ResultsExistError(
            f"{folder}: holds results made with other options. Nothing was changed. Add --overwrite "
            "(from Python overwrite=True) to replace them, "
            f"or give another name, such as {force_yml('name', f'{folder.name}_2')}"
        )


def write_results(
    folder: Path,
    results: Scores,
    metrics: Mapping[str, Metric],
    closing: Sequence[str] = (),
    origin: Mapping[str, str] | None = None,
) -> str:
    """Write metrics.csv, summary.json and summary.txt; return the text of the last one.

    closing: last lines of summary.txt. origin: the file of the weights and its SHA-256, for summary.json.
    """
    for note in results.notes:
        log.warning("%s", note)
    _write_table(folder / "metrics.csv", results.scores, metrics)
    text = text_table(results.scores, protocols_of(metrics), results.sets, lower_is_better(metrics))
    lines = [f"note: {note}" for note in results.notes]
    lines += [f"not scored: {fault}" for fault in results.faults]
    lines += closing
    if lines:
        text += "\n".join(["", *lines, ""])
    write_text(folder / "summary.txt", text)
    summary = _summary(results, metrics)
    if origin:
        summary = {"weights": dict(origin), **summary}
    write_text(folder / "summary.json", json.dumps(summary, indent=1))
    return text


def _write_table(path: Path, scores: Sequence[Score], metrics: Mapping[str, Metric]) -> None:
    """Write the scores of images as CSV; the column of the output is called `stage`."""
    head = ["dataset", "stage", "image"]
    if len({score.sample for score in scores}) > 1:
        head.append("sample")
    for name, metric in metrics.items():
        if not metric.of_set:
            head.append(name)
    rows = []
    for score in scores:
        place = {"dataset": score.dataset, "stage": score.output, "image": score.image, "sample": score.sample}
        rows.append({**place, **score.values})
    write_csv(path, head, rows)


def _summary(results: Scores, metrics: Mapping[str, Metric]) -> dict[str, object]:
    """Return the content of summary.json; not_scored lists images at fault.

    protocols: {metric: definition}; lower_is_better, of_sets: names of such metrics; mean: {dataset: {output: {metric:
    value}}}; images: {dataset: {image: {output: {metric: value}}}}, where each image has several samples, their mean,
    and then also spread: {dataset: {output: {metric: {samples, image, mean}}}}, see report.Spread.
    """
    mean: dict[str, dict[str, dict[str, float | str]]] = {}
    spread: dict[str, dict[str, dict[str, dict[str, float | str]]]] = {}
    for (dataset, output), values in means(results.scores, results.sets).items():
        row = mean.setdefault(dataset, {}).setdefault(output, {})
        for name, value in values.items():
            row[name] = plain(value.value)
            s = value.spread
            if s is not None:
                spreads = spread.setdefault(dataset, {}).setdefault(output, {})
                spreads[name] = {"samples": s.samples, "image": plain(s.image), "mean": plain(s.mean)}
    summary: dict[str, object] = {
        "protocols": protocols_of(metrics),
        "lower_is_better": lower_is_better(metrics),
        "of_sets": [name for name, metric in metrics.items() if metric.of_set],
        "mean": mean,
    }
    if spread:
        summary["spread"] = spread
    if results.notes:
        summary["notes"] = list(results.notes)
    if results.faults:
        summary[NOT_SCORED] = list(results.faults)
    summary["images"] = _image_values(results.scores)
    return summary


def _image_values(scores: Sequence[Score]) -> ImageValues:
    """Return the values of every image; where it has several samples, their mean."""
    samples: dict[tuple[str, str, str], list[Score]] = {}
    for score in scores:
        samples.setdefault((score.dataset, score.image, score.output), []).append(score)
    images: ImageValues = {}
    for (dataset, image, output), of_image in samples.items():
        row = next(iter(means(of_image).values()))
        values = {}
        for metric, mean in row.items():
            values[metric] = plain(mean.value)
        images.setdefault(dataset, {}).setdefault(image, {})[output] = values
    return images
