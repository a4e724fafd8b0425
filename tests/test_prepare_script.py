"""scripts/prepare_data.py as a user calls it: what it finds, refuses, makes and tells."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from sam4ir.cli import prepare
from sam4ir.cli.main import main as sam4ir
from sam4ir.data.lmdb_io import read_image_keys
from sam4ir.data.paired import PairedImageDataset
from sam4ir.utils.image import write_image

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def gopro(tmp_path: Path) -> Path:
    """Three training pairs and a test pair of GoPro, 40x56."""
    rng = np.random.default_rng(0)
    for split, sequence, count in (("train", "GOPR0372_07_00", 3), ("test", "GOPR0384_11_00", 1)):
        for kind in ("blur", "sharp"):
            for i in range(count):
                image = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
                write_image(tmp_path / "GOPRO_Large" / split / sequence / kind / f"{i:06d}.png", image)
    return tmp_path


def run(folder: Path, *arguments: str) -> int:
    source, output = str(folder / "GOPRO_Large"), str(folder / "out")
    crop = ("--crop-size", "24", "--step", "16", "--workers", "1")
    return sam4ir(["prepare", "gopro", "--input", source, "--output", output, *crop, *arguments])


def test_an_incomplete_set_is_an_error_that_tells_what_lacks(gopro: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(gopro, "--subset", "train") == 2
    seen = capsys.readouterr()
    assert f"{gopro}/out/train: 3 images or pairs found" in seen.out
    assert "GoPro train: lacks the sequences GOPR0372_07_01" in seen.err
    assert "3 found, the published set has 2103" in seen.err
    assert "--allow-incomplete" in seen.err
    assert not (gopro / "out").exists()


def test_what_is_printed_can_be_pasted_into_an_option_file(gopro: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(gopro, "--subset", "train", "--allow-incomplete") == 0
    text = capsys.readouterr().out
    assert "3 images or pairs, 18 in each LMDB" in text
    train = yaml.safe_load(text[text.index("datasets:") :])["datasets"]["train"]
    assert train.pop("type") == "PairedImageDataset"
    dataset = PairedImageDataset(**train, gt_size=16)
    assert len(dataset) == 18
    assert dataset.key(17) == "GOPR0372_07_00-000002_s006"
    assert dataset.get(17, np.random.default_rng(0)).lq.shape == (3, 16, 16)


def test_a_second_run_says_it_is_done(gopro: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(gopro, "--subset", "train", "--allow-incomplete") == 0
    before = (gopro / "out/train/sharp_crops.lmdb/data.mdb").stat()
    assert run(gopro, "--subset", "train", "--allow-incomplete") == 0
    assert "was done already, with these settings: 3 images" in capsys.readouterr().out
    assert (gopro / "out/train/sharp_crops.lmdb/data.mdb").stat().st_mtime_ns == before.st_mtime_ns
    assert run(gopro, "--subset", "train", "--allow-incomplete", "--encoding", "png") == 2
    assert "holds a set that was made differently (encoding: there 'raw', now 'png')" in capsys.readouterr().err


def test_a_dry_run_tells_counts_and_sizes_and_writes_nothing(gopro: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(gopro, "--subset", "train", "--allow-incomplete", "--dry-run") == 0
    text = capsys.readouterr().out
    assert "sharp_crops.lmdb, blur_crops.lmdb of about 18 images each; in all about 0.15 MB raw" in text
    assert not (gopro / "out").exists()
    assert run(gopro, "--subset", "train", "--dry-run") == 2


def test_all_subsets_are_made_and_empty_ones_left_out(gopro: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (gopro / "GOPRO_Large/test").rglob("*.png"):
        path.unlink()
    assert run(gopro, "--allow-incomplete", "--no-crop", "--subset", "all") == 2  # --crop-size goes against --no-crop
    assert "--no-crop goes without" in capsys.readouterr().err
    assert run(gopro, "--allow-incomplete") == 0
    assert sorted(path.name for path in (gopro / "out").iterdir()) == ["train"]
    assert "GoPro test: 0 found" in capsys.readouterr().err


def test_a_damaged_image_is_one_message_that_names_it(gopro: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = gopro / "GOPRO_Large/train/GOPR0372_07_00/blur/000001.png"
    bad.write_bytes(bad.read_bytes()[:100])
    assert run(gopro, "--subset", "train", "--allow-incomplete") == 2
    error = capsys.readouterr().err
    assert f"1 of 3 images cannot be used; the others are done\n  {bad}: truncated PNG" in error
    assert "the same command again: it goes on from here" in error


def test_inputs_without_the_set_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sidd", "--output", str(tmp_path / "out"), "--input"]
    assert sam4ir(["prepare", *command, str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such folder or archive" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "SIDD_Medium_Srgb.zip").touch()
    assert sam4ir(["prepare", *command, str(tmp_path / "empty")]) == 2
    assert "archives there: " in capsys.readouterr().err
    write_image(tmp_path / "other" / "a.png", np.zeros((8, 8, 3), np.uint8))
    assert sam4ir(["prepare", *command, str(tmp_path / "other")]) == 2
    error = capsys.readouterr().err
    assert "holds nothing of sidd; the folders and files that it is read from stand at the end of" in error
    assert "sam4ir prepare sidd --help" in error
    assert sam4ir(["prepare", *command, str(tmp_path / "other"), "--workers", "0"]) == 2
    assert "--workers: 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", prepare.SETS)
def test_the_help_of_a_set_shows_the_trees_of_the_document(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sam4ir(["prepare", name, "--help"])
    shown = capsys.readouterr().out
    document = (ROOT / "datasets" / "README.md").read_text(encoding="utf-8")
    for line in prepare.TREES[name]:
        assert line in shown
        assert f"    {line}\n" in document


def test_ones_own_pairs_and_single_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(2):
        write_image(tmp_path / f"gt/{i}.png", np.full((16, 24, 3), i, np.uint8))
        write_image(tmp_path / f"lq/{i}x2.png", np.full((8, 12, 3), i, np.uint8))
    command = ["folder", "--gt", str(tmp_path / "gt"), "--workers", "1", "--output"]
    pair = ["--lq", str(tmp_path / "lq"), "--filename_tmpl", "{}x2"]
    assert sam4ir(["prepare", *command, str(tmp_path / "a"), *pair]) == 2
    assert f"{tmp_path}/gt/0.png is 16x24 (h x w), but {tmp_path}/lq/0x2.png is 8x12" in capsys.readouterr().err
    assert sam4ir(["prepare", *command, str(tmp_path / "b"), *pair, "--scale", "2", "--crop-size", "8"]) == 0
    assert "dataroot_lq: " in capsys.readouterr().out
    assert read_image_keys(tmp_path / "b/lq.lmdb")[-1] == "1_s006"
    assert sam4ir(["prepare", *command, str(tmp_path / "c"), "--encoding", "png"]) == 0
    text = capsys.readouterr().out
    assert "type: GaussianDenoisingDataset" in text
    assert "lq" not in text


@pytest.mark.slow  # starts interpreters that import torch
def test_killed_with_its_workers_at_work_it_leaves_none_and_goes_on(gopro: Path) -> None:
    rng = np.random.default_rng(0)
    frames = gopro / "GOPRO_Large/train/GOPR0372_07_00"
    for kind in ("blur", "sharp"):
        image = rng.integers(0, 256, (720, 1280, 3), dtype=np.uint8)
        for i in range(40):
            write_image(frames / kind / f"{i:06d}.png", image)
    command = [sys.executable, str(ROOT / "scripts/prepare_data.py"), "gopro", "--input", str(gopro / "GOPRO_Large")]
    command += ["--output", str(gopro / "out"), "--subset", "train", "--allow-incomplete", "--workers", "2"]
    table = gopro / "out/train/windows.jsonl.part"
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while started.poll() is None and not (table.exists() and table.read_text()):
        time.sleep(0.01)
    workers = _descendants(started.pid)
    assert len(workers) >= 2
    started.send_signal(signal.SIGKILL)
    started.communicate()
    assert table.exists()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "40 images or pairs, 320 in each LMDB" in done.stdout
    assert len(read_image_keys(gopro / "out/train/blur_crops.lmdb")) == 320


def _descendants(pid: int) -> list[int]:
    """The processes below one, from Linux's /proc."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
    children = [child for child, parent in parents.items() if parent == pid]
    descendants = list(children)
    for child in children:
        descendants += _descendants(child)
    return descendants
