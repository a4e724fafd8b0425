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

    With one result the gain is its value, positive where larger is better; NaN where there is none. reason: why it was
    chosen.
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
    """Return the images of all results with their gains; NaN where one of the first two results lacks the image."""
    sign = 1.0
    if any(metric in each.result.lower for each in scored):
        sign = -1.0
    columns = [each.result.images(RESTORED) for each in scored]
    places: dict[tuple[str, str], None] = {}
    for column in columns:
        places.update(dict.fromkeys(column))
    images = []
    for place in places:
        values = [column.get(place, {}).get(metric, math.nan) for column in columns]
        value = values[0]
        if len(values) > 1:
            value = _difference(values[1], values[0])
        images.append(Judged(*place, sign * value))
    return images


def _difference(b: float, a: float) -> float:
    """Return b - a, 0 for two equal infinities."""
    if a == b:
        return 0.0
    return b - a


def choose_images(images: Sequence[Judged], count: int, compared: bool) -> list[Judged]:
    """Return `count` images with reasons: a third the worst, a third the best, the others evenly between.

    compared: whether gains are differences of two results. Images without a number are chosen where there are no more
    than `count` others, and come last. All images are returned, from the worst on, where there are no more than
    `count`.
    """
    ordered = sorted((each for each in images if not math.isnan(each.gain)), key=lambda each: (each.gain, each.place))
    if len(ordered) <= count:
        without = sorted((each for each in images if math.isnan(each.gain)), key=lambda each: each.place)
        return [*ordered, *without][:count]
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
