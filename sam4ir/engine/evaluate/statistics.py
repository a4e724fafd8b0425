"""Statistics of paired values: the mean difference with its intervals, and tests of whether it differs from 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats  # type: ignore[import-untyped]  # comes with scikit-image

RESAMPLES = 10_000
CONFIDENCE = 0.95
TIE = 1e-9  # another machine's order of summation moves a metric by less; a changed 8-bit image, by more
FEW = 20  # with fewer pairs a percentile bootstrap is too narrow
_BLOCK = 1 << 22  # indices drawn at a time, so that thousands of images need no gigabytes

Interval = tuple[float, float]
NOWHERE: Interval = (math.nan, math.nan)


@dataclass(frozen=True)
class Paired:
    """The statistics of b - a over pairs (a, b).

    pairs: all of them. finite: those where both values are finite; means, difference, intervals and the Wilcoxon test
    are over these, NaN where there are too few.
    t: Student's interval of the mean difference; right for few pairs where differences are about normal, and for many.
    bootstrap: percentile interval of RESAMPLES resamples with a fixed seed; assumes no shape, too narrow for fewer than
    FEW pairs. Both are 95 % intervals.
    better, worse, equal: pairs in which b is above, below, or within TIE of a; an infinite value counts here too.
    wilcoxon_p, sign_p: two-sided; 1 where no pair differs. The sign test counts infinite values.
    infinite_a, infinite_b: pairs in which that value is infinite. nan: pairs with a NaN, which count nowhere else.
    """

    pairs: int
    finite: int
    mean_a: float
    mean_b: float
    difference: float
    t: Interval
    bootstrap: Interval
    better: int
    worse: int
    equal: int
    wilcoxon_p: float
    sign_p: float
    infinite_a: int
    infinite_b: int
    nan: int


def paired(a: Sequence[float], b: Sequence[float], lower_is_better: bool = False) -> Paired:
    """Return the statistics of the pairs (a[i], b[i]); a is the baseline.

    lower_is_better swaps `better` and `worse`, and changes nothing else.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    numbers = ~(np.isnan(first) | np.isnan(second))
    finite = np.isfinite(first) & np.isfinite(second)
    x, y = first[finite], second[finite]
    d = y - x
    above, below, equal = _signs(first[numbers], second[numbers])
    better, worse = above, below
    if lower_is_better:
        better, worse = below, above
    return Paired(
        pairs=len(first),
        finite=len(d),
        mean_a=_mean(x),
        mean_b=_mean(y),
        difference=_mean(d),
        t=t_interval(d),
        bootstrap=bootstrap_interval(d),
        better=better,
        worse=worse,
        equal=equal,
        wilcoxon_p=_wilcoxon(d),
        sign_p=_sign_test(better, worse),
        infinite_a=int(np.isinf(first).sum()),
        infinite_b=int(np.isinf(second).sum()),
        nan=int((~numbers).sum()),
    )


def t_interval(d: np.ndarray) -> Interval:
    """Return the 95 % interval of the mean of (n,) values by Student's t; NaN for n < 2."""
    n = len(d)
    if n < 2:
        return NOWHERE
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * d.std(ddof=1) / math.sqrt(n))
    return float(d.mean()) - half, float(d.mean()) + half


def bootstrap_interval(d: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the 95 % percentile interval of the mean of (n,) values, resampled with replacement; NaN for n < 2."""
    n = len(d)
    if n < 2:
        return NOWHERE
    random = np.random.default_rng(seed)
    rows = max(1, _BLOCK // n)
    blocks = []
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        blocks.append(d[random.integers(0, n, (size, n))].mean(axis=1))
    means = np.concatenate(blocks)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _signs(a: np.ndarray, b: np.ndarray) -> tuple[int, int, int]:
    """Return how often b is above, below and equal to a; two equal infinities are equal."""
    with np.errstate(invalid="ignore"):  # infinity less infinity
        differ = (a != b) & ~(np.abs(b - a) <= TIE)
    above, below = int((differ & (b > a)).sum()), int((differ & (b < a)).sum())
    return above, below, len(a) - above - below


def _wilcoxon(d: np.ndarray) -> float:
    """Return the two-sided p of the signed-rank test; differences of zero are dropped."""
    if not len(d):
        return math.nan
    moved = d[np.abs(d) > TIE]
    if not len(moved):
        return 1.0
    return float(stats.wilcoxon(moved).pvalue)


def _sign_test(better: int, worse: int) -> float:
    """Return the two-sided p of the sign test; 1 where no pair differs."""
    if better + worse == 0:
        return 1.0
    return float(stats.binomtest(better, better + worse).pvalue)


def _mean(values: np.ndarray) -> float:
    """Return the mean of (n,) values, NaN for n = 0."""
    if not len(values):
        return math.nan
    return math.fsum(values) / len(values)
