"""LR made on the fly: the crop of the whole image's, registered with GT and masks, equal to a stored one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sam4ir.data.masks.from_sam import record_from_sam
from sam4ir.data.masks.record import MaskRecord
from sam4ir.data.masks.store import MaskStore, MaskStoreWriter
from sam4ir.data.paired import PairedImageDataset
from sam4ir.data.sample import Sample
from sam4ir.data.super_resolution import SuperResolutionDataset
from sam4ir.data.transforms import Flip, Placement, Window
from sam4ir.engine.train.views import RegionView, SpeView
from sam4ir.registry import DATASETS
from sam4ir.utils.image import read_image, to_float_tensor, write_image
from sam4ir.utils.resize import imresize, shrunk_pixels
from sam4ir.utils.rng import generator

SIZE = (70, 101)  # neither side a multiple of 2, 3 or 4 but 70 of 2
NAMES = ("a", "b")
SEEDS = range(24)  # among them all eight flips
VIEWS = {"regions": RegionView(), "spe": SpeView()}


def masks_of(number: int) -> list[dict]:
    """Overlapping boxes spread over the image, unlike each other in any flip."""
    rng = generator(number, "boxes")
    masks = []
    for _ in range(14):
        area = np.zeros(SIZE, bool)
        top, left = rng.integers(SIZE[0] - 6), rng.integers(SIZE[1] - 6)
        area[top : top + rng.integers(5, 40), left : left + rng.integers(5, 50)] = True
        masks.append({"segmentation": area})
    return masks


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sr")
    with MaskStoreWriter(folder / "masks.lmdb", {"generator": "drawn", "source": "gt"}) as store:
        for i, name in enumerate(NAMES):
            write_image(folder / "gt" / f"{name}.png", generator(i, "p").integers(0, 256, (*SIZE, 3), np.uint8))
            store.put(name, masks_of(i))
    return folder


def dataset(root: Path, masks: bool = False, **arguments: object) -> SuperResolutionDataset:
    given = {"masks": MaskStore(root / "masks.lmdb"), "mask_views": VIEWS} if masks else {}
    return SuperResolutionDataset(dataroot_gt=str(root / "gt"), **given, **arguments)  # type: ignore[arg-type]


def record(number: int) -> MaskRecord:
    return MaskRecord(record_from_sam(masks_of(number)))


def placements(lq_size: tuple[int, int], patch: int, seed: int) -> Placement:
    """What the dataset draws: the window first, then the flip."""
    rng = generator(seed)
    return Placement(Window.draw(lq_size, patch, rng), Flip.draw(True, True, rng))


def taken(image: Tensor, placement: Placement) -> Tensor:
    """(c, h, w) -> the placement's part."""
    return torch.from_numpy(placement.take(image.permute(1, 2, 0).numpy()).copy()).permute(2, 0, 1)


def same(sample: Sample, whole: Sample, patch: int, seed: int, scale: int) -> None:
    on_lq = placements((whole.lq.shape[1], whole.lq.shape[2]), patch, seed)
    assert torch.equal(sample.lq, taken(whole.lq, on_lq))
    assert torch.equal(sample.gt, taken(whole.gt, on_lq.scaled(scale)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quantize", [True, False])
@pytest.mark.parametrize(("scale", "patch"), [(2, 9), (3, 8), (4, 12), (4, 24)])  # 24 leaves the image: mirrored
def test_a_crop_is_the_crop_of_the_whole_pair(
    root: Path, scale: int, patch: int, quantize: bool, channels: int
) -> None:
    common = {"scale": scale, "quantize": quantize, "channels": channels}
    crops = dataset(root, gt_size=patch * scale, use_hflip=True, use_rot=True, **common)
    whole = dataset(root, **common).get(0, generator(0))
    for seed in SEEDS:
        same(crops.get(0, generator(seed)), whole, patch, seed, scale)


def test_the_seeds_draw_every_flip() -> None:
    assert len({placements((17, 25), 12, seed).flip for seed in SEEDS}) == 8


def test_the_whole_pair_is_the_image_cut_to_a_multiple_and_its_bicubic(root: Path) -> None:
    sample = dataset(root, scale=4).get(1, generator(0))
    image = to_float_tensor(read_image(root / "gt" / "b.png")[:68, :100])
    assert torch.equal(sample.gt, image)
    bicubic = imresize(image.double(), 1 / 4)
    assert sample.lq.shape == (3, 17, 25)
    assert (sample.lq - bicubic.clamp(0, 1)).abs().max() <= 0.5 / 255 + 1e-7
    pixels = sample.lq * 255
    torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-4)
    fine = dataset(root, scale=4, quantize=False).get(1, generator(0))
    torch.testing.assert_close(fine.lq, bicubic.float(), rtol=0, atol=1e-6)
    assert fine.lq.min() < 0 or fine.lq.max() > 1 or (fine.lq != sample.lq).any()


@pytest.mark.parametrize("patch", [10, 20])
def test_masks_are_read_at_gt_coordinates_under_every_flip(root: Path, patch: int) -> None:
    """SPE and regions of a crop are those of the whole map at the GT window; at the LR window they differ."""
    crops = dataset(root, masks=True, scale=4, gt_size=4 * patch, use_hflip=True, use_rot=True)
    whole = {name: view.read(record(0), Window.whole(SIZE))[:68, :100] for name, view in VIEWS.items()}
    mistaken = 0
    for seed in SEEDS:
        sample = crops.get(0, generator(seed))
        on_lq = placements((17, 25), patch, seed)
        on_gt = on_lq.scaled(4)
        np.testing.assert_array_equal(sample.maps["spe"][0], on_gt.take(whole["spe"]))
        labels = on_gt.take(whole["regions"])
        np.testing.assert_array_equal(
            sample.maps["regions"], np.unique(np.append(labels, 0), return_inverse=True)[1][:-1].reshape(labels.shape)
        )
        at_lr = Placement(Window(on_lq.window.top, on_lq.window.left, 4 * patch, 4 * patch), on_lq.flip)
        mistaken += bool((at_lr.take(whole["spe"]) != sample.maps["spe"][0].numpy()).any())
    assert mistaken >= len(SEEDS) // 2  # this test can tell the released code's mistake


def test_lq_lies_where_gt_lies(root: Path, tmp_path: Path) -> None:
    """Enlarged again, lq is the smooth GT crop itself; one LQ pixel aside it is not."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    smooth = np.stack([2 * y + 20, 2 * x + 20, y + x + 10], axis=2).astype(np.uint8)
    write_image(tmp_path / "gt" / "ramp.png", smooth)
    crops = dataset(tmp_path, scale=4, gt_size=40, use_hflip=True, use_rot=True)
    for seed in SEEDS:
        sample = crops.get(0, generator(seed))
        enlarged = imresize(sample.lq, 4)
        inside = (slice(None), slice(8, -8), slice(8, -8))
        assert (enlarged - sample.gt)[inside].abs().max() < 1.5 / 255
        assert (torch.roll(enlarged, 4, 2) - sample.gt)[inside].abs().max() > 4 / 255


def test_a_stored_lq_is_the_same_bit_for_bit(root: Path, tmp_path: Path) -> None:
    for name in NAMES:
        image = read_image(root / "gt" / f"{name}.png")[:68, :100]
        write_image(tmp_path / "gt" / f"{name}.png", image)
        write_image(tmp_path / "lq" / f"{name}x4.png", shrunk_pixels(image, 4))
    common = {"scale": 4, "gt_size": 40, "use_hflip": True, "use_rot": True}
    stored = PairedImageDataset(
        dataroot_gt=str(tmp_path / "gt"), dataroot_lq=str(tmp_path / "lq"), filename_tmpl="{}x4", **common
    )
    made = dataset(root, **common)
    for index, seed in enumerate(SEEDS):
        one, other = (d.get(index % 2, generator(seed)) for d in (made, stored))
        assert torch.equal(one.lq, other.lq)
        assert torch.equal(one.gt, other.gt)


def test_sixteen_bits_are_rounded_to_sixteen(tmp_path: Path) -> None:
    image = generator(0, "p").integers(0, 1 << 16, (40, 48, 3), np.uint16)
    write_image(tmp_path / "gt" / "deep.png", image)
    sample = dataset(tmp_path, scale=4).get(0, generator(0))
    bicubic = imresize(to_float_tensor(image).double(), 1 / 4).clamp(0, 1)
    assert (sample.lq - bicubic).abs().max() <= 0.5 / 65535 + 1e-7
    assert torch.equal(dataset(tmp_path, scale=4, gt_size=48).get(0, generator(0)).gt[:, :40], sample.gt)


def test_stages_change_the_crop_only(root: Path) -> None:
    changed = dataset(root, scale=4, gt_size=16).with_gt_size(40)
    assert changed.get(0, generator(3)).lq.shape == (3, 10, 10)
    with pytest.raises(ValueError, match="gt_size: 42 must be a positive multiple of scale: 4"):
        changed.with_gt_size(42)


def test_an_image_smaller_than_the_scale_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "gt" / "strip.png", np.zeros((3, 50, 3), np.uint8))
    small = dataset(tmp_path, scale=4)
    for look in (lambda: small.get(0, generator(0)), lambda: small.examine(0)):
        with pytest.raises(ValueError, match=r"strip.png is 3x50 \(h x w\), smaller than scale: 4"):
            look()


def test_masks_of_the_cut_image_are_refused(root: Path, tmp_path: Path) -> None:
    """Masks belong to the whole file, whose size the message tells."""
    with MaskStoreWriter(tmp_path / "m.lmdb", {"generator": "drawn", "source": "gt"}) as store:
        for name in NAMES:
            store.put(name, [{"segmentation": np.ones((68, 100), bool)}])
    wrong = SuperResolutionDataset(dataroot_gt=str(root / "gt"), masks=MaskStore(tmp_path / "m.lmdb"), mask_views=VIEWS)
    for look in (lambda: wrong.get(0, generator(0)), lambda: wrong.examine(0)):
        with pytest.raises(ValueError, match=r"68x100.*70x101"):
            look()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 1}, "scale: 1 must be at least 2"),
        ({"gt_size": 30}, "gt_size: 30 must be a positive multiple of scale: 4"),
        ({"mean": [0.5, 0.5, 0.5]}, "images stay in"),
        ({"channels": 2}, "channels"),
    ],
)
def test_arguments_that_make_no_sense_are_named(root: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataset(root, **arguments)


def test_it_is_registered() -> None:
    assert DATASETS.get("SuperResolutionDataset") is SuperResolutionDataset
