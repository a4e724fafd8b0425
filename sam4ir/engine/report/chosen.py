"""Which images of a report get full views: the worst, the best, and others evenly between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sam4ir.engine.report.inputs import Scored
from sam4ir.engine.report.run_facts import ReportError
from sam4ir.engine.report.score_table import RESTORED

WORST, LEAST_GOOD, FINEST, EVEN, ALL = "worst", "lowest", "best", "evenly chosen", ""


@dataclass(frozen=True)
class Judged:
    """An image with its gain: the metric of the second result minus that of the first, positive where it is better.

    With one result the gain is its value, positive where larger is better. reason: why it was chosen.
    """

    dataset: str
    image: str
    gain: float
    reason: str = ALL

    @property
    def place(self) -> tuple[str, str]:
        """Data set and key."""
        return self.dataset, self.image


def choice_metric(scored: Sequence[Scored], asked: str | None) -> str:
    """Return the metric by which images are chosen: the asked one, else the first that all results have for images.

    Raises ReportError where a result lacks the asked metric.
    """
    everywhere = []
    for metric in scored[0].result.metrics():
        if all(metric in each.result.metrics() for each in scored):
            everywhere.append(metric)
    if asked is None:
        return everywhere[0] if everywhere else next(iter(scored[0].result.metrics()), "")
    for each in scored:
        if asked not in each.result.metrics():
            known = ", ".join(each.result.metrics())
            raise ReportError(f"--metric: {each.name} has no metric {asked!r} of images; it has {known}")
    return asked


def judged_images(scored: Sequence[Scored], metric: str) -> list[Judged]:
    """Return the images that the first two results have, with their gains, in the order of the first."""
    sign = 1.0
    if any(metric in each.result.lower for each in scored):
        sign = -1.0
    first = scored[0].result.images(RESTORED)
    images = []
    for (dataset, image), row in first.items():
        value = row.get(metric, math.nan)
        if len(scored) > 1:
            other = scored[1].result.images(RESTORED).get((dataset, image))
            if other is None:
                continue
            value = _difference(other.get(metric, math.nan), value)
        images.append(Judged(dataset, image, sign * value))
    return images


def _difference(b: float, a: float) -> float:
    """Return b - a, 0 for two equal infinities."""
    if a == b:
        return 0.0
    return b - a


def choose_images(images: Sequence[Judged], count: int, compared: bool) -> list[Judged]:
    """Return `count` images with reasons: a third the worst, a third the best, the others evenly between.

    compared: whether gains are differences of two results. Images without a number come last. All images are returned,
    from the worst on, where there are no more than `count`.
    """
    ordered = sorted(images, key=lambda judged: (math.isnan(judged.gain), judged.gain, judged.place))
    if len(ordered) <= count:
        return ordered
    third = -(-count // 3)
    worst = ordered[:third]
    best = list(reversed(ordered[third:]))[: min(third, count - len(worst))]
    middle = ordered[third : len(ordered) - len(best)]
    even = []
    for number in range(count - len(worst) - len(best)):
        even.append(middle[(2 * number + 1) * len(middle) // (2 * (count - len(worst) - len(best)))])
    chosen = []
    bad, good = (WORST, FINEST) if compared else (LEAST_GOOD, FINEST)
    for group, reason in ((worst, bad), (best, good), (even, EVEN)):
        chosen += [Judged(judged.dataset, judged.image, judged.gain, reason) for judged in group]
    return chosen
