"""scripts/masks.py: import, info, verify and view by the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam4ir.data.masks import MaskStore
from sam4ir.regions import mask_to_runs
from sam4ir.utils.image import read_image, write_image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import masks as script  # noqa: E402  (scripts are no package)


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
        return script.main(["import", "--input", str(folder / "json"), "--store", store, *more])
    return script.main([command, store, *(images if command != "info" else []), *more])


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
    assert run(folders, "import", "--source", "lq") == 1
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


def test_import_checks_sizes_against_the_images(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folders / "json" / "one.json").write_text(json.dumps(sam_masks(20, 31)))
    (folders / "images" / "three.png").unlink()
    assert run(folders, "import", "--images", str(folders / "images")) == 1
    error = capsys.readouterr().err
    assert "one.json: image 'one': mask 0: key 'segmentation' is of size [20, 31], the image [20, 30]" in error
    assert "three.json: " in error
    assert "has no image 'three'" in error


def test_verify_lists_what_lacks_and_notes_other_pixels(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = folders / "images"
    assert run(folders, "import", "--images", str(images)) == 0
    assert run(folders, "verify") == 0
    assert "3 of 3 images have their masks" in capsys.readouterr().out
    write_image(images / "one.png", np.zeros((20, 30, 3), np.uint8))
    write_image(images / "three.png", np.zeros((10, 13, 3), np.uint8))
    write_image(images / "four.png", np.zeros((10, 13, 3), np.uint8))
    (images / "sub" / "two.png").unlink()
    assert run(folders, "verify") == 1
    seen = capsys.readouterr()
    assert "four.png: no record" in seen.err
    assert "three: the masks are of (10, 12), the image is (10, 13)" in seen.err
    assert "saw other pixels (source: None) of 1 image: one" in seen.out
    assert "records without an image there: 1 image: sub/two" in seen.out


def test_view_draws_image_regions_and_boundaries(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folders, "import", "--images", str(folders / "images")) == 0
    assert run(folders, "view", "--output", str(folders / "pictures")) == 0
    assert (folders / "pictures" / "sub" / "two.png").exists()
    image = read_image(folders / "images" / "one.png")
    picture = read_image(folders / "pictures" / "one.png")
    assert picture.shape == (20, 90, 3)
    np.testing.assert_array_equal(picture[:, :30], image)
    plain = picture[:, 30:60][:, 15:]  # no mask on the right half
    assert (plain == plain[..., :1]).all()
    boundary = picture[:, 60:]
    assert (boundary[:, 14:16] == [255, 0, 0]).all()
    np.testing.assert_array_equal(boundary[8:, 16:], image[8:, 16:])
    assert run(folders, "view", "--output", str(folders / "pictures"), "--keys", "nine") == 1
    assert "lacks 1 image: nine" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["info", "verify", "view"])
def test_a_missing_store_is_one_message(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, command, *(["--output", str(tmp_path)] if command == "view" else [])) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"masks.py: {tmp_path / 'm.lmdb'}: there is no such mask store")
    assert error.count("\n") == 1


def test_missing_input_and_images_are_one_message(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["import", "--input", str(folders / "images"), "--store", str(folders / "m.lmdb")]) == 1
    assert "no .json files there" in capsys.readouterr().err
    assert run(folders, "import", "--images", str(folders / "nowhere")) == 1
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert not (folders / "m.lmdb").exists()


def test_the_script_itself_runs_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "masks.py"), "info", "nothing.lmdb"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("masks.py: nothing.lmdb: there is no such mask store")
    assert "Traceback" not in done.stderr
