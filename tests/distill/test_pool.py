"""Region sums and maps against loops over pixels."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sam4ir.distill import pool

PATHS = {"matmul": 2**26, "index": -1}


@pytest.fixture(params=PATHS, autouse=True)
def path(request, monkeypatch):
    """Every test here runs on both ways of summing."""
    monkeypatch.setattr(pool, "MATMUL_LIMIT", PATHS[request.param])
    return request.param


def draw(seed, b=2, c=3, h=7, w=9, count=4):
    """Values and labels; the last image has fewer regions than the first."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, count + 1, (b, h, w), generator=g)
    labels[-1] = labels[-1].clamp(max=max(count - 2, 0))
    return torch.rand(b, c, h, w, generator=g), labels


def looped_sums(values, labels, count):
    sums = torch.zeros(values.shape[0], count + 1, values.shape[1], dtype=torch.float64)
    for i, image in enumerate(labels.tolist()):
        for y, row in enumerate(image):
            for x, label in enumerate(row):
                sums[i, label] += values[i, :, y, x].double()
    return sums


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 7, 9), (3, 5, 4, 33)])
@pytest.mark.parametrize("count", [0, 1, 6])
def test_sums_and_areas_equal_a_loop_over_pixels(shape, count):
    values, labels = draw(0, *shape, count)
    expected = looped_sums(values, labels, count)
    torch.testing.assert_close(pool.region_sums(values, labels, count).double(), expected, rtol=1e-6, atol=1e-6)
    ones = looped_sums(torch.ones_like(values), labels, count)[..., 0]
    assert torch.equal(pool.region_areas(labels, count).double(), ones)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.integers(0, 9))
def test_both_ways_of_summing_and_painting_agree(seed, b, h, w, count):
    values, labels = draw(seed, b, 2, h, w, count)
    results = []
    with pytest.MonkeyPatch.context() as patch:
        for limit in PATHS.values():
            patch.setattr(pool, "MATMUL_LIMIT", limit)
            results.append((pool.region_sums(values, labels, count), pool.region_means_painted(values, labels, count)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_deterministic_mode_sums_by_matmul(path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("scatter-add")

    monkeypatch.setattr(pool, "_sums_by_index", refuse)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    pool.region_sums(*draw(1), 4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sums_are_fp32_under_bf16_autocast(layout):
    values = torch.full((1, 2, 32, 32), 1.0).contiguous(memory_format=layout)  # bf16 counts to 256 only
    labels = torch.ones(1, 32, 32, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        sums = pool.region_sums(values.bfloat16(), labels, 1)
        painted = pool.paint_rows(torch.full((1, 2, 1), 1.001), labels)
    assert sums.dtype == painted.dtype == torch.float32
    assert (sums[0, 1] == 1024).all()
    assert (painted == torch.tensor(1.001)).all()


def test_the_mean_of_a_large_even_region_is_its_value():
    values = torch.full((1, 1, 1024, 512), 0.1)  # one running fp32 sum would be 0.5 % off; AVX2's matmul is 0.1 % off
    sums = pool.region_sums(values, torch.ones(1, 1024, 512, dtype=torch.int64), 1)
    assert sums[0, 1, 0].item() / 2**19 == pytest.approx(0.1, rel=2e-3)


def test_a_batch_of_different_region_counts_sums_as_its_images_alone():
    values, labels = draw(2, b=3, count=5)
    together = pool.region_means_painted(values, labels, 5)
    for i in range(3):
        own = int(labels[i].max())
        alone = pool.region_means_painted(values[i : i + 1], labels[i : i + 1], own)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-6)


def test_painted_means_are_means_and_zero_outside_regions():
    values, labels = draw(3)
    means = looped_sums(values, labels, 4) / pool.region_areas(labels, 4).clamp(min=1).unsqueeze(-1)
    means[:, 0] = 0
    expected = torch.stack([means[i][labels[i]].permute(2, 0, 1) for i in range(2)])
    torch.testing.assert_close(pool.region_means_painted(values, labels, 4).double(), expected, rtol=1e-5, atol=1e-6)


def test_the_mean_of_a_region_of_one_or_two_pixels_is_theirs():
    values = torch.tensor([[[[2.0, 4, 8, 16]]]])
    painted = pool.region_means_painted(values, torch.tensor([[[0, 1, 2, 2]]]), 3)
    assert painted.flatten().tolist() == [0, 4, 12, 12]


def test_painting_means_twice_changes_nothing():
    values, labels = draw(4)
    once = pool.region_means_painted(values, labels, 4)
    torch.testing.assert_close(pool.region_means_painted(once, labels, 4), once, rtol=1e-5, atol=1e-6)


def test_summing_a_painted_table_gives_it_back_times_the_areas():
    _, labels = draw(5)
    table = torch.rand(2, 5, 3)
    areas = pool.region_areas(labels, 4).unsqueeze(-1)
    torch.testing.assert_close(pool.region_sums(pool.paint_rows(table, labels), labels, 4), table * areas)


def test_means_leave_the_callers_tensors_alone():
    values, labels = draw(6)
    before = values.clone(), labels.clone()
    pool.region_means_painted(values, labels, 4)
    assert torch.equal(values, before[0])
    assert torch.equal(labels, before[1])


def test_gradient_of_the_painted_means_equals_finite_differences():
    values, labels = draw(7, h=3, w=4, count=3)
    pooled = lambda v: pool.region_means_painted(v, labels, 3)  # noqa: E731
    # linear, so a large step is exact; fp32 sums want one
    assert torch.autograd.gradcheck(pooled, values.double().requires_grad_(), eps=0.1, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize(("h", "w"), [(16, 24), (13, 9), (8, 15), (11, 17)])
def test_cell_coverage_is_the_average_pooled_one_hot(stride, h, w):
    _, labels = draw(8, h=h, w=w)
    one_hot = F.one_hot(labels, 5).permute(0, 3, 1, 2)[:, 1:].float()
    expected = F.avg_pool2d(one_hot, stride)
    got = pool.cell_coverage(labels, 4, (h // stride, w // stride), stride)
    assert torch.equal(got, expected.flatten(2))


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 5), (5, 1), (6, 7)])
def test_boundaries_are_where_a_four_neighbour_differs(h, w):
    _, labels = draw(9, h=h, w=w, count=2)
    expected = torch.zeros(2, 1, h, w)
    for i in range(2):
        for y in range(h):
            for x in range(w):
                near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
                inside = [labels[i, v, u] for v, u in near if 0 <= v < h and 0 <= u < w]
                expected[i, 0, y, x] = any(label != labels[i, y, x] for label in inside)
    assert torch.equal(pool.boundary_map(labels), expected)
