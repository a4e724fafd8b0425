"""Tables as CSV, and records as JSON lines: the one form in which sam4ir writes them, and the way to read it.

A table follows RFC 4180: cells between commas, rows that end with CR LF, quotes where a cell needs them, UTF-8. A name
that a spreadsheet would run as a formula gets an apostrophe in front (OWASP, CSV injection), which reading removes: so
every name comes back as it was. A JSON line holds ASCII alone, so that no name can end it early.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sam4ir.errors import UserError
from sam4ir.utils.files import encode_text, write_bytes

_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")  # the last four are full-width forms, which spreadsheets take alike
_ROW_END = "\r\n"


class CsvRow(NamedTuple):
    """A row of a table: the number of its last line, and its cells by column; None where the row is too short."""

    line: int
    cells: dict[str, str | None]


class CsvTable(NamedTuple):
    """A table that was read."""

    columns: list[str]
    rows: list[CsvRow]


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Return a table as text: its head, then its rows (csv_rows)."""
    return csv_head(columns) + csv_rows(columns, rows)


def csv_head(columns: Sequence[str]) -> str:
    """Return the head of a table as text."""
    return csv_rows(columns, [dict(zip(columns, columns, strict=True))])


def csv_rows(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Return rows as text. A row's value for no column is left out; a cell without a value, or of None, is empty."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator=_ROW_END)
    for row in rows:
        writer.writerow([_cell(row.get(column)) for column in columns])
    return buffer.getvalue()


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a whole table atomically (csv_text)."""
    write_bytes(path, encode_text(csv_text(columns, rows)))


def _cell(value: object) -> object:
    """Return what stands in a cell: a text that a spreadsheet would run gets an apostrophe, numbers stay."""
    if isinstance(value, str) and _FORMULA.match(value):
        return f"'{value}"
    return value


def _text(cell: str) -> str:
    """Return the text of a cell, without the apostrophe that _cell adds."""
    if cell.startswith("'") and _FORMULA.match(cell):
        return cell[1:]
    return cell


def read_csv(path: Path) -> CsvTable:
    """Read a table with either line end; a byte order mark is left out. Raises OSError and csv.Error."""
    reader = csv.reader(io.StringIO(_decoded(path), newline=""))
    columns = [_text(cell) for cell in next(reader, [])]
    rows = []
    for cells in reader:
        if len(cells) > len(columns):
            raise csv.Error(f"line {reader.line_num} has {len(cells)} cells for {len(columns)} columns")
        if cells:
            texts: list[str | None] = [_text(cell) for cell in cells]
            texts += [None] * (len(columns) - len(texts))
            rows.append(CsvRow(reader.line_num, dict(zip(columns, texts, strict=True))))
    return CsvTable(columns, rows)


def _decoded(path: Path) -> str:
    """Return the text of a table; bytes that are no UTF-8 become what file names have in their place."""
    return path.read_bytes().decode("utf-8-sig", "surrogateescape")


def number_in(cell: str) -> float:
    """Return the number of a cell, which may be nan or inf.

    Raises ValueError for other texts, 1_000 among them, which is a number to Python alone.
    """
    if "_" in cell or not cell.isascii():
        raise ValueError(f"{cell!r} is no number")
    return float(cell)


class RawRow(NamedTuple):
    """A row of a table as it stands in the file: its cells, and its text with the one line end that tables have."""

    cells: list[str]
    text: str


def whole_rows(path: Path) -> list[RawRow]:
    """Return the rows of a growing table, the head first, without a last one that a killed writer did not end."""
    rows = []
    for cells, text in _raw_rows(_decoded(path)):
        whole = text.endswith("\n") and text.count('"') % 2 == 0
        if cells and whole:
            rows.append(RawRow([_text(cell) for cell in cells], text.rstrip("\r\n") + _ROW_END))
    return rows


def _raw_rows(text: str) -> Iterator[tuple[list[str], str]]:
    """Yield the cells of each row and the text that they were read from."""
    lines: list[str] = []

    def feed() -> Iterator[str]:
        for line in io.StringIO(text, newline=""):
            lines.append(line)
            yield line

    for cells in csv.reader(feed()):
        yield cells, "".join(lines)
        lines.clear()


def json_line(record: Mapping[str, Any]) -> str:
    """Return a record as one line of JSON."""
    return json.dumps(record) + "\n"


def listing_text(names: Iterable[str]) -> str:
    """Return names one a line, for text_lines. Raises UserError naming one that has a line break."""
    lines = []
    for name in names:
        if "\n" in name or "\r" in name:
            raise UserError(f"{name!r} has a line break, so no list can hold it; rename the image")
        lines.append(f"{name}\n")
    return "".join(lines)


def text_lines(text: str) -> list[str]:
    """Return the lines of a text, which end with LF, CR LF or CR alone.

    str.splitlines would also end them at characters that names may hold: U+2028, U+0085, form feeds.
    """
    return [line.rstrip("\r\n") for line in io.StringIO(text, newline="")]
