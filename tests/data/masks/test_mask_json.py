"""JSON of masks that others wrote is read as it is meant, or listed with the reason, and the import goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam4ir.data.masks.formats import find_masks
from sam4ir.data.masks.importer import import_masks
from sam4ir.data.masks.labels import LabelRules
from sam4ir.data.masks.store import MaskStore

SIZE = [4, 5]


def rle(*counts: Any, size: Any = SIZE) -> dict[str, Any]:
    return {"size": size, "counts": list(counts)}


def mask(**keys: Any) -> dict[str, Any]:
    """A mask of pixels 3 and 4, column by column."""
    return {"segmentation": rle(3, 2, 15), **keys}


GOOD = json.dumps([mask(area=2, bbox=[0, 0, 1, 3], predicted_iou=0.5)])


def imported(folder: Path) -> tuple[list[str], list[str]]:
    """The keys that are stored, and the sentences about the other files."""
    store = folder.parent / "masks.lmdb"
    done = import_masks(find_masks(folder, "sam"), store, {"generator": "x"}, LabelRules())
    keys = MaskStore(store).keys() if done.stored else []
    return keys, done.bad


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_is_read_in_every_encoding_of_unicode(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.json").write_bytes(GOOD.encode(encoding))
    assert imported(tmp_path / "in") == (["a"], [])
    assert MaskStore(tmp_path / "masks.lmdb").read("a").areas.tolist() == [2]


NINES = int("9" * 400)
WRAP = 1 << 62  # four of them sum to 0 in 64 bits
BAD: dict[str, tuple[Any, str]] = {
    "area of 400 digits": ([mask(area=NINES)], "mask 0: key 'area' is a whole number beyond 10\\^308"),
    "bbox of 400 digits": ([mask(bbox=[0, 0, NINES, 1])], "'bbox' is a whole number beyond"),
    "score of 400 digits": ([mask(predicted_iou=NINES)], "'predicted_iou' is a whole number beyond"),
    "infinite score": ([mask(stability_score=float("inf"))], "'stability_score' must be finite"),
    "another area": ([mask(area=3)], "'area' is 3, but the segmentation covers 2 pixels"),
    "area that is no number": ([mask(area=float("nan"))], "'area' is nan, but"),
    "area null": ([mask(area=None)], "'area' must be a number, not None"),
    "area true": ([mask(area=True)], "'area' must be a number, not True"),
    "area as text": ([mask(area="2")], "'area' must be a number, not '2'"),
    "bbox of three": ([mask(bbox=[1, 2, 3])], "'bbox' must be four numbers"),
    "bbox as text": ([mask(bbox="abcd")], "'bbox' must be four numbers"),
    "bbox with text": ([mask(bbox=[0, 0, "1", 1])], "'bbox' must be a number, not '1'"),
    "bbox that is no number": ([mask(bbox=[0, 0, float("nan"), 1])], "'bbox' must be four finite numbers"),
    "bbox null": ([mask(bbox=None)], "'bbox' must be four numbers"),
    "counts of 400 digits": ([{"segmentation": rle(3, NINES)}], "counts must be a list of whole numbers"),
    "counts beyond 64 bits": ([{"segmentation": rle(1 << 63, 20)}], "list of whole numbers below 2\\^63"),
    "counts that wrap": ([{"segmentation": rle(WRAP, WRAP, WRAP, WRAP, 20)}], "run 0 is 4611686018427387904"),
    "counts that wrap 32 bits": ([{"segmentation": rle(1 << 32, 20)}], "run 0 is 4294967296"),
    "counts with another sum": ([{"segmentation": rle(3, 2, 14)}], "the runs cover 19 pixels"),
    "negative counts": ([{"segmentation": rle(3, -2, 19)}], "run 1 is negative"),
    "no counts": ([{"segmentation": rle()}], "the runs cover 0 pixels"),
    "counts null": ([{"segmentation": {"size": SIZE, "counts": None}}], "'segmentation.counts' must be"),
    "counts as numbers with a point": ([{"segmentation": rle(3.0, 2.0, 15.0)}], "list of whole numbers"),
    "counts as booleans": ([{"segmentation": rle(True, False)}], "list of whole numbers"),
    "counts in lists": ([{"segmentation": rle([3], [2, 15])}], "list of whole numbers"),
    "text of counts that is too long": ([{"segmentation": {"size": SIZE, "counts": "o" * 10 + "0"}}], "run 0 differs"),
    "text of counts that ends early": ([{"segmentation": {"size": SIZE, "counts": "o"}}], "the middle of a number"),
    "text of counts of other characters": ([{"segmentation": {"size": SIZE, "counts": "3 2"}}], "does not occur in"),
    "size of 400 digits": ([{"segmentation": rle(20, size=[4, NINES])}], "the size must be"),
    "size beyond every image": ([{"segmentation": rle(20, size=[1 << 20, 1 << 20])}], "beyond 2\\^30 pixels"),
    "size zero": ([{"segmentation": rle(size=[0, 5])}], "the size must be"),
    "size true": ([{"segmentation": rle(20, size=[True, 20])}], "the size must be"),
    "a polygon": ([{"segmentation": [[0, 0, 1, 1]]}], "polygons are not read"),
    "a number in place of a mask": ([3], "must be a dictionary, not int"),
    "null in place of the masks": (None, "must hold a list of masks"),
    "annotations null": ({"annotations": None}, "'annotations' must be the list"),
    "masks of two sizes": ([mask(), {"segmentation": rle(20, size=[5, 4])}], "mask 1: key 'segmentation' is of size"),
}


def test_every_bad_file_is_listed_with_the_reason_and_the_others_are_stored(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, (content, _) in BAD.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    for name in ("a", "z"):
        (folder / f"{name}.json").write_text(GOOD, encoding="utf-8")
    keys, bad = imported(folder)
    assert keys == ["a", "z"]
    assert len(bad) == len(BAD)
    for sentence, (name, (_, reason)) in zip(bad, sorted(BAD.items()), strict=True):
        assert sentence.startswith(f"{folder / name}.json: ")
        with pytest.raises(ValueError, match=reason):
            raise ValueError(sentence)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a JSON file"),
        (b"[" * 200_000, "nested too deeply"),
        (b'[{"segmentation": ' + b"[" * 900 + b"]" * 900 + b"}]", "polygons are not read"),
        (b'[{"area": ' + b"9" * 5000 + b"}]", "not a JSON file"),
        (b"\xff\xfe\x00", "UTF-16"),
        (b"\xc4\xe3", "no text in UTF-8"),
        (b"PK\x03\x04", "not a JSON file"),
    ],
)
def test_a_file_that_is_no_json_of_masks_is_listed(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.json").write_bytes(content)
    (tmp_path / "in" / "b.json").write_text(GOOD, encoding="utf-8")
    keys, bad = imported(tmp_path / "in")
    assert keys == ["b"]
    assert len(bad) == 1
    assert bad[0].startswith(f"{tmp_path / 'in' / 'a.json'}: ")
    assert reason in bad[0]


def test_a_file_that_is_larger_than_masks_can_be_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with (tmp_path / "in" / "a.json").open("wb") as file:
        file.truncate((256 << 20) + 1)  # takes no room on the disk
    assert "at most 268435456" in imported(tmp_path / "in")[1][0]


def annotation(image: Any, **keys: Any) -> dict[str, Any]:
    return {**mask(), "image_id": image, **keys}


@pytest.mark.parametrize(
    "content",
    [
        {"images": [{"id": 1, "file_name": "p.png"}, {"id": 2, "file_name": "q.png"}], "annotations": [annotation(1)]},
        {"images": [{"id": 1}, {"id": 2}], "annotations": []},
        {"annotations": [annotation(1), annotation(2)]},
        {"annotations": [annotation("a"), annotation("b")]},
        [annotation(1, score=0.5), annotation(2, score=0.5)],  # COCO's list of results
    ],
    ids=["images and annotations", "two images without masks", "annotations of two", "by name", "results"],
)
@pytest.mark.parametrize("form", ["sam", "samdiffsr"])
def test_coco_files_of_several_images_are_not_the_masks_of_one(content: Any, form: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "p.json").write_text(GOOD, encoding="utf-8")
    done = import_masks(find_masks(folder, form), tmp_path / "masks.lmdb", {}, LabelRules())
    assert MaskStore(tmp_path / "masks.lmdb").keys() == ["p"]
    assert len(done.bad) == 1
    assert "instances.json: holds masks of 2 images" in done.bad[0]
    assert "<file_name without suffix>.json" in done.bad[0]


@pytest.mark.parametrize("name", ["p.json", "p.jpg.json", "instances.json"])
def test_a_coco_file_of_one_image_is_read_under_its_own_name_only(name: str, tmp_path: Path) -> None:
    content = {"images": [{"id": 7, "file_name": "train/p.jpg"}], "annotations": [annotation(7), annotation(7)]}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text(json.dumps(content), encoding="utf-8")
    keys, bad = imported(tmp_path / "in")
    if name == "instances.json":
        assert "holds masks of 'train/p.jpg', as it says itself" in bad[0]
    else:
        assert (keys, bad) == (["p"], [])
