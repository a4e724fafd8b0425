"""PSNR and SSIM: the official programs' values, and what must hold for any images."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate1d
from skimage.metrics import structural_similarity

from sam4ir.metrics.inputs import luma_rounded
from sam4ir.metrics.psnr import psnr, psnr_y, psnr_y_rounded
from sam4ir.metrics.ssim import ssim, ssim3d, ssim_uniform, ssim_y, ssim_y_replicate, ssim_y_rounded

DATA = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((DATA / "golden_metrics.json").read_text())
SIMILARITIES = [ssim, ssim_y, ssim_y_rounded, ssim_y_replicate, ssim_uniform, ssim3d]
METRICS = {f.__name__: f for f in (psnr, psnr_y, psnr_y_rounded, *SIMILARITIES)}


@pytest.fixture(scope="module")
def pair():
    arrays = np.load(DATA / "golden_metrics.npz")
    return tuple(torch.from_numpy(arrays[name].transpose(2, 0, 1).copy()) for name in ("noisy", "ref"))


def images(seed, c=3, h=24, w=31):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(2, c, h, w, generator=random).unbind(0)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['metric']}-{c['crop_border']}-{c['data_range']}")
def test_values_equal_the_official_programs(pair, case):
    image, reference = pair if case["data_range"] == 255 else (x.float() / 255 for x in pair)
    got = METRICS[case["metric"]](image, reference, case["crop_border"], case["data_range"])
    assert got == pytest.approx(case["value"], abs=1e-4)


@pytest.mark.parametrize("case", GOLDEN["green_channel"], ids=lambda c: c["metric"])
def test_one_channel_values_equal_basicsr(pair, case):
    image, reference = (x[1:2] for x in pair)
    assert METRICS[case["metric"]](image, reference, case["crop_border"]) == pytest.approx(case["value"], abs=1e-6)


@pytest.mark.parametrize("shift", [1, 7, 100])
def test_psnr_of_a_constant_shift_is_20_log10_of_255_over_it(shift):
    x = torch.rand(3, 12, 9, dtype=torch.float64)
    assert psnr(x, x + shift / 255, data_range=1.0) == pytest.approx(20 * math.log10(255 / shift), abs=1e-9)


def test_luma_of_a_grey_shift_shrinks_by_the_studio_swing():
    x = torch.rand(3, 12, 9, dtype=torch.float64)
    expected = 20 * math.log10(255 / (10 * 219 / 255))
    assert psnr_y(x, x + 10 / 255, data_range=1.0) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("metric", METRICS.values())
@pytest.mark.parametrize("channels", [1, 3])
def test_metrics_are_symmetric(metric, channels):
    a, b = images(0, c=channels)
    assert metric(a, b, data_range=1.0) == pytest.approx(metric(b, a, data_range=1.0), rel=1e-12)


@pytest.mark.parametrize("metric", METRICS.values())
def test_equal_images_give_infinity_or_one(metric):
    a, _ = images(1)
    expected = 1.0 if metric in SIMILARITIES else math.inf
    assert metric(a, a.clone(), data_range=1.0) == pytest.approx(expected, abs=1e-9)
    black = torch.zeros(3, 16, 16, dtype=torch.uint8)
    assert metric(black, black) == pytest.approx(expected, abs=1e-9)


@given(seed=st.integers(0, 10**6), border=st.integers(0, 5), h=st.integers(22, 40), w=st.integers(22, 40))
@settings(max_examples=15, deadline=None)
def test_the_border_is_cut_before_anything_else(seed, border, h, w):
    a, b = images(seed, h=h, w=w)
    inside = (slice(None), slice(border, h - border), slice(border, w - border))
    for metric in METRICS.values():
        assert metric(a, b, border, 1.0) == metric(a[inside], b[inside], 0, 1.0)


@pytest.mark.parametrize("metric", METRICS.values())
def test_declared_range_scales_the_same_image_to_the_same_value(metric):
    a, b = (x.double() for x in images(2))
    assert metric(a, b, data_range=1.0) == pytest.approx(metric(a * 255, b * 255, data_range=255.0), abs=1e-9)


@pytest.mark.parametrize("metric", METRICS.values())
def test_the_range_is_not_guessed_from_dark_images(metric):
    a, b = images(3)
    assert metric(a, b, data_range=255.0) > metric(a, b, data_range=1.0)


def test_inputs_are_left_as_they_were():
    a, b = images(4)
    a = a.double()
    b = b.double()
    before = a.clone(), b.clone()
    for metric in METRICS.values():
        metric(a, b, data_range=255.0)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])


def test_ssim3d_of_one_channel_ignores_the_colour_axis():
    """On grey replicated to RGB the window over colour has equal planes to average: nothing changes."""
    a, b = images(5, c=1)
    grey = ssim3d(a, b, data_range=1.0)
    assert ssim3d(a.expand(3, -1, -1), b.expand(3, -1, -1), data_range=1.0) == pytest.approx(grey, abs=1e-9)


def test_ssim_is_the_mean_over_channels():
    a, b = images(6)
    each = [ssim(a[c : c + 1], b[c : c + 1], data_range=1.0) for c in range(3)]
    assert ssim(a, b, data_range=1.0) == pytest.approx(sum(each) / 3, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS.values())
def test_different_shapes_are_named(metric):
    with pytest.raises(ValueError, match=r"\(3, 24, 31\).*\(3, 24, 30\)"):
        metric(torch.zeros(3, 24, 31), torch.zeros(3, 24, 30))


@pytest.mark.parametrize("metric", METRICS.values())
@pytest.mark.parametrize("shape", [(24, 31), (2, 24, 31), (1, 3, 24, 31), (4, 24, 31)])
def test_other_layouts_are_refused(metric, shape):
    with pytest.raises(ValueError, match="expected"):
        metric(torch.zeros(shape), torch.zeros(shape))


def test_uniform_window_needs_7_pixels():
    x = torch.rand(3, 9, 30)
    assert ssim_uniform(x, x, crop_border=1, data_range=1.0) == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"5 x 26 after crop_border 2.*7 x 7"):
        ssim_uniform(x, x, crop_border=2)


@pytest.mark.parametrize("metric", [ssim, ssim_y, ssim_y_rounded])
def test_images_under_the_window_after_cropping_are_refused_with_their_size(metric):
    x = torch.rand(3, 18, 30)
    assert metric(x[:, :11, :11], x[:, :11, :11], data_range=1.0) == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"10 x 22 after crop_border 4.*11 x 11"):
        metric(x, x, crop_border=4)


@pytest.mark.parametrize("metric", METRICS.values())
def test_a_border_that_leaves_nothing_is_refused(metric):
    x = torch.rand(3, 8, 40)
    with pytest.raises(ValueError, match=r"crop_border is 4.* 8 x 40"):
        metric(x, x, crop_border=4)
    with pytest.raises(ValueError, match="crop_border is -1"):
        metric(x, x, crop_border=-1)


def test_bytes_with_the_range_of_floats_are_refused():
    x = torch.zeros(3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="uint8"):
        psnr(x, x, data_range=1.0)
    with pytest.raises(ValueError, match="int64"):
        psnr(x.long(), x.long())
    with pytest.raises(ValueError, match="data_range is 0"):
        psnr(x.float(), x.float(), data_range=0)


@pytest.mark.parametrize("metric", [ssim3d, ssim_y_replicate])
def test_replicated_borders_take_images_smaller_than_the_window(metric):
    a, b = images(7, h=3, w=2)
    assert -1 <= metric(a, b, data_range=1.0) < 1


@pytest.mark.parametrize(("h", "w", "c"), [(24, 31, 3), (7, 40, 1), (33, 8, 3)])
def test_uniform_ssim_equals_scikit_image(h, w, c):
    a, b = (x.double() for x in images(8, c=c, h=h, w=w))
    expected = structural_similarity(a.numpy(), b.numpy(), data_range=1.0, channel_axis=0)
    assert ssim_uniform(a, b, data_range=1.0) == pytest.approx(expected, abs=1e-12)


def test_replicate_ssim_equals_a_direct_form():
    """eq. 13 with an 11-tap Gaussian per axis, borders replicated, written with scipy's filters."""
    x, y = (image[0].double().numpy() * 255 for image in images(9, c=1))
    window = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
    window /= window.sum()

    def blur(plane):
        return correlate1d(correlate1d(plane, window, axis=0, mode="nearest"), window, axis=1, mode="nearest")

    mx, my = blur(x), blur(y)
    sxx, syy, sxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = 2.55**2, 7.65**2
    expected = np.mean((2 * mx * my + c1) * (2 * sxy + c2) / ((mx**2 + my**2 + c1) * (sxx + syy + c2)))
    got = ssim_y_replicate(torch.from_numpy(x)[None], torch.from_numpy(y)[None])
    assert got == pytest.approx(expected, abs=1e-12)


def test_luma_levels_are_those_of_whole_number_arithmetic():
    """The luma of (146, 124, 97) lies exactly between two levels; halves go up."""
    rgb = np.random.default_rng(0).integers(0, 256, (3, 100, 1000))
    rgb[:, 0, :4] = [[146, 0, 255, 128], [124, 0, 255, 128], [97, 0, 255, 128]]
    levels = (65481 * rgb[0] + 128553 * rgb[1] + 24966 * rgb[2] + 127500) // 255000 + 16
    assert torch.equal(luma_rounded(torch.from_numpy(rgb).double())[0], torch.from_numpy(levels).double())
    assert (65481 * 146 + 128553 * 124 + 24966 * 97) % 255000 == 127500


def grey(level):
    return torch.full((3, 16, 16), level, dtype=torch.uint8)


def test_rounded_luma_does_not_see_a_step_below_its_levels():
    """219 levels of luma for 256 of grey: 3 and 4 are both level 19, 100 and 101 are 102 and 103."""
    assert psnr_y_rounded(grey(3), grey(4)) == math.inf
    assert psnr_y_rounded(grey(100), grey(101)) == pytest.approx(20 * math.log10(255), abs=1e-9)
    assert psnr_y(grey(3), grey(4)) == pytest.approx(20 * math.log10(255 * 255 / 219), abs=1e-9)
    assert ssim_y_rounded(grey(3), grey(4)) == 1.0


def test_rounded_luma_is_that_of_the_8_bit_image():
    a, b = images(10)
    bytes_ = [(x * 255).round().to(torch.uint8) for x in (a, b)]
    for metric in (psnr_y_rounded, ssim_y_rounded):
        assert metric(a, b, data_range=1.0) == metric(*bytes_)


def test_colours_next_to_each_other_in_memory_change_nothing():
    a, b = images(11)
    for metric in METRICS.values():
        interleaved = (x.permute(1, 2, 0).contiguous().permute(2, 0, 1) for x in (a, b))
        assert metric(*interleaved, data_range=1.0) == metric(a, b, data_range=1.0)
