"""Texts of other programs: their encodings, line ends and sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam4ir.errors import UserError
from sam4ir.utils.files import read_text

TEXT = "\u56fe.png\nb.png\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_unicode_is_read_with_any_line_end(tmp_path: Path, encoding: str, end: str) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(TEXT.replace("\n", end).encode(encoding))
    assert read_text(file, 1000) == TEXT


@pytest.mark.parametrize(("encoding", "text"), [("gbk", "a\n\u4e2d\u6587\n"), ("latin-1", "a\n\xe9t\xe9\n")])
def test_another_encoding_is_refused_with_its_line(tmp_path: Path, encoding: str, text: str) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match=r"list\.txt: is not a UTF-8 text file \(line 2, byte 2\); save it"):
        read_text(file, 1000)


def test_utf16_without_a_mark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("a.png".encode("utf-16-le"))
    with pytest.raises(UserError, match="UTF-8"):
        read_text(tmp_path / "list.txt", 1000)


def test_a_text_over_the_bound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("abc")
    assert read_text(tmp_path / "list.txt", 3) == "abc"
    with pytest.raises(UserError, match="is larger than"):
        read_text(tmp_path / "list.txt", 2)
