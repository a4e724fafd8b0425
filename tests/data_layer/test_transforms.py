import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam4ir.data.transforms import Augmentation, Flip, Window, augmentation, refuse_normalization


@given(seed=st.integers(0, 2**32), scale=st.integers(1, 4), h=st.integers(5, 20), w=st.integers(5, 20))
def test_joint_crop_and_flip_commutes_with_stacking(seed, scale, h, w):
    rng = np.random.default_rng(seed)
    lq = rng.integers(0, 9, (h, w, 3))
    gt = rng.integers(0, 9, (h * scale, w * scale, 3))
    labels = rng.integers(0, 9, (h * scale, w * scale))
    placement = Augmentation(5, True, True).draw((h, w), rng)
    fine = placement.scaled(scale)
    upscaled = lq.repeat(scale, 0).repeat(scale, 1)
    together = fine.take(np.concatenate([upscaled, gt, labels[..., None]], axis=2))
    apart = placement.take(lq).repeat(scale, 0).repeat(scale, 1), fine.take(gt), fine.take(labels)[..., None]
    np.testing.assert_array_equal(together, np.concatenate(apart, axis=2))


def test_flips_are_the_eight_symmetries_in_the_order_of_basicsr():
    a = np.arange(9).reshape(3, 3)
    every = [Flip(bool(i & 1), bool(i & 2), bool(i & 4)) for i in range(8)]
    assert len({f.apply(a).tobytes() for f in every}) == 8
    np.testing.assert_array_equal(Flip(True, False, True).apply(a), np.fliplr(a).T)


def test_every_window_and_flip_is_drawn_and_none_that_is_off():
    rng = np.random.default_rng(0)
    placements = [Augmentation(2, True, True).draw((3, 4), rng) for _ in range(2000)]
    assert len({p.window for p in placements}) == 2 * 3
    assert len({p.flip for p in placements}) == 8
    assert {Flip.draw(False, False, rng) for _ in range(50)} == {Flip()}
    assert {Flip.draw(True, False, rng) for _ in range(50)} == {Flip(), Flip(horizontal=True)}


def test_a_window_larger_than_its_image_names_both_sizes():
    with pytest.raises(ValueError, match=r"5x9.*8x8"):
        Window.draw((5, 9), 8, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((64, True, False, False, 1), "use_flip"),
        ((63, False, None, False, 4), "gt_size"),
        ((0, False, None, False), "0"),
    ],
)
def test_options_that_contradict_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        augmentation(*arguments)


def test_mean_and_std_that_would_change_images_are_refused():
    refuse_normalization(None, None)
    refuse_normalization([0, 0, 0], [1, 1, 1])
    with pytest.raises(ValueError, match=r"stay in \[0, 1\]"):
        refuse_normalization([0.5, 0.5, 0.5], [1, 1, 1])
