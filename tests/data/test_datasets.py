from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from sam4ir.data.lmdb_io import LmdbWriter
from sam4ir.data.noisy import GaussianDenoisingDataset
from sam4ir.data.paired import PairedImageDataset
from sam4ir.data.views import LabelView, ValueView
from sam4ir.errors import UserError
from sam4ir.registry import DATASETS
from sam4ir.utils.image import read_image, write_image
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
            raise UserError(f"{self.path}: no record {key}")
        return SimpleNamespace(size=self.labels.shape, labels=self.labels)


class Labels(LabelView):
    def read(self, record, window):
        return window.cut(record.labels)


class Tenths(ValueView):
    def read(self, record, window):
        return window.cut(record.labels).astype(np.float32) / 10


VIEWS = {"regions": Labels(), "spe": Tenths()}


def paired(roots, **arguments):
    options = {"filename_tmpl": "{}x2", "scale": SCALE} | arguments
    return PairedImageDataset(dataroot_gt=str(roots / "gt"), dataroot_lq=str(roots / "lq"), **options)


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
    torch.testing.assert_close(sample.maps["regions"], dense + shift, rtol=0, atol=0)
    torch.testing.assert_close(sample.maps["spe"][0], labels.float() / 10)
    lq_of_gt = sample.gt.unfold(1, 2, 2).unfold(2, 2, 2).amin((3, 4))  # the even positions are the smaller ones
    torch.testing.assert_close(sample.lq, lq_of_gt, rtol=0, atol=0)


def test_whole_images_come_without_gt_size_and_crops_with_another(roots):
    dataset = paired(roots)
    sample = dataset.get(0, generator(0))
    assert (sample.lq.shape, sample.gt.shape, sample.maps) == ((3, 20, 28), (3, 40, 56), {})
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
        PairedImageDataset(dataroot_gt=str(tmp_path / "gt"), dataroot_lq=str(tmp_path / "lq"))
    assert "g10" not in str(caught.value)
    assert "would pair" not in str(caught.value)


def test_a_meta_info_file_may_leave_lq_images_over(roots, tmp_path):
    (tmp_path / "meta.txt").write_text("img_b.png (40,56,3)\n")
    dataset = paired(roots, meta_info_file=str(tmp_path / "meta.txt"))
    assert [dataset.key(i) for i in range(len(dataset))] == ["img_b"]


def test_sizes_that_do_not_fit_name_both_files_and_sizes(roots):
    with pytest.raises(ValueError, match=r"img_a\.png is 40x56.*img_ax2\.png is 20x28.*scale: 4"):
        paired(roots, scale=4).get(0, generator(0))


@pytest.mark.parametrize("seed", range(8))
def test_an_image_smaller_than_the_patch_is_mirrored_with_all_that_belongs_to_it(roots, seed):
    dataset = paired(roots, gt_size=48, use_hflip=True, use_rot=True, masks=Masks(), mask_views=VIEWS)
    sample = dataset.get(0, generator(seed))  # 40x56: 8 rows are mirrored, 48 of 56 columns are taken
    assert (sample.gt.shape, sample.lq.shape, sample.maps["regions"].shape) == ((3, 48, 48), (3, 24, 24), (48, 48))
    y, x, _ = pixel(sample.gt)
    rows = y if (y == y[:, :1]).all() else y.T  # turned back
    assert sorted(rows[:, 0].tolist()) == sorted([*range(40), *range(32, 40)])
    labels = y // 8 * 7 + x // 8
    torch.testing.assert_close(sample.maps["spe"][0], labels.float() / 10)
    _, dense = torch.unique(labels, return_inverse=True)
    torch.testing.assert_close(sample.maps["regions"], dense + (0 if (labels == 0).any() else 1), rtol=0, atol=0)
    lq_of_gt = sample.gt.unfold(1, 2, 2).unfold(2, 2, 2).amin((3, 4))
    flipped = (pixel(sample.lq)[:2] - pixel(lq_of_gt)[:2]).abs()
    assert flipped.max() <= 1  # the mirror shows a pixel pair the other way round: its smaller one, or its larger one
    again = dataset.get(0, generator(seed))
    assert torch.equal(again.gt, sample.gt)
    assert torch.equal(again.lq, sample.lq)


def test_a_mirrored_pair_is_what_opencv_pads_both_with(roots):
    sample = paired(roots, gt_size=128).get(1, generator(0))
    for part, folder, name, size in ((sample.gt, "gt", "img_b", 128), (sample.lq, "lq", "img_bx2", 64)):
        image = read_image(roots / folder / f"{name}.png")
        h, w = image.shape[:2]
        padded = cv2.copyMakeBorder(image, 0, size - h, 0, size - w, cv2.BORDER_REFLECT)
        torch.testing.assert_close(pixel(part), torch.from_numpy(padded).permute(2, 0, 1).long(), rtol=0, atol=0)


def test_pairs_that_cannot_fit_are_named_at_any_size(tmp_path):
    write_image(tmp_path / "gt" / "a.png", np.zeros((1, 1, 3), np.uint8))
    write_image(tmp_path / "lq" / "a.png", np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(ValueError, match=r"gt.a\.png is 1x1.*lq.a\.png.*2x2"):
        PairedImageDataset(dataroot_gt=str(tmp_path / "gt"), dataroot_lq=str(tmp_path / "lq"), scale=2).get(
            0, generator(0)
        )


def test_missing_or_foreign_masks_name_store_and_image(roots):
    dataset = paired(roots, masks=Masks(), mask_views=VIEWS)
    with pytest.raises(ValueError, match=r"img_c\.png.*masks_of_test"):
        dataset.get(2, generator(0))
    with pytest.raises(ValueError, match=r"masks_of_test.*20x28.*img_a\.png is 40x56"):
        paired(roots, masks=Masks((20, 28)), mask_views=VIEWS).get(0, generator(0))


def noisy(roots, **arguments):
    return GaussianDenoisingDataset(dataroot_gt=str(roots / "gt"), **arguments)


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
        ({}, "sigma_range is missing"),
        ({"sigma_range": 15, "sigma_test": 15}, "leave sigma_range"),
        ({"sigma_type": "random", "sigma_test": 15}, "leave sigma_range and sigma_type"),
        ({"sigma_test": -1}, "sigma_test: -1"),
        ({"sigma_range": 15, "in_ch": 2}, "in_ch|channels"),
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
    torch.testing.assert_close(sample.maps["spe"][0], (y // 8 * 7 + x // 8).float() / 10)


def test_sigma_test_is_one_sigma_with_the_same_noise_every_time(roots):
    dataset = noisy(roots, sigma_test=25)
    one, other = dataset.get(0, generator(0)), dataset.get(0, generator(1))
    assert torch.equal(one.lq, other.lq)
    assert abs(float((one.lq - one.gt).std()) * 255 - 25) < 1
    assert torch.equal(one.lq, noisy(roots, sigma_range=25, noise_seed=0).get(0, generator(2)).lq)
    assert not torch.equal(one.lq, noisy(roots, sigma_test=25, noise_seed=4).get(0, generator(0)).lq)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """One colour image of 8 and one of 16 bits, a folder and a raw and a PNG LMDB of each."""
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for depth, dtype in (("8", np.uint8), ("16", np.uint16)):
        image = rng.integers(0, np.iinfo(dtype).max + 1, (37, 41, 3)).astype(dtype)
        write_image(root / depth / "a.png", image)
        for encoding in ("raw", "png"):
            with LmdbWriter(root / f"{depth}_{encoding}.lmdb", encoding) as writer:
                writer.put("a", image)
    return root


@pytest.mark.parametrize(("depth", "top"), [("8", 255), ("16", 65535)])
def test_grey_is_opencvs_luma_and_the_same_from_folder_and_lmdb(colours, depth, top):
    image = read_image(colours / depth / "a.png")
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    exact = image @ (0.299, 0.587, 0.114)
    for root in (depth, f"{depth}_raw.lmdb", f"{depth}_png.lmdb"):
        arguments = {"sigma_range": 15, "in_ch": 1, "use_rot": True}
        whole = noisy_at(colours / root, **arguments)
        sample = whole.get(0, generator(3))
        assert (whole.channels, sample.lq.shape[0], sample.gt.shape[0]) == (1, 1, 1)
        assert sorted((sample.gt * top).round().flatten().tolist()) == sorted(luma.flatten().tolist())
        crop = noisy_at(colours / root, gt_size=16, **arguments).get(0, generator(5)).gt
        assert torch.equal(crop, noisy_at(colours / depth, gt_size=16, **arguments).get(0, generator(5)).gt)
    assert np.abs(luma - exact).max() < top / 255


def noisy_at(root, **arguments):
    return GaussianDenoisingDataset(dataroot_gt=str(root), **arguments)


def test_grey_files_keep_their_values(tmp_path):
    grey = np.random.default_rng(1).integers(0, 256, (9, 11, 1), dtype=np.uint8)
    write_image(tmp_path / "grey" / "a.png", grey)
    with LmdbWriter(tmp_path / "grey.lmdb") as writer:
        writer.put("a", grey)
    for root in ("grey", "grey.lmdb"):
        gt = noisy_at(tmp_path / root, sigma_range=5, in_ch=1).get(0, generator(0)).gt
        np.testing.assert_array_equal(pixel(gt)[0], grey[:, :, 0])


def test_pairs_can_be_grey_too(roots):
    dataset = paired(roots, channels=1, gt_size=16)
    sample = dataset.get(0, generator(0))
    assert (dataset.channels, sample.lq.shape, sample.gt.shape) == (1, (1, 8, 8), (1, 16, 16))
    assert paired(roots).channels == 3


@pytest.mark.parametrize("in_ch", [3, 1])
def test_restormers_name_has_restormers_validation_noise(roots, in_ch):
    arguments = {"dataroot_gt": str(roots / "gt"), "in_ch": in_ch}
    official = DATASETS.get("Dataset_GaussianDenoising")(sigma_test=25, **arguments)
    for index in range(3):
        sample = official.get(index, generator(index))
        np.random.seed(seed=0)  # noqa: NPY002  # for every image, in its own words
        expected = sample.gt.permute(1, 2, 0).numpy().copy()
        expected += np.random.normal(0, 25 / 255.0, expected.shape)  # noqa: NPY002
        np.testing.assert_array_equal(sample.lq.permute(1, 2, 0).numpy(), expected)
    ours = GaussianDenoisingDataset(sigma_test=25, **arguments).get(0, generator(0))
    assert not torch.equal(ours.lq, official.get(0, generator(0)).lq)
    for other in ({"sigma_test": 25, "noise_seed": 0}, {"sigma_range": 25}):  # these keep our streams
        a, b = (DATASETS.get(f"{name}")(**other, **arguments).get(0, generator(5)) for name in NOISY)
        assert torch.equal(a.lq, b.lq)


NOISY = ("Dataset_GaussianDenoising", "GaussianDenoisingDataset")
