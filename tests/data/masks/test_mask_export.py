"""What pycocotools and numpy read from exported files is what the store holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from sam4ir import regions
from sam4ir.data.masks.exporter import export_masks, label_map, sam_list
from sam4ir.data.masks.formats import read_masks
from sam4ir.data.masks.from_sam import record_from_sam
from sam4ir.data.masks.labels import LabelRules
from sam4ir.data.masks.record import MaskRecord
from sam4ir.data.masks.store import MaskStore, MaskStoreWriter
from sam4ir.priors.spe import spe_map
from sam4ir.utils.image import read_labels

STACKS = st.tuples(st.integers(0, 6), st.integers(1, 30), st.integers(1, 40)).flatmap(
    lambda shape: hnp.arrays(bool, shape, elements=st.booleans(), fill=st.booleans())
)


def record_bytes(stack: np.ndarray, scores: bool = True) -> bytes:
    """Masks with odd boxes and scores, every third without."""
    values = {"predicted_iou": 0.1 + 1 / 3, "stability_score": 0.97, "bbox": [1, 2, 3.25, 4]}
    masks = [{"segmentation": m, **(values if scores and i % 3 else {})} for i, m in enumerate(stack)]
    return record_from_sam(masks, stack.shape[1:])


@given(STACKS)
@settings(max_examples=60, deadline=None)
def test_segment_anythings_list_read_again_is_the_same_record(stack: np.ndarray) -> None:
    data = record_bytes(stack)
    text = json.dumps(sam_list(MaskRecord(data)), allow_nan=False)
    listed = json.loads(text)
    assert record_from_sam(listed, stack.shape[1:]) == data
    for entry, mask in zip(listed, stack, strict=True):
        np.testing.assert_array_equal(coco.decode(entry["segmentation"]), mask)
        assert coco.area(entry["segmentation"]) == entry["area"] == mask.sum()


def test_counts_are_the_text_that_pycocotools_writes() -> None:
    mask = np.random.default_rng(0).random((300, 700)) < 0.01
    entry = sam_list(MaskRecord(record_bytes(mask[None])))[0]
    assert entry["segmentation"]["counts"] == coco.encode(np.asfortranarray(mask))["counts"].decode()
    assert "predicted_iou" not in entry  # not known


@given(STACKS)
@settings(max_examples=30, deadline=None)
def test_a_label_map_is_the_region_map(stack: np.ndarray) -> None:
    record = MaskRecord(record_bytes(stack))
    labels = label_map(record)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels[..., 0], record.region_map(0, 0, *record.size))


def store_of(folder: Path, **stacks: np.ndarray) -> MaskStore:
    with MaskStoreWriter(folder / "masks.lmdb", {}) as writer:
        for key, stack in stacks.items():
            writer.put_record(key, record_bytes(stack))
    return MaskStore(folder / "masks.lmdb")


def test_label_maps_of_many_masks_have_16_bits_and_come_back(tmp_path: Path) -> None:
    stack = np.arange(20 * 30).reshape(20, 30) // 2 == np.arange(300)[:, None, None]
    store = store_of(tmp_path, many=stack, few=stack[:5])
    assert export_masks(store, "labels", tmp_path / "out", spe_map).written == 2
    types = {key: read_labels(tmp_path / "out" / f"{key}.png").dtype for key in ("many", "few")}
    assert types == {"many": np.uint16, "few": np.uint8}
    for key in types:
        masks, size = read_masks("labels", tmp_path / "out" / f"{key}.png", LabelRules())
        again = MaskRecord(record_from_sam(masks, size))
        np.testing.assert_array_equal(again.region_map(0, 0, 20, 30), store.read(key).region_map(0, 0, 20, 30))


def test_a_label_map_of_overlapping_masks_comes_back_as_its_regions(tmp_path: Path) -> None:
    stack = np.zeros((3, 9, 9), bool)
    stack[0, 2:5, 2:5] = stack[1, 1:6, 1:6] = stack[2, 0:8] = True
    store = store_of(tmp_path, a=np.concatenate([stack, stack[:1]]))  # the last covers the first one
    export_masks(store, "labels", tmp_path / "out", spe_map)
    masks, size = read_masks("labels", tmp_path / "out" / "a.png", LabelRules())
    again = MaskRecord(record_from_sam(masks, size)).region_map(0, 0, 9, 9)
    np.testing.assert_array_equal(again, regions.densify(store.read("a").region_map(0, 0, 9, 9))[0])


def test_sam_diffsr_gets_float32_maps_and_zeros_where_there_are_no_masks(tmp_path: Path) -> None:
    stack = np.zeros((1, 6, 8), bool)
    stack[0, 1:3] = True
    store = store_of(tmp_path, **{"a": stack, "b/c.1": stack[:0]})
    export_masks(store, "samdiffsr", tmp_path / "out", spe_map)
    one, none = np.load(tmp_path / "out" / "a.npy"), np.load(tmp_path / "out" / "b" / "c.1.npy")
    assert (one.dtype, none.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(one, spe_map(store.read("a"), 0, 0, 6, 8))
    assert not none.any()
    assert none.shape == (6, 8)


def test_existing_files_stay_unless_overwrite_is_set(tmp_path: Path) -> None:
    store = store_of(tmp_path, a=np.ones((1, 4, 4), bool), b=np.ones((1, 4, 4), bool))
    file = tmp_path / "out" / "a.json"
    file.parent.mkdir()
    file.write_text("mine")
    done = export_masks(store, "sam", tmp_path / "out", spe_map)
    assert (done.written, done.present, file.read_text()) == (1, 1, "mine")
    assert export_masks(store, "sam", tmp_path / "out", spe_map, ["a"], overwrite=True).written == 1
    assert json.loads(file.read_text())[0]["area"] == 16


def test_keys_without_masks_and_a_file_for_a_folder_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with MaskStoreWriter(tmp_path / "masks.lmdb", {}) as writer:
        writer.put_record("a", record_bytes(np.ones((1, 3, 4), bool)))
    store = MaskStore(tmp_path / "masks.lmdb")
    with pytest.raises(ValueError, match=r"--keys: .*has no masks of 1 image: nine; its own are 1 image: a"):
        export_masks(store, "sam", tmp_path / "out", spe_map, keys=["a", "nine"])
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").touch()
    with pytest.raises(ValueError, match=r"--output: .*out is a file; name a folder"):
        export_masks(store, "sam", tmp_path / "out", spe_map)


@pytest.mark.parametrize("key", ["../out", "a/../../out", "/nowhere/out"])
def test_keys_that_lead_out_of_the_output_folder_are_refused_and_the_rest_is_written(key: str, tmp_path: Path) -> None:
    with MaskStoreWriter(tmp_path / "masks.lmdb", {}) as writer:
        for name in (key, "x/good"):
            writer.put_record(name, record_bytes(np.ones((1, 3, 4), bool)))
    done = export_masks(MaskStore(tmp_path / "masks.lmdb"), "sam", tmp_path / "in", spe_map)
    assert (done.written, len(done.bad)) == (1, 1)
    assert f"masks.lmdb: key {key!r} leads out of {tmp_path / 'in'}" in done.bad[0]
    written = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json")]
    assert sorted(written) == ["in/x/good.json", "masks.lmdb/meta.json"]
