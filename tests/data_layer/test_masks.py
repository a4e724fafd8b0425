"""The mask store: lossless, cut by windows, honest about what it is not."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from sam4ir import regions
from sam4ir.data.mask_import import read_sam_json, record_from_sam
from sam4ir.data.mask_record import MaskRecord, MaskStoreError
from sam4ir.data.masks import MaskStore, MaskStoreWriter

META = {"generator": "drawn", "checkpoint": "none", "source": "gt", "settings": {"points_per_side": 4}}


def as_sam(masks: np.ndarray) -> list[dict]:
    """The dictionaries of segment-anything's automatic generator, compressed RLE."""
    listed = []
    for i, mask in enumerate(masks):
        rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        box = [float(v) for v in coco.toBbox(rle)]
        rle["counts"] = rle["counts"].decode()
        scores = {"predicted_iou": 1 - i / 1000, "stability_score": 0.9 + i / 1000}
        listed.append({"segmentation": rle, "area": int(mask.sum()), "bbox": box, **scores})
    return listed


def drawn(seed: int, n: int, h: int, w: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, h, w), bool)
    for i in range(n):
        y, x = np.sort(rng.integers(0, h + 1, 2)), np.sort(rng.integers(0, w + 1, 2))
        masks[i, y[0] : y[1], x[0] : x[1]] = rng.random() < 0.8 or rng.random((y[1] - y[0], x[1] - x[0])) < 0.5
    return masks


@settings(max_examples=50, deadline=None)
@given(h=st.integers(1, 150), w=st.integers(1, 150), n=st.integers(0, 9), seed=st.integers(0, 10**6))
def test_a_record_gives_back_every_mask_and_its_columns(h: int, w: int, n: int, seed: int) -> None:
    masks = drawn(seed, n, h, w)
    listed = as_sam(masks)
    record = MaskRecord(record_from_sam(listed, (h, w)))
    assert record.size == (h, w)
    assert record.count == n
    assert np.array_equal(record.stack(0, 0, h, w), masks)
    assert record.areas.tolist() == [m["area"] for m in listed]
    assert record.boxes.tolist() == [m["bbox"] for m in listed]
    assert record.predicted_iou.tolist() == [m["predicted_iou"] for m in listed]
    assert record.stability_score.tolist() == [m["stability_score"] for m in listed]
    expected = [regions.spe_sum(regions.mask_to_runs(m), (h, w)) for m in masks]
    assert record.spe_sum.tolist() == expected


@settings(max_examples=50, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10**6))
def test_a_window_reads_as_a_cut_of_the_whole(data: st.DataObject, seed: int) -> None:
    h, w = 140, 97
    record = MaskRecord(record_from_sam(as_sam(drawn(seed, 6, h, w)), (h, w)))
    top, left = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    height, width = data.draw(st.integers(1, h - top)), data.draw(st.integers(1, w - left))
    cut = (slice(top, top + height), slice(left, left + width))
    window = (top, left, height, width)
    assert np.array_equal(record.stack(*window), record.stack(0, 0, h, w)[:, cut[0], cut[1]])
    assert np.array_equal(record.region_map(*window), record.region_map(0, 0, h, w)[cut])
    assert np.array_equal(record.list_map(*window), record.list_map(0, 0, h, w)[cut])
    assert np.array_equal(record.boundary_map(*window), regions.boundary(record.region_map(*window)))


def test_small_masks_lie_on_top_in_the_region_map_and_later_ones_in_the_list_map() -> None:
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 2:4, 2:4] = True
    masks[1, 1:7, 1:7] = True
    record = MaskRecord(record_from_sam(as_sam(masks)))
    assert record.region_map(2, 2, 1, 1).item() == 1
    assert record.list_map(2, 2, 1, 1).item() == 2
    assert record.region_map(0, 0, 1, 1).item() == 0


@pytest.mark.parametrize("window", [(-1, 0, 2, 2), (0, 0, 9, 2), (0, 7, 2, 2), (0, 0, 0, 2)])
def test_a_window_outside_the_image_is_an_error(window: tuple[int, int, int, int]) -> None:
    record = MaskRecord(record_from_sam(as_sam(drawn(0, 2, 8, 8))))
    with pytest.raises(ValueError, match="does not lie in the image of 8x8"):
        record.region_map(*window)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with MaskStoreWriter(tmp_path / "m.lmdb", META) as writer:
        for i in range(3):
            writer.put(f"photo_{i}", as_sam(drawn(i, 4, 30, 40)), (30, 40))
    return tmp_path / "m.lmdb"


def test_a_store_keeps_provenance_and_counts(store: Path) -> None:
    meta = MaskStore(store).meta
    assert {k: meta[k] for k in META} == META
    assert meta["counts"] == {"images": 3, "masks": 12}
    assert json.loads((store / "meta.json").read_text()) == meta
    assert MaskStore(store).keys() == ["photo_0", "photo_1", "photo_2"]


def test_a_missing_record_names_store_and_key(store: Path) -> None:
    with pytest.raises(MaskStoreError, match=r"m\.lmdb.*'photo_9'"):
        MaskStore(store).read("photo_9")


def test_a_store_continues_only_what_was_made_in_the_same_way(store: Path) -> None:
    with MaskStoreWriter(store, META) as writer:
        assert "photo_1" in writer
        writer.put("photo_3", [], (5, 6))
    assert len(MaskStore(store)) == 4
    assert MaskStore(store).read("photo_3").region_map(0, 0, 5, 6).max() == 0
    before = (store / "data.mdb").read_bytes()
    with pytest.raises(MaskStoreError, match="points_per_side|settings"):
        MaskStoreWriter(store, {**META, "settings": {"points_per_side": 32}})
    assert (store / "data.mdb").read_bytes() == before


def test_a_store_grows_when_its_map_is_full(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with MaskStoreWriter(tmp_path / "m.lmdb", META, map_size=1 << 16) as writer:
        for i in range(12):
            writer.put(f"noise_{i}", as_sam(rng.random((2, 90, 90)) < 0.5), (90, 90))
    assert len(MaskStore(tmp_path / "m.lmdb")) == 12


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign", "no folder", "no meta"])
def test_what_is_no_store_is_named(store: Path, damage: str) -> None:
    path = store
    if damage == "missing":
        (store / "data.mdb").unlink()
    elif damage == "cut":
        (store / "data.mdb").write_bytes((store / "data.mdb").read_bytes()[:5000])
    elif damage == "foreign":
        (store / "data.mdb").write_bytes(b"hello" * 5000)
    elif damage == "no meta":
        (store / "meta.json").unlink()
    else:
        path = store / "nowhere.lmdb"
    with pytest.raises(MaskStoreError, match=path.name):
        MaskStore(path).read("photo_0")


def read_region(job: tuple[MaskStore, str]) -> np.ndarray:
    return job[0].read(job[1]).region_map(0, 0, 30, 40)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_open_store_is_read_by_other_processes(store: Path, method: str) -> None:
    opened = MaskStore(store)
    here = opened.read("photo_1").region_map(0, 0, 30, 40)
    with multiprocessing.get_context(method).Pool(2) as pool:
        for there in pool.map(read_region, [(opened, "photo_1")] * 4):
            assert np.array_equal(here, there)


def test_records_travel_by_pickle(store: Path) -> None:
    record = MaskStore(store).read("photo_0")
    again = pickle.loads(pickle.dumps(record))
    assert np.array_equal(record.stack(0, 0, 30, 40), again.stack(0, 0, 30, 40))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 400), flip=st.integers(0, 400))
def test_a_damaged_record_is_an_error_or_reads_without_crashing(cut: int, flip: int) -> None:
    data = bytearray(record_from_sam(as_sam(drawn(3, 4, 70, 70)), (70, 70)))
    with pytest.raises(MaskStoreError):
        MaskRecord(bytes(data[: min(cut, len(data) - 1)])).stack(0, 0, 70, 70)
    data[20 + flip % (len(data) - 20)] ^= 0x5A
    try:
        MaskRecord(bytes(data)).stack(0, 0, 8, 8)
    except (MaskStoreError, ValueError, IndexError):
        return


def test_json_of_the_generator_and_of_sa1b_read_alike(tmp_path: Path) -> None:
    masks = as_sam(drawn(1, 3, 20, 30))
    (tmp_path / "a.json").write_text(json.dumps(masks))
    (tmp_path / "b.json").write_text(json.dumps({"image": {"height": 20, "width": 30}, "annotations": masks}))
    first, second = (read_sam_json(tmp_path / f"{n}.json") for n in "ab")
    assert first == (masks, None)
    assert second == (masks, (20, 30))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": None}, "mask 1.*segmentation"),
        ({"area": 3}, "mask 1.*area"),
        ({"bbox": [1, 2]}, "mask 1.*bbox"),
        ({"predicted_iou": "high"}, "mask 1.*predicted_iou"),
        ({"segmentation": {"size": [20, 30], "counts": "0"}}, "mask 1.*counts"),
        ({"segmentation": {"size": [9, 9], "counts": [81]}, "area": 0}, "mask 1.*size"),
    ],
)
def test_a_bad_mask_is_named_by_number_and_key(change: dict, message: str) -> None:
    masks = as_sam(drawn(1, 3, 20, 30))
    masks[1] |= change
    with pytest.raises(MaskStoreError, match=message):
        record_from_sam(masks)


def test_no_masks_need_a_size() -> None:
    with pytest.raises(MaskStoreError, match="size is not known"):
        record_from_sam([])
