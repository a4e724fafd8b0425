"""Segments of an image itself."""

from __future__ import annotations

import torch

from sam4ir.distill.segments import own_segments


def blocks() -> torch.Tensor:
    image = torch.zeros(2, 3, 32, 40)
    image[0, 0, :16] = 1.0
    image[0, 1, 16:, 20:] = 1.0
    image[1, 2, :, :10] = 0.9
    return image


def test_areas_of_one_colour_are_one_segment_and_labels_are_dense() -> None:
    labels, count = own_segments(blocks())
    assert (labels.dtype, labels.shape) == (torch.int64, (2, 32, 40))
    for image in labels:
        assert image.unique().tolist() == list(range(1, int(image.max()) + 1))
    assert count == int(labels.max())
    areas = [labels[0, :13], labels[0, 19:, :17], labels[0, 19:, 23:], labels[1, :, :7], labels[1, :, 13:]]
    assert all(len(area.unique()) == 1 for area in areas)
    assert len({int(area[0, 0]) for area in areas[:3]}) == 3
    assert len({int(area[0, 0]) for area in areas[3:]}) == 2


def test_grey_images_values_beyond_the_range_and_gradients() -> None:
    grey = blocks()[:, :1].requires_grad_()
    labels, _ = own_segments(grey * 3 - 1)
    assert not labels.requires_grad
    assert len(labels[0, :13].unique()) == 1
    assert labels[0, 0, 0] != labels[0, -1, 0]
    assert own_segments(torch.full((1, 3, 8, 8), float("nan")))[1] == 1
    assert torch.equal(own_segments(blocks())[0][1:], own_segments(blocks()[1:])[0])
