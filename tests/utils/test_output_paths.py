"""Every path that is made of a key lies below its folder, and no two keys share one."""

from __future__ import annotations

import os
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam4ir.errors import UserError
from sam4ir.utils.files import output_path, refuse_shared, write_text

BAD = {
    "an absolute path": "/etc/passwd",
    "a folder above": "../x",
    "folders above, from inside": "a/../../x",
    "the folder itself": "..",
    "folders above that end inside": "a/../x",
    "a drive": "C:/x",
    "a drive without a slash": "c:x",
    "a backslash": "a\\..\\x",
    "a share": "\\\\server\\x",
    "a NUL": "a\0b",
    "a line break": "a\nb",
    "an empty name": "",
    "a folder's name": "a/",
    "an empty folder": "a//b",
    "a dot": "./a",
    "a long name": "x" * 252,
    "a long folder": "y" * 256 + "/x",
    "no characters of a file name": "a\ud800",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_key_that_leads_elsewhere_is_refused_with_key_and_source(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        output_path(tmp_path / "out", BAD[kind], ".png", "masks.lmdb")
    assert str(caught.value).startswith("masks.lmdb: key ")
    assert repr(BAD[kind]) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "key",
    ["a", "a/b/c", "a.b", "...", "..a", "a..", ".hidden", "a b", "\u56fe\u4e00", "x" * 251, "ab:c/d", "-x", "a\u2028b"],
)
def test_a_key_that_names_a_file_below_is_written_there(key: str, tmp_path: Path) -> None:
    path = output_path(tmp_path, key, ".png", "set")
    assert path == tmp_path / f"{key}.png"
    write_text(path, "x")
    assert path.read_text(encoding="utf-8") == "x"
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_a_name_of_bytes_that_are_no_utf8_is_a_file_name(tmp_path: Path) -> None:
    key = os.fsdecode(b"caf\xe9")
    write_text(output_path(tmp_path, key, ".txt", "set"), "x")
    assert os.listdir(os.fsencode(tmp_path)) == [b"caf\xe9.txt"]


@given(st.text(st.sampled_from("a./\\: \n") | st.characters(exclude_categories=("Cs",)), max_size=12))
def test_whatever_the_key_the_path_lies_below_the_folder(key: str) -> None:
    folder = Path("/no/such/folder")
    try:
        path = output_path(folder, key, ".png", "set")
    except UserError:
        return
    assert os.path.normpath(path) == str(path)
    assert path.is_relative_to(folder)
    assert path.relative_to(folder).as_posix() == f"{key}.png"


@given(st.text(string.ascii_letters + string.digits + "_-/. ", min_size=1, max_size=20))
def test_keys_of_files_in_a_folder_are_accepted(key: str) -> None:
    if any(part in ("", ".", "..") for part in key.split("/")):
        return
    assert output_path(Path("/no/such/folder"), key, ".png", "set").name.endswith(".png")


def test_a_link_below_the_folder_that_leads_out_of_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"leads out of .*out, by a link on its way to .*elsewhere"):
        output_path(out, "a/b", ".png", "set")
    (out / "inside").mkdir()
    (out / "c").symlink_to("inside")
    assert output_path(out, "c/b", ".png", "set") == out / "c" / "b.png"
    (tmp_path / "linked").symlink_to(out)
    assert output_path(tmp_path / "linked", "x/b", ".png", "set") == tmp_path / "linked" / "x" / "b.png"


def test_two_keys_of_one_path_are_named() -> None:
    refuse_shared([("a", Path("x")), ("a", Path("x")), ("b", Path("y"))], "set")
    with pytest.raises(UserError, match="set: 'a' and 'b' would both be written to x"):
        refuse_shared([("a", Path("x")), ("b", Path("x"))], "set")
