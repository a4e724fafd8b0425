"""The mask store holds any masks without loss, is whole for every reader, and records how its masks were made."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from sam4ir import regions
from sam4ir.data import lmdb_env
from sam4ir.data.masks.from_sam import read_sam_json, record_from_sam
from sam4ir.data.masks.record import MaskRecord
from sam4ir.data.masks.store import MaskStore, MaskStoreError, MaskStoreWriter

META = {"generator": "test", "checkpoint": "none", "checkpoint_sha256": "00", "settings": {"points": 4}, "source": "gt"}
QUICKSTART = Path(__file__).resolve().parents[3] / "datasets" / "quickstart" / "masks.lmdb"
STACKS = st.tuples(st.integers(0, 6), st.integers(1, 80), st.integers(1, 150)).flatmap(
    lambda shape: hnp.arrays(bool, shape, elements=st.booleans(), fill=st.booleans())
)


def sam_mask(mask: np.ndarray, score: float = 0.9) -> dict[str, Any]:
    """What segment-anything writes of one mask."""
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode()},
        "area": int(mask.sum()),
        "bbox": [1, 2, 3, 4.5],
        "predicted_iou": score,
        "stability_score": score / 2,
        "point_coords": [[0, 0]],
    }


def blobs(n: int, h: int, w: int, seed: int = 0) -> np.ndarray:
    """(n, h, w) bool: discs with noisy edges, overlapping."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[:h, :w]
    centre, radius = rng.random((n, 2, 1, 1)) * np.array([h, w])[:, None, None], rng.random((n, 1, 1)) * h / 2
    return np.hypot(y - centre[:, 0], x - centre[:, 1]) + rng.random((n, h, w)) * 3 < radius


def store_of(folder: Path, **stacks: np.ndarray) -> MaskStore:
    with MaskStoreWriter(folder / "masks.lmdb", META) as writer:
        for key, stack in stacks.items():
            writer.put(key, [sam_mask(m) for m in stack], stack.shape[1:])
    return MaskStore(folder / "masks.lmdb")


@given(STACKS, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_every_crop_of_every_mask_comes_back(stack: np.ndarray, random: Any) -> None:
    n, h, w = stack.shape
    with tempfile.TemporaryDirectory() as folder:
        record = store_of(Path(folder), a=stack).read("a")
    assert (record.size, record.count) == ((h, w), n)
    top, left = random.randrange(h), random.randrange(w)
    window = (top, left, random.randint(1, h - top), random.randint(1, w - left))
    cut = (slice(top, top + window[2]), slice(left, left + window[3]))
    np.testing.assert_array_equal(record.stack(*window), stack[(slice(None), *cut)])
    np.testing.assert_array_equal(record.table[record.labels(*window)], stack[(slice(None), *cut)].transpose(1, 2, 0))
    by_area, by_list = np.zeros((h, w), int), np.zeros((h, w), int)
    first = [m.ravel().argmax() if m.any() else m.size for m in stack]
    for mask in sorted(range(n), key=lambda i: (-stack[i].sum(), first[i])):
        by_area[stack[mask]] = mask + 1
    for mask in range(n):
        by_list[stack[mask]] = mask + 1
    np.testing.assert_array_equal(record.region_map(*window), by_area[cut])
    np.testing.assert_array_equal(record.list_map(*window), by_list[cut])
    np.testing.assert_array_equal(record.boundary_map(*window), regions.boundary(by_area[cut]))


@given(STACKS, st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_record_holds_what_pycocotools_reads_of_the_same_masks(stack: np.ndarray, seed: int) -> None:
    """Noise of any density, among it empty, full and one-pixel masks."""
    rng = np.random.default_rng(seed)
    density = rng.choice([0.0, 0.02, 0.5, 1.0], (len(stack), 1, 1))
    stack = stack ^ (rng.random(stack.shape) < density)
    stack[: len(stack) // 2 : 3] = False
    for mask in stack[: len(stack) // 2 : 3]:
        mask[rng.integers(mask.shape[0]), rng.integers(mask.shape[1])] = True
    rles = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in stack]
    record = MaskRecord(record_from_sam([{"segmentation": rle} for rle in rles], stack.shape[1:]))
    back = record.stack(0, 0, *record.size)
    assert [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in back] == rles
    assert record.areas.tolist() == [int(coco.area(rle)) for rle in rles]
    for box, rle, mask in zip(record.boxes, rles, stack, strict=True):
        x, y, w, h = coco.toBbox(rle)  # whose far corner is exclusive, unlike segment-anything's
        assert box.tolist() == ([x, y, w - 1, h - 1] if mask.any() else [0, 0, 0, 0])


def test_tiles_that_one_atom_fills_come_back(tmp_path: Path) -> None:
    stack = np.zeros((2, 200, 300), bool)
    stack[0, :128] = True
    stack[1, :, 64:192] = True
    stack[1, 150, 250] = True
    record = store_of(tmp_path, a=stack).read("a")
    assert len(bytes(record._data)) < 600
    np.testing.assert_array_equal(record.stack(0, 0, 200, 300), stack)
    np.testing.assert_array_equal(record.stack(60, 60, 97, 200), stack[:, 60:157, 60:260])


def test_records_of_version_1_are_still_read() -> None:
    """The quickstart store was written with it."""
    old = MaskStore(QUICKSTART).read("chelsea")
    assert bytes(old._data)[4:6] == b"\x01\x00"
    h, w = old.size
    stack = old.stack(0, 0, h, w)
    boxes, scores = old.boxes, (old.predicted_iou, old.stability_score)
    masks = [
        {**sam_mask(mask), "bbox": box.tolist(), "predicted_iou": iou, "stability_score": stability}
        for mask, box, iou, stability in zip(stack, boxes, *scores, strict=True)
    ]
    new = MaskRecord(record_from_sam(masks, old.size, bytes.fromhex(old.image_sha256 or "")))
    assert bytes(new._data)[4:6] == b"\x03\x00"
    assert len(bytes(new._data)) < len(bytes(old._data))
    for window in ((0, 0, h, w), (70, 60, 100, 128)):
        np.testing.assert_array_equal(new.labels(*window), old.labels(*window))
        np.testing.assert_array_equal(new.region_map(*window), old.region_map(*window))
    np.testing.assert_array_equal(new._columns[:-1], old._columns[:-1])
    np.testing.assert_allclose(new.spe_sum, old.spe_sum, rtol=1e-11)  # was summed pixel by pixel
    np.testing.assert_array_equal(new.stack(0, 0, h, w), stack)
    assert new.image_sha256 == old.image_sha256


@pytest.mark.parametrize(
    "stack",
    [
        np.zeros((0, 70, 130), bool),
        np.zeros((1, 70, 130), bool),
        np.ones((2, 70, 130), bool),
        np.arange(70 * 130).reshape(1, 70, 130) == 4444,
        np.ones((1, 1, 1), bool),
        blobs(70, 97, 201),
    ],
    ids=["no mask", "empty mask", "full masks", "one pixel", "1x1 image", "70 overlapping"],
)
def test_extreme_masks_come_back(stack: np.ndarray, tmp_path: Path) -> None:
    record = store_of(tmp_path, a=stack).read("a")
    np.testing.assert_array_equal(record.stack(0, 0, *stack.shape[1:]), stack)
    np.testing.assert_array_equal(record.areas, stack.sum(axis=(1, 2)))


def test_more_than_65535_atoms_come_back(tmp_path: Path) -> None:
    number = np.arange(300 * 240).reshape(300, 240)
    stack = (number[None] >> np.arange(17)[:, None, None] & 1).astype(bool)
    record = store_of(tmp_path, a=stack).read("a")
    assert record.atom_count == 72_000
    assert record.labels(0, 0, 1, 1).dtype == np.uint32
    np.testing.assert_array_equal(record.stack(17, 60, 283, 180), stack[:, 17:, 60:])


def test_columns_keep_the_generators_order_and_values(tmp_path: Path) -> None:
    stack = blobs(5, 40, 60)
    scores = [0.91, 0.99, 0.87, 0.93, 1 / 3]
    with MaskStoreWriter(tmp_path / "m.lmdb", META) as writer:
        writer.put("a/b", [sam_mask(m, s) for m, s in zip(stack, scores, strict=True)])
    record = MaskStore(tmp_path / "m.lmdb").read("a/b")
    assert record.predicted_iou.tolist() == scores
    assert record.stability_score.tolist() == [s / 2 for s in scores]
    assert record.boxes.tolist() == [[1, 2, 3, 4.5]] * 5
    table = regions.rotary_table((40, 60))
    np.testing.assert_allclose(record.spe_sum, [table[m].sum() for m in stack], atol=1e-9)


def test_every_form_of_a_mask_gives_the_same_record(tmp_path: Path) -> None:
    mask = blobs(4, 50, 30).any(axis=0)
    whole = sam_mask(mask)
    counts = whole["segmentation"]["counts"]
    forms = [counts, counts.encode(), regions.mask_to_runs(mask).tolist()]
    with MaskStoreWriter(tmp_path / "m.lmdb", META) as writer:
        for i, form in enumerate(forms):
            writer.put(f"rle{i}", [{**whole, "segmentation": {"size": [50, 30], "counts": form}}])
        writer.put("array", [{**whole, "segmentation": mask}])
    store = MaskStore(tmp_path / "m.lmdb")
    first, *others = (
        pickle.dumps(MaskRecord(bytes(store.read(key)._data))) for key in ("rle0", "rle1", "rle2", "array")
    )
    assert others == [first] * 3


def test_labels_read_neither_bit_table_nor_columns_nor_other_tiles(tmp_path: Path) -> None:
    """What a crop does not need may be damaged."""
    record = store_of(tmp_path, a=blobs(6, 200, 200)).read("a")
    data = bytearray(bytes(record._data))
    expected = record.labels(64, 64, 64, 64)
    first_tile, columns, table = record._tiles_at, record._frames[0], record._frames[2]
    for place in (first_tile, columns, table):
        data[place : place + 4] = b"\0\0\0\0"
    damaged = MaskRecord(bytes(data), "here")
    np.testing.assert_array_equal(damaged.labels(64, 64, 64, 64), expected)
    damaged.region_map(64, 64, 64, 64)
    for spoilt in (lambda: damaged.labels(0, 0, 9, 9), lambda: damaged.areas, lambda: damaged.table):
        with pytest.raises(MaskStoreError, match="here: damaged"):
            spoilt()


@pytest.mark.parametrize("window", [(-1, 0, 5, 5), (0, 0, 0, 5), (0, 0, 41, 5), (38, 0, 3, 5), (0, 56, 4, 5)])
def test_a_window_outside_the_image_is_refused(window: tuple[int, int, int, int], tmp_path: Path) -> None:
    record = store_of(tmp_path, a=blobs(2, 40, 60)).read("a")
    with pytest.raises(ValueError, match="does not lie in the image of 40x60"):
        record.labels(*window)


def test_a_missing_key_names_store_key_and_near_miss(tmp_path: Path) -> None:
    store = store_of(tmp_path, baby=blobs(1, 8, 8), bird=blobs(1, 8, 8))
    assert (store.keys(), len(store), "bird" in store, "birds" in store) == (["baby", "bird"], 2, True, False)
    for key in ("birdy", "", "x" * 600):
        with pytest.raises(MaskStoreError, match=r"masks\.lmdb: no record for image"):
            store.read(key)
    with pytest.raises(MaskStoreError, match="did you mean 'bird'"):
        store.read("birdy")


def _read_areas(store: MaskStore, queue: Any) -> None:
    queue.put((store.read("a").areas.tolist(), MaskStore(store.path).read("a").areas.tolist()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_opened_store_can_be_used_in_child_processes(method: str, tmp_path: Path) -> None:
    store = store_of(tmp_path, a=blobs(3, 30, 40))
    expected = store.read("a").areas.tolist()
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    children = [context.Process(target=_read_areas, args=(store, queue)) for _ in range(2)]
    for child in children:
        child.start()
    assert [queue.get(timeout=60) for _ in children] == [(expected, expected)] * 2
    for child in children:
        child.join()
    assert store.read("a").areas.tolist() == expected


def test_stores_and_records_can_be_pickled_and_opened_twice(tmp_path: Path) -> None:
    store = store_of(tmp_path, a=blobs(3, 30, 40))
    record = store.read("a")
    for other in (pickle.loads(pickle.dumps(store)).read("a"), pickle.loads(pickle.dumps(record))):
        np.testing.assert_array_equal(other.stack(0, 0, 30, 40), record.stack(0, 0, 30, 40))
    assert pickle.loads(pickle.dumps(store)).meta == MaskStore(store.path).meta


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated early", "truncated late", "foreign"])
def test_a_damaged_data_file_is_named(damage: str, tmp_path: Path) -> None:
    path = store_of(tmp_path, a=blobs(9, 200, 300)).path
    file = path / "data.mdb"
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        cut = {"empty": b"", "truncated early": content[:5000], "truncated late": content[:-4096]}
        file.write_bytes(cut.get(damage, b"hello, world" * 2000))
    with pytest.raises(MaskStoreError, match=r"masks\.lmdb.*(sam4ir masks)"):
        MaskStore(path)


def test_a_foreign_or_older_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MaskStoreError, match="no such mask store"):
        MaskStore(tmp_path / "nothing.lmdb")
    with pytest.raises(MaskStoreError, match=r"no meta\.json"):
        MaskStore(tmp_path)
    with pytest.raises(MaskStoreError, match=r"no meta\.json"):
        MaskStoreWriter(tmp_path.parent, META)
    meta = tmp_path / "meta.json"
    for text, message in [("{", "meta.json: is not JSON"), ("{}", "not the meta"), (None, "store format 99")]:
        meta.write_text(text or json.dumps({"format": "sam4ir mask store", "format_version": 99}))
        with pytest.raises(MaskStoreError, match=message):
            MaskStore(tmp_path)


def test_bytes_that_are_no_record_are_refused(tmp_path: Path) -> None:
    data = bytes(store_of(tmp_path, a=blobs(2, 70, 70)).read("a")._data)
    for bad, message in [(b"\x89PNG", "not a mask record"), (data[:-1], "cut off"), (data[:90], "cut off")]:
        with pytest.raises(MaskStoreError, match=f"here: .*{message}"):
            MaskRecord(bad, "here")
    with pytest.raises(MaskStoreError, match="record format 7"):
        MaskRecord(data[:4] + b"\x07" + data[5:], "here")


@given(place=st.integers(0, 1 << 16), flip=st.integers(1, 255))
@example(place=212, flip=208)  # a frame that claims to be too large for the memory
@example(place=218, flip=1)  # a tile of an atom that does not exist
@settings(max_examples=80, deadline=None)
def test_a_record_with_a_damaged_byte_is_an_error_or_reads_without_crashing(place: int, flip: int) -> None:
    data = bytearray(record_from_sam([sam_mask(m) for m in blobs(4, 70, 70)]))
    data[place % len(data)] ^= flip
    with contextlib.suppress(ValueError, IndexError):
        MaskRecord(bytes(data)).stack(0, 0, 8, 8)


def test_meta_holds_provenance_versions_and_counts(tmp_path: Path) -> None:
    meta = store_of(tmp_path, a=blobs(3, 20, 20), b=blobs(2, 20, 20)).meta
    assert {key: meta[key] for key in META} == META
    assert meta["counts"] == {"images": 2, "masks": 5}
    assert {"numpy", "lmdb"} <= set(meta["versions"])


def test_writing_continues_and_may_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "m.lmdb"
    masks = [sam_mask(m) for m in blobs(3, 20, 20)]
    for _ in range(2):
        with MaskStoreWriter(path, META) as writer:
            writer.put("a", masks)
            writer.put("a", masks)
        assert MaskStore(path).meta["counts"] == {"images": 1, "masks": 3}
    with MaskStoreWriter(path, META) as writer:
        assert "a" in writer
        assert "b" not in writer
        writer.put("b", masks[:1])
    assert MaskStore(path).meta["counts"] == {"images": 2, "masks": 4}


def test_the_records_of_an_interrupted_run_remain(tmp_path: Path) -> None:
    path = tmp_path / "m.lmdb"
    writer = MaskStoreWriter(path, META)
    writer.put("a", [sam_mask(m) for m in blobs(3, 20, 20)])
    del writer  # as if killed: never closed
    assert MaskStore(path).read("a").count == 3


def test_another_provenance_is_refused_and_never_destroys(tmp_path: Path) -> None:
    path = store_of(tmp_path, a=blobs(3, 20, 20)).path
    other = {**META, "settings": {"points": 8}}
    with pytest.raises(MaskStoreError, match=r"settings\.points: stored 4, now 8.*new=True"):
        MaskStoreWriter(path, other)
    assert MaskStore(path).read("a").count == 3
    with MaskStoreWriter(path, other, new=True) as writer:
        assert "a" not in writer
    assert len(MaskStore(path)) == 0
    assert MaskStore(path.with_name("masks.lmdb.old1")).read("a").count == 3


def test_a_store_that_is_moved_away_while_it_is_opened_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store_of(tmp_path, a=blobs(2, 8, 8)).path
    opening = lmdb_env.lmdb.open

    def open_late(*arguments: Any, **options: Any) -> Any:
        env = opening(*arguments, **options)
        path.rename(tmp_path / "elsewhere.lmdb")
        return env

    monkeypatch.setattr(lmdb_env.lmdb, "open", open_late)
    with pytest.raises(MaskStoreError, match=r"masks\.lmdb/data\.mdb: cannot be read \(No such file"):
        MaskStore(path)


def test_what_is_no_store_is_never_moved_aside(tmp_path: Path) -> None:
    (tmp_path / "photos.lmdb").mkdir()
    (tmp_path / "photos.lmdb" / "data.mdb").write_bytes(b"somebody's")
    (tmp_path / "file.lmdb").write_text("notes")
    for name in ("photos.lmdb", "file.lmdb"):
        with pytest.raises(MaskStoreError, match="is no mask store; name another"):
            MaskStoreWriter(tmp_path / name, META, new=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.lmdb", "photos.lmdb"]


def test_the_same_weights_in_a_file_of_another_name_have_the_same_provenance(tmp_path: Path) -> None:
    path = store_of(tmp_path, a=blobs(3, 20, 20)).path
    MaskStoreWriter(path, {**META, "checkpoint": "copy.pth"}).close()
    with pytest.raises(MaskStoreError, match="checkpoint_sha256: stored '00', now '11'"):
        MaskStoreWriter(path, {**META, "checkpoint_sha256": "11"})
    unknown = {**META, "checkpoint_sha256": None}
    MaskStoreWriter(tmp_path / "unknown.lmdb", unknown).close()
    with pytest.raises(MaskStoreError, match=r"checkpoint: stored 'none', now 'copy\.pth'"):
        MaskStoreWriter(tmp_path / "unknown.lmdb", {**unknown, "checkpoint": "copy.pth"})


@pytest.mark.parametrize(
    ("meta", "message"),
    [({"source": "hr"}, "gt, lq, restored"), ({"counts": 3}, "'counts'"), ({"settings": {1j}}, "plain JSON")],
)
def test_provenance_that_cannot_be_stored_is_refused(meta: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MaskStoreError, match=message):
        MaskStoreWriter(tmp_path / "m.lmdb", {**META, **meta})
    assert not (tmp_path / "m.lmdb").exists()


def test_a_full_map_grows(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).random((8, 64, 64)) < 0.5
    with MaskStoreWriter(tmp_path / "m.lmdb", META, map_size=64 * 1024) as writer:
        for key in range(40):
            writer.put(str(key), [sam_mask(m) for m in noise])
    store = MaskStore(tmp_path / "m.lmdb")
    assert store.meta["counts"] == {"images": 40, "masks": 320}
    np.testing.assert_array_equal(store.read("39").stack(0, 0, 64, 64), noise)


def _spoilt(**changes: Any) -> dict[str, Any]:
    mask = sam_mask(np.ones((4, 6), bool)) | changes
    return {key: value for key, value in mask.items() if value is not None}


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (_spoilt(segmentation=None), "no key 'segmentation'"),
        (_spoilt(segmentation=[[1, 2, 3, 4]]), "polygons"),
        (_spoilt(segmentation={"size": [4, 6]}), "no 'counts'"),
        (_spoilt(segmentation={"counts": [0, 24]}), "no 'size'"),
        (_spoilt(segmentation={"size": [4, 0], "counts": [0]}), "height, width"),
        (_spoilt(segmentation={"size": [4, 6], "counts": [0, 23]}), "'segmentation.counts': .*23 pixels"),
        (_spoilt(segmentation={"size": [4, 6], "counts": 24}), "'segmentation.counts'"),
        (_spoilt(segmentation={"size": [6, 4], "counts": [0, 24]}), "size .6, 4., the image .4, 6."),
        (_spoilt(area=23), "'area' is 23, but .* 24"),
        (_spoilt(bbox=[1, 2, 3]), "'bbox'"),
        (_spoilt(predicted_iou="high"), "'predicted_iou'"),
        ("mask", "must be a dictionary"),
    ],
)
def test_a_bad_mask_names_image_number_and_key(mask: Any, message: str, tmp_path: Path) -> None:
    with MaskStoreWriter(tmp_path / "m.lmdb", META) as writer:
        with pytest.raises(MaskStoreError, match=f"image 'baby': mask 1: .*{message}"):
            writer.put("baby", [sam_mask(np.ones((4, 6), bool)), mask])
        with pytest.raises(MaskStoreError, match="size is not known"):
            writer.put("baby", [])
        for key in ("", "k" * 512):
            with pytest.raises(MaskStoreError, match="1 to 511"):
                writer.put(key, [mask])


def test_box_area_and_scores_may_be_missing(tmp_path: Path) -> None:
    mask = blobs(4, 30, 40).any(axis=0)
    with MaskStoreWriter(tmp_path / "m.lmdb", META) as writer:
        writer.put("a", [{"segmentation": sam_mask(mask)["segmentation"]}])
    record = MaskStore(tmp_path / "m.lmdb").read("a")
    ys, xs = np.nonzero(mask)
    assert record.boxes.tolist() == [[xs.min(), ys.min(), np.ptp(xs), np.ptp(ys)]]
    assert record.areas.tolist() == [mask.sum()]
    assert np.isnan(record.predicted_iou).all()


def test_both_json_forms_are_read(tmp_path: Path) -> None:
    masks = [sam_mask(m) for m in blobs(2, 20, 30)]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(masks))
    assert read_sam_json(file) == (masks, None)
    file.write_text(json.dumps({"image": {"height": 20, "width": 30, "image_id": 1}, "annotations": masks}))
    assert read_sam_json(file) == (masks, (20, 30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "not a JSON file"),
        ("\xff", "not a JSON file"),
        ("3", "must hold a list of masks"),
        ('{"masks": []}', "'annotations'"),
        ('{"image": {"height": "x", "width": 3}, "annotations": []}', "key 'image'"),
    ],
)
def test_a_bad_json_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(MaskStoreError, match=rf"a\.json: .*{message}"):
        read_sam_json(file)


def test_the_quickstart_store_is_whole() -> None:
    store = MaskStore(QUICKSTART)
    assert store.keys() == ["astronaut", "chelsea", "coffee", "ihc", "motorcycle_left", "rocket"]
    records = list(map(store.read, store.keys()))
    assert store.meta["counts"] == {"images": 6, "masks": sum(record.count for record in records)}
    for record in records:
        np.testing.assert_array_equal(record.stack(0, 0, *record.size).sum(axis=(1, 2)), record.areas)
