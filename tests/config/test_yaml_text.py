"""YAML text to plain values with lines, and back; whatever the text, parse does not raise."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam4ir.config.yaml_text import DEEPEST, LARGEST, dump, parse


def values_of(text: str) -> Any:
    values, _, problems = parse(text)
    assert not problems, problems
    return values


def complaints(text: str) -> list[str]:
    """The problems of a text; they all have words and a line or stand for the whole file."""
    return [str(problem) for problem in parse(text)[2]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("!!float 2e-4", 2e-4),
        ("2E4", 2e4),
        ("+2e+4", 2e4),
        (".5e1", 5.0),
        ("1_0e1", 100.0),
        ("!!float 3", 3.0),
        ("3", 3),
        ("0x10", 16),
        ("yes", True),
        ("~", None),
        ("", None),
        ("'2e-4'", "2e-4"),
        ("2020-01-01", "2020-01-01"),
        ("=", "="),
        ("e5", "e5"),
        ("1e5x", "1e5x"),
        (str(LARGEST), LARGEST),
        ("[1, a, [~]]", [1, "a", [None]]),
    ],
)
def test_plain_values(text: str, value: Any) -> None:
    read = values_of(f"a: {text}")["a"]
    assert read == value
    assert type(read) is type(value)


def test_every_key_and_item_has_its_line() -> None:
    _, lines, _ = parse("a: 1\nb:\n  c: [1,\n   2]\n  d: {e: 3}\n")
    assert lines[("a",)] == 1
    assert lines[("b",)] == 2
    assert lines[("b", "c")] == 3
    assert lines[("b", "c", 1)] == 4
    assert lines[("b", "d", "e")] == 5


def test_merged_blocks_give_way_to_own_keys_and_the_first_merged_one_wins() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc:\n  <<: [*a, *b]\n  x: 0\nd: {x: 9, <<: *b, <<: *a}\n"
    values = values_of(text)
    assert values["c"] == {"x": 0, "y": 1, "z": 2}
    assert values["d"] == {"x": 9, "y": 2, "z": 2}


def test_an_aliased_block_is_a_value_of_its_own() -> None:
    values = values_of("a: &a {x: 1}\nb: *a\n")
    values["a"]["x"] = 2
    assert values["b"] == {"x": 1}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: a: stands twice (first in line 1); keep one"),
        ("b: {c: 1,\n c: 2}", "line 2: b.c: stands twice (first in line 1); keep one"),
        ("b: 1\n1: 2", "line 2: 1: a key must be a word; put this one in quotes"),
        ("yes: 2", "line 1: yes: a key must be a word; put this one in quotes"),
        ("~: 2", "line 1: ~: a key must be a word; put this one in quotes"),
        ("? [a, b]\n: 1", "line 1: a key must be a word, not a list or a block"),
        ("a: {? {b: c}\n: 1}", "line 1: a: a key must be a word, not a list or a block"),
        ("a: &x [*x]", "line 1: a.0: refers to itself"),
        ("a: &x {b: *x}", "line 1: a.b: refers to itself"),
        ("<<: 3", "line 1: <<: takes a block of keys or a list of blocks"),
        ("a: {<<: [{b: 1}, 3]}", "line 1: a.<<: takes a block of keys or a list of blocks"),
        ("a: !!int x", "line 1: a: 'x' does not read as int"),
        ("a: !!int ''", "line 1: a: '' does not read as int"),
        ("a: !!int '-'", "line 1: a: '-' does not read as int"),
        ("a: !!float ''", "line 1: a: '' does not read as float"),
        ("a: !!bool maybe", "line 1: a: 'maybe' does not read as bool"),
        ("a: .nan", "line 1: a: '.nan' is no finite number"),
        ("a: [1, -.inf]", "line 1: a.1: '-.inf' is no finite number"),
        ("a: 1e400", "line 1: a: '1e400' is no finite number"),
        (f"a: {LARGEST + 1}", f"line 1: a: '{LARGEST + 1}' is too large; whole numbers go to {LARGEST}"),
        ('a: "\\ud800"', "line 1: a: '\\ud800' holds a character that text may not hold"),
        ('a: "x\\0"', "line 1: a: 'x\\x00' holds a character that text may not hold"),
        ('"\\udfff": 1', "line 1: the key '\\udfff' holds a character that text may not hold"),
        ("\n\na: \x01", "line 3: not valid YAML: the character '\\x01' is not allowed"),
        ("a: 1\n--- \nb: 2", "line 2: not valid YAML: expected a single document in the stream: but found another"),
        ("a:\n\tb: 1", "indent with spaces, not with tabs"),
        ("a: *b", "line 1: not valid YAML: found undefined alias 'b'"),
        ("a: [1", "line 1: not valid YAML: while parsing a flow sequence: expected ',' or ']'"),
        ("a: 'b", "not valid YAML"),
        ("%YAML 9.9\n---\na: 1", "not valid YAML: found incompatible YAML document"),
        ('a: "\\UFFFFFFFF"', "line 1: not valid YAML: an escaped character or a version is out of range"),
        ("%YAML " + "1" * 5000 + ".1\n---\na: 1", "not valid YAML: an escaped character or a version is out of range"),
    ],
)
def test_problems_of_a_text(text: str, complaint: str) -> None:
    assert len(complaints(text)) == 1
    assert complaint in complaints(text)[0]


@pytest.mark.parametrize(
    "tag", ["!mine x", "!!binary aGk=", "!!timestamp ''", "!!set {a}", "!!omap [a: 1]", "!!str [a]"]
)
def test_a_value_of_another_kind_is_refused(tag: str) -> None:
    (complaint,) = complaints(f"name: ok\na: {tag}")
    assert complaint.startswith("line 2: a: the tag !")
    assert complaint.endswith("has no meaning here; write plain text, numbers, lists and blocks")


def test_all_problems_of_a_text_are_found() -> None:
    assert len(complaints("a: .nan\nb: !x y\nb: 1\n3: 4\nc: &c [*c]\n")) == 5


def test_an_integer_of_five_thousand_digits_is_named_in_short() -> None:
    (complaint,) = complaints("a: " + "9" * 5000)
    assert len(complaint) < 100


def nested(depth: int, start: str = "[", end: str = "]") -> str:
    return "a: " + start * depth + end * depth


@pytest.mark.parametrize("depth", [DEEPEST + 1, 400])
def test_deep_nesting_is_refused(depth: int) -> None:
    assert complaints(nested(DEEPEST)) == []
    assert complaints(nested(depth)) == [f"is nested more than {DEEPEST} levels deep"]
    assert complaints(nested(depth, "{b: ", "}")) == [f"is nested more than {DEEPEST} levels deep"]


def test_aliases_that_blow_up_are_refused_at_once() -> None:
    names = "abcdefghijklmnop"
    lists = "a: &a [1]\n" + "".join(
        f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n" for old, new in itertools.pairwise(names)
    )
    merges = "a: &a {x: 1}\n" + "".join(
        f"{new}: &{new} {{<<: [{', '.join(['*' + old] * 10)}]}}\n" for old, new in itertools.pairwise(names)
    )
    start = time.monotonic()
    assert complaints(lists) == ["holds more than 20,000 values, its aliases written out"]
    assert set(map(str, values_of(merges).values())) == {"{'x': 1}"}
    assert time.monotonic() - start < 5


def test_a_text_without_content_is_none() -> None:
    for text in ("", "\n", "# nothing\n", "---\n", "\ufeff"):
        assert parse(text)[0] is None
        assert parse(text)[2] == []


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)  # what parse takes
plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-LARGEST, LARGEST)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(texts | st.sampled_from(["<<", "=", "1", "yes", "2e-4", "~"]), plain_values, max_size=4))
def test_what_is_dumped_reads_back_equal(values: dict[str, Any]) -> None:
    assert values_of(dump(values)) == values


@pytest.mark.parametrize(
    "text", ["2e-4", "1E5", "yes", "~", "=", "2020-01-01", "<<", "1_0", "0x1", "é\x85\u2028\U0001f600"]
)
def test_text_that_looks_like_something_else_stays_text(text: str) -> None:
    assert values_of(dump({"a": text, text: [text]})) == {"a": text, text: [text]}


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=50, deadline=None)
def test_floats_keep_every_bit(value: float) -> None:
    read = values_of(dump({"a": value}))["a"]
    assert read == value
    assert math.copysign(1, read) == math.copysign(1, value)
