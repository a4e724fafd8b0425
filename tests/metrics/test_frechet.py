"""The Frechet distance of Gaussians against closed forms, and what the FID does to an image before its network."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sam4ir.metrics.fid import Fid, FrechetDistance, clean_resize
from sam4ir.metrics.frechet import frechet_distance
from sam4ir.metrics.inputs import MetricError


def standard(n, d, seed=0):
    """n points whose mean is exactly 0 and whose unbiased covariance is exactly 1."""
    points = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    points -= points.mean(dim=0)
    return torch.linalg.qr(points).Q * math.sqrt(n - 1)


def rotation(d, seed=7):
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).Q


def test_one_dimension_is_the_difference_of_means_and_of_deviations():
    x = standard(50, 1)
    a, b = 3 + 2 * x, -1 + 0.5 * standard(31, 1, seed=1)
    assert frechet_distance(a, b) == pytest.approx((3 + 1) ** 2 + (2 - 0.5) ** 2, abs=1e-9)


@pytest.mark.parametrize("counts", [(40, 40), (200, 33)])
def test_diagonal_covariances_add_up_their_dimensions(counts):
    d = 8
    scales = torch.arange(1, d + 1, dtype=torch.float64), torch.arange(d, 0, -1, dtype=torch.float64) / 2
    means = torch.linspace(-1, 1, d, dtype=torch.float64), torch.full((d,), 0.25, dtype=torch.float64)
    a, b = (m + standard(n, d, i) * s for i, (n, m, s) in enumerate(zip(counts, means, scales, strict=True)))
    expected = (means[0] - means[1]).square().sum() + (scales[0] - scales[1]).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)
    turn = rotation(d)  # no axis is special
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(float(expected), rel=1e-9)


def test_covariances_that_do_not_commute_have_the_root_of_their_product():
    """C1 = diag(1, 4), C2 = [[2, 1], [1, 2]]: tr (C1 C2)^(1/2) = sqrt(tr + 2 sqrt(det)) = sqrt(10 + 2 sqrt(12))."""
    a = standard(30, 2) * torch.tensor([1.0, 2.0])
    b = standard(30, 2, 1) @ torch.linalg.cholesky(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)).T
    assert frechet_distance(a, b) == pytest.approx(5 + 4 - 2 * math.sqrt(10 + 2 * math.sqrt(12)), abs=1e-9)


@pytest.mark.parametrize(("n", "d"), [(100, 12), (12, 12), (5, 64), (2, 2048)])
def test_equal_sets_are_at_distance_0_even_with_few_images(n, d):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0)) * 10 + 3
    assert 0 <= frechet_distance(x, x.flip(0)) < 1e-9
    assert frechet_distance(x, x + 2) == pytest.approx(4 * d, rel=1e-6)


def test_fewer_images_than_features_give_the_distance_within_the_plane_they_span():
    """Points of a plane of 64 dimensions: the distance is that of their coordinates there."""
    plane = rotation(64)[:2]
    a, b = standard(9, 2) * torch.tensor([1.0, 3.0]) + 1, standard(7, 2, 1) * 2
    assert frechet_distance(a @ plane, b @ plane) == pytest.approx(frechet_distance(a, b), abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(2 + 1 + 1, abs=1e-9)


def test_too_few_images_and_features_that_are_not_finite_give_nan():
    x = torch.randn(4, 3)
    assert math.isnan(frechet_distance(x[:1], x))
    broken = x.clone()
    broken[2, 1] = math.nan
    assert math.isnan(frechet_distance(broken, x))


class Means(nn.Module):
    """Mean and mean square of each channel."""

    def forward(self, image):
        return torch.cat([image.mean(dim=(2, 3)), image.square().mean(dim=(2, 3))], dim=1)


def test_features_are_of_the_resized_image_whatever_its_type_and_range():
    metric = FrechetDistance(Means(), 6)
    image = torch.randint(0, 256, (3, 41, 57), dtype=torch.uint8)
    features = metric.features(image, 255.0)
    seen = clean_resize(image.float())
    assert features[:3].tolist() == pytest.approx(seen.mean(dim=(1, 2)).tolist(), rel=1e-5)
    assert torch.allclose(metric.features(image / 255, 1.0), features, rtol=1e-5)
    grey = metric.features(image[:1], 255.0)
    assert grey[:3].tolist() == [grey[0].item()] * 3


@pytest.mark.parametrize("size", [(512, 400), (64, 64), (299, 120)])
def test_resizing_is_pillows_bicubic_of_float_images(size):
    plane = np.random.default_rng(0).integers(0, 256, size).astype(np.float32)
    expected = np.asarray(Image.fromarray(plane, mode="F").resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)
    got = clean_resize(torch.from_numpy(plane)[None])[0].numpy()
    assert abs(got - expected).max() < 1e-4
    assert abs(got - got.round()).max() > 0.3  # not rounded


def test_fid_is_the_packages_network_without_its_rounding_and_resizing(monkeypatch):
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason='pip install -e ".[fid]"')
    kind = module.FeatureExtractorInceptionV3
    with monkeypatch.context() as patched:  # random weights: the real ones are not needed for this
        patched.setattr(kind, "load_state_dict", lambda self, state: None)
        patched.setattr(module.torch, "load", lambda *_, **__: {})
        package = kind("inception", ["2048"], feature_extractor_weights_path="none")
    metric = Fid(package.state_dict())
    image = torch.randint(0, 256, (3, 299, 299), dtype=torch.uint8)
    assert torch.equal(metric.features(image, 255.0), package(image[None])[0][0])
    with pytest.raises(MetricError, match="fid: "):
        Fid({"x": torch.zeros(1)})
