"""The figures of readability.py stay where the pass over names, docstrings and documents brought them."""

from __future__ import annotations

import pytest
from readability import (
    ROOT,
    WORK_NAMES,
    WORK_WORDS,
    Figures,
    add,
    measure,
    properties,
    shared_names,
    source_files,
    undescribed,
)

# Public names that several modules of the package may define, each with the reason.
SHARED: dict[str, str] = {
    "main": "every command module has one; sam4ir.cli.main calls it",
    "parser": "every command module has one; completion asks for it",
    "score": "the class is one value of a metric; the function of the Python interface scores",
}
COMPREHENSIONS, CONDITIONALS = 14.0, 10.0  # for each 1,000 lines; code bases that we admire have 1 to 14 and 0.5 to 17


@pytest.fixture(scope="module")
def figures() -> Figures:
    return measure(ROOT, source_files(ROOT))


def test_density_stays_low(figures: Figures) -> None:
    assert figures.density(figures.comprehensions) <= COMPREHENSIONS
    assert figures.density(figures.conditional_expressions) <= CONDITIONALS


def test_no_expression_stands_as_a_statement(figures: Figures) -> None:
    assert figures.conditional_statements == 0


def test_names_and_docstrings_are_not_about_the_authors_work(figures: Figures) -> None:
    assert {name: figures.variables[name] for name in WORK_NAMES if figures.variables[name]} == {}
    assert figures.share(WORK_WORDS) < 1


def test_no_document_that_is_missing_is_cited(figures: Figures) -> None:
    assert figures.dangling == []


def test_public_names_mean_one_thing() -> None:
    shared = shared_names(ROOT)
    assert set(shared) == set(SHARED), {name: sorted(shared.get(name, ())) for name in set(shared) ^ set(SHARED)}


def test_every_option_has_a_description() -> None:
    total, lacking = undescribed(ROOT)
    assert total > 700
    assert lacking == []


@pytest.mark.parametrize(
    ("source", "figure", "count"),
    [
        ("a = [x for x in y]", "comprehensions", 1),
        ("a = [[x for x in z] for z in y]", "nested_comprehensions", 1),
        ("a = [x for z in y for x in z]", "nested_comprehensions", 1),
        ("a = b if c else d", "conditional_expressions", 1),
        ("print(1) if a else None", "conditional_statements", 1),
        ("[f(x) for x in y]", "conditional_statements", 1),
        ("for x in y if a else ():\n    pass", "conditional_statements", 1),
        ("for x in y:\n    a = x", "conditional_statements", 0),
    ],
)
def test_the_measure_itself(source: str, figure: str, count: int) -> None:
    figures = Figures()
    add(figures, "example.py", source)
    assert getattr(figures, figure) == count


def test_the_measure_sees_words_names_and_references() -> None:
    figures = Figures()
    add(figures, "example.py", '"""What is told; see meth' + 'ods.md."""\nfound = 1\n')
    assert figures.docstring_words["told"] == 1
    assert figures.variables["found"] == 1
    assert len(figures.dangling) == 1


def test_properties_are_listed_at_any_depth() -> None:
    inner = {"properties": {"b": {"description": "Text."}}}
    schema = {"properties": {"a": {"anyOf": [inner]}}, "$defs": {"D": {"properties": {"c": {}}}}}
    assert [path for path, _ in properties(schema)] == ["/a", "/properties/a/anyOf/0/b", "/$defs/D/c"]
