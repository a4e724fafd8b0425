"""Scores of images and sets and their means, as tables of text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

BASELINES = ("input", "bicubic")  # stages that no network has a part in
UP, DOWN = "↑", "↓"


@dataclass(frozen=True)
class Score:
    """Metric values of one image.

    stage: 'input' (the degraded image itself), 'bicubic' (it, up-scaled to the size of the ground truth), 'restored'
    (the deployed network) or 'refined' (SAM4IR's refiner). sample: which of several images that a diffusion network
    made of one.
    """

    dataset: str
    image: str
    stage: str
    values: Mapping[str, float]
    sample: int = 0


@dataclass(frozen=True)
class SetScore:
    """Metric values of a whole set: of the images of one sample number; `images` of them."""

    dataset: str
    stage: str
    values: Mapping[str, float]
    images: int
    sample: int = 0


@dataclass(frozen=True)
class Spread:
    """What differs between several samples, as standard deviations (n - 1).

    image: of one image's values, mean over images; NaN for a metric of a whole set. mean: of the set's value.
    """

    samples: int
    image: float
    mean: float

    def __str__(self) -> str:
        return f"{self.image:.4f} / {self.mean:.4f}" if not math.isnan(self.image) else f"- / {self.mean:.4f}"


@dataclass(frozen=True)
class Mean:
    """Mean of per-image values. Infinite ones (equal images) are counted and left out of the mean.

    Of several samples an image's value is their mean. A metric of a whole set has its own value here.
    """

    value: float
    images: int
    infinite: int = 0
    spread: Spread | None = None

    def __str__(self) -> str:
        text = f"{self.value:.4f}"
        return f"{text} ({self.infinite} of {self.images} images infinite)" if self.infinite else text


Means = dict[tuple[str, str], dict[str, Mean]]


def means(scores: Iterable[Score], sets: Iterable[SetScore] = ()) -> Means:
    """{(dataset, stage): {metric: mean}} in order of appearance; metrics of whole sets follow those of images."""
    images: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}
    for score in scores:
        metrics = images.setdefault((score.dataset, score.stage), {})
        for metric, value in score.values.items():
            metrics.setdefault(metric, {}).setdefault(score.image, []).append(value)
    table: Means = {place: {m: _mean(list(v.values())) for m, v in found.items()} for place, found in images.items()}
    whole: dict[tuple[str, str], dict[str, list[tuple[float, int]]]] = {}
    for own in sets:
        for metric, value in own.values.items():
            whole.setdefault((own.dataset, own.stage), {}).setdefault(metric, []).append((value, own.images))
    for place, found_sets in whole.items():
        for metric, values in found_sets.items():
            table.setdefault(place, {})[metric] = _of_set([v for v, _ in values], values[0][1])
    return table


def _mean(images: Sequence[Sequence[float]]) -> Mean:
    """Of each image's values, one a sample."""
    each = [math.fsum(samples) / len(samples) for samples in images]
    value, infinite = _finite_mean(each)
    count = len(images[0])
    if count == 1 or any(len(samples) != count for samples in images):
        return Mean(value, len(each), infinite)
    known = [samples for samples in images if all(math.isfinite(v) for v in samples)]
    of_image = math.fsum(map(statistics.stdev, known)) / len(known) if known else math.nan
    of_mean = _deviation([_finite_mean(column)[0] for column in zip(*images, strict=True)])
    return Mean(value, len(each), infinite, Spread(count, of_image, of_mean))


def _of_set(values: Sequence[float], images: int) -> Mean:
    spread = Spread(len(values), math.nan, _deviation(values)) if len(values) > 1 else None
    return Mean(math.fsum(values) / len(values), images, spread=spread)


def _finite_mean(values: Sequence[float]) -> tuple[float, int]:
    """(mean without infinite values, how many these are); NaN stays NaN."""
    finite = [v for v in values if not math.isinf(v)]
    return (math.fsum(finite) / len(finite) if finite else math.inf), len(values) - len(finite)


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def text_table(
    scores: Sequence[Score],
    protocols: Mapping[str, str],
    sets: Sequence[SetScore] = (),
    lower: Collection[str] = (),
) -> str:
    """Means by data set and stage, their spread over samples, and the protocol of every metric.

    lower: metrics of which less is better; an arrow in the head tells it.
    """
    head = ["dataset", "stage", "images", *(titled(m, m in lower) for m in protocols)]
    table = means(scores, sets)
    rows = [head]
    for (dataset, stage), found in table.items():
        images = str(max(m.images for m in found.values()))
        rows.append([dataset, stage, images, *(str(found[m]) if m in found else "-" for m in protocols)])
    lines = columns(rows)
    if spreads := _spreads(table, protocols):
        lines += ["", *spreads]
    return "\n".join([*lines, "", *(f"{name}: {text}" for name, text in protocols.items())]) + "\n"


def _spreads(table: Means, protocols: Mapping[str, str]) -> list[str]:
    """The table of what differs between samples; nothing where there is one of each."""
    rows, counts = [["dataset", "stage", *protocols]], set()
    for (dataset, stage), found in table.items():
        known = {m: mean.spread for m, mean in found.items() if mean.spread is not None}
        if known:
            counts |= {spread.samples for spread in known.values()}
            rows.append([dataset, stage, *(str(known[m]) if m in known else "-" for m in protocols)])
    if not counts:
        return []
    count = ", ".join(map(str, sorted(counts)))
    return [
        f"standard deviation over {count} samples: of an image's value (mean over images) / of the set's value",
        *columns(rows),
    ]


def titled(metric: str, lower_is_better: bool) -> str:
    """The metric's name and an arrow to where it is better."""
    return f"{metric} {DOWN if lower_is_better else UP}"


def printable(text: str, encoding: str | None) -> str:
    """The text for a console: arrows become ^ and v where its encoding has none."""
    try:
        text.encode(encoding or "ascii")
    except UnicodeEncodeError:
        return text.replace(UP, "^").replace(DOWN, "v")
    return text


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned cells; the first row is underlined as the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "  ".join("-" * w for w in widths), *lines[1:]]


def plain(value: float) -> float | str:
    """The number, or its name where it is not finite: JSON has no infinity."""
    return value if math.isfinite(value) else str(value)
