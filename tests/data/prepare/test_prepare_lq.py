"""Prepared sets whose LQ is shrunk from GT: it equals the LQ made during training, and masks follow the cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sam4ir.cli import main as script
from sam4ir.data.lmdb_io import Encoding
from sam4ir.data.masks.crop import crop_by_table
from sam4ir.data.masks.store import MaskStore, MaskStoreWriter
from sam4ir.data.paired import PairedImageDataset
from sam4ir.data.prepare.parts import Job, Part, RecipeChoice
from sam4ir.data.prepare.recipes import RECIPES, folder_part
from sam4ir.data.prepare.run import run_job, snippet
from sam4ir.data.prepare.tree import Tree
from sam4ir.data.sources import LmdbSource, read
from sam4ir.data.super_resolution import SuperResolutionDataset
from sam4ir.data.windows import read_table
from sam4ir.utils.image import read_image, write_image
from sam4ir.utils.resize import shrunk_pixels
from sam4ir.utils.rng import generator

SIZES = {"a": (70, 101), "b/c": (48, 64), "d": (53, 47)}


@pytest.fixture
def hr(tmp_path: Path) -> Path:
    for i, (key, size) in enumerate(SIZES.items()):
        image = generator(i, "p").integers(0, 256, (*size, 3), np.uint8)
        write_image(tmp_path / "hr" / f"{key}.png", image)
    return tmp_path / "hr"


def prepare_shrunk(root: Path, output: Path, encoding: Encoding = "raw", **choice: object) -> Part:
    part = folder_part(root, None, "{}", 4, RecipeChoice(make_lq=True, **choice))  # type: ignore[arg-type]
    run_job(Job(part, output, encoding, "folder"), progress=False)
    return part


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_made_lq_is_that_of_the_fly_bit_for_bit(hr: Path, tmp_path: Path, encoding: Encoding) -> None:
    prepare_shrunk(hr, tmp_path / "out", encoding)
    common = {"scale": 4, "gt_size": 24, "use_hflip": True, "use_rot": True}
    stored = PairedImageDataset(
        dataroot_gt=str(tmp_path / "out/gt.lmdb"), dataroot_lq=str(tmp_path / "out/lq_x4.lmdb"), **common
    )
    flown = SuperResolutionDataset(dataroot_gt=str(hr), **common)
    assert [stored.key(i) for i in range(3)] == list(SIZES)
    for seed in range(30):
        one, other = (dataset.get(seed % 3, generator(seed)) for dataset in (stored, flown))
        assert torch.equal(one.lq, other.lq)
        assert torch.equal(one.gt, other.gt)


def test_png_keeps_the_files_that_were_not_cut(hr: Path, tmp_path: Path) -> None:
    prepare_shrunk(hr, tmp_path / "out", "png")
    source = LmdbSource(tmp_path / "out/gt.lmdb")
    with source._reader.value("b/c") as value:
        assert bytes(value) == (hr / "b/c.png").read_bytes()
    assert read(source, "a").shape == (68, 100, 3)


def test_sub_images_are_parts_of_the_whole_lq(hr: Path, tmp_path: Path) -> None:
    part = prepare_shrunk(hr, tmp_path / "out", crop_size=32, step=16)
    assert part.crop is not None
    source = LmdbSource(tmp_path / "out/lq_x4.lmdb")
    cut = next(read_table(tmp_path / "out/windows.jsonl"))
    lq = shrunk_pixels(read_image(hr / "a.png")[:68, :100], 4)
    assert len(cut.windows) == 4 * 6
    for window in cut.windows:
        np.testing.assert_array_equal(read(source, "a" + window.suffix), window.cut(lq, 4))


def test_masks_of_the_whole_images_are_cut_by_the_table(hr: Path, tmp_path: Path) -> None:
    with MaskStoreWriter(tmp_path / "masks.lmdb", {"generator": "drawn", "source": "gt"}) as store:
        for key, size in SIZES.items():
            store.put(key, [{"segmentation": generator(1, key).random(size) < 0.5}])
    prepare_shrunk(hr, tmp_path / "out")
    crop_by_table(MaskStore(tmp_path / "masks.lmdb"), tmp_path / "cut.lmdb", tmp_path / "out/windows.jsonl")
    cut = MaskStore(tmp_path / "cut.lmdb")
    assert [cut.read(key).size for key in SIZES] == [(68, 100), (48, 64), (52, 44)]
    np.testing.assert_array_equal(
        cut.read("a").stack(0, 0, 68, 100), MaskStore(tmp_path / "masks.lmdb").read("a").stack(0, 0, 68, 100)
    )


def test_hr_alone_is_enough_for_df2k(tmp_path: Path) -> None:
    image = generator(0, "p").integers(0, 256, (48, 60, 3), np.uint8)
    write_image(tmp_path / "DIV2K_train_HR" / "0001.png", image)
    (part,) = RECIPES["div2k"]["train"](
        Tree([tmp_path]), RecipeChoice(crop_size=24, step=12, scales=(2, 3), make_lq=True)
    )
    summary = run_job(Job(part, tmp_path / "out", "raw", "div2k"), progress=False)
    assert [path.name for path in summary.job.stores()] == ["HR_sub.lmdb", "X2_sub.lmdb", "X3_sub.lmdb"]
    np.testing.assert_array_equal(
        read(LmdbSource(tmp_path / "out/X3_sub.lmdb"), "0001_s012"), shrunk_pixels(image, 3)[8:16, 12:20]
    )
    assert "scale: 2" in snippet(summary)


def test_an_image_too_small_is_named_and_the_others_are_made(hr: Path, tmp_path: Path) -> None:
    write_image(hr / "strip.png", np.zeros((3, 50, 3), np.uint8))
    with pytest.raises(ValueError, match=r"strip.png is 3x50 \(h x w\), too small to be shrunk by 4"):
        prepare_shrunk(hr, tmp_path / "out")
    (hr / "strip.png").unlink()
    prepare_shrunk(hr, tmp_path / "out")
    assert LmdbSource(tmp_path / "out/lq_x4.lmdb").keys == list(SIZES)


def test_by_the_command_line(hr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["folder", "--gt", str(hr), "--output", str(tmp_path / "out"), "--workers", "1", "--make-lq"]
    assert script.main(["prepare", *command]) == 2
    assert "--make-lq shrinks GT: it goes with --scale 2 or more, and without --lq" in capsys.readouterr().err
    assert script.main(["prepare", *command, "--scale", "4", "--lq", str(hr)]) == 2
    for state in ("done: 3 images", "was done already"):
        assert script.main(["prepare", *command, "--scale", "4"]) == 0
        text = capsys.readouterr().out
        assert state in text
        assert "lq_x4.lmdb  # scale: 4" in text
    record = json.loads((tmp_path / "out/prepared.json").read_text())
    assert record["settings"]["stores"] == [["gt", 1], ["lq_x4", 4, "bicubic"]]
    assert script.main(["prepare", *command, "--scale", "2"]) == 2
    assert "holds a set that was made differently (stores:" in capsys.readouterr().err
