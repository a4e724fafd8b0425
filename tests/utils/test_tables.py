"""Tables and JSON lines: any name comes back, nothing runs in a spreadsheet, and a row ends where it was ended."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam4ir.utils.tables import csv_text, json_line, number_in, read_csv, text_lines, whole_rows, write_csv

FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "＝1")
NAMES = (*FORMULAS, "'=1", "''=1", "'quoted'", "a\nb", "a\r\nb", "a\rb", "a\u2028b", "a\x85b", "a\x0bb", "a\x1cb")
MORE_NAMES = ('"', 'a"b', "a,b", " a ", "", "'", "é", "caf\udce9")  # the last is a file name that is no UTF-8


@pytest.mark.parametrize("name", [*NAMES, *MORE_NAMES], ids=ascii)
def test_every_name_comes_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_csv(path, ["image", name + "!"], [{"image": name, name + "!": 1.5}, {"image": "next", name + "!": -2.0}])
    table = read_csv(path)
    assert table.columns == ["image", name + "!"]
    assert [row.cells for row in table.rows] == [
        {"image": name, name + "!": "1.5"},
        {"image": "next", name + "!": "-2.0"},
    ]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1, max_size=4))
def test_any_text_comes_back(names: list[str]) -> None:
    rows = list(csv.reader(io.StringIO(csv_text(["a", "b"], [{"a": name, "b": 0} for name in names]), newline="")))
    assert len(rows) == 1 + len(names)
    for name, row in zip(names, rows[1:], strict=True):
        assert row[0] in (name, f"'{name}")
        assert not row[0].startswith(("=", "+", "-", "@", "\t", "\r"))


def test_rows_end_with_cr_lf_and_numbers_stay_numbers() -> None:
    text = csv_text(["a", "b"], [{"a": float("-inf"), "b": None, "c": "left out"}, {"a": float("nan")}])
    assert text == "a,b\r\n-inf,\r\nnan,\r\n"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_of_either_line_end_are_read(end: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(f"\ufeffa,b{end}x,1{end}{end}y{end}".encode())
    table = read_csv(path)
    assert [row.cells for row in table.rows] == [{"a": "x", "b": "1"}, {"a": "y", "b": None}]
    assert [row.line for row in table.rows] == [2, 4]


def test_a_row_with_more_cells_than_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a\n1,2\n")
    with pytest.raises(csv.Error, match="line 2 has 2 cells for 1 columns"):
        read_csv(path)


@pytest.mark.parametrize("torn", ["8,x", '8,"x', '8,"x\r\n', '8,"x""\r\n', "8,x\r"])
def test_a_row_that_was_not_ended_is_no_row(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(f'iter,image\r\n4,"a\nb"\r\n{torn}'.encode())
    assert [row.cells for row in whole_rows(path)] == [["iter", "image"], ["4", "a\nb"]]


@pytest.mark.parametrize("cell", ["1_000", "1e1_0", "\u0661\u0662", "", "x"])
def test_what_is_a_number_to_python_alone_is_none(cell: str) -> None:
    with pytest.raises(ValueError, match=r"number|float"):
        number_in(cell)


def test_numbers_of_tables() -> None:
    assert [number_in(cell) for cell in ("-1.5e3", " 2 ", "inf")] == [-1500, 2, float("inf")]


def test_a_json_line_is_one_line_whatever_its_names_hold() -> None:
    for name in (*NAMES, *MORE_NAMES):
        line = json_line({"images": [name]})
        assert line.splitlines() == [line[:-1]]
        assert json.loads(line) == {"images": [name]}


def test_lines_end_at_line_feeds_and_not_inside_names() -> None:
    assert text_lines("a\u2028b\r\nc\x85d\n\ne\x0c") == ["a\u2028b", "c\x85d", "", "e\x0c"]
    assert text_lines("") == []
