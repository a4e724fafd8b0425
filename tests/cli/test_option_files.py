"""`sam4ir options`: the option files that come with sam4ir are listed, shown and copied."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam4ir.cli.main import main
from sam4ir.config.load import load_options
from sam4ir.config.recipes import find_option_file, option_files, study_files
from sam4ir.engine import quickstart
from sam4ir.utils.shipped import shipped

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train/denoising/nafnet_w32_sidd", "train/denoising/nafnet_w32_sidd"),
        ("denoising/nafnet_w32_sidd", "train/denoising/nafnet_w32_sidd"),
        ("options/test/denoising/nafnet_w32_sidd.yml", "test/denoising/nafnet_w32_sidd"),
        ("own/pairs.yml", "own/pairs"),
        ("example", "example"),
    ],
)
def test_a_name_may_lack_what_all_files_have(name: str, expected: str) -> None:
    assert find_option_file(name).name == expected


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("denoising/nafnet_w32_sid", "did you mean 'denoising/nafnet_w32_sidd'?"),
        ("nafnet_w32_sidd", "did you mean 'test/denoising/nafnet_w32_sidd' or 'train/denoising/nafnet_w32_sidd'?"),
        ("../setup", "sam4ir options list prints all"),
    ],
)
def test_an_unknown_name_gets_the_closest(name: str, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options", "show", name]) == 2
    assert advice in capsys.readouterr().err


def test_a_copy_is_the_file_and_never_replaces_one_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["options", "copy", "denoising/nafnet_w8"]
    original = (ROOT / "options/train/denoising/nafnet_w8.yml").read_bytes()
    for target in ("my.yml", "sub/my.yml"):
        assert main([*command, target]) == 0
        assert Path(target).read_bytes() == original
    assert "sam4ir train -opt sub/my.yml --check" in capsys.readouterr().out
    assert main([*command, "sub"]) == 0
    assert main(command) == 0
    assert Path("sub/nafnet_w8.yml").read_bytes() == Path("nafnet_w8.yml").read_bytes() == original
    Path("my.yml").write_text("mine")
    assert main([*command, "my.yml"]) == 2
    assert "my.yml: exists already; --overwrite" in capsys.readouterr().err
    assert Path("my.yml").read_text() == "mine"
    assert main([*command, "my.yml", "--overwrite"]) == 0
    assert Path("my.yml").read_bytes() == original
    assert main([*command, "no_suffix"]) == 2


@pytest.mark.parametrize("name", ["own/test", "test/denoising/nafnet_w8", "quickstart/test"])
def test_a_file_that_scores_is_not_sent_to_training(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["options", "copy", name, str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"sam4ir test -opt {tmp_path}" in said
    assert "sam4ir train" not in said


def test_the_list_names_task_network_and_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options", "list", "NAFNet", "sidd", "width of 64"]) == 1
    capsys.readouterr()
    assert main(["options", "list", "hinet", "SIDD", "real noise"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["train/denoising", "  train/denoising/hinet_sidd  (HINet)"]
    assert lines[2].startswith("      HINet for real noise: SIDD")


def test_every_option_file_is_listed_with_its_network_and_a_comment() -> None:
    files = {file.path: file for file in option_files()}
    studies = set((ROOT / "options" / "studies").glob("*.yml"))
    assert set(files) == set((ROOT / "options").rglob("*.yml")) - studies
    assert {file.path for file in study_files()} == studies
    for path, file in files.items():
        options = load_options(path, named_by_user=True)
        assert file.network == options.network_g.type
        assert len(file.comment) > 10


def test_the_list_names_study_files_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options", "list"]) == 0
    trainings, _, studies = capsys.readouterr().out.partition("studies, for sam4ir study run (options/studies)\n")
    assert "  studies/" not in trainings
    assert studies.startswith("  studies/decisive_blur15\n      Is there anything in masks")
    assert main(["options", "list", "blur15", "restored", "image"]) == 0
    assert "studies/decisive_blur15" in capsys.readouterr().out


def test_a_copied_study_finds_its_option_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["options", "copy", "studies/decisive_blur15", "mine.yml"]) == 0
    assert (
        "mine.yml: written; edit its arms, then look at it: sam4ir study run mine.yml --check"
        in capsys.readouterr().out
    )
    assert main(["study", "run", "mine.yml", "--check"]) == 0
    assert "4 arms, 3 seeds" in capsys.readouterr().out


def test_a_missing_option_file_says_how_to_copy_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, advice in (
        ("denoising/nafnet_w8", "sam4ir options copy train/denoising/nafnet_w8 nafnet_w8.yml"),
        ("options/test/sr/rrdb_x4.yml", "sam4ir options copy test/sr/rrdb_x4 options/test/sr/rrdb_x4.yml"),
        ("mine.yml", "sam4ir options copy NAME"),
    ):
        assert main(["train", "-opt", name]) == 2
        error = capsys.readouterr().err
        assert "No such file" in error
        assert advice in error


def test_the_quickstart_brings_its_files_to_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        quickstart._copy_shipped()
        for place in ("options/quickstart/sam4ir.yml", "datasets/quickstart/masks.lmdb/data.mdb"):
            assert Path(place).read_bytes() == shipped(place).read_bytes()
    Path("options/quickstart/plain.yml").write_text("mine")
    quickstart._copy_shipped()
    assert Path("options/quickstart/plain.yml").read_text() == "mine"
