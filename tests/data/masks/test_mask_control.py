"""Control stores have exactly as many regions as the region maps of the store, and no image keeps its own masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam4ir.data.masks.control import (
    count_regions,
    draw_partners,
    grid_labels,
    halve_largest,
    make_control,
    merge_smallest,
    resize_record,
    superpixel_labels,
)
from sam4ir.data.masks.from_sam import pixel_sha256, record_from_sam
from sam4ir.data.masks.record import MaskRecord
from sam4ir.data.masks.store import MaskStore, MaskStoreWriter
from sam4ir.data.sources import open_source
from sam4ir.utils.image import write_image


def record_of(*masks: np.ndarray) -> MaskRecord:
    return MaskRecord(record_from_sam([{"segmentation": m, "predicted_iou": 0.9} for m in masks]))


def photograph(seed: int, h: int, w: int) -> np.ndarray:
    """(h, w, 3) uint8: a few smooth blobs of colour and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    smooth = [128 + 90 * np.sin(x / rng.uniform(4, 12) + y / rng.uniform(4, 12)) for _ in range(3)]
    return (np.stack(smooth, -1) + rng.normal(0, 6, (h, w, 3))).clip(0, 255).astype(np.uint8)


@given(st.integers(1, 40), st.integers(1, 40), st.data())
@settings(max_examples=120, deadline=None)
def test_a_grid_has_the_requested_number_of_cells_and_covers_the_image(h: int, w: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, h * w))
    labels = grid_labels((h, w), count)
    assert labels.shape == (h, w)
    np.testing.assert_array_equal(np.unique(labels), np.arange(1, count + 1))


@pytest.mark.parametrize(("size", "count"), [((321, 481), 17), ((481, 321), 60), ((512, 512), 7), ((90, 160), 60)])
def test_cells_of_a_grid_are_of_nearly_equal_area_and_rectangles(size: tuple[int, int], count: int) -> None:
    labels = grid_labels(size, count)
    areas = np.bincount(labels.ravel())[1:]
    assert areas.max() / areas.min() < 1.1
    for label in range(1, count + 1):
        y, x = np.nonzero(labels == label)
        assert (np.ptp(y) + 1) * (np.ptp(x) + 1) == len(y)


def test_more_cells_than_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"7 regions do not fit in an image of 2x3 \(h x w\)"):
        grid_labels((2, 3), 7)


@pytest.mark.parametrize(("h", "w", "count"), [(48, 64, 1), (48, 64, 33), (64, 48, 120), (6, 5, 17), (1, 9, 4)])
def test_superpixels_have_exactly_the_requested_number(h: int, w: int, count: int) -> None:
    labels = superpixel_labels(photograph(count, h, w), count)
    np.testing.assert_array_equal(np.unique(labels), np.arange(1, count + 1))


def test_superpixels_follow_the_image() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 23:] = 200
    for label in range(1, 9):
        inside = superpixel_labels(image, 8) == label
        assert not (inside[:, :23].any() and inside[:, 23:].any())


def test_a_merge_joins_the_smallest_to_the_neighbour_of_its_colour() -> None:
    labels = np.array([[1, 1, 1, 2, 3, 3, 3]])
    image = np.array([[[9], [9], [9], [200], [210], [210], [210]]], np.uint8)
    np.testing.assert_array_equal(merge_smallest(labels, image, 2), [[1, 1, 1, 3, 3, 3, 3]])


def test_halving_cuts_the_largest_along_its_longer_side() -> None:
    labels = np.ones((2, 6), np.int64)
    labels[:, 4:] = 2
    labels = halve_largest(labels, 3)
    assert sorted(np.bincount(labels.ravel())[1:].tolist()) == [4, 4, 4]
    assert (labels[0] == labels[1]).all()


def test_visible_regions_are_counted_and_not_masks() -> None:
    under, over = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    under[2:4, 2:4] = over[2:4, 2:4] = True
    assert count_regions(record_of(under, over)) == 1
    over[0] = True
    assert count_regions(record_of(under, over)) == 2
    assert count_regions(MaskRecord(record_from_sam([], (4, 4)))) == 0


@given(st.integers(2, 60), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_no_image_keeps_its_own_masks(count: int, seed: int) -> None:
    keys = [f"k{i}" for i in range(count)]
    pairs = draw_partners(keys, seed)
    assert sorted(pairs) == sorted(pairs.values()) == sorted(keys)
    assert all(key != partner for key, partner in pairs.items())
    assert pairs == draw_partners(keys[::-1], seed)


def test_another_seed_gives_other_partners_and_one_image_cannot_be_shuffled() -> None:
    keys = [f"k{i}" for i in range(20)]
    assert draw_partners(keys, 0) != draw_partners(keys, 1)
    with pytest.raises(ValueError, match="two images or more"):
        draw_partners(["a"], 0)


def test_resized_masks_take_the_nearest_pixel() -> None:
    mask, dot = np.zeros((4, 6), bool), np.zeros((4, 6), bool)
    mask[:2, :3] = True
    dot[3, 5] = True
    record = record_of(dot, mask)
    large = MaskRecord(resize_record(record, (8, 18)))
    np.testing.assert_array_equal(large.stack(0, 0, 8, 18), np.stack([dot, mask]).repeat(2, 1).repeat(3, 2))
    same = MaskRecord(resize_record(record, (4, 6)))
    np.testing.assert_array_equal(same.stack(0, 0, 4, 6), [dot, mask])
    small = MaskRecord(resize_record(record, (2, 2)))  # of pixels 1 and 3, 1 and 4: the dot is between them
    np.testing.assert_array_equal(small.stack(0, 0, 2, 2), [[[True, False], [False, False]]])
    assert small.predicted_iou.tolist() == [0.9]


@pytest.fixture
def like(tmp_path: Path) -> MaskStore:
    """Masks of three images of different sizes, one without any; the images beside them."""
    with MaskStoreWriter(tmp_path / "masks.lmdb", {"generator": "sam", "source": "gt"}) as writer:
        for key, (h, w), count in (("a", (30, 44), 5), ("b/c", (26, 26), 12), ("d", (20, 30), 0)):
            write_image(tmp_path / "gt" / f"{key}.png", photograph(count, h, w))
            squares = [np.zeros((h, w), bool) for _ in range(count)]
            for i, mask in enumerate(squares):
                mask[2 * (i % 6) : 2 * (i % 6) + 9, i : i + 7] = True
            writer.put(key, [{"segmentation": m} for m in squares], (h, w))
    return MaskStore(tmp_path / "masks.lmdb")


@pytest.mark.parametrize("kind", ["superpixels", "grid"])
def test_a_control_has_as_many_regions_as_the_store_image_by_image(kind: str, like: MaskStore) -> None:
    images = open_source(like.path.parent / "gt", None, "--images")
    path = like.path.parent / "control.lmdb"
    done = make_control(kind, like, path, images)  # type: ignore[arg-type]
    assert (done.stored, done.bad) == (3, [])
    store = MaskStore(path)
    for key in like.keys():  # noqa: SIM118
        record, control = like.read(key), store.read(key)
        assert control.size == record.size
        assert control.count == count_regions(control) == count_regions(record)
        assert (control.region_map(0, 0, *record.size) > 0).all() or record.count == 0
    assert store.meta["generator"] == {"superpixels": "control: slic", "grid": "control: grid"}[kind]
    assert store.meta["source"] == "gt"
    assert store.meta["like"]["generator"] == "sam"


def test_shuffled_masks_are_those_of_another_image_resized_to_this_one(like: MaskStore) -> None:
    path = like.path.parent / "control.lmdb"
    make_control("shuffled", like, path, seed=3)
    store, pairs = MaskStore(path), draw_partners(like.keys(), 3)
    for key, partner in pairs.items():
        assert store.record_bytes(key) == resize_record(like.read(partner), like.read(key).size)
    assert store.meta["settings"] == {"seed": 3}
    del store  # a process does not write what it has open
    with pytest.raises(ValueError, match=r"made differently .*seed: stored 3, now 4"):
        make_control("shuffled", like, path, seed=4)
    assert make_control("shuffled", like, path, seed=3).present == 3


def test_superpixels_record_the_checksum_of_their_image(like: MaskStore) -> None:
    folder = like.path.parent
    write_image(folder / "gt" / "a.png", photograph(0, 30, 45))
    images = open_source(folder / "gt", None, "--images")
    done = make_control("superpixels", like, folder / "control.lmdb", images)
    assert len(done.bad) == 1
    assert "a: the masks are of 30x44" in done.bad[0]
    with images.open("b/c") as image:
        assert MaskStore(folder / "control.lmdb").read("b/c").image_sha256 == pixel_sha256(image)
    (folder / "gt" / "d.png").unlink()
    with pytest.raises(ValueError, match="lacks 1 image: d"):
        make_control("superpixels", like, folder / "x.lmdb", open_source(folder / "gt", None, "--images"))
