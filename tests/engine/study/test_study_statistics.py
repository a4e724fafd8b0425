"""What a study may say of differences, against plain formulas and against simulations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from sam4ir.engine.study import statistics
from sam4ir.engine.study.statistics import (
    SeedDifference,
    holm,
    judge,
    paired_difference,
    power_of,
    seeds_for,
    visible_difference,
)

NOISE = 0.02  # dB between runs of other seeds
IMAGES = 40


def pairs_of(rng: np.random.Generator, seeds: int, effect: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores (seeds, images) of two arms: images differ by dB, runs by NOISE, and each image of each run by more."""
    image = rng.normal(28, 3, IMAGES)
    arms = []
    for shift in (effect, 0.0):
        run = rng.normal(0, NOISE / math.sqrt(2), (seeds, 1))
        arms.append(image + shift + run + rng.normal(0, 0.03, (seeds, IMAGES)))
    return arms[0], arms[1]


def p_values(rng: np.random.Generator, number: int, seeds: int, effect: float = 0.0) -> np.ndarray:
    """The p of many simulated studies, by the plain formula of the paired t test; the bootstrap is left out."""
    run = rng.normal(0, NOISE / math.sqrt(2), (2, number, seeds))
    rest = rng.normal(0, 0.03 / math.sqrt(IMAGES), (2, number, seeds))
    gains = effect + run[0] - run[1] + rest[0] - rest[1]
    return np.asarray(stats.ttest_1samp(gains, 0, axis=1).pvalue)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_test_is_the_paired_t_test_of_scipy(seeds: int) -> None:
    better, than = pairs_of(np.random.default_rng(seeds), seeds, 0.01)
    seen = paired_difference(better, than, matters=0.05)
    expected = stats.ttest_rel(better.mean(1), than.mean(1))
    interval = expected.confidence_interval(0.95)
    assert seen.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (seen.low, seen.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert seen.mean == pytest.approx(np.mean(better - than))
    assert seen.deviation == pytest.approx(np.std((better - than).mean(1), ddof=1))
    assert seen.both_low < seen.mean < seen.both_high


def test_one_seed_has_no_interval_and_no_verdict() -> None:
    seen = paired_difference(np.ones((1, 4)), np.zeros((1, 4)), matters=0.1)
    assert seen.mean == 1
    assert all(map(math.isnan, (seen.p, seen.low, seen.high, seen.deviation, seen.visible, seen.both_low)))
    assert judge(seen, math.nan, 0.1, 0.05, lower_is_better=False) == "one seed"


def test_equal_arms_are_equal_and_a_constant_shift_is_seen() -> None:
    same = paired_difference(np.ones((3, 4)), np.ones((3, 4)), matters=0.1)
    assert (same.p, same.low, same.high, same.more_seeds) == (1.0, 0.0, 0.0, 0)
    assert judge(same, same.p, 0.1, 0.05, lower_is_better=False) == "too small to matter"
    shifted = paired_difference(np.ones((3, 4)), np.zeros((3, 4)), matters=0.1)
    assert shifted.p == 0.0
    assert judge(shifted, shifted.p, 0.1, 0.05, lower_is_better=False) == "better"
    assert judge(shifted, shifted.p, 0.1, 0.05, lower_is_better=True) == "worse"


def found(mean: float, half: float) -> SeedDifference:
    return SeedDifference(3, (mean,) * 3, mean, 1.0, mean - half, mean + half, 0.0, 0.0, 0.5, 0, 1.0)


@pytest.mark.parametrize(
    ("mean", "half", "p", "says"),
    [
        (0.2, 0.15, 0.01, "better"),
        (-0.2, 0.15, 0.01, "worse"),
        (0.2, 0.15, 0.06, "not decided"),
        (0.02, 0.05, 0.3, "too small to matter"),
        (0.05, 0.04, 0.01, "too small to matter"),
        (0.02, 0.08, 0.3, "not decided"),
    ],
)
def test_verdicts(mean: float, half: float, p: float, says: str) -> None:
    assert judge(found(mean, half), p, 0.1, 0.05, lower_is_better=False) == says


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # by hand: 3 x 0.01; 2 x 0.03; max(0.06, 0.04)
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.01, math.nan, math.nan], [0.03, math.nan, math.nan]),  # those to come count
        ([], []),
    ],
)
def test_holm_by_hand(p: Sequence[float], expected: Sequence[float]) -> None:
    assert holm(p) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("count", [2, 3, 5, 30])
@pytest.mark.parametrize("effect", [0.001, 0.5, 2.0, 1e4, 1e9])
def test_power_is_that_of_the_noncentral_t_distribution(count: int, effect: float) -> None:
    """By scipy, where it gives a number: beyond, the difference is always seen."""
    edge, shift = stats.t.ppf(0.975, count - 1), effect * math.sqrt(count)
    expected = 1.0
    if shift < 30:
        expected = stats.nct.sf(edge, count - 1, shift) + np.nan_to_num(stats.nct.cdf(-edge, count - 1, shift))
    assert power_of(effect, 1.0, count) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("effect", "deviation"), [(0.05, 0.03), (0.05, 0.1), (0.05, 1e-9), (0.01, 0.1)])
def test_the_stated_number_of_seeds_is_the_smallest_that_does(effect: float, deviation: float) -> None:
    count = seeds_for(effect, deviation)
    assert count is not None
    assert power_of(effect, deviation, count) >= 0.8
    assert count == 2 or power_of(effect, deviation, count - 1) < 0.8
    assert visible_difference(deviation, count) <= effect * (1 + 1e-9)


def test_no_reasonable_number_of_seeds_shows_too_small_a_difference() -> None:
    assert seeds_for(0.001, 1.0) is None
    assert power_of(0.05, 0.0, 3) == 1.0
    assert power_of(0.05, 0.1, 1) == 0.0
    assert math.isnan(visible_difference(0.1, 1))


def test_several_comparisons_ask_for_more_seeds() -> None:
    better, than = pairs_of(np.random.default_rng(0), 3)
    one = paired_difference(better, than, matters=0.02)
    three = paired_difference(better, than, matters=0.02, comparisons=3)
    assert three.p == one.p
    assert three.visible == visible_difference(one.deviation, 3, 0.05 / 3)
    assert three.more_seeds > one.more_seeds


@pytest.mark.parametrize("seeds", [3, 5])
def test_equal_arms_are_called_different_in_one_of_twenty_studies(seeds: int) -> None:
    assert 0.03 < np.mean(p_values(np.random.default_rng(seeds), 5000, seeds) < 0.05) < 0.07


@pytest.mark.parametrize("seeds", [3, 5])
def test_three_comparisons_of_equal_arms_call_one_in_at_most_one_of_twenty(seeds: int) -> None:
    """All three are of one arm, hence not independent, as in a study with a control."""
    rng = np.random.default_rng(seeds)
    gains = rng.normal(0, NOISE / math.sqrt(2), (4, 3000, seeds))
    p = np.stack([stats.ttest_1samp(gains[arm] - gains[3], 0, axis=1).pvalue for arm in range(3)], axis=1)
    assert np.mean([min(holm(list(row))) < 0.05 for row in p]) <= 0.07


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_stated_power_is_that_of_simulated_studies(seeds: int) -> None:
    deviation = math.hypot(NOISE, 0.03 * math.sqrt(2 / IMAGES))
    visible = visible_difference(deviation, seeds)
    simulated = np.mean(p_values(np.random.default_rng(seeds), 5000, seeds, visible) < 0.05)
    assert simulated == pytest.approx(0.8, abs=0.03)
    smaller = 0.6 * visible
    simulated = np.mean(p_values(np.random.default_rng(seeds + 1), 5000, seeds, smaller) < 0.05)
    assert simulated == pytest.approx(power_of(smaller, deviation, seeds), abs=0.03)


def coverage(seeds: int, of_images: float, number: int, rng: np.random.Generator) -> float:
    """Share of simulated studies whose bootstrap interval holds the true difference, 0. of_images: their deviation."""
    hits = 0
    for _ in range(number):
        pairs = rng.normal(0, NOISE, (seeds, 1)) + rng.normal(0, of_images, IMAGES)
        low, high = statistics._two_way(pairs + rng.normal(0, 0.03, (seeds, IMAGES)), 0.05)
        hits += low < 0 < high
    return hits / number


def test_with_three_seeds_the_bootstrap_covers_less_than_it_is_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the report says below its table."""
    monkeypatch.setattr(statistics, "RESAMPLES", 200)
    assert 0.6 < coverage(3, 0.0, 150, np.random.default_rng(0)) < 0.9


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_errors_power_and_coverage_of_whole_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `difference` and `verdict` themselves, on scores of images."""
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    rng = np.random.default_rng(1)
    for seeds in (3, 5):
        called = 0
        for _ in range(2000):
            seen = paired_difference(*pairs_of(rng, seeds), matters=1e-6)
            called += judge(seen, seen.p, 1e-6, 0.05, lower_is_better=False) in ("better", "worse")
        assert 0.03 < called / 2000 < 0.07
    covered = {}
    for seeds in (3, 5, 10):
        for of_images in (0.0, 0.1):
            covered[seeds, of_images] = coverage(seeds, of_images, 1000, rng)
    print(covered)
    assert covered[3, 0.0] < 0.9
    assert covered[3, 0.0] < covered[5, 0.0] < 0.96
    assert covered[3, 0.1] == pytest.approx(0.93, abs=0.03)
    assert covered[10, 0.0] > 0.88
