"""The table of results: its marks, its intervals, and what the four forms do with any name."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from scipy import stats

from sam4ir.engine.evaluate.results import Result
from sam4ir.engine.report.inputs import Scored
from sam4ir.engine.report.score_table import BEST, SECOND, ScoreTable, formatted, score_table

Images = Mapping[str, Mapping[str, Mapping[str, float]]]  # {output: {image: {metric: value}}}


def scored(name: str, images: Images, protocol: str = "psnr, border 0", lower: Sequence[str] = ()) -> Scored:
    protocols = {"psnr": protocol, "lpips": "lpips alex"}
    result = Result(name, protocols, {"set": {k: dict(v) for k, v in images.items()}}, {}, frozenset(lower))  # type: ignore[dict-item]
    return Scored("A", result, Path("results") / name)


def of_values(*values: float, metric: str = "psnr") -> Images:
    return {"restored": {f"image_{number}": {metric: value} for number, value in enumerate(values)}}


def ranks(table: ScoreTable) -> dict[str, int]:
    return {row.result or row.output: cell.rank for row in table.rows for cell in row.cells.values()}


def test_means_have_students_interval_over_images() -> None:
    (row,) = score_table([scored("a", of_values(30, 31, 35))]).rows
    (cell,) = row.cells.values()
    assert cell.mean == 32
    assert cell.half == pytest.approx(stats.sem([30, 31, 35]) * stats.t.ppf(0.975, 2))
    assert cell.images == 3
    assert cell.rank == 0, "one result has no rank"


@pytest.mark.parametrize(("lower", "best", "second"), [((), "c", "a"), (("psnr",), "b", "a")])
def test_best_and_second_follow_the_direction(lower: Sequence[str], best: str, second: str) -> None:
    results = [scored(name, of_values(value, value), lower=lower) for name, value in (("a", 2), ("b", 1), ("c", 3))]
    found = ranks(score_table(results))
    assert {name for name, rank in found.items() if rank == BEST} == {best}
    assert {name for name, rank in found.items() if rank == SECOND} == {second}


def test_equal_values_share_a_rank_and_nan_has_none() -> None:
    results = [scored("a", of_values(2)), scored("b", of_values(2.00001)), scored("c", of_values(math.nan))]
    assert ranks(score_table(results)) == {"a": BEST, "b": BEST, "c": 0}


def test_degraded_images_stand_once_and_have_no_rank() -> None:
    images = {**of_values(30), "input": {"image_0": {"psnr": 40.0}}, "refined": {"image_0": {"psnr": 50.0}}}
    table = score_table([scored("a", images), scored("b", {**images, **of_values(31)})])
    assert [(row.result, row.output) for row in table.rows] == [
        ("", "input"),
        ("a", "restored"),
        ("a", "refined"),
        ("b", "restored"),
        ("b", "refined"),
    ]
    marked = {(row.result, row.output) for row in table.rows for cell in row.cells.values() if cell.rank}
    assert marked == {("a", "restored"), ("b", "restored")}


def test_another_definition_is_another_column_and_is_not_ranked_with_the_first() -> None:
    table = score_table([scored("a", of_values(30)), scored("b", of_values(31), protocol="psnr, border 4")])
    assert [column.protocol for column in table.columns] == ["psnr, border 0", "psnr, border 4"]
    assert set(ranks(table).values()) == {0}
    assert "psnr ↑ (1): psnr, border 0\npsnr ↑ (2): psnr, border 4" in formatted(table, "text")


def test_infinite_values_are_left_out_of_the_mean() -> None:
    (row,) = score_table([scored("a", of_values(30, math.inf, 32))]).rows
    (cell,) = row.cells.values()
    assert (cell.mean, cell.images) == (31, 2)


@pytest.fixture
def hostile() -> ScoreTable:
    name = r"a|b_<i>*&%$#{}~^\\"
    return score_table(
        [scored(name, of_values(30, 31), protocol="1 % & more"), scored("=1+1", of_values(32, 33), "1 % & more")]
    )


def test_markdown_escapes_names(hostile: ScoreTable) -> None:
    text = formatted(hostile, "md")
    (row,) = [line for line in text.splitlines() if "30.5000" in line]
    assert row.startswith(r"| a\|b\_\<i\>\*\&%\$\#\{\}\~^\\\\ | restored | 2 | <u>30.5000 ± ")
    (row,) = [line for line in text.splitlines() if "32.5000" in line]
    assert "**32.5000 ± " in row


def test_tex_escapes_names_and_has_the_protocol_in_its_caption(hostile: ScoreTable) -> None:
    text = formatted(hostile, "tex")
    name = r"a\textbar{}b\_\textless{}i\textgreater{}*\&\%\$\#\{\}\textasciitilde{}\textasciicircum{}"
    assert name + r"\textbackslash{}\textbackslash{} & restored & \underline{30.5000 $\pm$ 6.3531}" in text
    assert r"\textbf{32.5000 $\pm$ 6.3531}" in text
    (caption,) = [line for line in text.splitlines() if line.startswith(r"\caption{")]
    assert r"psnr $\uparrow$: 1 \% \& more." in caption
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_csv_reads_back(hostile: ScoreTable) -> None:
    rows = list(csv.DictReader(io.StringIO(formatted(hostile, "csv"))))
    assert [row["rank"] for row in rows] == ["second", "best"]
    assert float(rows[0]["mean"]) == 30.5
    assert rows[1]["result"] == "'=1+1", "no spreadsheet runs it"


def test_text_marks_best_and_second(hostile: ScoreTable) -> None:
    text = formatted(hostile, "text")
    assert "32.5000 ± 6.3531 *" in text
    assert "30.5000 ± 6.3531 +" in text
    assert "* best, + second" in text
