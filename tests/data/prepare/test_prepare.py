"""Data preparation: the recipes' crops, counts and names, and folders that a kill cannot spoil."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tarfile
import time
import zipfile
import zlib
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import io

from sam4ir.data.lmdb_io import LmdbReader, LmdbWriter, read_image_keys
from sam4ir.data.prepare import run as prepare
from sam4ir.data.prepare.make import Plan, estimate, prepare_item
from sam4ir.data.prepare.output import JobFolder
from sam4ir.data.prepare.parts import Item, Job, Part, RecipeChoice, Store
from sam4ir.data.prepare.recipes import RECIPES, folder_part
from sam4ir.data.prepare.run import run_job, snippet
from sam4ir.data.prepare.sharpness import sharpest
from sam4ir.data.prepare.tree import File, Tree
from sam4ir.data.sources import LmdbSource, read
from sam4ir.data.windows import Crop, centre, read_table, windows
from sam4ir.utils.image import read_image, write_image

PAIR = (Store("gt", "dataroot_gt"), Store("lq", "dataroot_lq"))


def noise(seed: int, h: int = 40, w: int = 56, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (h, w, 3), dtype=dtype)


def draw(root: Path, *names: str, h: int = 40, w: int = 56, dtype: type = np.uint8) -> None:
    """An image of noise at each name, different for each."""
    for name in names:
        write_image(root / name, noise(zlib.crc32(name.encode()), h, w, dtype))


def parts(recipe: str, root: Path, choice: RecipeChoice | None = None) -> dict[str, Part]:
    builders = RECIPES[recipe].values()
    return {part.folder: part for build in builders for part in build(Tree([root]), choice or RecipeChoice())}


def pairs(root: Path, count: int = 6, crop: Crop | None = None) -> Part:
    """A part of `count` pairs, key and file names alike."""
    items = []
    for i in range(count):
        draw(root, f"gt/{i:02d}.png", f"lq/{i:02d}.png")
        items.append(Item(f"{i:02d}", tuple(File(str(root / kind / f"{i:02d}.png")) for kind in ("gt", "lq"))))
    return Part("train", "train", PAIR, tuple(items), crop)


def job_of(part: Part, output: Path, encoding: str = "raw") -> Job:
    return Job(part, output / part.folder, encoding, "test")  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, object]:
    """Everything that a prepared folder holds, but for sizes on disk."""
    values: dict[str, object] = {}
    for path in sorted(folder.glob("*.lmdb")):
        reader = LmdbReader(path)
        for key in LmdbSource(path).keys:
            with reader.value(key) as value:
                values[f"{path.name}/{key}"] = bytes(value)
        values[f"{path.name}/meta"] = (path / "meta_info.txt").read_text()
    record = json.loads((folder / "prepared.json").read_text())
    values["record"] = {key: value for key, value in record.items() if key != "bytes"}
    values["windows"] = (folder / "windows.jsonl").read_text()
    values["files"] = sorted(path.name for path in folder.iterdir())
    return values


# --- windows


@pytest.mark.parametrize(
    ("size", "crop", "step", "thresh", "tops", "lefts"),
    [
        ((720, 1280), 512, 256, 0, [0, 208], [0, 256, 512, 768]),  # GoPro: the width is met, the height is not
        ((512, 512), 512, 384, 0, [0], [0]),
        ((513, 512), 512, 384, 0, [0, 1], [0]),
        ((513, 514), 512, 384, 1, [0], [0, 2]),  # more than thresh, not from it on
        ((1404, 2040), 480, 240, 0, [0, 240, 480, 720, 924], [0, 240, 480, 720, 960, 1200, 1440, 1560]),  # DIV2K
        ((1000, 928), 512, 416, 0, [0, 416, 488], [0, 416]),  # Restormer: patch 512, overlap 96
        ((1120, 1680), 512, 204, 0, [0, 204, 408, 608], [0, 204, 408, 612, 816, 1020, 1168]),  # DPDD
    ],
)
def test_windows_lie_where_basicsr_puts_them(
    size: tuple[int, int], crop: int, step: int, thresh: int, tops: list[int], lefts: list[int]
) -> None:
    sub_images = windows(size, crop, step, thresh)
    assert [(w.top, w.left) for w in sub_images] == [(top, left) for top in tops for left in lefts]
    assert [w.suffix for w in sub_images[:2]] == ["_s001", "_s002"][: len(sub_images)]


def test_sidd_gives_the_known_number_of_sub_images_for_an_iphone_image() -> None:
    """3000x5328 at 512/384: rows 0..2304 and 2488 (8), columns 0..4608 and 4816 (14)."""
    assert len(windows((3000, 5328), 512, 384)) == 8 * 14


@given(st.integers(8, 60), st.integers(8, 60), st.integers(1, 8), st.integers(1, 12), st.integers(0, 5))
def test_windows_lie_inside_cover_all_but_thresh_and_sort(h: int, w: int, crop: int, step: int, thresh: int) -> None:
    sub_images = windows((h, w), crop, step, thresh)
    seen = np.zeros((h, w), bool)
    for window in sub_images:
        cut = window.cut(seen)
        assert cut.shape == (crop, crop)
        cut[:] = True
    if step <= crop:
        assert seen[: h - thresh, : w - thresh].all()
    suffixes = [window.suffix for window in sub_images]
    assert suffixes == sorted(set(suffixes))


def test_more_than_999_windows_still_sort() -> None:
    names = [window.suffix for window in windows((40, 30), 1, 1)]
    assert (names[0], names[-1]) == ("_s0001", "_s1200")
    assert names == sorted(names)


def test_lq_windows_are_the_gt_windows_divided() -> None:
    """BasicSR's settings for x2, x3, x4 of DIV2K, whose sides are multiples of 12."""
    for scale in (2, 3, 4):
        hr = windows((1404, 2040), 480, 240)
        lr = windows((1404 // scale, 2040 // scale), 480 // scale, 240 // scale)
        assert [(w.top // scale, w.left // scale) for w in hr] == [(w.top, w.left) for w in lr]


def test_a_centre_window_lies_as_restormers() -> None:
    (window,) = centre((721, 1280), 256)
    assert (window.top, window.left, window.suffix) == (232, 512, "")
    assert len(Crop(256, 256, centre=True).windows((720, 1280))) == 1


def test_an_image_smaller_than_a_crop_is_refused_and_small_ones_may_stay_whole() -> None:
    with pytest.raises(ValueError, match=r"300x800 .* smaller than a sub-image of 512x512.*--no-crop"):
        windows((300, 800), 512, 256)
    crop = Crop(512, 416, whole_up_to=800)
    assert [w.suffix for w in crop.windows((800, 2000))] == [""]
    assert len(crop.windows((801, 928))) == 4
    with pytest.raises(ValueError, match="step 0"):
        Crop(4, 0)


def test_the_bluntest_patches_are_dropped() -> None:
    patches = [noise(i, 32, 32) // divisor for i, divisor in enumerate((1, 50, 2, 90, 3))]
    assert sharpest(patches, 0.4) == [0, 2, 4]
    assert sharpest(patches, 0.3) == [0, 1, 2, 4]  # int(0.3 * 5) = 1
    assert sharpest([np.zeros((32, 32, 3), np.uint16)] * 4, 0.5) == [2, 3]


# --- recipes


def test_sidd_pairs_its_files_by_scene_and_frame(tmp_path: Path) -> None:
    scene = "SIDD_Medium_Srgb/Data/0001_001_S6_00100_00060_3200_L/0001"
    draw(tmp_path, f"{scene}_GT_SRGB_010.PNG", f"{scene}_NOISY_SRGB_010.PNG", f"{scene}_GT_SRGB_011.PNG")
    part = parts("sidd", tmp_path)["train"]
    assert [item.key for item in part.items] == ["0001_SRGB_010"]
    assert [Path(file.path).name for file in part.items[0].files] == ["0001_GT_SRGB_010.PNG", "0001_NOISY_SRGB_010.PNG"]
    assert part.crop == Crop(512, 384)
    assert [store.name for store in part.stores] == ["gt_crops", "input_crops"]
    assert "without a file among noisy: 1 image: 0001_SRGB_011" in part.problems[0]
    assert "lacks 319 images: 0001_SRGB_011, 0002_SRGB_010" in part.problems[1]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_the_scenes_that_sidd_holds_back_are_not_of_the_set(tmp_path: Path) -> None:
    """SIDD numbers 200 scene instances; 40 of them, 0009 and 0187 among them, are its benchmark."""
    frames = [f"{role}_SRGB_{frame}" for role in ("GT", "NOISY") for frame in ("010", "011")]
    touch(tmp_path, *(f"Data/{n:04d}_001_S6/{n:04d}_{frame}.PNG" for n in range(1, 201) for frame in frames))
    part = parts("sidd", tmp_path)["train"]
    assert len(part.items) == 400
    assert len(part.problems) == 1
    assert "not of the published set: 80 images: 0009_SRGB_010, 0009_SRGB_011, 0021_SRGB_010" in part.problems[0]
    for n in (9, 187):
        shutil.rmtree(tmp_path / f"Data/{n:04d}_001_S6")
    assert "not of the published set: 76 images: 0021_SRGB_010" in parts("sidd", tmp_path)["train"].problems[0]


def test_a_complete_set_has_no_problems_and_a_gap_is_named(tmp_path: Path) -> None:
    touch(tmp_path, *(f"DIV2K_valid_HR/{n:04d}.png" for n in range(801, 901)))
    touch(tmp_path, *(f"DIV2K_valid_LR_bicubic/X4/{n:04d}x4.png" for n in range(801, 901)))
    part = parts("df2k", tmp_path)["val"]
    assert (len(part.items), part.problems, part.crop) == (100, (), None)
    (tmp_path / "DIV2K_valid_LR_bicubic/X4/0850x4.png").unlink()
    assert parts("df2k", tmp_path)["val"].problems == (
        "DIV2K val: without a file among x4: 1 image: 0850",
        "DIV2K val: lacks 1 image: 0850",
    )


def test_sidd_validation_blocks_become_1280_named_pairs(tmp_path: Path) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (2, 3, 256, 256, 3), dtype=np.uint8)
    io.savemat(tmp_path / "ValidationGtBlocksSrgb.mat", {"ValidationGtBlocksSrgb": blocks}, do_compression=True)
    io.savemat(tmp_path / "ValidationNoisyBlocksSrgb.mat", {"ValidationNoisyBlocksSrgb": 255 - blocks})
    part = parts("sidd", tmp_path)["val"]
    assert [problem.rpartition("/")[2] for problem in part.problems] == [
        "ValidationGtBlocksSrgb.mat: 6 blocks, the published file has 1280",
        "ValidationNoisyBlocksSrgb.mat: 6 blocks, the published file has 1280",
    ]
    summary = run_job(job_of(part, tmp_path / "out"), workers=2)
    gt, lq = (LmdbSource(path) for path in summary.job.stores())
    assert gt.keys == lq.keys == [f"ValidationBlocksSrgb_{i:04d}" for i in range(6)]
    np.testing.assert_array_equal(read(gt, "ValidationBlocksSrgb_0004"), blocks[1, 1])  # scene by scene
    np.testing.assert_array_equal(read(lq, "ValidationBlocksSrgb_0004"), 255 - blocks[1, 1])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(100), r"ValidationGt.*v7\.3 .*-v7"),
        (b"hello" * 100, "ValidationGt.*cannot be read as a MATLAB file"),
        (b"", "ValidationGt.*cannot be read as a MATLAB file"),
    ],
)
def test_other_mat_files_are_one_clear_message(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "ValidationGtBlocksSrgb.mat").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        parts("sidd", tmp_path)


def test_both_trees_of_gopro_give_the_same_keys(tmp_path: Path) -> None:
    draw(tmp_path, *(f"a/train/GOPR0372_07_00/{kind}/000047.png" for kind in ("blur", "blur_gamma", "sharp")))
    draw(tmp_path, *(f"b/train/{kind}/GOPR0372_07_00-000047.png" for kind in ("input", "target")))
    draw(tmp_path, *(f"b/test/GoPro/{kind}/GOPR0384_11_00-000001.png" for kind in ("input", "target")), h=300, w=320)
    a, b = parts("gopro", tmp_path / "a"), parts("gopro", tmp_path / "b")
    assert [i.key for i in a["train"].items] == [i.key for i in b["train"].items] == ["GOPR0372_07_00-000047"]
    assert [Path(f.path).parent.name for f in a["train"].items[0].files] == ["sharp", "blur"]
    gamma = parts("gopro", tmp_path / "a", RecipeChoice(blur="blur_gamma"))["train"]
    assert [Path(f.path).parent.name for f in gamma.items[0].files] == ["sharp", "blur_gamma"]
    assert (a["train"].crop, b["test"].crop, b["val"].crop) == (Crop(512, 256), None, Crop(256, 256, centre=True))
    assert "lacks the sequences GOPR0372_07_01," in a["train"].problems[0]
    assert "1 found, the published set has 2103" in a["train"].problems[1]
    assert len(b["train"].items) == len(b["test"].items) == len(b["val"].items) == 1
    summary = run_job(job_of(b["val"], tmp_path / "out"))
    image = read_image(tmp_path / "b/test/GoPro/target/GOPR0384_11_00-000001.png")
    np.testing.assert_array_equal(
        read(LmdbSource(summary.job.stores()[0]), "GOPR0384_11_00-000001"), image[22:278, 32:288]
    )


def test_a_sequence_in_the_wrong_half_of_gopro_is_named(tmp_path: Path) -> None:
    draw(tmp_path, *(f"train/GOPR0384_11_00/{kind}/000001.png" for kind in ("blur", "sharp")))
    assert any("of another set: GOPR0384_11_00" in problem for problem in parts("gopro", tmp_path)["train"].problems)


@pytest.mark.parametrize("between", ["", "Rain13K/"])
def test_rain13k_is_found_in_both_trees_with_its_five_test_sets(tmp_path: Path, between: str) -> None:
    draw(tmp_path, *(f"train/{between}{kind}/{i}.jpg" for kind in ("input", "target") for i in (1, 2)))
    draw(tmp_path, *(f"test/Rain100L/{kind}/7.png" for kind in ("input", "target")), "test/Rain100H/input/7.png")
    rain = parts("rain13k", tmp_path)
    assert [item.key for item in rain["train"].items] == ["1", "2"]
    assert rain["train"].crop is None
    assert rain["train"].problems == ("Rain13k train: 2 found, the published set has 13712",)
    assert len(rain["test/Rain100L"].items) == 1
    assert "without a file among target: 1 image: 7" in rain["test/Rain100H"].problems[0]
    counts = {name: part.problems[-1].rpartition(" ")[2] for name, part in rain.items() if name.startswith("test")}
    assert counts == {
        "test/Test100": "98",
        "test/Rain100H": "100",
        "test/Rain100L": "100",
        "test/Test2800": "2800",
        "test/Test1200": "1200",
    }


def test_dfwb_keeps_its_four_sets_apart_and_small_images_whole(tmp_path: Path) -> None:
    draw(tmp_path, "DIV2K/0001.png", h=801, w=928)
    draw(tmp_path, "Flickr2K/000001.png", "WaterlooED/00001.bmp", "BSD400/100075.jpg", "DIV2K_valid_HR/0801.png")
    part = parts("dfwb", tmp_path)["train"]
    keys = ["BSD400-100075", "DIV2K-0001", "Flickr2K-000001", "WaterlooED-00001"]
    assert [item.key for item in part.items] == keys
    assert "lacks 799 images: 0002" in part.problems[0]
    assert "DFWB BSD400: 1 found, the published set has 400" in part.problems[3]
    summary = run_job(job_of(part, tmp_path / "out"))
    source = LmdbSource(summary.job.stores()[0])
    assert source.keys == [keys[0], *(f"DIV2K-0001_s{i:03d}" for i in range(1, 5)), *keys[2:]]
    assert read(source, "DIV2K-0001_s004").shape == (512, 512, 3)


def test_df2k_cuts_lr_alike_for_every_scale(tmp_path: Path) -> None:
    draw(tmp_path, "DIV2K_train_HR/0001.png", h=48, w=60)
    for scale in (2, 4):
        draw(tmp_path, f"DIV2K_train_LR_bicubic/X{scale}/0001x{scale}.png", h=48 // scale, w=60 // scale)
    choice = RecipeChoice(crop_size=32, step=16, scales=(2, 4))
    part = parts("div2k", tmp_path, choice)["train"]
    assert part.problems[0].startswith("DIV2K: lacks 799 images: 0002")
    summary = run_job(job_of(part, tmp_path / "out"))
    hr, x2, x4 = (LmdbSource(path) for path in summary.job.stores())
    assert [path.name for path in summary.job.stores()] == ["HR_sub.lmdb", "X2_sub.lmdb", "X4_sub.lmdb"]
    assert hr.keys == x2.keys == x4.keys == [f"0001_s{i:03d}" for i in range(1, 7)]
    lr = read_image(tmp_path / "DIV2K_train_LR_bicubic/X4/0001x4.png")
    np.testing.assert_array_equal(read(x4, "0001_s006"), lr[4:12, 7:15])  # HR 16, 28
    assert "# or dataroot_lq:" in snippet(summary)
    both = parts("df2k", tmp_path, choice)["train"]
    assert "Flickr2K: 0 found, the published set has 2650" in both.problems


def test_dpdd_matches_its_views_by_order_and_keeps_16_bits(tmp_path: Path) -> None:
    for view in ("inputL", "inputR", "inputC", "target"):
        number = 3 if view == "target" else 1
        draw(tmp_path, *(f"train/{view}/{n * number}.png" for n in (2, 10)), h=60, w=70, dtype=np.uint16)
    part = parts("dpdd", tmp_path, RecipeChoice(crop_size=24, step=12))["train"]
    assert [(item.key, [Path(f.path).stem for f in item.files]) for item in part.items] == [
        ("10", ["30", "10", "10", "10"]),
        ("2", ["6", "2", "2", "2"]),
    ]
    summary = run_job(job_of(part, tmp_path / "out"))
    source = LmdbSource(tmp_path / "out/train/inputL_crops.lmdb")
    cuts = list(read_table(tmp_path / "out/train/windows.jsonl"))
    assert [len(cut.windows) for cut in cuts] == [14, 14]  # 4 x 5 less int(0.3 * 20)
    window = cuts[0].windows[3]
    image = read_image(tmp_path / "train/inputL/10.png")
    np.testing.assert_array_equal(read(source, "10" + window.suffix), window.cut(image))
    assert image.dtype == np.uint16
    assert "dataroot_lqR: " in snippet(summary)
    (tmp_path / "train/inputR/2.png").unlink()
    with pytest.raises(ValueError, match=r"different numbers of images.*'inputR': 1"):
        parts("dpdd", tmp_path)


def test_a_folder_of_pairs_takes_the_gt_names_and_tells_the_template(tmp_path: Path) -> None:
    draw(tmp_path, "gt/a/1.png", "gt/b.jpg")
    draw(tmp_path, "lq/a/1x2.png", "lq/bx2.png", h=20, w=28)
    with pytest.raises(ValueError, match=r"filename_tmpl: '\{\}x2' would pair 2 of 2"):
        folder_part(tmp_path / "gt", tmp_path / "lq", "{}", 2, RecipeChoice())
    part = folder_part(tmp_path / "gt", tmp_path / "lq", "{}x2", 2, RecipeChoice(crop_size=16, thresh=8))
    assert part.crop == Crop(16, 16, 8)
    gt, lq = (LmdbSource(path) for path in run_job(job_of(part, tmp_path / "out")).job.stores())
    assert gt.keys == lq.keys
    assert gt.keys[0] == "a/1_s001"
    with pytest.raises(ValueError, match="multiples of the scale 2"):
        run_job(job_of(replace(part, crop=Crop(15, 8)), tmp_path / "out2"))
    alone = folder_part(tmp_path / "gt", None, "{}", 1, RecipeChoice())
    assert [len(item.files) for item in alone.items] == [1, 1]


@pytest.mark.parametrize(
    ("choice", "message"),
    [(RecipeChoice(no_crop=True, step=3), "--no-crop goes without"), (RecipeChoice(step=3), "need --crop-size")],
)
def test_crop_settings_that_contradict_are_refused(choice: RecipeChoice, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choice.crop(None)
    assert RecipeChoice(no_crop=True).crop(Crop(512, 256)) is None
    assert RecipeChoice(step=128).crop(Crop(512, 256)) == Crop(512, 128)


# --- files


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_are_read_in_place(tmp_path: Path, kind: str) -> None:
    draw(tmp_path / "files", *(f"GOPRO/train/GOPR0372_07_00/{k}/000047.png" for k in ("blur", "sharp")))
    (tmp_path / "files/GOPRO/.DS_Store").touch()
    archive = Path(shutil.make_archive(str(tmp_path / "GOPRO_Large"), kind, tmp_path / "files"))
    assert archive.suffix == f".{kind}"
    unpacked = parts("gopro", tmp_path / "files", RecipeChoice(no_crop=True))["train"]
    packed = parts("gopro", archive, RecipeChoice(no_crop=True))["train"]
    jobs = [job_of(unpacked, tmp_path / "a"), job_of(packed, tmp_path / "b")]
    first, second = (contents(run_job(job).job.folder) for job in jobs)
    assert first == second
    assert Tree([tmp_path]).spare == [str(archive)]


def test_a_damaged_archive_or_member_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "a.zip"
    bad.write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match=r"a\.zip: cannot be read as \.zip"):
        Tree([bad])
    with tarfile.open(tmp_path / "b.tar", "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"b\.tar: cannot be read as \.tar.*unpack"):
        Tree([tmp_path / "b.tar"])
    with pytest.raises(ValueError, match=r"nowhere: no such folder"):
        Tree([tmp_path / "nowhere"])
    (tmp_path / "c.tar.gz").touch()
    with pytest.raises(ValueError, match=r"c\.tar\.gz: neither a folder"):
        Tree([tmp_path / "c.tar.gz"])
    draw(tmp_path, "x.png")
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.write(tmp_path / "x.png", "x.png")
    data = bytearray((tmp_path / "d.zip").read_bytes())
    data[200] ^= 1
    (tmp_path / "d.zip").write_bytes(data)
    with pytest.raises(ValueError, match=r"d\.zip:x\.png: cannot be read"):
        Tree([tmp_path / "d.zip"]).files["x.png"].image()


def test_two_files_for_one_key_are_named(tmp_path: Path) -> None:
    draw(tmp_path, "x/train/target/1.png", "y/train/target/1.jpg", "x/train/input/1.png")
    with pytest.raises(ValueError, match=r"target/1\.png and .*target/1\.jpg are both '1'"):
        parts("rain13k", tmp_path)


# --- making


@pytest.mark.parametrize("encoding", ["raw", "png"])
@pytest.mark.parametrize("crop", [None, Crop(24, 16)])
def test_a_prepared_folder_holds_the_pixels_of_the_files(tmp_path: Path, encoding: str, crop: Crop | None) -> None:
    part = pairs(tmp_path, 3, crop)
    job = job_of(part, tmp_path / "out", encoding)
    summary = run_job(job)
    stores = [LmdbSource(path) for path in job.stores()]
    table = list(read_table(job.folder / "windows.jsonl"))
    assert [cut.key for cut in table] == ["00", "01", "02"]
    assert [key for cut in table for key in cut.keys] == stores[0].keys == stores[1].keys
    for cut, item in zip(table, part.items, strict=True):
        for file, store in zip(item.files, stores, strict=True):
            image = read_image(file.path)
            assert cut.size == image.shape[:2]
            for window in cut.windows:
                np.testing.assert_array_equal(read(store, cut.key + window.suffix), window.cut(image))
    assert (summary.images, summary.sub_images) == (3, 3 * (6 if crop else 1))
    record = json.loads((job.folder / "prepared.json").read_text())
    assert record["settings"]["crop"] == ({"size": 24, "step": 16} if crop else None)
    assert (record["images"], record["sub_images"], record["as_published"]) == (3, summary.sub_images, True)
    names = {".prepare.lock", "gt.lmdb", "lq.lmdb", "prepared.json", "windows.jsonl"}
    assert {path.name for path in job.folder.iterdir()} == names


def test_a_second_run_says_done_and_other_settings_are_refused(tmp_path: Path) -> None:
    part = pairs(tmp_path, 3)
    job = job_of(part, tmp_path / "out")
    first = run_job(job)
    before = contents(job.folder)
    second = run_job(job)
    assert (first.fresh, second.fresh) == (True, False)
    assert (first.images, first.sub_images, first.bytes) == (second.images, second.sub_images, second.bytes)
    for other, message in [
        (job_of(part, tmp_path / "out", "png"), "encoding: there 'raw', now 'png'.*another --output"),
        (job_of(replace(part, crop=Crop(8, 8)), tmp_path / "out"), "crop: there None, now {'size': 8"),
        (job_of(replace(part, items=part.items[:2]), tmp_path / "out"), "made of 3 images, --input now has 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            run_job(other)
    assert contents(job.folder) == before
    shutil.rmtree(job.stores()[1])
    with pytest.raises(ValueError, match=r"lq\.lmdb is not; remove it"):
        run_job(job)


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    job = job_of(pairs(tmp_path, 2), tmp_path / "out")
    with LmdbWriter(job.stores()[1]) as writer:
        writer.put("mine", noise(0))
    with pytest.raises(ValueError, match=r"lq\.lmdb: exists already"):
        run_job(job)
    assert read_image_keys(job.stores()[1]) == ["mine"]


def test_bad_images_are_all_named_and_the_others_are_not_made_again(tmp_path: Path) -> None:
    part = pairs(tmp_path, 6, Crop(24, 16))
    whole = contents(run_job(job_of(part, tmp_path / "whole")).job.folder)
    good = (tmp_path / "lq/02.png").read_bytes()
    (tmp_path / "lq/02.png").write_bytes(good[:-20])
    draw(tmp_path, "other.png", h=44)
    shutil.copy(tmp_path / "gt/04.png", tmp_path / "gt4.png")
    shutil.copy(tmp_path / "other.png", tmp_path / "gt/04.png")
    job = job_of(part, tmp_path / "out")
    with pytest.raises(ValueError, match="2 of 6 images cannot be used; the others are done") as raised:
        run_job(job)
    assert f"{tmp_path}/lq/02.png: truncated PNG" in str(raised.value)
    assert f"{tmp_path}/gt/04.png is 44x56 (h x w), but {tmp_path}/lq/04.png is 40x56" in str(raised.value)
    assert not job.stores()[0].exists()
    for i in (0, 1, 3, 5):  # done: whoever read them again would fail
        (tmp_path / f"gt/{i:02d}.png").write_bytes(b"")
    (tmp_path / "lq/02.png").write_bytes(good)
    shutil.copy(tmp_path / "gt4.png", tmp_path / "gt/04.png")
    run_job(job)
    assert contents(job.folder) == whole


def test_an_image_whose_name_no_lmdb_can_hold_is_named_after_the_others_are_done(tmp_path: Path) -> None:
    part = pairs(tmp_path, 3)
    odd = Item("a\nb", part.items[0].files)
    job = job_of(replace(part, items=(odd, *part.items)), tmp_path / "out")
    with pytest.raises(ValueError, match="1 of 4 images cannot be used; the others are done") as raised:
        run_job(job)
    assert "key 'a\\nb' has a line break, which ends a line of meta_info.txt; rename it" in str(raised.value)
    assert run_job(job_of(part, tmp_path / "out")).images == 3


def test_many_bad_images_stop_the_run_early(tmp_path: Path) -> None:
    part = pairs(tmp_path, 3)
    bad = File(str(tmp_path / "nothing.png"))
    items = tuple(Item(f"{i:03d}", (bad, bad)) for i in range(50))
    with pytest.raises(ValueError, match=r"20 of 53 images cannot be used; stopped after 20") as raised:
        run_job(job_of(replace(part, items=items + part.items), tmp_path / "out"))
    assert str(raised.value).count("nothing.png: cannot be read") == 20


def test_two_images_of_one_sub_image_key_are_refused(tmp_path: Path) -> None:
    part = pairs(tmp_path, 1, Crop(24, 16))
    clash = Item("00_s001", part.items[0].files)
    part = replace(part, items=(part.items[0], clash), crop=None)
    run_job(job_of(part, tmp_path / "fine"))
    draw(tmp_path, "small.png", h=10, w=10)
    small = File(str(tmp_path / "small.png"))
    part = replace(part, items=(part.items[0], Item("00_s001", (small, small))), crop=Crop(24, 16, whole_up_to=12))
    with pytest.raises(ValueError, match="'00_s001' is stored already"):
        run_job(job_of(part, tmp_path / "out"))


def test_a_full_disk_is_reported_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(pairs(tmp_path, 4, Crop(24, 16)), tmp_path / "out")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda path: usage(10, 10, 1000))
    with pytest.raises(
        ValueError, match=r"needs about 0\.22 MB, its disk has 0\.00 MB free; --encoding png would need"
    ):
        run_job(job)


def test_the_estimate_of_raw_size_is_what_the_folder_takes(tmp_path: Path) -> None:
    part = pairs(tmp_path, 8, Crop(24, 16))
    job = job_of(part, tmp_path / "out")
    guess = estimate(part.items, Plan.of(job))
    summary = run_job(job)
    assert guess.sub_images == summary.sub_images
    assert guess.raw == 8 * 6 * 2 * 4096  # 24 * 24 * 3 bytes: one page each
    assert summary.bytes >= sum(path.stat().st_size for path in (p / "data.mdb" for p in job.stores()))


def test_one_process_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    job = job_of(pairs(tmp_path, 2), tmp_path / "out")
    job.folder.mkdir(parents=True)
    with prepare.FileLock(job.folder / ".prepare.lock"), pytest.raises(ValueError, match="another process"):
        run_job(job)


# --- interruptions


def _run_and_leave(job: Job) -> None:
    run_job(job, batch_bytes=1, progress=False)
    os._exit(0)


def test_killed_again_and_again_it_gives_the_same_folder(tmp_path: Path) -> None:
    part = pairs(tmp_path, 60, Crop(24, 16))  # many: on a busy machine a child gets far before it is killed
    expected = contents(run_job(job_of(part, tmp_path / "whole")).job.folder)
    job = job_of(part, tmp_path / "out")
    table = job.folder / "windows.jsonl.part"
    kills, lines, rng = 0, [0], random.Random(0)
    while not (job.folder / "prepared.json").exists():
        child = multiprocessing.get_context("fork").Process(target=_run_and_leave, args=(job,))
        child.start()
        while child.is_alive() and (table.read_text().count("\n") if table.exists() else 0) < lines[-1] + 3:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.01)
        child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        lines.append(table.read_text().count("\n") if table.exists() else 60)
    run_job(job)  # where the last kill came between the record and the sweeping
    assert kills >= 5
    assert lines == sorted(lines)  # what was done stayed done
    assert contents(job.folder) == expected


@pytest.mark.parametrize("step", ["second store", "table", "record"])
def test_interrupted_while_it_finishes_it_goes_on(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part = pairs(tmp_path, 3, Crop(24, 16))
    expected = contents(run_job(job_of(part, tmp_path / "whole")).job.folder)
    job = job_of(part, tmp_path / "out")
    real_close, real_write = LmdbWriter.close, Path.write_text

    def close(writer: LmdbWriter) -> None:
        if writer.path.name == "lq.lmdb" and step == "second store":
            raise KeyboardInterrupt
        real_close(writer)

    def write(path: Path, *arguments: str, **named: str) -> int:
        if {"table": ".windows.jsonl.", "record": ".prepared.json."}.get(step, "?") in path.name.replace(".part.", "?"):
            raise KeyboardInterrupt
        return real_write(path, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(LmdbWriter, "close", close)
        with JobFolder(job) as output:
            patch.setattr(Path, "write_text", write)
            plan = Plan.of(job)
            for item in part.items:
                output.add(prepare_item(item, plan))
            output.commit()
            with pytest.raises(KeyboardInterrupt):
                output.finish()
    assert not (job.folder / "prepared.json").exists()
    run_job(job)
    assert contents(job.folder) == {**expected, "files": contents(job.folder)["files"]}
    assert not list(job.folder.glob("*.part"))


def test_half_an_image_is_taken_back_and_made_anew(tmp_path: Path) -> None:
    """GT was committed, LQ was not, and the table tells of neither; its last line is cut off."""
    part = pairs(tmp_path, 3, Crop(24, 16))
    expected = contents(run_job(job_of(part, tmp_path / "whole")).job.folder)
    job = job_of(part, tmp_path / "out")
    with JobFolder(job) as output:
        output.add(prepare_item(part.items[0], Plan.of(job)))
        output.commit()
        output.add(prepare_item(part.items[1], Plan.of(job)))
        output._writers[0].commit()
    with (job.folder / "windows.jsonl.part").open("a") as file:
        file.write('{"key": "01", "si')
    with JobFolder(job) as output:
        assert list(output.done) == ["00"]
    run_job(job)
    assert contents(job.folder) == expected


def test_an_unfinished_folder_refuses_other_settings_and_vanished_images(tmp_path: Path) -> None:
    part = pairs(tmp_path, 3)
    job = job_of(part, tmp_path / "out")
    with JobFolder(job) as output:
        output.add(prepare_item(part.items[0], Plan.of(job)))
        output.commit()
    with pytest.raises(ValueError, match="encoding: there 'raw', now 'png'"):
        run_job(job_of(part, tmp_path / "out", "png"))
    with pytest.raises(ValueError, match="holds 1 image: 00 that --input no longer has"):
        run_job(job_of(replace(part, items=part.items[1:]), tmp_path / "out"))
    shutil.rmtree(f"{job.stores()[0]}.part")
    with pytest.raises(ValueError, match=r"gt\.lmdb\.part: lacks 1 image: 00"):
        run_job(job)


def test_a_resumable_writer_keeps_what_was_committed_and_only_that(tmp_path: Path) -> None:
    path = tmp_path / "a.lmdb"
    with contextlib.suppress(KeyboardInterrupt), LmdbWriter(path, resume=True) as writer:
        writer.put("a", noise(1))
        writer.commit()
        writer.put("b", noise(2))
        raise KeyboardInterrupt
    with LmdbWriter(path, resume=True, map_size=1 << 15) as writer:
        assert writer.keys() == ["a"]
        with pytest.raises(ValueError, match="'a' is stored already"):
            writer.put("a", noise(1))
        writer.discard(["a"])
        for i in range(20):
            writer.put(f"{i:02d}", noise(i))
        writer.put("a", noise(3))
    source = LmdbSource(path)
    assert source.keys == [*(f"{i:02d}" for i in range(20)), "a"]
    np.testing.assert_array_equal(read(source, "a"), noise(3))
    assert not (path / "meta_info.part").exists()


def _run_on_a_small_disk(job: Job, limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        run_job(job, batch_bytes=1, progress=False)
    except ValueError as error:
        os._exit(3 if f"{job.folder}" in str(error) and "cannot be written" in str(error) else 4)
    os._exit(5)


@pytest.mark.parametrize("limit", [200, 60_000, 100_000])  # the table is the first to meet it, or data.mdb
def test_what_fitted_on_a_full_disk_stays_done(tmp_path: Path, limit: int) -> None:
    part = pairs(tmp_path, 12, Crop(24, 16))
    expected = contents(run_job(job_of(part, tmp_path / "whole")).job.folder)
    job = job_of(part, tmp_path / "out")
    JobFolder(job).__exit__(None, None, None)  # the empty folder fits
    child = multiprocessing.get_context("fork").Process(target=_run_on_a_small_disk, args=(job, limit))
    child.start()
    child.join()
    assert child.exitcode == 3
    run_job(job)
    assert contents(job.folder) == expected


@pytest.mark.slow  # worker processes import torch
def test_many_processes_give_the_same_folder_and_name_bad_images(tmp_path: Path) -> None:
    part = pairs(tmp_path, 12, Crop(24, 16))
    expected = contents(run_job(job_of(part, tmp_path / "whole")).job.folder)
    good = (tmp_path / "lq/05.png").read_bytes()
    (tmp_path / "lq/05.png").write_bytes(good[:-9])
    job = job_of(part, tmp_path / "out")
    with pytest.raises(ValueError, match=r"1 of 12 images cannot be used.*\n.*lq/05\.png: truncated PNG"):
        run_job(job, workers=3)
    (tmp_path / "lq/05.png").write_bytes(good)
    run_job(job, workers=3)
    assert contents(job.folder) == expected
