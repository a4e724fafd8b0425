"""PSNR between the down-scaled image and the degraded input."""

import math

import pytest
import torch

from sam4ir.metrics.inputs import MetricError
from sam4ir.metrics.psnr import lr_psnr, psnr
from sam4ir.utils.resize import imresize


def photograph(h, w):
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    waves = [128 + 60 * torch.sin(x / 5 + i) + 50 * torch.cos(y / (4 + i)) for i in range(3)]
    return torch.stack(waves).round().clamp(0, 255).byte()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_an_image_agrees_perfectly_with_what_is_made_of_it(scale):
    image = photograph(24, 36)
    lq = imresize(image.double(), 1 / scale).round().clamp(0, 255).byte()
    assert lr_psnr(image, image, lq) == math.inf
    shifted = (lq.int() + 5).clamp(0, 255).byte()
    assert lr_psnr(image, image, shifted) == pytest.approx(20 * math.log10(255 / 5), abs=0.2)


def test_the_ground_truth_plays_no_part():
    image, lq = photograph(16, 16), photograph(4, 4)
    assert lr_psnr(image, torch.zeros_like(image), lq) == lr_psnr(image, image, lq)


def test_float_images_are_clipped_and_not_rounded():
    image = torch.rand(3, 16, 24)
    lq = torch.rand(3, 4, 6)
    small = imresize(image.double(), 0.25).clamp(0, 1)
    assert lr_psnr(image, image, lq, data_range=1.0) == pytest.approx(psnr(small, lq, data_range=1.0), abs=1e-9)


@pytest.mark.parametrize("size", [(16, 16), (9, 8), (8, 4), (32, 32)])
def test_what_is_no_super_resolution_is_refused_with_both_sizes(size):
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    with pytest.raises(MetricError, match=rf"image is 16 x 16, its degraded input {size[0]} x {size[1]}"):
        lr_psnr(image, image, torch.zeros(3, *size, dtype=torch.uint8))
