"""Scores of images and sets and their means, as tables of text."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

BASELINES = ("input", "bicubic")  # outputs without a network
UP, DOWN = "↑", "↓"
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Score:
    """Metric values of one output of an image.

    output: 'input' (the degraded image itself), 'bicubic' (up-scaled to the size of the ground truth), 'restored' (the
    deployed network's) or 'refined' (the refiner's of SAM4IR). sample: number of the output, where a diffusion network
    restores an image several times.
    """

    dataset: str
    image: str
    output: str
    values: Mapping[str, float]
    sample: int = 0


@dataclass(frozen=True)
class SetScore:
    """Metric values of a whole set, over the outputs of one sample number. images: how many there are."""

    dataset: str
    output: str
    values: Mapping[str, float]
    images: int
    sample: int = 0


@dataclass(frozen=True)
class Spread:
    """Standard deviations (n - 1) over several samples.

    image: that of one image's value, averaged over images; NaN for a metric of a whole set. mean: that of the set's
    value.
    """

    samples: int
    image: float
    mean: float

    def __str__(self) -> str:
        if math.isnan(self.image):
            return f"- / {self.mean:.4f}"
        return f"{self.image:.4f} / {self.mean:.4f}"


@dataclass(frozen=True)
class MeanScore:
    """The mean of a metric over images. Infinite values (equal images) are counted and left out.

    Where an image has several samples, its value is their mean. A metric of a whole set has the set's value here.
    """

    value: float
    images: int
    infinite: int = 0
    spread: Spread | None = None

    def __str__(self) -> str:
        text = f"{self.value:.4f}"
        if self.infinite:
            text += f" ({self.infinite} of {self.images} images infinite)"
        return text


Means = dict[tuple[str, str], dict[str, MeanScore]]


def means(scores: Iterable[Score], sets: Iterable[SetScore] = ()) -> Means:
    """Return {(dataset, output): {metric: mean}} in order of appearance; metrics of whole sets follow the others."""
    images: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    table: Means = {}
    for score in scores:
        table.setdefault((score.dataset, score.output), {})
        for metric, value in score.values.items():
            by_image = images.setdefault((score.dataset, score.output, metric), {})
            by_image.setdefault(score.image, []).append(value)
    for (dataset, output, metric), by_image in images.items():
        table[dataset, output][metric] = _mean_of_images(list(by_image.values()))
    values: dict[tuple[str, str, str], list[float]] = {}
    counts: dict[tuple[str, str, str], int] = {}
    for of_set in sets:
        for metric, value in of_set.values.items():
            values.setdefault((of_set.dataset, of_set.output, metric), []).append(value)
            counts.setdefault((of_set.dataset, of_set.output, metric), of_set.images)
    for (dataset, output, metric), of_samples in values.items():
        count = counts[dataset, output, metric]
        table.setdefault((dataset, output), {})[metric] = _mean_of_set(of_samples, count)
    return table


def _mean_of_images(images: Sequence[Sequence[float]]) -> MeanScore:
    """Return the mean over images; each has a value for each of its samples."""
    each = [math.fsum(samples) / len(samples) for samples in images]
    value, infinite = _finite_mean(each)
    counts = set(map(len, images))
    if len(counts) > 1 or counts == {1}:
        return MeanScore(value, len(each), infinite)
    deviations = []
    for samples in images:
        if all(map(math.isfinite, samples)):
            deviations.append(statistics.stdev(samples))
    of_image = math.nan
    if deviations:
        of_image = math.fsum(deviations) / len(deviations)
    of_samples = []
    for values in zip(*images, strict=True):
        of_samples.append(_finite_mean(values)[0])
    return MeanScore(value, len(each), infinite, Spread(len(of_samples), of_image, _deviation(of_samples)))


def _mean_of_set(values: Sequence[float], images: int) -> MeanScore:
    """Return the mean over samples of a metric of a whole set, which has `images` images."""
    spread = None
    if len(values) > 1:
        spread = Spread(len(values), math.nan, _deviation(values))
    return MeanScore(math.fsum(values) / len(values), images, spread=spread)


def _finite_mean(values: Sequence[float]) -> tuple[float, int]:
    """Return the mean without infinite values and the number of these; NaN stays NaN."""
    finite = [value for value in values if not math.isinf(value)]
    infinite = len(values) - len(finite)
    if not finite:
        return math.inf, infinite
    return math.fsum(finite) / len(finite), infinite


def _deviation(values: Sequence[float]) -> float:
    """Return the standard deviation (n - 1); NaN unless all values are finite."""
    if not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values)


def text_table(
    scores: Sequence[Score],
    protocols: Mapping[str, str],
    sets: Sequence[SetScore] = (),
    lower: Collection[str] = (),
) -> str:
    """Return a table of means by data set and output, their spread over samples, and the protocol of every metric.

    lower: metrics where a lower value is better; the head marks them with an arrow.
    """
    table = means(scores, sets)
    rows = [["dataset", "stage", "images", *(titled(metric, metric in lower) for metric in protocols)]]
    for (dataset, output), values in table.items():
        images = 0
        for mean in values.values():
            images = max(images, mean.images)
        rows.append([dataset, output, str(images), *_cells(values, protocols)])
    lines = columns(rows)
    spreads = _spreads(table, protocols)
    if spreads:
        lines += ["", *spreads]
    lines.append("")
    for name, text in protocols.items():
        lines.append(f"{name}: {text}")
    return "\n".join(lines) + "\n"


def _cells(values: Mapping[str, object], metrics: Iterable[str]) -> list[str]:
    """Return the text of each metric's value, '-' for a metric without one."""
    return [str(values.get(metric, "-")) for metric in metrics]


def _spreads(table: Means, protocols: Mapping[str, str]) -> list[str]:
    """Return the table of standard deviations over samples; [] where each image has one sample."""
    rows, counts = [["dataset", "stage", *protocols]], set()
    for (dataset, output), values in table.items():
        spreads = {}
        for metric, mean in values.items():
            if mean.spread is not None:
                spreads[metric] = mean.spread
                counts.add(mean.spread.samples)
        if spreads:
            rows.append([dataset, output, *_cells(spreads, protocols)])
    if not counts:
        return []
    count = ", ".join(map(str, sorted(counts)))
    return [
        f"standard deviation over {count} samples: of an image's value (mean over images) / of the set's value",
        *columns(rows),
    ]


def titled(metric: str, lower_is_better: bool) -> str:
    """Return the metric's name and an arrow towards its better values."""
    arrow = DOWN if lower_is_better else UP
    return f"{metric} {arrow}"


def printable(text: str, encoding: str | None) -> str:
    """Return the text for a console; arrows become ^ and v where its encoding has none.

    Control characters but for line ends and tabs become ?: a file of others may hold some that a terminal would obey.
    """
    text = _CONTROLS.sub("?", text)
    try:
        text.encode(encoding or "ascii")
    except UnicodeEncodeError:
        return text.replace(UP, "^").replace(DOWN, "v")
    return text


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of aligned cells; the first row is underlined as the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *body = (_aligned(row, widths).rstrip() for row in rows)
    underline = ["-" * width for width in widths]
    return [head, "  ".join(underline), *body]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    """Return the cells of a row, each padded to its width."""
    return "  ".join(map(str.ljust, row, widths))


def plain(value: float) -> float | str:
    """Return the number, or its name where it is not finite: JSON has no infinity."""
    if math.isfinite(value):
        return value
    return str(value)
