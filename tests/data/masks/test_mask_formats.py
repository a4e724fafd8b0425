"""The format of a folder of masks is detected from its content, and each format is read as its program writes it."""

from __future__ import annotations

import json
import pickle
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sam4ir import regions
from sam4ir.data.masks.formats import find_masks, read_masks
from sam4ir.data.masks.from_sam import record_from_sam
from sam4ir.data.masks.labels import LabelRules, masks_of_labels
from sam4ir.data.masks.record import MaskRecord
from sam4ir.utils.image import read_labels, write_image

LABELS = np.array([[0, 0, 3, 3, 200], [0, 7, 7, 3, 200], [7, 7, 7, 0, 0]], np.uint8)
COUNTS = regions.mask_to_runs(LABELS == 7).tolist()
HEADER = (
    "id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,predicted_iou,stability_score,"
    "crop_box_x0,crop_box_y0,crop_box_w,crop_box_h"
)


def mask(**changes: Any) -> dict[str, Any]:
    return {"segmentation": {"size": [3, 5], "counts": COUNTS}, "predicted_iou": 0.9, **changes}


def write(folder: Path, name: str, content: Any) -> Path:
    """A JSON file, or a grey or RGB picture."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        write_image(path, content if content.ndim == 3 else content[..., None])
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def palette_png(labels: np.ndarray, depth: int, palette: bytes, extra: bytes = b"") -> bytes:
    """A palette PNG; each row's values packed into `depth` bits, filter 0."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    bits = np.unpackbits(labels[..., None].astype(np.uint8), axis=2)[..., 8 - depth :].reshape(len(labels), -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    header = labels.shape[1].to_bytes(4, "big") + labels.shape[0].to_bytes(4, "big") + bytes([depth, 3, 0, 0, 0])
    body = chunk(b"IHDR", header) + chunk(b"PLTE", palette) + extra + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def amg_folder(folder: Path, key: str = "a/img") -> Path:
    """What amg.py without --convert-to-rle writes of two masks."""
    write(folder, f"{key}/0.png", (LABELS == 7).astype(np.uint8) * 255)
    write(folder, f"{key}/1.png", (LABELS == 3).astype(np.uint8) * 255)
    rows = "0,4,0,1,2,1,1.5,1,0.98,0.97,0,0,5,3\n1,3,2,0,1,1,3,0,0.9,0.96,0,0,5,3"
    return write(folder, f"{key}/metadata.csv", f"{HEADER}\n{rows}").parent


def stack(masks: list[Any], size: tuple[int, int] = (3, 5)) -> np.ndarray:
    return MaskRecord(record_from_sam(masks, size)).stack(0, 0, *size)


def test_formats_are_detected_from_content(tmp_path: Path) -> None:
    write(tmp_path / "json", "x/one.png.json", [mask()])
    write(tmp_path / "labels", "one.png", LABELS)
    amg_folder(tmp_path / "amg")
    amg_folder(tmp_path / "plain", "img").joinpath("metadata.csv").unlink()
    folders = {name: find_masks(tmp_path / name) for name in ("json", "labels", "amg", "plain")}
    assert {name: folder.format for name, folder in folders.items()} == {
        "json": "sam",
        "labels": "labels",
        "amg": "binary",
        "plain": "binary",
    }
    assert [folder.files[0].key for folder in folders.values()] == ["x/one", "one", "a/img", "img"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.json": [], "a.png": LABELS}, "1 .json files and 1 pictures, either may be the masks; say --format"),
        ({"a.png": LABELS // 200}, "label maps or binary masks"),
        ({"x/0.png": LABELS // 200, "x/1.png": LABELS}, "label maps or binary masks"),
        ({"a.npy": "x", "b.npy": "x", "a.json": []}, "1 .json files and 2 .npy files, either may be the masks; say"),
        ({"a.npy": "x", "a.png": LABELS}, "1 .npy files and 1 pictures, either may be the masks; say --format"),
        ({"a.txt": "x"}, "no .json files there, no .npy maps, and no .png"),
        ({"a.json": [], "a.png.json": []}, "a.json and a.png.json are both of image 'a'"),
    ],
)
def test_an_ambiguous_folder_is_one_message(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        write(tmp_path, name, content)
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        find_masks(tmp_path)


def test_hidden_files_and_image_lmdbs_are_left_out(tmp_path: Path) -> None:
    for name in ("a.json", "._a.json", ".cache/b.json", "gt.lmdb/meta.json"):
        write(tmp_path, name, [])
    assert [file.key for file in find_masks(tmp_path).files] == ["a"]


def test_sam_diffsr_takes_the_name_up_to_its_first_dot_and_the_segmentation_alone(tmp_path: Path) -> None:
    write(tmp_path, "0801.x4.json", [mask(area=99, bbox="nonsense")])
    write(tmp_path, "deeper/0802.json", [mask()])
    folder = find_masks(tmp_path, "samdiffsr")
    assert [file.key for file in folder.files] == ["0801"]
    masks, size = read_masks("samdiffsr", folder.files[0].path, LabelRules())
    assert size is None
    record = MaskRecord(record_from_sam(masks))
    assert record.areas.tolist() == [5]
    assert record.predicted_iou.tolist() == [0.9]


def test_compressed_and_uncompressed_counts_are_the_same_masks(tmp_path: Path) -> None:
    from pycocotools import mask as coco

    counts = coco.encode(np.asfortranarray(LABELS == 7))["counts"].decode()
    for name, segmentation in (("a", COUNTS), ("b", counts)):
        write(tmp_path, f"{name}.json", [{"segmentation": {"size": [3, 5], "counts": segmentation}}])
    first, second = (record_from_sam(read_masks("sam", f.path, LabelRules())[0]) for f in find_masks(tmp_path).files)
    assert first == second


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 5)))
@settings(max_examples=60, deadline=None)
def test_label_maps_give_one_mask_for_each_label_in_order(labels: np.ndarray) -> None:
    values = [v for v in np.unique(labels) if v != 0]
    masks = stack(masks_of_labels(labels, {0}), labels.shape)
    assert len(masks) == len(values)
    np.testing.assert_array_equal(masks, [labels == v for v in values] if values else masks)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_label_maps_keep_their_values(dtype: type, tmp_path: Path) -> None:
    wide = LABELS.astype(dtype) * (1 if dtype is np.uint8 else 300)
    path = write(tmp_path, "a.png", wide)
    np.testing.assert_array_equal(read_labels(path), wide)
    masks, size = read_masks("labels", path, LabelRules(background=(0, 200 * (1 if dtype is np.uint8 else 300))))
    assert size == (3, 5)
    np.testing.assert_array_equal(stack(masks), [LABELS == 3, LABELS == 7])


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_pngs_give_their_numbers_not_their_colours(depth: int, tmp_path: Path) -> None:
    labels = np.arange(15).reshape(3, 5) % 2**depth
    same = b"\x10\x20\x30" * 2**depth  # all entries of one colour: only the numbers tell labels apart
    path = tmp_path / "a.png"
    body = b"\0" * 2**depth
    transparent = len(body).to_bytes(4, "big") + b"tRNS" + body + zlib.crc32(b"tRNS" + body).to_bytes(4, "big")
    path.write_bytes(palette_png(labels, depth, same, transparent))
    np.testing.assert_array_equal(read_labels(path), labels)


def test_colours_are_labels_with_the_rgb_rule(tmp_path: Path) -> None:
    colours = np.stack([LABELS, LABELS // 2, np.zeros_like(LABELS)], axis=-1)
    path = write(tmp_path, "a.png", colours)
    with pytest.raises(ValueError, match="colour picture; if each colour is a label, say --rgb"):
        read_masks("labels", path, LabelRules())
    masks, _ = read_masks("labels", path, LabelRules(rgb=True))
    np.testing.assert_array_equal(stack(masks), [LABELS == 3, LABELS == 7, LABELS == 200])
    grey = write(tmp_path, "b.png", np.repeat(LABELS[..., None], 3, axis=-1))
    white = read_masks("labels", grey, LabelRules(background=(0, 0x030303), rgb=True))[0]
    np.testing.assert_array_equal(stack(white), [LABELS == 7, LABELS == 200])


def test_photographs_are_no_label_maps(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 120, 3), np.uint8)
    with pytest.raises(ValueError, match="is it a photograph"):
        read_masks("labels", write(tmp_path, "a.png", noise), LabelRules(rgb=True))
    with pytest.raises(ValueError, match="JPEG changes labels"):
        read_labels(write(tmp_path, "a.jpg", noise))
    with pytest.raises(ValueError, match="JPEG changes labels and is not read"):
        find_masks(write(tmp_path, "alone/a.jpg", noise).parent, "labels")


def test_a_suffix_chooses_the_label_maps(tmp_path: Path) -> None:
    for name in ("a.png", "a_mask.png", "b/c_mask.png", "_mask.png"):
        write(tmp_path, name, LABELS)
    assert [file.key for file in find_masks(tmp_path, suffix="_mask").files] == ["a", "b/c"]
    with pytest.raises(ValueError, match=r"no pictures \*_seg.png"):
        find_masks(tmp_path, suffix="_seg")


def test_folders_of_amg_keep_order_boxes_and_scores(tmp_path: Path) -> None:
    folder = amg_folder(tmp_path)
    write(tmp_path, "a/img/0matting.png", LABELS)
    table = (folder / "metadata.csv").read_text().split("\n")
    (folder / "metadata.csv").write_text("\n".join([table[0], table[2], table[1].replace("0,4,", "0,5,", 1)]))
    masks, size = read_masks("binary", folder, LabelRules())
    record = MaskRecord(record_from_sam(masks, size))
    np.testing.assert_array_equal(record.stack(0, 0, 3, 5), [LABELS == 3, LABELS == 7])
    assert record.predicted_iou.tolist() == [0.9, 0.98]
    assert record.stability_score.tolist() == [0.96, 0.97]
    assert record.boxes.tolist() == [[2, 0, 1, 1], [0, 1, 2, 1]]


def test_folders_without_a_table_go_by_number(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        one = np.zeros((3, 5), np.uint8)
        one[0, : number % 5 + 1] = 1
        write(tmp_path, f"img/{number}.png", one)
    masks, _ = read_masks("binary", tmp_path / "img", LabelRules())
    assert stack(masks).sum(axis=(1, 2)).tolist() == [2, 3, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "1.png").unlink(), "row '1' has no file 1.png"),
        (lambda f: write(f, "7.png", LABELS // 200), "has no row for 7"),
        (lambda f: write(f, "1.png", LABELS), "not a binary mask"),
        (lambda f: (f / "metadata.csv").write_text("number,area\n0,4"), "not the table"),
        (lambda f: (f / "metadata.csv").write_text(f"{HEADER}\n0,x\n1,3"), "not the table"),
    ],
)
def test_an_incomplete_binary_folder_is_named(change: Any, message: str, tmp_path: Path) -> None:
    folder = amg_folder(tmp_path)
    change(folder)
    with pytest.raises(ValueError, match=message):
        read_masks("binary", folder, LabelRules())


def test_binary_masks_beside_each_other_without_a_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.png", LABELS // 200)
    with pytest.raises(ValueError, match="their image is not known"):
        find_masks(tmp_path, "binary")


SPE = np.array([[0, 0, 0.5, 0.5, -2], [0, 0.125, 0.125, 0.5, -2], [0.125, 0.125, 0.125, 0, 0]], np.float32)


def npy(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, content, allow_pickle=True)
    return path


def test_spe_maps_are_detected_from_content_and_get_their_path_as_key(tmp_path: Path) -> None:
    npy(tmp_path, "b/0801.npy", SPE)
    npy(tmp_path, "a.1.npy", None)
    folder = find_masks(tmp_path)
    assert folder.format == "spe"
    assert [file.key for file in folder.files] == ["a.1", "b/0801"]
    with pytest.raises(ValueError, match=r"nothing of format samdiffsr there but .npy files"):
        find_masks(tmp_path, "samdiffsr")


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_each_value_of_an_spe_map_is_a_mask_with_its_sum(dtype: str, order: str, tmp_path: Path) -> None:
    path = npy(tmp_path, "a.npy", SPE.astype(dtype, order=order))
    masks, size = read_masks("spe", path, LabelRules())
    assert size == (3, 5)
    np.testing.assert_array_equal(stack(masks), [v == SPE for v in (-2, 0.125, 0.5)])
    assert [mask["spe_sum"] for mask in masks] == [-2 * 15, 0.125 * 15, 0.5 * 15]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_image_without_masks_is_none_and_is_not_unpickled(
    protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = npy(tmp_path, "a.npy", None).read_bytes()[:128]
    (tmp_path / "a.npy").write_bytes(header + pickle.dumps(np.array(None), protocol=protocol))
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.delattr(pickle, name)
    assert read_masks("spe", tmp_path / "a.npy", LabelRules()) == ([], None)


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda path: np.array([None, None]), "holds Python objects, not numbers"),
        (lambda path: np.array(3, object), "holds Python objects, not numbers"),
        (lambda path: [[None]], "holds Python objects, not numbers"),
        (lambda path: np.array(Trap(path / "ran"), object), "holds Python objects, not numbers"),
        (lambda path: np.zeros((3, 5, 1), np.float32), r"is \(3, 5, 1\) float32; an SPE map is \(h, w\) of floating"),
        (lambda path: np.zeros((3, 5), np.uint8), r"is \(3, 5\) uint8"),
        (lambda path: np.zeros((0, 5), np.float32), r"is \(0, 5\) float32"),
        (lambda path: np.where(SPE == 0.5, np.nan, SPE), "values that are not finite"),
        (lambda path: np.random.default_rng(0).random((120, 120)), "14400 values .* is it an SPE map"),
    ],
)
def test_files_that_are_no_spe_map_are_named(content: Any, message: str, tmp_path: Path) -> None:
    array = content(tmp_path)
    path = npy(tmp_path, "odd.npy", array if isinstance(array, np.ndarray) else np.array(array, object))
    with pytest.raises(ValueError, match=f"odd.npy: .*{message}"):
        read_masks("spe", path, LabelRules())
    assert not (tmp_path / "ran").exists()


@given(st.integers(0, 10**6), st.integers(0, 255), st.sampled_from(["cut", "changed", "longer"]))
@settings(max_examples=300, deadline=None)
def test_a_damaged_spe_map_is_one_message_or_a_map_of_its_size(place: int, value: int, how: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = npy(Path(folder), "a.npy", SPE)
        data = bytearray(path.read_bytes())
        place %= len(data)
        if how == "changed":
            data[place] = value
        path.write_bytes(data[:place] if how == "cut" else data + b"x" * (how == "longer"))
        message = ""
        try:
            masks, size = read_masks("spe", path, LabelRules())
            record_from_sam(masks, size)
        except ValueError as error:
            message = str(error)
        assert str(path) in message or (how == "changed" and not message)


def test_a_header_that_claims_more_than_the_memory_is_one_message(tmp_path: Path) -> None:
    path = npy(tmp_path, "a.npy", SPE)
    path.write_bytes(path.read_bytes().replace(b"(3, 5), }              ", b"(9999999, 9999999), }  "))
    with pytest.raises(ValueError, match=r"a.npy: .*60 bytes of data, \(9999999, 9999999\) float32 are 399"):
        read_masks("spe", path, LabelRules())
