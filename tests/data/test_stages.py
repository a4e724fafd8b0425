"""Stages of progressive training: one data set in crops of several sizes."""

import shutil

import numpy as np
import pytest
import torch

from sam4ir.data.degrade.blur import GaussianBlur
from sam4ir.data.degrade.noise import GaussianNoise
from sam4ir.data.loader import Mixup, train_batches
from sam4ir.registry import DATASETS
from sam4ir.utils.image import write_image
from sam4ir.utils.rng import generator


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("stages") / "gt"
    for i in range(4):
        write_image(root / f"{i}.png", np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    return root


def build(name, root, **arguments):
    own = {
        "PairedImageDataset": {"dataroot_lq": str(root)},
        "Dataset_PairedImage": {"dataroot_lq": str(root)},
        "PairedImageDataset_SIDD": {"dataroot_lq": str(root)},
        "GaussianDenoisingDataset": {"sigma_range": 15},
        "Dataset_GaussianDenoising": {"sigma_range": [0, 50], "sigma_type": "random", "in_ch": 1},
        "DegradedImageDataset": {"degradations": [GaussianBlur((1.0, 2.0)), GaussianNoise(5)]},
        "SuperResolutionDataset": {"scale": 2},
        "DualPixelDataset": {"dataroot_lqL": str(root), "dataroot_lqR": str(root)},
        "Dataset_DefocusDeblur_DualPixel_16bit": {"dataroot_lqL": str(root), "dataroot_lqR": str(root)},
    }
    return DATASETS.get(name)(dataroot_gt=str(root), **own[name], **arguments)


@pytest.mark.parametrize("name", [name for name in DATASETS.names() if name != "SingleImageDataset"])  # no GT
def test_every_data_set_comes_in_other_crops_without_being_opened_again(folder, name, tmp_path):
    root = shutil.copytree(folder, tmp_path / "gt")
    dataset = build(name, root, gt_size=16, use_hflip=True, use_rot=True)
    write_image(root / "4.png", np.zeros((8, 8, 3), np.uint8))  # the folder is listed once
    larger = dataset.with_gt_size(32)
    for made, size in ((dataset, 16), (larger, 32), (larger.with_gt_size(80), 80)):
        sample = made.get(1, generator(3))
        assert sample.gt.shape[1:] == (size, size)
        assert sample.lq.shape[1:] == (size // made.scale, size // made.scale)
        assert sample.lq.shape[0] == made.channels
        assert (len(made), made.key(2)) == (4, "2")
    assert sorted(dataset.with_gt_size(None).get(1, generator(3)).gt.shape[1:]) == [48, 64]
    fresh = build(name, root, gt_size=32, use_hflip=True, use_rot=True)
    assert torch.equal(larger.get(1, generator(7)).lq, fresh.get(1, generator(7)).lq)


def test_a_crop_that_no_lq_patch_fits_is_refused(folder):
    dataset = build("PairedImageDataset", folder, gt_size=16, scale=4)
    with pytest.raises(ValueError, match="gt_size: 30 must be a positive multiple of scale: 4"):
        dataset.with_gt_size(30)


def test_progressive_stages_share_one_stream_of_images(folder):
    """Sample numbers run on over the stages, so each stage begins where the one before ended in the epoch."""
    dataset = build("GaussianDenoisingDataset", folder, gt_size=16)
    stages = [(16, 0, 8, 4), (24, 8, 12, 2), (32, 12, 16, 1)]  # crop, first sample, end, micro-batch
    keys, shapes = [], []
    for size, first, end, batch in stages:
        run = {"seed": 5, "batch_size": batch, "start_sample": first, "total_samples": end, "total_batch": 4}
        for made in train_batches(dataset.with_gt_size(size), mixup=Mixup(), **run):
            keys += made.keys
            shapes.append(tuple(made.lq.shape))
    whole = train_batches(dataset, seed=5, batch_size=16, total_samples=16)
    assert keys == next(iter(whole)).keys
    assert shapes == [(4, 3, 16, 16)] * 2 + [(2, 3, 24, 24)] * 2 + [(1, 3, 32, 32)] * 4
