"""Blocks are held against the signature of what they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import pytest
from pydantic import Field

from sam4ir.config.signature import accepts, block_arguments, check_block
from sam4ir.registry import Registry

if TYPE_CHECKING:
    from nowhere import Missing


class Part:
    """Arguments of every kind that a part may have."""

    def __init__(
        self,
        width: int,
        rate: float = 1.0,
        flag: bool = False,
        label: str = "x",
        counts: Sequence[int] = (),
        pair: tuple[int, int] | None = None,
        sigma: float | list[float] = 1.0,
        size: int | list[int] = 1,
        number: int | float = 1,
        kind: Literal["constant", "random"] = "constant",
        level: Annotated[int, Field(ge=2)] = 2,
        weights: Mapping[str, float] | None = None,
        backend: Mapping[Literal["type"], Literal["disk", "lmdb"]] | None = None,
        copy: bool = False,
        handed: object = None,
    ) -> None:
        self.given = {k: v for k, v in vars().items() if k != "self"}


def function_part(image: Any, border: int = 0) -> None:
    """A part that is a function."""


def swallowing(width: int = 1, **others: object) -> None:
    """A user's part that takes anything."""


def half_annotated(width, depth: int = 3, *rest: object):  # type: ignore[no-untyped-def]
    """A user's part without types."""


def for_the_checker(width: Missing = None, depth: int = 3) -> None:
    """A user's part whose annotations do not resolve."""


class Box(TypedDict):
    any: str


def with_odd_annotation(width: Box | int = 3, depth: int = 3) -> None:
    """A user's part with an annotation that pydantic refuses before Python 3.12."""


PARTS = Registry("part", {}, handed=("handed", "image"))
for part in (Part, function_part, swallowing, half_annotated, for_the_checker, with_odd_annotation):
    PARTS.register()(part)


def complaints(**block: Any) -> list[str]:
    return [str(problem) for problem in check_block(PARTS, {"type": "Part", "width": 1, **block}, ("network_g",))]


@pytest.mark.parametrize(
    ("argument", "value", "complaint"),
    [
        ("widht", 1, "widht: unknown key; did you mean 'width'?"),
        ("width", "8", "width: '8': expected a whole number; remove the quotes"),
        ("width", "eight", "width: 'eight': expected a whole number"),
        ("width", 8.5, "width: 8.5: expected a whole number"),
        ("width", True, "width: true: expected a whole number"),
        ("width", None, "width: null: expected a whole number"),
        ("width", [8], "width: [8]: expected a whole number"),
        ("rate", "1e-3", "rate: '1e-3': expected a number; remove the quotes"),
        ("rate", False, "rate: false: expected a number"),
        ("flag", 1, "flag: 1: expected true or false"),
        ("flag", "true", "flag: 'true': expected true or false"),
        ("label", 3, "label: 3: expected text; put it in quotes"),
        ("label", ["a"], "label: ['a']: expected text"),
        ("counts", 1, "counts: 1: expected a list"),
        ("counts", "12", "counts: '12': expected a list"),
        ("counts", {"a": 1}, "counts: {'a': 1}: expected a list"),
        ("counts", [1, "a"], "counts.1: 'a': expected a whole number"),
        ("counts", [1, 1.5], "counts.1: 1.5: expected a whole number"),
        ("pair", [1], "pair: [1]: expected more values"),
        ("pair", [], "pair: []: expected more values"),
        ("pair", [1, 2, 3], "pair: [1, 2, 3]: expected at most 2 value(s)"),
        ("pair", [1, "b"], "pair.1: 'b': expected a whole number"),
        ("sigma", "fifty", "sigma: 'fifty': expected a number or a list"),
        ("sigma", [1, "x"], "sigma.1: 'x': expected a number"),
        ("size", 1.5, "size: 1.5: expected a whole number or a list"),
        ("kind", "constnt", "kind: 'constnt': expected 'constant' or 'random'; did you mean 'constant'?"),
        ("kind", 3, "kind: 3: expected 'constant' or 'random'"),
        ("level", 1, "level: 1: expected at least 2"),
        ("weights", {"int": "x"}, "weights.int: 'x': expected a number"),
        ("weights", 3, "weights: 3: expected a block of keys"),
        ("backend", {"type": "lmbd"}, "backend.type: 'lmbd': expected 'disk' or 'lmdb'; did you mean 'lmdb'?"),
        ("backend", {"tpye": "lmdb"}, "backend.tpye: unknown key; did you mean 'type'?"),
        ("copy", "no", "copy: 'no': expected true or false"),
        ("handed", 3, "handed: is handed over by the program; remove it here"),
        ("type", "Prat", "type: no part is called 'Prat'; did you mean 'Part'? known: "),
    ],
)
def test_one_problem_a_mistake(argument: str, value: Any, complaint: str) -> None:
    (found,) = complaints(**{argument: value})
    assert found.startswith(f"network_g.{complaint}") if complaint.endswith(" ") else found == f"network_g.{complaint}"


def test_every_mistake_of_a_block_is_found() -> None:
    found = complaints(rate="fast", counts=["a", 1, "b"], nonsense=1, kind=2)
    places = ["counts.0", "counts.2", "kind", "nonsense", "rate"]
    assert sorted(text.split(":")[0] for text in found) == [f"network_g.{place}" for place in places]


def test_a_missing_argument_is_named() -> None:
    (problem,) = check_block(PARTS, {"type": "Part"}, ("network_g",))
    assert str(problem) == "network_g.width: is required and missing"


def test_an_unknown_key_without_a_near_miss_gets_the_known_names() -> None:
    (problem,) = check_block(PARTS, {"type": "function_part", "x": 1}, ("val", "metrics", "m"), also_known=("loader",))
    assert str(problem) == "val.metrics.m.x: unknown key; known: border, loader"


def test_values_arrive_as_the_signature_says() -> None:
    block = {"width": 8, "rate": 1, "counts": [1, 2.0], "pair": [1, 2], "sigma": [1, 2.5], "size": 4e5, "copy": True}
    arguments = block_arguments(PARTS, "Part", block)
    assert arguments == {**block, "counts": [1, 2], "pair": (1, 2), "size": 400_000}
    assert isinstance(arguments["rate"], float)
    assert isinstance(arguments["size"], int)
    assert all(isinstance(count, int) for count in arguments["counts"])
    assert Part(**arguments).given["pair"] == (1, 2)


def test_whole_floats_stay_floats_where_a_float_would_do() -> None:
    arguments = block_arguments(PARTS, "Part", {"width": 1, "number": 8.0, "sigma": 8})
    assert isinstance(arguments["number"], float)
    assert isinstance(arguments["sigma"], float)


def test_arguments_that_do_not_fit_raise_with_every_reason() -> None:
    with pytest.raises(
        ValueError, match=r"Part: width: is required and missing; widht: unknown key; did you mean 'width'\?"
    ):
        block_arguments(PARTS, "Part", {"widht": 1})


@pytest.mark.parametrize("name", ["half_annotated", "with_odd_annotation"])
def test_what_a_users_own_part_annotates_is_checked_and_the_rest_is_let_through(name: str) -> None:
    assert check_block(PARTS, {"type": name, "width": {"any": "thing"}, "depth": 4}, ()) == []
    assert [str(p) for p in check_block(PARTS, {"type": name, "width": 1, "depht": 4}, ())] == [
        "depht: unknown key; did you mean 'depth'?"
    ]


def test_the_names_of_a_part_are_checked_where_its_annotations_do_not_resolve() -> None:
    assert check_block(PARTS, {"type": "for_the_checker", "width": "x", "depth": "y"}, ()) == []
    assert len(check_block(PARTS, {"type": "for_the_checker", "depht": 4}, ())) == 1


def test_only_a_users_own_catch_all_takes_any_name() -> None:
    assert check_block(PARTS, {"type": "swallowing", "widht": 1}, ()) == []
    assert block_arguments(PARTS, "swallowing", {"other": 1}) == {"other": 1}


def test_accepts_tells_whether_an_argument_exists() -> None:
    assert accepts(Part, "width")
    assert not accepts(Part, "depth")
