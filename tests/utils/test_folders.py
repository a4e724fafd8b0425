"""Listing folders: links, hidden files, what is left out, and the order."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sam4ir.errors import UserError
from sam4ir.utils import folders
from sam4ir.utils.folders import Listing, list_files

SUFFIXES = {".png", ".jpg"}


@pytest.fixture
def touch(tmp_path: Path) -> Callable[..., Path]:
    """Makes empty files below the folder `set`, which it returns."""

    def touch(*names: str) -> Path:
        for name in names:
            file = tmp_path / "set" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        return tmp_path / "set"

    return touch


def listing(root: Path, **settings: object) -> Listing:
    return list_files(root, SUFFIXES, **settings)


def test_files_come_folder_by_folder_and_suffixes_ignore_case(touch: Callable[..., Path]) -> None:
    root = touch("b/2.PNG", "b/10.png", "z.jpg", "a.png", "b-1/x.Jpg", "b/c/1.png")
    assert listing(root).files == ["a.png", "z.jpg", "b/10.png", "b/2.PNG", "b/c/1.png", "b-1/x.Jpg"]
    assert listing(root).sentence() == ""


def test_what_is_left_out_is_counted_by_kind(touch: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    root = touch(
        "a.png",
        "._a.png",
        ".b.png",
        ".git/c.png",
        "__MACOSX/a.png",
        "notes.txt",
        "raw.heic",
        "gt.lmdb/data.png",
        "out/a.png",
        "out/deep/b.png",
    )
    os.mkfifo(root / "pipe.png")
    found = listing(root, output=[root / "out"])
    assert found.files == ["a.png"]
    for part in (
        "2 hidden files",
        "2 hidden folders",
        "2 files that are no images (.heic, .txt)",
        "1 LMDB folder (gt.lmdb)",
        "1 folder that the results go to (out)",
        "1 pipe, socket or device (pipe.png)",
    ):
        assert part in found.sentence()
    with caplog.at_level(logging.WARNING):
        found.report()
        found.report()
    assert [record.getMessage() for record in caplog.records] == [f"{root}: left out: {found.sentence()}"]


def test_a_folder_that_links_lead_back_to_is_listed_once(touch: Callable[..., Path], tmp_path: Path) -> None:
    root = touch("0.png", "1.png", "sub/2.png")
    for link in ("self", "twin", "sub/up"):
        (root / link).symlink_to(root)
    (root / "a_link").symlink_to(root / "sub")  # the real path counts, though the link comes first
    (tmp_path / "entry").symlink_to(root)
    found = listing(tmp_path / "entry")
    assert found.files == ["0.png", "1.png", "sub/2.png"]
    assert "4 links to folders that are listed already (a_link, self, sub/up, ...)" in found.sentence()


def test_folders_that_link_to_each_other_end(touch: Callable[..., Path], tmp_path: Path) -> None:
    root = touch("one/1.png", "two/2.png", "three/3.png")
    for here in ("one", "two", "three"):
        for there in ("one", "two", "three"):
            (root / here / f"to_{there}").symlink_to(root / there)
    assert listing(root).files == ["one/1.png", "three/3.png", "two/2.png"]


def test_a_link_to_a_folder_elsewhere_is_followed_once(touch: Callable[..., Path], tmp_path: Path) -> None:
    root = touch("a.png")
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "b.png").touch()
    (root / "x").symlink_to(tmp_path / "elsewhere")
    (root / "y").symlink_to(tmp_path / "elsewhere" / "deep")
    found = listing(root)
    assert found.files == ["a.png", "x/deep/b.png"]
    assert "1 link to a folder that is listed already (y)" in found.sentence()


def test_links_to_files_count_and_doubles_are_named(
    touch: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = touch("a.png")
    (tmp_path / "other.png").touch()
    (root / "b.png").symlink_to(root / "a.png")
    (root / "c.png").symlink_to(tmp_path / "other.png")
    (root / "d.png").symlink_to(tmp_path / "other.png")
    (root / "e.png").symlink_to(tmp_path / "gone.png")
    (root / "f.png").symlink_to(root / "f.png")
    found = listing(root)
    assert found.files == [f"{name}.png" for name in "abcdef"]  # reading names the broken ones
    assert found.doubles == ["b.png is a.png", "d.png is c.png"]
    found.report()
    assert (
        "2 files are links to others of this folder and count as well (b.png is a.png, d.png is c.png)" in caplog.text
    )


def test_folders_that_cannot_be_read_are_named(touch: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = touch("a.png", "locked/b.png")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    found = listing(root)
    assert found.files == ["a.png"]
    assert found.unreadable == [f"{root / 'locked'}: cannot be read (Permission denied)"]
    assert found.sentence() == "1 folder that cannot be read (locked: Permission denied)"


def test_what_is_no_folder_is_named(touch: Callable[..., Path]) -> None:
    root = touch("a.png")
    with pytest.raises(UserError, match=r"set/a\.png: is a file, give the folder that it lies in"):
        listing(root / "a.png")
    with pytest.raises(UserError, match="set/none: no such folder"):
        listing(root / "none")
