"""LPIPS against the package of its authors (lpips 0.1.4)."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sam4ir.metrics.inputs import MetricError
from sam4ir.metrics.lpips import SMALLEST, LpipsAlex

PAIR = Path(__file__).parents[1] / "golden" / "golden_metrics.npz"
SHAPES = {
    **{f"features.{i}.weight": s for i, s in ((0, (64, 3, 11, 11)), (3, (192, 64, 5, 5)), (6, (384, 192, 3, 3)))},
    **{f"features.{i}.weight": s for i, s in ((8, (256, 384, 3, 3)), (10, (256, 256, 3, 3)))},
    **{f"features.{i}.bias": (n,) for i, n in ((0, 64), (3, 192), (6, 384), (8, 256), (10, 256))},
    **{f"lin{i}.model.1.weight": (1, n, 1, 1) for i, n in enumerate((64, 192, 384, 256, 256))},
}
# lpips.LPIPS(net="alex") with these weights on (noisy, ref) / 255, normalize=True: whole, and a corner of 40 x 33
PROCEDURAL = (0.1904270499944687, 0.251609206199646)
REAL = (0.14127062261104584, 0.3451365828514099)


def procedural():
    """Weights by a rule on the names, which the package was given as well."""
    state = {}
    for number, name in enumerate(sorted(SHAPES)):
        shape = torch.Size(SHAPES[name])
        wave = torch.sin(torch.arange(shape.numel(), dtype=torch.float64) * 1.7 + number)
        fan = shape[1:].numel() if len(shape) > 1 else 10
        state[name] = (wave.abs() if name.startswith("lin") else wave / fan**0.5).float().reshape(shape)
    return state


@pytest.fixture(scope="module")
def lpips():
    return LpipsAlex(procedural())


@pytest.fixture(scope="module")
def pair():
    arrays = np.load(PAIR)
    return tuple(torch.from_numpy(arrays[name].transpose(2, 0, 1).copy()) for name in ("noisy", "ref"))


def values(lpips, pair):
    image, reference = pair
    return lpips(image, reference), lpips(image[:, :40, 3:36], reference[:, :40, 3:36])


def test_values_are_those_of_the_authors_package(lpips, pair):
    assert values(lpips, pair) == pytest.approx(PROCEDURAL, abs=1e-6)


@pytest.mark.weights
def test_values_with_the_real_weights_are_those_of_the_authors_package(pair):
    from sam4ir.priors.zoo.weights import cached, load_state

    if cached("lpips_alex") is None:
        pytest.skip("python scripts/fetch_weights.py lpips_alex")
    assert values(LpipsAlex(load_state("lpips_alex")), pair) == pytest.approx(REAL, abs=1e-6)


def test_the_declared_range_gives_the_same_value_for_the_same_image(lpips, pair):
    image, reference = (x[:, :48, :48] for x in pair)
    assert lpips(image / 255, reference / 255, 1.0) == pytest.approx(lpips(image, reference), abs=1e-6)
    assert lpips(image, reference) == pytest.approx(lpips(reference, image), abs=1e-6)
    assert lpips(image, image) == 0


def test_more_noise_is_further_away(lpips, pair):
    reference = pair[1][:, :64, :64]
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(0))
    noisy = [(reference + sigma * noise).round().clamp(0, 255).byte() for sigma in (0, 2, 10, 40)]
    distances = [lpips(image, reference) for image in noisy]
    assert distances == sorted(distances)
    assert distances[0] < distances[1]


def test_the_smallest_image_is_scored_and_a_smaller_one_named(lpips):
    least = torch.rand(2, 3, SMALLEST, SMALLEST + 5)
    assert math.isfinite(lpips(least[0], least[1], 1.0))
    small = least[:, :, 1:]
    with pytest.raises(MetricError, match=r"30 x 36; lpips_alex needs 31 pixels"):
        lpips(small[0], small[1], 1.0)


def test_a_grey_image_is_its_rgb_copy(lpips):
    a, b = torch.rand(2, 1, 40, 40)
    assert lpips(a, b, 1.0) == lpips(a.expand(3, -1, -1), b.expand(3, -1, -1), 1.0)


def test_other_weights_are_refused_with_what_they_lack():
    state = procedural()
    state["lin2.model.1.weight"] = state["lin2.model.1.weight"][:, :3]
    with pytest.raises(MetricError, match=r"do not hold lin2\.model\.1\.weight"):
        LpipsAlex(state)
