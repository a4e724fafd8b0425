"""MATLAB's bicubic resize: BasicSR's values, the definition at any size, and parts that equal the whole."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sam4ir.utils.resize import SUPPORT, imresize, resize_to, shrunk_pixels

# BasicSR 8d56e3a, matlab_functions.imresize: the upper 24 rows of astronaut[:192, :240] / 255 shrunk to 1/4, and every
# sixth pixel of astronaut[:48, :60] / 255 enlarged by 4
GOLDEN = np.load(Path(__file__).resolve().parents[1] / "golden" / "golden_resize.npz")
FACTORS = (2, 3, 4, 5, 8)


def planes(pixels: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float64) / 255).permute(2, 0, 1).to(dtype)


def noise(height: int, width: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (height, width, 3), dtype, endpoint=True)


def one_pixel(line: np.ndarray, centre: float, scale: float) -> float:
    """An output pixel of a line, word for word: kernel widened when shrinking, sum 1, mirrored with the edge."""
    inverse = min(scale, 1.0)
    total = weight = 0.0
    for place in range(math.floor(centre - 2 / inverse) - 1, math.ceil(centre + 2 / inverse) + 2):
        x = abs(centre - place) * inverse
        k = 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0
        mirrored = place % (2 * len(line))
        total += k * line[mirrored if mirrored < len(line) else 2 * len(line) - 1 - mirrored]
        weight += k
    return total / weight


def defined(image: np.ndarray, size: tuple[int, int], scale: tuple[float, float]) -> np.ndarray:
    """(h, w) -> size by the definition, one pixel at a time."""
    for length, s in zip(size, scale, strict=True):  # each direction is brought to the front in turn
        image = np.array([[one_pixel(c, (i + 0.5) / s - 0.5, s) for i in range(length)] for c in image.T])
    return image


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_quarter_is_matlabs(dtype: torch.dtype) -> None:
    made = imresize(planes(GOLDEN["photo"], dtype), 1 / 4)
    assert (made.dtype, made.shape) == (dtype, (3, 26, 60))
    np.testing.assert_allclose(made[:, :24].permute(1, 2, 0), GOLDEN["down4"], rtol=0, atol=1e-6)


def test_four_times_is_matlabs() -> None:
    made = imresize(planes(GOLDEN["photo"][:48, :60]), 4)
    assert made.shape == (3, 192, 240)
    np.testing.assert_allclose(made[:, ::6, ::6].permute(1, 2, 0), GOLDEN["up4_every6th"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [0.3, 1 / 3, 0.77, 1.0, 1.7, 3.0, 1 / 40])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (23, 40)])
def test_any_scale_follows_the_definition(size: tuple[int, int], scale: float) -> None:
    image = np.random.default_rng(1).random(size)
    want = (math.ceil(size[0] * scale - 1e-9), math.ceil(size[1] * scale - 1e-9))
    made = imresize(torch.from_numpy(image), scale)
    np.testing.assert_allclose(made, defined(image, want, (scale, scale)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", [300, 700])  # more inputs than one product for all
@pytest.mark.parametrize("length", [13, 150, 211, 1000])
def test_long_sides_follow_the_definition(side: int, length: int) -> None:
    image = np.random.default_rng(2).random((side, 2))
    want = defined(image, (length, 2), (length / side, 1.0))
    np.testing.assert_allclose(resize_to(torch.from_numpy(image), (length, 2)), want, rtol=0, atol=1e-12)
    np.testing.assert_allclose(resize_to(torch.from_numpy(image.T), (2, length)), want.T, rtol=0, atol=1e-12)


def test_leading_axes_are_images_of_their_own() -> None:
    images = torch.rand(2, 3, 9, 12)
    made = resize_to(images, (20, 5))
    assert made.shape == (2, 3, 20, 5)
    torch.testing.assert_close(made[1, 2], resize_to(images[1, 2], (20, 5)))


def test_half_precision_is_computed_in_single() -> None:
    image = torch.rand(3, 40, 40).bfloat16()
    made = imresize(image, 4)
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, imresize(image.float(), 4).bfloat16())


def test_the_gradient_is_the_transposed_resize() -> None:
    image = torch.rand(1, 7, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: resize_to(x, (4, 13)), image)


def test_autocast_changes_nothing() -> None:
    image = torch.rand(3, 31, 33)
    with torch.autocast("cpu", torch.bfloat16):
        inside = imresize(image, 4)
    assert torch.equal(inside, imresize(image, 4))


def test_weights_first_used_in_inference_serve_gradients() -> None:
    image = torch.rand(1, 19, 27, requires_grad=True)
    with torch.inference_mode():
        resize_to(image, (5, 61))
    resize_to(image, (5, 61)).sum().backward()
    assert image.grad is not None


def test_shapes_are_known_on_the_meta_device() -> None:
    assert imresize(torch.empty(2, 3, 40, 300, device="meta"), 1 / 4).shape == (2, 3, 10, 75)


def test_what_cannot_be_resized_is_named() -> None:
    with pytest.raises(ValueError, match="scale: 0 must be"):
        imresize(torch.zeros(3, 4, 4), 0)
    with pytest.raises(ValueError, match=r"torch.uint8 must be floating point"):
        imresize(torch.zeros(3, 4, 4, dtype=torch.uint8), 2)
    with pytest.raises(ValueError, match=r"size: \(0, 4\)"):
        resize_to(torch.zeros(3, 4, 4), (0, 4))
    with pytest.raises(ValueError, match="0x4 is empty"):
        imresize(torch.zeros(3, 0, 4), 2)
    with pytest.raises(ValueError, match="30x41 cannot be shrunk by 4"):
        shrunk_pixels(noise(30, 41), 4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("factor", FACTORS)
def test_shrunk_pixels_are_the_rounded_resize(factor: int, dtype: type) -> None:
    pixels = noise(11 * factor, 50 * factor, dtype)
    largest = np.iinfo(dtype).max
    exact = imresize(torch.from_numpy(pixels.astype(np.float64)).permute(2, 0, 1), 1 / factor).permute(1, 2, 0).numpy()
    made = shrunk_pixels(pixels, factor)
    assert made.dtype == dtype
    assert np.abs(made - exact.clip(0, largest)).max() <= 0.5 + 1e-7
    np.testing.assert_allclose(shrunk_pixels(pixels, factor, rounded=False) * largest, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("factor", FACTORS)
def test_a_part_is_shrunk_to_the_same_bits(factor: int, rounded: bool) -> None:
    """Halves among them: pixels of few values make many."""
    pixels = noise(60 * factor, 90 * factor) // 64 * 64
    whole = shrunk_pixels(pixels, factor, rounded)
    for top, left, h, w in ((0, 0, 20, 31), (17, 40, 33, 50), (59, 0, 1, 90), (30, 89, 30, 1)):
        padded = np.pad(pixels, [(SUPPORT * factor,) * 2] * 2 + [(0, 0)], "symmetric")
        around = padded[top * factor : (top + h + 2 * SUPPORT) * factor, left * factor :][
            :, : (w + 2 * SUPPORT) * factor
        ]
        part = shrunk_pixels(around, factor, rounded)[SUPPORT:-SUPPORT, SUPPORT:-SUPPORT]
        np.testing.assert_array_equal(part, whole[top : top + h, left : left + w])


@pytest.mark.parametrize("factor", [2, 4])
def test_halves_are_rounded_to_even(factor: int) -> None:
    """Columns that alternate between two values have their mean, away from the border."""
    for low, mean in ((0, 0), (1, 2), (6, 6)):
        pixels = np.tile(np.array([low, low + 1], np.uint8)[None, :, None], (4 * factor, 8 * factor, 1))
        assert (shrunk_pixels(pixels, factor)[:, 2:-2] == mean).all()
        assert (shrunk_pixels(pixels.swapaxes(0, 1), factor)[2:-2] == mean).all()
