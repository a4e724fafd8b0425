"""Mutants: what is changed, what is left alone, and that a trial notices a change."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray", reason="pip install -e '.[mutation]'")

from mutants import changed_lines, inside_of, sample, sites
from run import EQUIVALENT, Result, read_results, report, write_result

ROOT = Path(__file__).resolve().parents[2]
SOURCE = '''\
from typing import Protocol

Range = float | tuple[float, float]


class Shape(Protocol):
    @property
    def area(self) -> int | None:
        """Not run."""


def half(x: int | None, y=2) -> float:
    if x is None:
        raise ValueError("x - y" % x)
    out = x.detach() / y
    out += 1
    return out
'''


def test_types_messages_and_protocols_are_left_alone() -> None:
    lines = {line for line, _ in sites(SOURCE)}
    assert lines == {12, 13, 15, 16}


def test_operators_numbers_methods_and_statements_are_changed() -> None:
    mutants = sample("half.py", SOURCE, 1000, 0)
    changes = {mutant.after for mutant in mutants}
    assert {"out = x / y", "pass", "out += 2", "out = x.detach() * y", "if x is not None:"} <= changes
    assert "def half(x: int | None, y= 3) -> float:" in changes
    assert "if x == None:" not in changes
    assert len(mutants) == len({mutant.source for mutant in mutants})
    for mutant in mutants:
        assert mutant.source != SOURCE
        assert changed_lines(SOURCE, mutant.source) == (mutant.before, mutant.after)


def test_a_mutant_knows_the_function_that_it_is_in() -> None:
    assert {mutant.inside for mutant in sample("half.py", SOURCE, 20, 0)} == {"half"}
    assert inside_of(SOURCE, 7) == "Shape.area"  # the line of its decorator
    assert inside_of(SOURCE, 3) == ""


def test_a_sample_takes_every_place_once_before_it_takes_one_twice() -> None:
    places = sites(SOURCE)
    drawn = sample("half.py", SOURCE, len(places), 0)
    assert len({(mutant.line, mutant.before) for mutant in drawn}) == 4
    assert len(drawn) == len(places)
    assert sample("half.py", SOURCE, len(places), 0) == drawn
    assert sample("half.py", SOURCE, len(places), 1) != drawn


def test_the_score_leaves_equivalent_mutants_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = json.loads(EQUIVALENT.read_text(encoding="utf-8"))[0]
    del entry["reason"]
    table = tmp_path / "table.jsonl"
    write_result(table, Result("sam4ir/regions.py", "box", 7, "x", "a + b", "a - b", "killed", "test_regions.py::test"))
    write_result(table, Result("sam4ir/regions.py", "box", 8, "x", "a + c", "a - c", "survived"))
    write_result(table, Result(**entry, line=9, operator="x", outcome="survived"))
    assert report(read_results(table).values()) == 0.5
    assert "-> a - c" in capsys.readouterr().out
    write_result(table, Result("sam4ir/regions.py", "box", 8, "x", "a + c", "a - c", "killed"))
    assert report(read_results(table).values()) == 1


@pytest.mark.slow
def test_the_job_tries_mutants_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    table = tmp_path / "table.jsonl"
    command = [sys.executable, "tests/mutation/run.py", "--module", "diffusion/noise", "--table", str(table)]

    def tried(count: int) -> list[str]:
        done = subprocess.run([*command, "--sample", str(count)], cwd=ROOT, capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if line.startswith("  ")]

    assert len(tried(1)) == 1
    assert len(tried(2)) == 1
    assert len(read_results(table)) == 2
