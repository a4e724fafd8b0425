"""The records of sub-images equal those of cut masks byte for byte, for prepared data sets and for other cuts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sam4ir.cli import prepare
from sam4ir.data.lmdb_io import LmdbReader, read_image_keys, unpack_image
from sam4ir.data.masks import crop as mask_crop
from sam4ir.data.masks.crop import crop_by_table, crop_images, cut_records
from sam4ir.data.masks.from_sam import pixel_sha256, record_from_sam
from sam4ir.data.masks.record import MaskRecord
from sam4ir.data.masks.store import MaskStore, MaskStoreWriter
from sam4ir.data.paired import PairedImageDataset
from sam4ir.data.sources import open_source, read
from sam4ir.data.windows import Crop, SubImage, read_table
from sam4ir.engine.train.views import RegionView
from sam4ir.regions import densify
from sam4ir.utils.image import write_image

SHA = bytes(range(32))
STACKS = st.tuples(st.integers(0, 5), st.integers(2, 40), st.integers(2, 90)).flatmap(
    lambda shape: hnp.arrays(bool, shape, elements=st.booleans(), fill=st.booleans())
)


def masks_of(stack: np.ndarray) -> list[dict]:
    return [
        {"segmentation": mask, "predicted_iou": 0.9 - i / 100, **({"stability_score": 0.95} if i % 2 else {})}
        for i, mask in enumerate(stack)
    ]


@given(STACKS, st.data())
@settings(max_examples=50, deadline=None)
def test_cut_records_equal_the_records_of_cut_masks_byte_for_byte(stack: np.ndarray, data: st.DataObject) -> None:
    _, h, w = stack.shape
    top, left = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    window = SubImage("_s001", top, left, data.draw(st.integers(1, h - top)), data.draw(st.integers(1, w - left)))
    record = MaskRecord(record_from_sam(masks_of(stack), (h, w)))
    cut = [{**m, "segmentation": window.cut(m["segmentation"])} for m in masks_of(stack)]
    expected = record_from_sam([m for m in cut if m["segmentation"].any()], (window.height, window.width), SHA)
    assert cut_records(record, [window], [SHA]) == [expected]


def blobs(seed: int, h: int, w: int, n: int = 9) -> np.ndarray:
    """(n, h, w) overlapping discs."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[:h, :w]
    centre, radius = rng.random((n, 2, 1, 1)) * np.array([h, w])[:, None, None], rng.random((n, 1, 1)) * h / 2
    return np.hypot(y - centre[:, 0], x - centre[:, 1]) < radius


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """gt/ and lq/ of three images, 50x70, and masks.lmdb of the whole images."""
    with MaskStoreWriter(tmp_path / "masks.lmdb", {"generator": "drawn", "source": "gt"}) as writer:
        for i, key in enumerate(("a", "b", "c")):
            image = np.random.default_rng(i).integers(0, 256, (50, 70, 3), np.uint8)
            write_image(tmp_path / "gt" / f"{key}.png", image)
            write_image(tmp_path / "lq" / f"{key}.png", image // 2)
            writer.put(key, masks_of(blobs(i, 50, 70)), image_sha256=pixel_sha256(image))
    return tmp_path


def test_a_prepared_set_trains_with_masks_cut_as_its_images_were(pairs: Path) -> None:
    command = ["folder", "--gt", str(pairs / "gt"), "--lq", str(pairs / "lq"), "--output", str(pairs / "set")]
    assert prepare.main([*command, "--crop-size", "24", "--step", "16", "--workers", "1"]) == 0
    folder = next(path.parent for path in (pairs / "set").rglob("windows.jsonl"))
    gt, lq = sorted(str(path) for path in folder.glob("*.lmdb"))
    whole = MaskStore(pairs / "masks.lmdb")
    parts = open_source(gt, None, "--images")
    done = crop_by_table(whole, pairs / "cut.lmdb", folder / "windows.jsonl", parts)
    assert (done.stored, done.bad) == (len(parts.keys), [])
    store = MaskStore(pairs / "cut.lmdb")
    assert store.keys() == parts.keys == read_image_keys(lq)
    data = PairedImageDataset(dataroot_gt=gt, dataroot_lq=lq, masks=store, mask_views={"regions": RegionView()})
    number = 0
    for cut in read_table(folder / "windows.jsonl"):
        record = whole.read(cut.key)
        for window in cut.windows:
            assert data.examine(number)
            sample = data.get(number, np.random.default_rng(0))
            assert sample.key == cut.key + window.suffix
            # which mask lies on top follows from the areas of the cut masks
            alone = MaskRecord(
                record_from_sam([m for m in _cut_masks(record, window) if m["segmentation"].any()], (24, 24))
            )
            np.testing.assert_array_equal(sample.maps["regions"], densify(alone.region_map(0, 0, 24, 24))[0])
            assert store.read(sample.key).image_sha256 == pixel_sha256(read(parts, sample.key))
            number += 1
    assert number == len(data) == 36
    assert store.meta["cut"]["store"] == "masks.lmdb"
    assert (store.meta["generator"], store.meta["source"]) == ("drawn", "gt")
    del data, store  # a process does not write what it has open
    assert crop_by_table(whole, pairs / "cut.lmdb", folder / "windows.jsonl").present == 36


def _cut_masks(record: MaskRecord, window: SubImage) -> list[dict]:
    stack = record.stack(window.top, window.left, window.height, window.width)
    return [{"segmentation": mask} for mask in stack]


@pytest.mark.parametrize("name", ["crops.lmdb", "crops"])
def test_images_and_masks_are_cut_alike(name: str, pairs: Path) -> None:
    whole, store = open_source(pairs / "gt", None, "--images"), MaskStore(pairs / "masks.lmdb")
    crop = Crop(32, 20, thresh=18)
    done = crop_images(store, pairs / "cut.lmdb", whole, crop, pairs / name)
    assert (done.stored, done.bad) == (6, [])
    parts, cut = open_source(pairs / name, None, "--images"), MaskStore(pairs / "cut.lmdb")
    assert parts.keys == cut.keys()
    for key in whole.keys:
        image, record = read(whole, key), store.read(key)
        for window in crop.windows((50, 70)):
            part = read(parts, key + window.suffix)
            np.testing.assert_array_equal(part, window.cut(image))
            sub_record = cut.read(key + window.suffix)
            assert sub_record.image_sha256 == pixel_sha256(part)
            stack = record.stack(window.top, window.left, 32, 32)
            np.testing.assert_array_equal(sub_record.stack(0, 0, 32, 32), stack[stack.any(axis=(1, 2))])
    del cut, sub_record
    again = crop_images(store, pairs / "cut.lmdb", whole, crop, pairs / name)
    assert (again.stored, again.present) == (0, 6)


def test_an_interrupted_cut_continues_to_the_same_result(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, store = open_source(pairs / "gt", None, "--images"), MaskStore(pairs / "masks.lmdb")
    crop = Crop(32, 20)
    crop_images(store, pairs / "straight.lmdb", whole, crop, pairs / "straight_gt.lmdb")
    real = mask_crop.cut_records
    calls: list[int] = []

    def stopped(*arguments: object) -> list[bytes]:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(mask_crop, "cut_records", stopped)
    with pytest.raises(KeyboardInterrupt):
        crop_images(store, pairs / "cut.lmdb", whole, crop, pairs / "gt.lmdb")
    assert not (pairs / "gt.lmdb").exists()
    done = crop_images(store, pairs / "cut.lmdb", whole, crop, pairs / "gt.lmdb")
    assert done.present == done.stored / 2
    straight, cut = MaskStore(pairs / "straight.lmdb"), MaskStore(pairs / "cut.lmdb")
    keys = straight.keys()
    assert cut.keys() == keys == read_image_keys(pairs / "gt.lmdb")
    assert [cut.record_bytes(key) for key in keys] == [straight.record_bytes(key) for key in keys]
    with LmdbReader(pairs / "gt.lmdb").value("c_s006") as value:
        np.testing.assert_array_equal(unpack_image(value, "c"), read(whole, "c")[18:50, 38:70])


def test_a_bad_image_keeps_the_image_lmdb_unfinished_until_it_is_mended(pairs: Path) -> None:
    path = pairs / "gt" / "b.png"
    good = path.read_bytes()
    path.write_bytes(good[:-40])
    store, crop = MaskStore(pairs / "masks.lmdb"), Crop(32, 20)
    done = crop_images(store, pairs / "cut.lmdb", open_source(pairs / "gt", None, "x"), crop, pairs / "gt.lmdb")
    assert [str(path) in problem and "truncated PNG" in problem for problem in done.bad] == [True]
    assert not (pairs / "gt.lmdb").exists()
    path.write_bytes(good)
    done = crop_images(store, pairs / "cut.lmdb", open_source(pairs / "gt", None, "x"), crop, pairs / "gt.lmdb")
    assert done.bad == []
    assert len(read_image_keys(pairs / "gt.lmdb")) == 3 * len(crop.windows((50, 70)))


def test_images_without_masks_and_masks_of_another_size_are_reported(pairs: Path) -> None:
    write_image(pairs / "gt" / "d.png", np.zeros((50, 70, 3), np.uint8))
    write_image(pairs / "gt" / "a.png", np.zeros((50, 71, 3), np.uint8))
    store, whole = MaskStore(pairs / "masks.lmdb"), open_source(pairs / "gt", None, "--images")
    done = crop_images(store, pairs / "cut.lmdb", whole, Crop(32, 32))
    assert len(done.bad) == 2
    assert "lacks 1 image: d" in done.bad[0]
    assert "a: the masks are of 50x70 (h x w), the image that was cut of 50x71" in done.bad[1]
    for path in (pairs / "gt").glob("[abc].png"):
        path.unlink()
    alone = open_source(pairs / "gt", None, "--images")
    with pytest.raises(ValueError, match=r"has masks of none of .* \(1 image: d\); its own are 3 images: a, b, c"):
        crop_images(store, pairs / "other.lmdb", alone, Crop(32, 32))
    whole = open_source(pairs / "gt", None, "--images")
    with pytest.raises(ValueError, match=r"no image of .* can be cut: .*smaller than --crop-size 60"):
        crop_images(store, pairs / "other.lmdb", whole, Crop(60, 60))
    assert not (pairs / "other.lmdb").exists()


def test_another_cut_into_the_same_store_is_refused(pairs: Path) -> None:
    whole, store = open_source(pairs / "gt", None, "--images"), MaskStore(pairs / "masks.lmdb")
    crop_images(store, pairs / "cut.lmdb", whole, Crop(32, 20))
    with pytest.raises(ValueError, match=r"made differently .*step: stored 20, now 10"):
        crop_images(store, pairs / "cut.lmdb", whole, Crop(32, 10))


def test_a_wrong_path_of_the_windows_file_is_refused_with_its_name(pairs: Path) -> None:
    store = MaskStore(pairs / "masks.lmdb")
    with pytest.raises(ValueError, match=r"is no file; sam4ir prepare writes windows.jsonl"):
        crop_by_table(store, pairs / "cut.lmdb", pairs / "nowhere")
    (pairs / "windows.jsonl").touch()
    with pytest.raises(ValueError, match=rf"did you mean {pairs}/windows.jsonl"):
        crop_by_table(store, pairs / "cut.lmdb", pairs)


@pytest.mark.parametrize("name", ["crops.lmdb", "crops"])
def test_sub_images_of_another_cut_are_refused(name: str, pairs: Path) -> None:
    whole, store = open_source(pairs / "gt", None, "--images"), MaskStore(pairs / "masks.lmdb")
    crop_images(store, pairs / "cut.lmdb", whole, Crop(32, 20), pairs / name)
    with pytest.raises(ValueError, match=rf"--output-images: .*{name}.*a_s002.* cut otherwise .*name another"):
        crop_images(store, pairs / "other.lmdb", whole, Crop(32, 10), pairs / name)
    assert not (pairs / "other.lmdb").exists()
    same = crop_images(store, pairs / "again.lmdb", whole, Crop(32, 20), pairs / name)
    assert (same.stored, same.bad) == (len(MaskStore(pairs / "cut.lmdb").keys()), [])


def test_an_unfinished_image_lmdb_of_another_cut_is_not_continued(pairs: Path) -> None:
    path = pairs / "gt" / "b.png"
    path.write_bytes(path.read_bytes()[:-40])
    whole, store = open_source(pairs / "gt", None, "--images"), MaskStore(pairs / "masks.lmdb")
    assert crop_images(store, pairs / "cut.lmdb", whole, Crop(32, 20), pairs / "gt.lmdb").bad
    with pytest.raises(ValueError, match=r"gt.lmdb\[a_s002\] is there already, cut otherwise"):
        crop_images(store, pairs / "other.lmdb", whole, Crop(32, 10), pairs / "gt.lmdb")


@pytest.mark.parametrize("name", ["gt", "gt/crops"])
def test_sub_images_are_not_written_among_the_images_that_are_cut(name: str, pairs: Path) -> None:
    whole, store = open_source(pairs / "gt", None, "--images"), MaskStore(pairs / "masks.lmdb")
    with pytest.raises(ValueError, match=r"--output-images: .* lies in --images .*name another folder"):
        crop_images(store, pairs / "cut.lmdb", whole, Crop(32, 20), pairs / name)
    with pytest.raises(ValueError, match=r"--output-images: .*a.png is a file; name a folder"):
        crop_images(store, pairs / "cut.lmdb", whole, Crop(32, 20), pairs / "gt" / "a.png")
    assert open_source(pairs / "gt", None, "--images").keys == whole.keys


def test_sub_images_of_images_that_the_generator_did_not_see_have_no_checksum(pairs: Path) -> None:
    image = read(open_source(pairs / "gt", None, "--images"), "b")
    write_image(pairs / "gt" / "b.png", 255 - image)
    whole, store = open_source(pairs / "gt", None, "--images"), MaskStore(pairs / "masks.lmdb")
    crop_images(store, pairs / "cut.lmdb", whole, Crop(32, 20))
    cut = MaskStore(pairs / "cut.lmdb")
    assert cut.read("a_s001").image_sha256 is not None
    assert cut.read("b_s001").image_sha256 is None
