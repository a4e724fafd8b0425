"""Scores of images and their means, as CSV, JSON and text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """Metric values of one image.

    stage: 'input' (the degraded image itself), 'restored' (the deployed network) or 'refined' (SAM4IR's refiner).
    """

    dataset: str
    image: str
    stage: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Mean:
    """Mean of per-image values. Infinite ones (equal images) are counted and left out of the mean."""

    value: float
    images: int
    infinite: int = 0

    def __str__(self) -> str:
        text = f"{self.value:.4f}"
        return f"{text} ({self.infinite} of {self.images} images infinite)" if self.infinite else text


def means(scores: Iterable[Score]) -> dict[tuple[str, str], dict[str, Mean]]:
    """{(dataset, stage): {metric: mean}} in order of appearance."""
    table: dict[tuple[str, str], dict[str, list[float]]] = {}
    for score in scores:
        metrics = table.setdefault((score.dataset, score.stage), {})
        for metric, value in score.values.items():
            metrics.setdefault(metric, []).append(value)
    return {place: {m: _mean(v) for m, v in metrics.items()} for place, metrics in table.items()}


def _mean(values: Sequence[float]) -> Mean:
    finite = [v for v in values if not math.isinf(v)]
    value = math.fsum(finite) / len(finite) if finite else math.inf
    return Mean(value, len(values), len(values) - len(finite))


def text_table(scores: Sequence[Score], protocols: Mapping[str, str]) -> str:
    """Means by data set and stage, and the protocol of every metric."""
    rows = [["dataset", "stage", "images", *protocols]]
    for (dataset, stage), metrics in means(scores).items():
        images = str(max(m.images for m in metrics.values()))
        rows.append([dataset, stage, images, *(str(metrics[m]) if m in metrics else "-" for m in protocols)])
    return "\n".join([*columns(rows), "", *(f"{name}: {text}" for name, text in protocols.items())]) + "\n"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned cells; the first row is underlined as the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "  ".join("-" * w for w in widths), *lines[1:]]


def plain(value: float) -> float | str:
    """The number, or its name where it is not finite: JSON has no infinity."""
    return value if math.isfinite(value) else str(value)
