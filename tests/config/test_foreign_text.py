"""Option files as other editors and other habits write them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sam4ir.config.load import OptionsError, changes, dump_options, load_options
from sam4ir.config.yaml_text import DEEPEST, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1\t\n", {"a": 1}),
        ("a:\t1\n", {"a": 1}),
        ("a: x\t# why\nb: 2\n", {"a": "x", "b": 2}),
        ("a: [1,\t2]\t\n", {"a": [1, 2]}),
        ("a:\n\t\n  b: 1\n", {"a": {"b": 1}}),
        ("a: 1:20\n", {"a": "1:20"}),
        ("a: 1:20.5\n", {"a": "1:20.5"}),
        ("a: 2024-01-01\n", {"a": "2024-01-01"}),
        ("a: 1e-4\n", {"a": 1e-4}),
        ("a: 1_000\n", {"a": 1000}),
        ("a: 0\n", {"a": 0}),
    ],
)
def test_a_text_is_read_as_it_is_meant(text: str, value: object) -> None:
    read, _, problems = parse(text)
    assert (read, problems) == (value, [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a:\n\tb: 1\n", "indent with spaces"),
        ("a:\u00a01\nb: 2\n", "no-break space (U+00A0)"),
        ("a: \u00a01\n", "no-break space (U+00A0)"),
        ("a:\n\u00a0\u00a0b: 1\n", "no-break space (U+00A0)"),
        ("a:\u30001\nb: 2\n", "ideographic space (U+3000)"),
        ("a: \u201cx\u201d\n", "curly quotes"),
        ("a: 010\n", "reads as 8"),
        ("1: x\n", "put this one in quotes"),
        ("a: 1\na: 2\n", "stands twice"),
        ("a: 1\n---\na: 2\n", "another document"),
        ("a: !!python/name:os.system x\n", "has no meaning here"),
    ],
)
def test_what_is_not_read_is_named(text: str, words: str) -> None:
    assert words in str(parse(text)[2][0])


@pytest.mark.parametrize(
    "text",
    [
        "[" * 400_000,
        "- " * 400_000,
        "a: [" + "1, " * 300_000 + "]",
        "? " * 400_000,
        "s: &s {"
        + ", ".join(f"k{i}: 1" for i in range(2000))
        + "}\n"
        + "".join(f"m{i}: {{<<: *s}}\n" for i in range(5000)),
        "l: &l [" + "{a: 1}, " * 5000 + "{a: 1}]\n" + "".join(f"m{i}: {{<<: *l}}\n" for i in range(2000)),
    ],
    ids=["brackets", "lists", "values", "keys", "merges", "merges of one key"],
)
def test_a_huge_text_is_refused_within_seconds(text: str) -> None:
    start = time.perf_counter()
    assert parse(text)[2]
    assert time.perf_counter() - start < 30  # on a busy machine


def test_the_deepest_text_is_read() -> None:
    assert not parse("[" * DEEPEST + "]" * DEEPEST)[2]


def test_a_file_of_many_megabytes_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "o.yml"
    with file.open("wb") as out:
        out.truncate(100_000_000)
    with pytest.raises(OptionsError, match="larger than 1 MB"):
        load_options(file)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("/data/pa$$word", "/data/pa$word"), ("$$", "$"), ("$WHERE/$$x", "here/$x"), ("a$$$$b", "a$$b")],
)
def test_two_dollar_signs_are_one_also_in_the_saved_options(
    written: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHERE", "here")
    file = tmp_path / "a.yml"
    file.write_text(f"name: a\nnetwork_g: {{type: NAFNet}}\npath: {{root: '{written}'}}\n")
    options = load_options(file)
    assert options.path.root == meant
    file.write_text(dump_options(options))
    again = load_options(file)
    assert again == options
    assert changes(dump_options(options), again) == []
