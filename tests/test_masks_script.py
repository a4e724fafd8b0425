"""scripts/masks.py by the command line: import, info, verify, view, export, crop, control."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from sam4ir.cli.main import main as sam4ir
from sam4ir.data.masks import importer as mask_intake
from sam4ir.data.masks.pictures import SHEET_PANEL
from sam4ir.data.masks.store import MaskStore
from sam4ir.priors.spe import spe_map
from sam4ir.regions import mask_to_runs, rotary_table
from sam4ir.utils.image import read_image, write_image

ROOT = Path(__file__).resolve().parents[1]


def sam_masks(h: int, w: int) -> list[dict[str, Any]]:
    """A left half and a small square on it."""
    stack = np.zeros((2, h, w), bool)
    stack[0, :, : w // 2] = True
    stack[1, 2:6, 2:6] = True
    runs = [mask_to_runs(m).tolist() for m in stack]
    return [
        {"segmentation": {"size": [h, w], "counts": r}, "predicted_iou": 0.9, "stability_score": 0.95} for r in runs
    ]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """images/{one,sub/two,three}.png and json/{one,sub/two,three}.json; three has no masks."""
    for key, size in (("one", (20, 30)), ("sub/two", (24, 16)), ("three", (10, 12))):
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        write_image(tmp_path / "images" / f"{key}.png", pixels)
        file = tmp_path / "json" / f"{key}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(sam_masks(*size) if key != "three" else []))
    return tmp_path


def run(folder: Path, command: str, *more: str) -> int:
    """The command on the fixture's folders."""
    store, images = str(folder / "m.lmdb"), ["--images", str(folder / "images")]
    if command == "import":
        return sam4ir(["masks", "import", "--input", str(folder / "json"), "--store", store, *more])
    return sam4ir(["masks", command, store, *(images if command in ("verify", "view") else []), *more])


def test_import_resumes_and_keeps_how_the_masks_were_made(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--images", str(folders / "images"), "--source", "gt", "--generator", "amg 1.0", "--setting", "points=32"]
    for _ in range(2):
        assert run(folders, "import", *flags) == 0
    assert "0 images stored, 3 were there" in capsys.readouterr().out
    store = MaskStore(folders / "m.lmdb")
    assert store.keys() == ["one", "sub/two", "three"]
    assert (store.meta["source"], store.meta["generator"], store.meta["settings"]) == ("gt", "amg 1.0", {"points": 32})
    assert run(folders, "info") == 0
    assert "3 images, 4 masks" in capsys.readouterr().out
    assert run(folders, "import", "--source", "lq") == 2
    assert "source: stored 'gt', now 'lq'" in capsys.readouterr().err


def test_import_lists_bad_files_after_doing_the_rest(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoilt = sam_masks(20, 30)
    del spoilt[1]["segmentation"]["counts"]
    (folders / "json" / "one.json").write_text(json.dumps(spoilt))
    (folders / "json" / "worse.json").write_text("{")
    assert run(folders, "import") == 1
    error = capsys.readouterr().err
    assert "one.json: image 'one': mask 1: key 'segmentation' has no 'counts'" in error
    assert "worse.json: not a JSON file" in error
    assert "three.json: image 'three': no masks, so the image's size is not known" in error
    assert MaskStore(folders / "m.lmdb").keys() == ["sub/two"]


def test_import_lists_names_that_no_store_can_hold_and_stores_the_rest(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = os.fsencode(folders / "json") + b"/caf\xe9.json"
    try:
        Path(os.fsdecode(raw)).write_text(json.dumps(sam_masks(4, 4)))
    except OSError:
        pytest.skip("this file system takes names of UTF-8 alone")
    deep = folders / "json" / "/".join(["a" * 200] * 3)
    deep.mkdir(parents=True)
    (deep / "x.json").write_text(json.dumps(sam_masks(4, 4)))
    assert run(folders, "import") == 1
    out = capsys.readouterr()
    text = out.out + out.err
    assert "2 images stored" in text
    assert "key 'caf\\udce9' is no UTF-8; rename the image" in text
    assert "has 604 bytes, LMDB keys have 1 to 511" in text
    assert "caf\udce9" not in MaskStore(folders / "m.lmdb")


def test_import_checks_sizes_against_the_images(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folders / "json" / "one.json").write_text(json.dumps(sam_masks(20, 31)))
    (folders / "images" / "three.png").unlink()
    assert run(folders, "import", "--images", str(folders / "images")) == 1
    error = capsys.readouterr().err
    assert "one.json: image 'one': mask 0: key 'segmentation' is of size [20, 31], the image [20, 30]" in error
    assert "three.json: " in error
    assert "has no image 'three'" in error


def amg_rle(h: int, w: int) -> list[dict[str, Any]]:
    """What segment-anything's amg.py --convert-to-rle dumps: COCO's compressed counts as text, and all its keys."""
    stack = np.zeros((3, h, w), np.uint8)
    stack[0, :, : w // 2] = stack[1, 2:6, 2:6] = stack[2, 4:9, 3 : w - 1] = 1
    found = []
    for mask in stack:
        rle = coco.encode(np.asfortranarray(mask))
        rle["counts"] = rle["counts"].decode("utf-8")
        box = {"bbox": coco.toBbox(rle).tolist(), "crop_box": [0, 0, w, h], "point_coords": [[3.5, 4.0]]}
        scores = {"area": int(mask.sum()), "predicted_iou": 0.91, "stability_score": 0.96}
        found.append({"segmentation": rle, **scores, **box})
    return found


def released_map(masks: list[dict[str, Any]]) -> np.ndarray:
    """The SPE map by its definition: one decoded mask after the other."""
    decoded = [coco.decode(mask["segmentation"]) for mask in masks]
    table, out = rotary_table(decoded[0].shape), np.zeros(decoded[0].shape)
    for mask in decoded:
        out = np.where(mask, (table * mask).mean(), out)
    return out.astype(np.float32)


def test_sam_diffsrs_json_and_its_maps_give_one_encoding(folders: Path) -> None:
    """The RLE files and, from another folder, the .npy maps made of them, by the command line."""
    (folders / "maps").mkdir()
    for key, size in (("one", (20, 30)), ("two", (24, 16))):
        (folders / "json" / f"{key}.json").write_text(json.dumps(amg_rle(*size)))
        np.save(folders / "maps" / f"{key}.npy", released_map(amg_rle(*size)))
    np.save(folders / "maps" / "three.npy", None)  # the released code's file of an image without masks
    (folders / "images" / "sub" / "two.png").rename(folders / "images" / "two.png")
    images = ["--images", str(folders / "images"), "--source", "gt"]
    assert run(folders, "import", "--format", "samdiffsr", *images) == 0
    maps = ["import", "--input", str(folders / "maps"), "--store", str(folders / "maps.lmdb")]
    assert sam4ir(["masks", *maps, *images]) == 0
    by_rle, by_map = MaskStore(folders / "m.lmdb"), MaskStore(folders / "maps.lmdb")
    assert by_map.meta["imported"] == {"format": "spe"}
    for key in ("one", "two"):
        want = np.load(folders / "maps" / f"{key}.npy")
        for store in (by_rle, by_map):
            made = spe_map(store.read(key), 0, 0, *want.shape)
            np.testing.assert_allclose(made, want, rtol=0, atol=1e-6 * np.abs(want).max())
    assert by_rle.read("one").count == by_map.read("one").count == 3
    assert (by_map.read("three").count, by_map.read("three").size) == (0, (10, 12))
    assert sam4ir(["masks", "verify", str(folders / "maps.lmdb"), *images[:2]]) == 0


def test_spe_maps_that_do_not_fit_are_named_and_the_rest_is_stored(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folders, "import", "--images", str(folders / "images")) == 0
    maps = folders / "maps"
    assert sam4ir(["masks", "export", str(folders / "m.lmdb"), "--format", "samdiffsr", "--output", str(maps)]) == 0
    np.save(maps / "three.npy", np.zeros((10, 13), np.float32))
    (maps / "one.npy").write_bytes((maps / "one.npy").read_bytes()[:-3])
    flags = ["--input", str(maps), "--store", str(folders / "maps.lmdb"), "--images", str(folders / "images")]
    assert sam4ir(["masks", "import", *flags]) == 1
    error = capsys.readouterr().err
    assert "three.npy: is of size [10, 13], the image [10, 12]" in error
    assert "one.npy: cannot be read as an array of numpy" in error
    store, before = MaskStore(folders / "maps.lmdb"), MaskStore(folders / "m.lmdb")
    assert store.keys() == ["sub/two"]
    np.testing.assert_array_equal(*(spe_map(s.read("sub/two"), 0, 0, 24, 16) for s in (store, before)))


def test_a_new_store_is_asked_for_and_the_old_one_moved_aside(folders: Path) -> None:
    assert run(folders, "import", "--images", str(folders / "images"), "--source", "gt") == 0
    assert run(folders, "import", "--images", str(folders / "images"), "--source", "lq", "--new") == 0
    assert MaskStore(folders / "m.lmdb").meta["source"] == "lq"
    assert MaskStore(folders / "m.lmdb.old1").meta["source"] == "gt"


def test_sub_images_are_told_how_to_get_masks_and_leave_no_store(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = folders / "parts"
    for name in ("one_s001", "one_s002"):
        write_image(parts / f"{name}.png", np.zeros((20, 15, 3), np.uint8))
    assert run(folders, "import", "--images", str(parts)) == 2
    error = capsys.readouterr().err
    assert "they are sub-images of images that have masks" in error
    assert "sam4ir masks crop --store WHOLE.lmdb --images WHOLE_IMAGES" in error
    assert not (folders / "m.lmdb").exists()
    assert run(folders, "import", "--images", str(folders / "images")) == 0
    (folders / "windows.jsonl").touch()
    assert sam4ir(["masks", "verify", str(folders / "m.lmdb"), "--images", str(parts)]) == 1
    assert f"sam4ir masks crop --store WHOLE.lmdb --windows {folders / 'windows.jsonl'}" in capsys.readouterr().out


def test_an_import_of_bad_files_only_leaves_no_store(folders: Path) -> None:
    for path in (folders / "json").rglob("*.json"):
        path.write_text("[1]")
    assert run(folders, "import") == 1
    assert not (folders / "m.lmdb").exists()


def test_an_import_that_is_stopped_says_how_to_go_on_and_does(
    folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = mask_intake.record_from_sam
    calls: list[int] = []

    def stopped(*arguments: Any) -> bytes:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return made(*arguments)

    monkeypatch.setattr(mask_intake, "record_from_sam", stopped)
    assert run(folders, "import", "--images", str(folders / "images")) == 130
    assert "stopped; the same command goes on from here" in capsys.readouterr().err
    assert MaskStore(folders / "m.lmdb").keys() == ["one"]
    assert run(folders, "import", "--images", str(folders / "images")) == 0
    assert "2 images stored, 1 were there, 0 bad" in capsys.readouterr().out


def test_verify_lists_what_lacks_and_notes_other_pixels(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = folders / "images"
    assert run(folders, "import", "--images", str(images)) == 0
    assert run(folders, "verify") == 0
    assert "3 of 3 images have their masks" in capsys.readouterr().out
    write_image(images / "one.png", np.zeros((20, 30, 3), np.uint8))
    write_image(images / "three.png", np.zeros((10, 13, 3), np.uint8))
    write_image(images / "four.png", np.zeros((10, 13, 3), np.uint8))
    (images / "sub" / "two.png").unlink()
    assert run(folders, "verify", "--missing", str(folders / "missing.txt")) == 1
    seen = capsys.readouterr()
    assert "four.png: no record" in seen.err
    assert "three: the masks are of 10x12, the image of 10x13 (h x w)" in seen.err
    assert "saw other pixels (source not known) of 1 image: one" in seen.out
    assert "records without an image there: 1 image: sub/two" in seen.out
    assert "1 of 3 images have their masks" in seen.out
    assert (folders / "missing.txt").read_text() == "four\nthree\n"
    assert run(folders, "verify", "--sizes-only") == 1
    assert "other pixels" not in capsys.readouterr().out


def test_view_draws_image_regions_boundaries_and_spe(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folders, "import", "--images", str(folders / "images")) == 0
    assert run(folders, "view", "--output", str(folders / "pictures")) == 0
    assert (folders / "pictures" / "sub" / "two.png").exists()
    image = read_image(folders / "images" / "one.png")
    picture = read_image(folders / "pictures" / "one.png")[-20:]
    assert picture.shape == (20, 120, 3)
    np.testing.assert_array_equal(picture[:, :30], image)
    plain = picture[:, 30:60][:, 15:]  # no mask on the right half
    assert (plain == plain[..., :1]).all()
    boundary = picture[:, 60:90]
    assert (boundary[:, 14:16] == [255, 0, 0]).all()
    np.testing.assert_array_equal(boundary[8:, 16:], image[8:, 16:])
    assert (picture[:, 105:] == 0).all()  # no SPE where no mask lies
    assert (picture[10:, 90:104] > 0).any(axis=-1).all()
    assert run(folders, "view", "--output", str(folders / "pictures"), "--keys", "nine") == 2
    assert "lacks 1 image: nine" in capsys.readouterr().err
    assert run(folders, "view", "--output", str(folders / "pictures"), "--number", "0") == 2
    assert run(folders, "view") == 2
    assert "--contact-sheet" in capsys.readouterr().err


def test_view_makes_one_picture_of_a_few_and_does_without_images(folders: Path) -> None:
    assert run(folders, "import", "--images", str(folders / "images")) == 0
    store, sheet = str(folders / "m.lmdb"), folders / "sheet.png"
    assert sam4ir(["masks", "view", store, "--number", "2", "--contact-sheet", str(sheet)]) == 0
    two = read_image(sheet)
    assert two.shape[1] == 3 * SHEET_PANEL
    assert run(folders, "view", "--keys", "one", "--contact-sheet", str(sheet)) == 0
    one = read_image(sheet)
    assert one.shape[1] == 4 * SHEET_PANEL
    assert one.shape[0] < two.shape[0]


def test_info_tells_provenance_and_figures_in_words_and_as_json(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folders, "import", "--images", str(folders / "images"), "--generator", "amg", "--setting", "a=1") == 0
    assert run(folders, "info", "--all") == 0
    text = capsys.readouterr().out
    assert "made by: amg" in text
    assert "settings: a 1" in text
    assert "masks an image: 0 to 2, median 2; without any: 1 images" in text
    assert "pixels under a mask: 0% to 50%" in text
    capsys.readouterr()
    assert run(folders, "info", "--json", "--sample", "2") == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["images"], values["masks"], values["looked_at"]["images"]) == (3, 4, 2)
    assert values["meta"]["settings"] == {"a": 1}
    assert run(folders, "info", "--sample", "0") == 2


def test_label_maps_say_which_labels_are_no_region(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.zeros((20, 30, 1), np.uint8)
    labels[:, 10:20], labels[:, 20:] = 4, 9
    write_image(folders / "labels" / "one_mask.png", labels)
    command = ["import", "--input", str(folders / "labels"), "--suffix", "_mask", "--store"]
    assert sam4ir(["masks", *command, str(folders / "a.lmdb")]) == 0
    assert "labels that are no region: 0 (--background)" in capsys.readouterr().out
    assert sam4ir(["masks", *command, str(folders / "b.lmdb"), "--background", "none"]) == 0
    assert sam4ir(["masks", *command, str(folders / "c.lmdb"), "--background", "none", "x"]) == 2
    counts = [MaskStore(folders / name).read("one").areas.tolist() for name in ("a.lmdb", "b.lmdb")]
    assert counts == [[200, 200], [200, 200, 200]]
    assert MaskStore(folders / "a.lmdb").meta["imported"] == {"format": "labels", "background": [0], "rgb": False}


def test_exported_and_imported_again_the_records_are_the_same(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ["--images", str(folders / "images")]
    assert run(folders, "import", *images) == 0
    assert run(folders, "export", "--format", "sam", "--output", str(folders / "out")) == 0
    assert "3 files written, 0 were there" in capsys.readouterr().out
    assert run(folders, "export", "--format", "sam", "--output", str(folders / "out")) == 0
    assert "0 files written, 3 were there" in capsys.readouterr().out
    again = folders / "again.lmdb"
    assert sam4ir(["masks", "import", "--input", str(folders / "out"), "--store", str(again), *images]) == 0
    first, second = MaskStore(folders / "m.lmdb"), MaskStore(again)
    assert [first.record_bytes(k) for k in first.keys()] == [second.record_bytes(k) for k in first.keys()]  # noqa: SIM118
    assert run(folders, "export", "--format", "labels", "--output", str(folders / "out"), "--keys", "nine") == 2
    assert "has no masks of 1 image: nine" in capsys.readouterr().err


def test_images_and_masks_are_cut_together(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folders, "import", "--images", str(folders / "images")) == 0
    command = ["crop", "--store", str(folders / "m.lmdb"), "--images", str(folders / "images"), "--output"]
    size = ["--crop-size", "16", "--step", "8"]
    pictures = folders / "crops"
    assert sam4ir(["masks", *command, str(folders / "cut.lmdb"), *size, "--output-images", str(pictures)]) == 1
    seen = capsys.readouterr()
    assert "three.png: is 10x12 (h x w), smaller than --crop-size 16" in seen.err
    assert sam4ir(["masks", "verify", str(folders / "cut.lmdb"), "--images", str(pictures)]) == 0
    assert "8 of 8 images have their masks" in capsys.readouterr().out
    assert sam4ir(["masks", *command, str(folders / "x.lmdb")]) == 2
    assert "--windows FILE of a prepared set, or --images PATH --crop-size N --step N" in capsys.readouterr().err
    assert sam4ir(["masks", *command, str(folders / "x.lmdb"), *size, "--windows", "w"]) == 2
    assert "--crop-size and --step: --windows says how" in capsys.readouterr().err
    assert sam4ir(["masks", *command, str(folders / "m.lmdb"), *size]) == 2
    assert "is the store that is read" in capsys.readouterr().err


def test_control_stores_have_the_keys_of_the_store_they_are_like(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ["--images", str(folders / "images")]
    assert run(folders, "import", *images, "--source", "gt") == 0
    like = MaskStore(folders / "m.lmdb")
    for kind in ("grid", "shuffled", "superpixels"):
        output = folders / f"{kind}.lmdb"
        command = ["control", "--kind", kind, "--like", str(folders / "m.lmdb"), "--output", str(output), *images]
        assert sam4ir(["masks", *command]) == 0
        made = MaskStore(output)
        assert made.keys() == like.keys()
        assert (made.meta["source"], made.meta["like"]["store"]) == ("gt", "m.lmdb")
        assert sam4ir(["masks", "verify", str(output), *images]) == 0
    capsys.readouterr()
    command = ["control", "--kind", "superpixels", "--like", str(folders / "m.lmdb"), "--output"]
    assert sam4ir(["masks", *command, str(folders / "x.lmdb")]) == 2
    assert "needs --images" in capsys.readouterr().err
    assert not (folders / "x.lmdb").exists()


@pytest.mark.parametrize("command", ["info", "verify", "view", "export"])
def test_a_missing_store_is_one_message(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "images" / "a.png", np.zeros((4, 4, 3), np.uint8))
    more = {"view": ["--output", str(tmp_path)], "export": ["--format", "sam", "--output", str(tmp_path)]}
    assert run(tmp_path, command, *more.get(command, [])) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'm.lmdb'}: there is no such mask store")
    assert error.count("\n") == 1


def test_missing_input_and_images_are_one_message(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = folders / "nothing"
    nothing.mkdir()
    assert sam4ir(["masks", "import", "--input", str(nothing), "--store", str(folders / "m.lmdb")]) == 2
    assert "no .json files there" in capsys.readouterr().err
    assert run(folders, "import", "--images", str(folders / "nowhere")) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert run(folders, "import", "--workers", "0") == 2
    assert "--workers: 0 must be at least 1" in capsys.readouterr().err
    assert not (folders / "m.lmdb").exists()


def test_json_that_no_generator_writes_is_one_message(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folders / "json" / "one.json").write_text("[" * 100_000 + "]" * 100_000)
    huge = [{"segmentation": {"size": [2**70, 4], "counts": [0]}}]
    (folders / "json" / "three.json").write_text(json.dumps(huge))
    assert run(folders, "import") == 1
    told = capsys.readouterr().err
    assert "one.json" in told
    assert "nested too deeply" in told
    assert "three.json" in told
    assert "[height, width]" in told
    assert MaskStore(folders / "m.lmdb").keys() == ["sub/two"]


def test_a_reader_of_the_output_that_has_enough_is_no_error(folders: Path) -> None:
    run(folders, "import")
    command = [sys.executable, str(ROOT / "scripts" / "masks.py"), "info", str(folders / "m.lmdb")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_the_script_itself_runs_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "masks.py"), "info", "nothing.lmdb"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: nothing.lmdb: there is no such mask store")
    assert "Traceback" not in done.stderr


def test_view_lists_images_at_fault_and_draws_the_rest(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folders, "import", "--images", str(folders / "images")) == 0
    (folders / "images" / "one.png").write_bytes(b"damaged")
    assert run(folders, "view", "--output", str(folders / "pictures")) == 1
    assert sorted(path.name for path in (folders / "pictures").rglob("*.png")) == ["three.png", "two.png"]
    assert "one" in capsys.readouterr().err


def test_pictures_never_replace_the_images_and_are_none_of_them(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folders, "import", "--images", str(folders / "images")) == 0
    assert run(folders, "view", "--output", str(folders / "images")) == 2
    assert "is where the images lie" in capsys.readouterr().err
    for _ in range(2):
        assert run(folders, "view", "--output", str(folders / "images" / "pictures")) == 0
    assert len(list((folders / "images").rglob("*.png"))) == 6
    crop = ["crop", "--store", str(folders / "m.lmdb"), "--images", str(folders / "images"), "--crop-size", "8"]
    crop += ["--step", "8", "--output", str(folders / "cut.lmdb"), "--output-images"]
    assert sam4ir(["masks", *crop, str(folders / "images")]) == 2
    assert "--output-images: " in capsys.readouterr().err
