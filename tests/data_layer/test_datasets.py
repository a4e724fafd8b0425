from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sam4ir.data.noisy import GaussianDenoisingDataset
from sam4ir.data.paired import PairedImageDataset
from sam4ir.utils.image import write_image
from sam4ir.utils.rng import generator

SCALE = 2
NAMES = ["img_a", "img_b", "img_c"]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """GT images that tell their own pixel positions and their LQ, every second pixel."""
    root = tmp_path_factory.mktemp("pairs")
    for i, name in enumerate(NAMES):
        y, x = np.mgrid[0:40, 0:56]
        gt = np.stack([y, x, np.full_like(x, i)], axis=2).astype(np.uint8)
        write_image(root / "gt" / f"{name}.png", gt)
        write_image(root / "lq" / f"{name}x2.png", gt[::SCALE, ::SCALE])
    return root


class Masks:
    """A store whose region label is a function of the pixel's position."""

    path = Path("masks_of_test")

    def __init__(self, size=(40, 56)):
        y, x = np.mgrid[0 : size[0], 0 : size[1]]
        self.labels = (y // 8 * 7 + x // 8).astype(np.int32)

    def read(self, key):
        if key == "img_c":
            raise ValueError(f"{self.path}: no record {key}")
        return SimpleNamespace(size=self.labels.shape, labels=self.labels)


VIEWS = {
    "regions": lambda record, window: window.cut(record.labels),
    "spe": lambda record, window: window.cut(record.labels).astype(np.float32) / 10,
}


def paired(roots, **arguments):
    options = {"filename_tmpl": "{}x2", "scale": SCALE} | arguments
    return PairedImageDataset(str(roots / "gt"), str(roots / "lq"), **options)


def pixel(tensor):
    return (tensor * 255).round().long()


@pytest.mark.parametrize("seed", range(8))
def test_lq_gt_regions_and_spe_share_one_window_and_flip(roots, seed):
    dataset = paired(roots, gt_size=16, use_hflip=True, use_rot=True, masks=Masks(), mask_views=VIEWS)
    sample = dataset.get(1, generator(seed))
    y, x, which = pixel(sample.gt)
    assert sample.key == "img_b"
    assert sample.lq.shape == (3, 8, 8)
    assert set(which.flatten().tolist()) == {1}
    labels = y // 8 * 7 + x // 8
    _, dense = torch.unique(labels, return_inverse=True)
    shift = 0 if (labels == 0).any() else 1  # label 0 is no region and stays 0
    torch.testing.assert_close(sample.regions, dense + shift, rtol=0, atol=0)
    torch.testing.assert_close(sample.spe[0], labels.float() / 10)
    lq_of_gt = sample.gt.unfold(1, 2, 2).unfold(2, 2, 2).amin((3, 4))  # the even positions are the smaller ones
    torch.testing.assert_close(sample.lq, lq_of_gt, rtol=0, atol=0)


def test_whole_images_come_without_gt_size_and_crops_with_another(roots):
    dataset = paired(roots)
    sample = dataset.get(0, generator(0))
    assert (sample.lq.shape, sample.gt.shape, sample.regions) == ((3, 20, 28), (3, 40, 56), None)
    assert paired(roots, gt_size=8).get(0, generator(0)).lq.shape == (3, 4, 4)
    assert dataset.get(0, generator(0)).gt.shape == (3, 40, 56)


def test_use_flip_is_use_hflip(roots):
    one, other = paired(roots, gt_size=16, use_flip=True), paired(roots, gt_size=16, use_hflip=True)
    assert all(torch.equal(one.get(0, generator(s)).gt, other.get(0, generator(s)).gt) for s in range(8))


def test_names_without_partner_are_listed_with_the_template_that_fits(roots):
    with pytest.raises(ValueError, match="do not pair") as caught:
        paired(roots, filename_tmpl="{}")
    message = str(caught.value)
    assert "without LQ: 3 images: img_a, img_b, img_c" in message
    assert "without GT: 3 images: img_ax2" in message
    assert "filename_tmpl: '{}x2' would pair 3 of 3" in message


def test_long_lists_of_lonely_names_are_cut_at_ten(tmp_path):
    for i in range(12):
        write_image(tmp_path / "gt" / f"g{i:02d}.png", np.zeros((1, 1, 3), np.uint8))
    write_image(tmp_path / "lq" / "other.png", np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(ValueError, match=r"12 images: g00, .*g09, \.\.\.") as caught:
        PairedImageDataset(str(tmp_path / "gt"), str(tmp_path / "lq"))
    assert "g10" not in str(caught.value)
    assert "would pair" not in str(caught.value)


def test_a_meta_info_file_may_leave_lq_images_over(roots, tmp_path):
    (tmp_path / "meta.txt").write_text("img_b.png (40,56,3)\n")
    dataset = paired(roots, meta_info_file=str(tmp_path / "meta.txt"))
    assert [dataset.key(i) for i in range(len(dataset))] == ["img_b"]


def test_sizes_that_do_not_fit_name_both_files_and_sizes(roots):
    with pytest.raises(ValueError, match=r"img_a\.png is 40x56.*img_ax2\.png is 20x28.*scale: 4"):
        paired(roots, scale=4).get(0, generator(0))
    with pytest.raises(ValueError, match=r"img_ax2\.png: image is 20x28.*32x32 patch"):
        paired(roots, gt_size=64).get(0, generator(0))


def test_missing_or_foreign_masks_name_store_and_image(roots):
    dataset = paired(roots, masks=Masks(), mask_views=VIEWS)
    with pytest.raises(ValueError, match=r"img_c\.png.*masks_of_test"):
        dataset.get(2, generator(0))
    with pytest.raises(ValueError, match=r"masks_of_test.*20x28.*img_a\.png is 40x56"):
        paired(roots, masks=Masks((20, 28)), mask_views=VIEWS).get(0, generator(0))


def noisy(roots, **arguments):
    return GaussianDenoisingDataset(str(roots / "gt"), **arguments)


def test_noise_is_float_gaussian_and_not_clipped(roots):
    samples = [noisy(roots, sigma_range=50).get(i % 3, generator(i)) for i in range(12)]
    noise = torch.stack([s.lq - s.gt for s in samples])
    assert noise.dtype == torch.float32
    assert abs(noise.std() * 255 - 50) < 1
    assert abs(noise.mean() * 255) < 1
    assert min(s.lq.min() for s in samples) < -0.2


def test_fixed_noise_depends_on_the_key_only(roots, tmp_path):
    (tmp_path / "meta.txt").write_text("img_b.png (40,56,3)\n")
    full = noisy(roots, sigma_range=25, noise_seed=3)
    subset = noisy(roots, sigma_range=25, noise_seed=3, meta_info_file=str(tmp_path / "meta.txt"))
    assert torch.equal(full.get(1, generator(0)).lq, subset.get(0, generator(9)).lq)
    free = noisy(roots, sigma_range=25)
    assert not torch.equal(free.get(1, generator(0)).lq, free.get(1, generator(9)).lq)
    other = noisy(roots, sigma_range=25, noise_seed=4)
    assert not torch.equal(full.get(1, generator(0)).lq, other.get(1, generator(0)).lq)
    noise = [s.lq - s.gt for s in (full.get(0, generator(0)), full.get(1, generator(0)))]
    assert not torch.allclose(*noise, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "sigmas", "inside"),
    [("random", [10, 30], lambda s: 9 < s < 31), ("choice", [5, 40], lambda s: abs(s - 5) < 1 or abs(s - 40) < 2)],
)
def test_sigma_is_drawn_per_sample(roots, kind, sigmas, inside):
    dataset = noisy(roots, sigma_type=kind, sigma_range=sigmas)
    drawn = [float((s.lq - s.gt).std() * 255) for s in (dataset.get(0, generator(i)) for i in range(20))]
    assert all(map(inside, drawn))
    assert max(drawn) - min(drawn) > 8


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"sigma_range": [15, 50]}, "constant"),
        ({"sigma_range": 15, "sigma_type": "random"}, "2 number"),
        ({"sigma_range": [50, 15], "sigma_type": "random"}, "low, high"),
        ({"sigma_range": [], "sigma_type": "choice"}, "sigma_range"),
        ({"sigma_range": 15, "sigma_type": "constnat"}, "did you mean 'constant'"),
        ({"sigma_range": 15, "scale": 2}, "scale"),
    ],
)
def test_noise_options_that_make_no_sense_are_named(roots, arguments, word):
    with pytest.raises(ValueError, match=word):
        noisy(roots, **arguments)


def test_noisy_regions_follow_the_crop(roots):
    dataset = noisy(roots, sigma_range=0, gt_size=16, use_rot=True, masks=Masks(), mask_views=VIEWS)
    sample = dataset.get(0, generator(5))
    y, x, _ = pixel(sample.gt)
    assert torch.equal(sample.lq, sample.gt)
    torch.testing.assert_close(sample.spe[0], (y // 8 * 7 + x // 8).float() / 10)
