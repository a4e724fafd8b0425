from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam4ir.data.transforms import Augmentation, Flip, Placement, Window, augmentation, patch_side, refuse_normalization


@given(seed=st.integers(0, 2**32), scale=st.integers(1, 4), h=st.integers(1, 20), w=st.integers(1, 20))
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


@given(h=st.integers(1, 30), w=st.integers(1, 30), patch=st.integers(1, 40), seed=st.integers(0, 99))
def test_an_image_smaller_than_the_patch_is_mirrored_at_its_bottom_and_right_as_opencv_does(h, w, patch, seed):
    image = np.random.default_rng(seed).integers(0, 255, (h, w, 3), dtype=np.uint8)
    window = Window.draw((h, w), patch, np.random.default_rng(seed))
    padded = cv2.copyMakeBorder(image, 0, max(0, patch - h), 0, max(0, patch - w), cv2.BORDER_REFLECT)
    assert window.inside(padded.shape[:2]) == window
    np.testing.assert_array_equal(window.cut(image), window.cut(padded))


@given(top=st.integers(-9, 9), left=st.integers(-9, 9), side=st.integers(1, 12), margin=st.integers(0, 9))
def test_a_grown_window_sees_the_mirrored_image_on_every_side(top, left, side, margin):
    image = np.arange(5 * 7).reshape(5, 7)
    pad = 40
    around = np.pad(image, pad, mode="symmetric")
    window = Window(top, left, side, side).grown(margin)
    from_there = Window(window.top + pad, window.left + pad, window.height, window.width)
    np.testing.assert_array_equal(window.cut(image), from_there.cut(around))
    part = window.inside(image.shape)
    np.testing.assert_array_equal(window.mirrored(part.cut(image), part), window.cut(image))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_copied_pixels_are_the_flipped_view_and_no_view(dtype, channels):
    image = np.random.default_rng(0).integers(0, 255, (9, 12, channels)).astype(dtype)
    image.flags.writeable = False
    for i in range(8):
        placement = Placement(Window(1, 2, 5, 7), Flip(bool(i & 1), bool(i & 2), bool(i & 4)))
        copied = placement.pixels(image)
        np.testing.assert_array_equal(copied, placement.take(image))
        assert copied.flags.c_contiguous
        assert not np.shares_memory(copied, image)


def test_flips_are_drawn_as_one_of_eight_with_equal_probability():
    """Restormer's random_augmentation draws its mode uniformly from eight; three coins are the same."""
    rng = np.random.default_rng(1)
    counts = Counter(Flip.draw(True, True, rng) for _ in range(8000))
    assert len(counts) == 8
    assert all(abs(n - 1000) < 5 * 30 for n in counts.values())


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


def test_a_patch_is_as_many_times_smaller_as_lq():
    assert augmentation(None, False, None, False, 4) == Augmentation(None)
    assert augmentation(64, True, None, False, 4) == Augmentation(16, use_hflip=True)
    assert augmentation(64, False, True, True) == Augmentation(64, use_hflip=True, use_rot=True)
    assert augmentation(64, False, False, False) == Augmentation(64)
    assert (patch_side(1, 1), patch_side(4, 4), patch_side(None, 4)) == (1, 1, None)
    for gt_size, scale in ((0, 1), (-4, 4), (5, 4), (3, 4)):
        with pytest.raises(ValueError, match=f"gt_size: {gt_size} must be a positive multiple of scale: {scale}"):
            patch_side(gt_size, scale)
    for scale in (0, -1):
        with pytest.raises(ValueError, match=f"scale: {scale} must be a positive integer"):
            augmentation(None, False, None, False, scale)


def test_a_window_inside_an_image_is_a_view_of_it():
    image = np.arange(5 * 7).reshape(5, 7)
    for window in (Window(0, 0, 5, 7), Window(1, 2, 4, 5), Window(4, 6, 1, 1)):
        assert window.inside((5, 7)) == window
        assert np.shares_memory(window.cut(image), image)
        np.testing.assert_array_equal(
            window.cut(image), image[window.top : window.top + window.height, window.left : window.left + window.width]
        )
    assert Window.whole((5, 7)) == Window(0, 0, 5, 7)
    assert Window(1, 2, 5, 4).inside((5, 7)) == Window(0, 2, 5, 4)  # one row too low: all rows count
    assert Window(-1, 2, 3, 6).inside((5, 7)) == Window(0, 0, 5, 7)


def test_windows_and_placements_on_a_finer_grid_and_with_a_margin():
    placement = Placement(Window(1, 7, 3, 5), Flip(vertical=True))
    assert placement.scaled(3) == Placement(Window(3, 21, 9, 15), Flip(vertical=True))
    assert placement.grown(2) == Placement(Window(-1, 5, 7, 9), Flip(vertical=True))


def test_whole_images_are_drawn_without_a_patch_and_patches_with_one():
    rng = np.random.default_rng(0)
    assert Augmentation().draw((5, 7), rng) == Placement(Window(0, 0, 5, 7), Flip())
    assert Augmentation(9).draw((5, 7), rng).window == Window(0, 0, 9, 9)
    corners = {(p.window.top, p.window.left) for p in (Augmentation(4).draw((5, 3), rng) for _ in range(50))}
    assert corners == {(0, 0), (1, 0)}


def test_mean_and_std_that_would_change_images_are_refused():
    refuse_normalization(None, None)
    refuse_normalization([0, 0, 0], [1, 1, 1])
    for mean, std in (([0.5, 0.5, 0.5], [1, 1, 1]), ([0, 0, 0], [1, 2, 1]), ([0, 0, 0.1], None), (None, [0.5])):
        with pytest.raises(ValueError, match=r"stay in \[0, 1\]"):
            refuse_normalization(mean, std)
