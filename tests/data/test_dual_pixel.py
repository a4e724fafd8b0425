import numpy as np
import pytest
import torch

from sam4ir.data.dual_pixel import DualPixelDataset
from sam4ir.data.lmdb_io import LmdbWriter
from sam4ir.registry import DATASETS
from sam4ir.utils.image import write_image
from sam4ir.utils.rng import generator

FOLDERS = {"dataroot_gt": 0, "dataroot_lqL": 1, "dataroot_lqR": 2}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """16-bit images that tell their position and the folder that they are from."""
    root = tmp_path_factory.mktemp("dual")
    y, x = np.mgrid[0:30, 0:44]
    for folder, number in FOLDERS.items():
        image = np.stack([y, x, np.full_like(x, 60_000 + number)], axis=2).astype(np.uint16)
        with LmdbWriter(root / f"{folder}.lmdb") as writer:
            for name in ("1P0A1", "1P0A2"):
                write_image(root / folder / f"{name}.png", image)
                writer.put(name, image)
    return root


def dual(roots, suffix="", **arguments):
    folders = {folder: str(roots / (folder + suffix)) for folder in FOLDERS}
    return DualPixelDataset(**{**folders, **arguments})


@pytest.mark.parametrize("suffix", ["", ".lmdb"])
@pytest.mark.parametrize("gt_size", [16, 40, None])
def test_lq_is_the_left_view_then_the_right_in_sixteen_bits_at_the_place_of_gt(roots, suffix, gt_size):
    dataset = dual(roots, suffix, gt_size=gt_size, use_hflip=True, use_rot=True)
    assert (dataset.channels, len(dataset), dataset.key(1)) == (6, 2, "1P0A2")
    for seed in range(4):
        sample = dataset.get(0, generator(seed))
        lq, gt = ((t * 65535).round().long() for t in (sample.lq, sample.gt))
        assert sample.lq.dtype == torch.float32
        assert lq.shape == (6, *gt.shape[1:])
        assert [set(lq[c].flatten().tolist()) for c in (2, 5)] == [{60_001}, {60_002}]
        for view in (lq[:2], lq[3:5]):
            assert torch.equal(view, gt[:2])


def test_a_view_that_lacks_an_image_or_has_another_size_is_named(roots, tmp_path):
    write_image(tmp_path / "other" / "1P0A1.png", np.zeros((30, 40, 3), np.uint16))
    with pytest.raises(ValueError, match=r"(?s)dataroot_lqR: .*without LQ: 1 image: 1P0A2"):
        dual(roots, dataroot_lqR=str(tmp_path / "other"))
    write_image(tmp_path / "other" / "1P0A2.png", np.zeros((30, 44, 3), np.uint16))
    dataset = dual(roots, dataroot_lqL=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"dataroot_gt.1P0A1\.png is 30x44 .*other.1P0A1\.png is 30x40"):
        dataset.get(0, generator(0))
    with pytest.raises(ValueError, match="scale: 2"):
        dual(roots, scale=2)


def test_restormers_name_and_keys_are_known(roots):
    target = DATASETS.get("Dataset_DefocusDeblur_DualPixel_16bit")
    keys = {folder: str(roots / folder) for folder in FOLDERS}
    dataset = target(**keys, io_backend={"type": "disk"}, filename_tmpl="{}", gt_size=8, use_hflip=True, use_rot=True)
    assert dataset.get(0, generator(0)).lq.shape == (6, 8, 8)
