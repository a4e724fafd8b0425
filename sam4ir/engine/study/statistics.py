"""What a study may say of a difference: intervals and tests over seeds, corrected for the number of comparisons."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats  # type: ignore[import-untyped]  # comes with scikit-image

from sam4ir.utils.rng import generator

RESAMPLES = 4000
QUANTILES = 2000  # of the deviation that seeds show, over which power is averaged
MOST_SEEDS = 1000  # that a report asks for; beyond them the difference cannot be seen

SeedVerdict = Literal["one seed", "better", "worse", "too small to matter", "not decided"]


@dataclass(frozen=True)
class SeedDifference:
    """A difference of two arms, paired by seed.

    seeds: number of pairs. means: of each seed, over images. mean, deviation: over seeds; deviation is NaN for one.
    low, high: Student's interval of the mean at 1 - alpha. both_low, both_high: the same by a bootstrap over seeds and
    images at once; it is shown beside, not judged by. p: of the t test, two-sided, not corrected. more_seeds: beside
    those there are, that would show a difference of `matters` with the asked power; None where MOST_SEEDS would not.
    visible: the difference that this number of seeds shows with that power.
    """

    seeds: int
    means: tuple[float, ...]
    mean: float
    deviation: float
    low: float
    high: float
    both_low: float
    both_high: float
    p: float
    more_seeds: int | None
    visible: float


def paired_difference(
    better: np.ndarray,
    than: np.ndarray,
    *,
    matters: float,
    alpha: float = 0.05,
    power: float = 0.8,
    comparisons: int = 1,
) -> SeedDifference:
    """Return the difference better - than of two arrays (seeds, images) of the same seeds and images.

    comparisons: the number that is declared. Holm's correction asks the smallest p to be below alpha / comparisons, so
    more_seeds and visible are those of a test at this level, which holds whatever the other comparisons show.
    """
    pairs = np.asarray(better, np.float64) - np.asarray(than, np.float64)
    means = pairs.mean(axis=1)
    count = len(means)
    mean = float(means.mean())
    if count < 2:
        nan = math.nan
        return SeedDifference(count, tuple(means), mean, nan, nan, nan, nan, nan, nan, None, nan)
    deviation = float(means.std(ddof=1))
    half = float(stats.t.ppf(1 - alpha / 2, count - 1)) * deviation / math.sqrt(count)
    both = _two_way(pairs, alpha)
    return SeedDifference(
        count,
        tuple(means),
        mean,
        deviation,
        mean - half,
        mean + half,
        *both,
        _t_test(mean, deviation, count),
        _more_seeds(deviation, count, matters, alpha / comparisons, power),
        visible_difference(deviation, count, alpha / comparisons, power),
    )


def _t_test(mean: float, deviation: float, count: int) -> float:
    """Return the two-sided p of a mean; 1 for no difference at all, 0 for one without any spread."""
    if deviation == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / (deviation / math.sqrt(count)), count - 1))


def _two_way(pairs: np.ndarray, alpha: float) -> tuple[float, float]:
    """Return the percentile interval of the mean where seeds and images are drawn anew, both with replacement."""
    rng = generator(0, "study", "bootstrap")
    seeds, images = pairs.shape
    means = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        by_seed = np.bincount(rng.integers(seeds, size=seeds), minlength=seeds)
        by_image = np.bincount(rng.integers(images, size=images), minlength=images)
        means[number] = by_seed @ pairs @ by_image
    means /= seeds * images
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


def power_of(effect: float, deviation: float, count: int, alpha: float = 0.05) -> float:
    """Return the probability that a t test over `count` seeds sees a difference of `effect`. deviation: over seeds."""
    if count < 2:
        return 0.0
    if deviation == 0:
        return 1.0
    shift = effect / deviation * math.sqrt(count)
    edges = stats.t.ppf(1 - alpha / 2, count - 1) * _sample_deviations(count)
    return float(np.mean(stats.norm.sf(edges - shift) + stats.norm.cdf(-edges - shift)))


@functools.lru_cache(maxsize=64)
def _sample_deviations(count: int) -> np.ndarray:
    """Return evenly likely values of the deviation that `count` seeds show, over the true one.

    Power is the mean over them; scipy's noncentral t distribution gives no number for many usual sizes.
    """
    quantiles = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return np.asarray(np.sqrt(stats.chi2.ppf(quantiles, count - 1) / (count - 1)))


def seeds_for(effect: float, deviation: float, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Return the smallest number of seeds that shows a difference with this power; None for more than MOST_SEEDS."""
    too_few, enough = 1, MOST_SEEDS
    if not power_of(effect, deviation, enough, alpha) >= power:
        return None
    while enough - too_few > 1:  # the power rises with the number
        middle = (too_few + enough) // 2
        if power_of(effect, deviation, middle, alpha) >= power:
            enough = middle
        else:
            too_few = middle
    return enough


def _more_seeds(deviation: float, count: int, matters: float, alpha: float, power: float) -> int | None:
    needed = seeds_for(matters, deviation, alpha, power)
    if needed is None:
        return None
    return max(needed - count, 0)


def visible_difference(deviation: float, count: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the difference that `count` seeds show with this power, in the unit of the deviation."""
    if count < 2:
        return math.nan
    low, high = 0.0, max(deviation, 1e-12)
    while power_of(high, deviation, count, alpha) < power:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if power_of(middle, deviation, count, alpha) < power:
            low = middle
        else:
            high = middle
    return high


def holm(p: Sequence[float]) -> list[float]:
    """Return the p values after Holm's correction over all of them.

    NaN stays NaN and counts as the largest: a comparison that cannot be judged yet was declared all the same.
    """
    numbers = [place for place, value in enumerate(p) if not math.isnan(value)]
    corrected = list(p)
    largest = 0.0
    for rank, place in enumerate(sorted(numbers, key=lambda place: p[place])):
        largest = max(largest, min((len(p) - rank) * p[place], 1.0))
        corrected[place] = largest
    return corrected


def judge(
    each: SeedDifference, corrected: float, matters: float, alpha: float, *, lower_is_better: bool
) -> SeedVerdict:
    """Return what may be said. corrected: p after Holm's correction. One seed says nothing."""
    if each.seeds < 2:
        return "one seed"
    if -matters < each.low and each.high < matters:
        return "too small to matter"
    if corrected < alpha:
        return "better" if (each.mean > 0) != lower_is_better else "worse"
    return "not decided"
