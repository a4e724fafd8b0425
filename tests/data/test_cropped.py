"""What every data set has of its base: channels, crops of other sizes, and whether an image is large enough."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sam4ir.data.cropped import CroppedDataset
from sam4ir.data.transforms import Flip, Placement, Window
from sam4ir.data.views import ValueView
from sam4ir.errors import UserError
from sam4ir.utils.image import read_image, write_image

SIZE = (8, 12)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("gt")
    for i, name in enumerate("ba"):
        image = np.random.default_rng(i).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        write_image(folder / f"{name}.png", image)
    return str(folder)


class Store:
    """Masks of one size for every image."""

    path = Path("some_store")

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def read(self, key: str) -> SimpleNamespace:
        return SimpleNamespace(size=self.size)


class Rows(ValueView):
    """A map of row numbers."""

    def read(self, record: object, window: Window) -> np.ndarray:
        rows = np.arange(window.top, window.top + window.height, dtype=np.float32)
        return np.repeat(rows[:, None], window.width, axis=1)


@dataclass(kw_only=True, eq=False)
class Views(CroppedDataset):
    """A data set that stacks several views in lq."""

    channels: int = 3
    lq_views: int = 1


def test_images_are_sorted_and_have_three_channels(root: str) -> None:
    data = CroppedDataset(dataroot_gt=root)
    assert (len(data), data.keys, data.key(1)) == (2, ["a", "b"], "b")
    assert (data.channels, data.gt_channels, data.scale) == (3, 3, 1)


@pytest.mark.parametrize(("channels", "views", "gt"), [(1, 1, 1), (3, 1, 3), (6, 2, 3), (2, 2, 1)])
def test_channels_are_shared_by_the_views(root: str, channels: int, views: int, gt: int) -> None:
    data = Views(dataroot_gt=root, channels=channels, lq_views=views)
    assert data.gt_channels == gt
    assert type(data.gt_channels) is int
    pixels = data.pixels(read_image(Path(root) / "a.png"), Placement(Window(1, 2, 3, 4), Flip()))
    assert pixels.shape == (gt, 3, 4)


@pytest.mark.parametrize(("channels", "views"), [(2, 1), (4, 1), (4, 2), (0, 1), (6, 1)])
def test_other_channels_are_refused(root: str, channels: int, views: int) -> None:
    with pytest.raises(UserError, match=rf"in_ch \(channels\): {channels // views} must be 3"):
        Views(dataroot_gt=root, channels=channels, lq_views=views)


def test_pixels_are_the_flipped_crop_in_0_to_1(root: str) -> None:
    image = read_image(Path(root) / "a.png")
    pixels = CroppedDataset(dataroot_gt=root).pixels(image, Placement(Window(1, 2, 3, 4), Flip(horizontal=True)))
    expected = image[1:4, 2:6][:, ::-1].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(pixels.numpy(), expected, rtol=0, atol=1e-7)
    assert pixels.dtype == torch.float32


@pytest.mark.parametrize(
    ("gt_size", "scale", "large_enough"),
    [(None, 1, True), (None, 16, True), (4, 1, True), (8, 1, True), (9, 1, False), (8, 4, True), (12, 4, False)],
)
def test_an_image_is_compared_with_the_patch_of_gt(
    root: str, gt_size: int | None, scale: int, large_enough: bool
) -> None:
    assert CroppedDataset(dataroot_gt=root, gt_size=gt_size, scale=scale).examine(0) is large_enough


def test_examining_names_masks_of_another_size(root: str) -> None:
    assert CroppedDataset(dataroot_gt=root, masks=Store(SIZE), mask_views={"rows": Rows()}).examine(0)
    with pytest.raises(UserError, match=r"some_store: masks of 'a' are 9x9 .*a\.png is 8x12"):
        CroppedDataset(dataroot_gt=root, masks=Store((9, 9)), mask_views={"rows": Rows()}).examine(0)


def test_the_arguments_of_all_data_sets_are_checked(root: str) -> None:
    for wrong in ({"mean": [0.5] * 3}, {"std": [0.5] * 3}):
        with pytest.raises(UserError, match=r"stay in \[0, 1\]"):
            CroppedDataset(dataroot_gt=root, **wrong)
    with pytest.raises(UserError, match="use_hflip"):
        CroppedDataset(dataroot_gt=root, use_hflip=True, use_flip=False)
    with pytest.raises(UserError, match="gt_size: 6 must be a positive multiple of scale: 4"):
        CroppedDataset(dataroot_gt=root, gt_size=6, scale=4)


def test_crops_are_drawn_on_the_grid_of_lq_and_changed_for_a_stage(root: str) -> None:
    data = CroppedDataset(dataroot_gt=root, gt_size=8, scale=4, use_hflip=True)
    rng = np.random.default_rng(0)
    assert {data.draw((2, 3), rng).window for _ in range(40)} == {Window(0, 0, 2, 2), Window(0, 1, 2, 2)}
    larger = data.with_gt_size(12)
    assert (larger.gt_size, larger.draw((2, 3), rng).window) == (12, Window(0, 0, 3, 3))
    assert (data.gt_size, data.draw((2, 3), rng).window.height) == (8, 2)
    assert {larger.draw((2, 3), rng).flip for _ in range(40)} == {Flip(), Flip(horizontal=True)}
    assert data.with_gt_size(None).draw((2, 3), rng).window == Window(0, 0, 2, 3)
    assert larger.source is data.source


def test_maps_are_those_of_the_placement(root: str) -> None:
    data = CroppedDataset(dataroot_gt=root, masks=Store(SIZE), mask_views={"rows": Rows()})
    maps = data.maps("a", SIZE, Placement(Window(2, 1, 3, 2), Flip(vertical=True)))
    assert maps["rows"].tolist() == [[[4, 4], [3, 3], [2, 2]]]
    assert data.maps("a", SIZE, Placement(Window(0, 0, 5, 1), Flip()), used=(4, 12))["rows"].flatten().tolist() == [
        *range(4),
        3,
    ]
    assert CroppedDataset(dataroot_gt=root).maps("a", SIZE, Placement(Window(0, 0, 2, 2), Flip())) == {}
