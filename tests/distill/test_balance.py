"""Weights of terms: the share they reach, when they stop moving, what is saved."""

import math

import pytest

from sam4ir.distill.balance import BATCHES, TermWeight


@pytest.mark.parametrize("share", [0.05, 0.3, 2.0])
def test_the_weighted_term_has_the_asked_share_of_the_reconstructions_pull(share):
    weight = TermWeight(share=share)
    pulls = [(100.0 + i, 0.2 + 0.01 * i) for i in range(BATCHES)]
    for whole, term in pulls:
        weight.observe(whole, term)
    assert weight.value * sum(t for _, t in pulls) == pytest.approx(share * sum(w for w, _ in pulls))


def test_the_weight_follows_the_mean_so_far_and_then_is_kept():
    weight = TermWeight(share=0.5)
    assert weight.value == 0
    weight.observe(10, 1)
    assert weight.value == pytest.approx(5)
    weight.observe(30, 1)
    assert weight.value == pytest.approx(10)
    for _ in range(BATCHES - 2):
        assert weight.measuring
        weight.observe(20, 1)
    assert not weight.measuring
    weight.observe(1e9, 1)
    assert weight.value == pytest.approx(10)


def test_fifty_batches_set_the_weight():
    weight = TermWeight(share=1.0)
    for i in range(1, 61):
        weight.observe(i, 1)
    assert weight.batches == 50
    assert weight.value == pytest.approx(sum(range(1, 51)) / 50)


def test_without_share_and_fixed_weight_a_term_counts_nothing():
    weight = TermWeight()
    weight.observe(10, 1)
    assert weight.value == 0


@pytest.mark.parametrize("pull", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf), (1.0, 0.0)])
def test_batches_that_are_not_finite_or_have_no_pull_do_not_count(pull):
    weight = TermWeight(share=0.5)
    weight.observe(10, 1)
    weight.observe(*pull)
    assert (weight.batches, weight.value) == (1, pytest.approx(5))


def test_a_weight_by_hand_is_never_measured():
    weight = TermWeight(fixed=0.7, share=0.3)
    assert not weight.measuring
    weight.observe(10, 1)
    assert (weight.value, weight.batches) == (0.7, 0)


@pytest.mark.parametrize("seen", [0, 7, BATCHES])
def test_a_saved_weight_goes_on_as_if_never_interrupted(seen):
    whole, resumed = TermWeight(share=0.3), TermWeight(share=0.3)
    for i in range(seen):
        whole.observe(10 + i, 1 + i / 10)
    state = whole.state()
    assert all(type(v) in (int, float) for v in state.values())  # plain values: the checkpoint loads weights_only
    resumed.load_state(state)
    for weight in (whole, resumed):
        weight.observe(100, 3)
    assert resumed == whole
