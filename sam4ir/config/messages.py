"""pydantic's errors as problems in the words of an option file: key path, value, expected value, near miss."""

from __future__ import annotations

import inspect
import re
import typing
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from sam4ir.config.yaml_text import Path, Problem
from sam4ir.registry import near_miss

_NUMBER, _WHOLE, _TEXT, _LIST, _BLOCK = "a number", "a whole number", "text", "a list", "a block of keys"

# pydantic's kind of error -> the expected value, filled with the error's own context
_EXPECTED = {
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "float_type": _NUMBER,
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": _TEXT,
    "list_type": _LIST,
    "tuple_type": _LIST,
    "dict_type": _BLOCK,
    "mapping_type": _BLOCK,
    "model_type": _BLOCK,
    "model_attributes_type": _BLOCK,
    "literal_error": "{expected}",
    "missing": "more values",
    "too_long": "at most {max_length} value(s)",
    "too_short": "at least {min_length} value(s)",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "text that matches {pattern}",
}
_QUOTED = re.compile(r"'([^']*)'")


def problems_of(
    error: ValidationError, model: type[BaseModel], values: Any, path: Path, also_known: Collection[str]
) -> list[Problem]:
    """Return one problem for each wrong value, whatever the number of a union's branches.

    values: the validated values. also_known: further keys of the outermost block, for near misses.
    """
    groups: dict[Path, list[tuple[Path, Any]]] = defaultdict(list)
    for item in error.errors(include_url=False):
        place, union = _place(item, values)
        groups[union].append((place, item))
    problems: dict[tuple[Path, str], Problem] = {}
    for alternatives in groups.values():
        deepest = max(len(place) for place, _ in alternatives)  # the branch that failed last is the likely one
        by_place: dict[Path, list[Any]] = defaultdict(list)
        for place, item in alternatives:
            if len(place) == deepest:
                by_place[place].append(item)
        for place, items in by_place.items():
            message = _message(items, _known_names(model, place[:-1], also_known))
            problems[(place, message)] = Problem((*path, *place), message)
    return list(problems.values())


def _place(item: Any, values: Any) -> tuple[Path, Path]:
    """Return (key path of an error, key path of the outermost union around it or the same).

    pydantic mixes the names of a union's branches into the path; a walk through the values separates them.
    """
    place: list[str | int] = []
    union: Path | None = None
    for i, part in enumerate(item["loc"]):
        if _holds(values, part):
            place.append(part)
            values = values[part]
        elif isinstance(part, str) and item["type"] == "missing" and i == len(item["loc"]) - 1:
            place.append(part)
        elif isinstance(part, str) and part != "[key]" and union is None:
            union = tuple(place)
    if union is None:
        union = tuple(place)
    return tuple(place), union


def _holds(values: Any, part: Any) -> bool:
    """Return whether a list has the index `part`, or a block the key `part`."""
    if isinstance(values, list):
        return isinstance(part, int) and part < len(values)
    return isinstance(values, Mapping) and part in values


def _known_names(model: Any, place: Path, also_known: Collection[str]) -> list[str]:
    """Return the keys of the model at `place`."""
    for part in place:
        fields = getattr(model, "model_fields", {})
        if part in fields:
            model = _model_of(fields[part].annotation)
    names = []
    for name, field in getattr(model, "model_fields", {}).items():
        names.append(field.alias or name)
    if not place:
        names += also_known
    return names


def _model_of(annotation: Any) -> Any:
    """Return the pydantic model inside `X | None` or `dict[str, X]`, or the annotation itself."""
    for inner in typing.get_args(annotation):
        model = _model_of(inner)
        if inspect.isclass(model) and issubclass(model, BaseModel):
            return model
    return annotation


def _message(items: Sequence[Any], names: Sequence[str]) -> str:
    """Return the message for one key path; several items are the alternatives of a union.

    names: the keys that the block around the value may have.
    """
    item = items[0]
    kind, value = item["type"], item["input"]
    key = item["loc"][-1] if item["loc"] else None
    if key == "[key]":
        key = value
        if kind == "literal_error":
            kind, names = "extra_forbidden", _QUOTED.findall(item["ctx"]["expected"])
    if kind == "extra_forbidden":
        return "unknown key" + _near_names(str(key), names)
    if kind == "missing" and isinstance(item["loc"][-1], str):
        return "is required and missing"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    expected = list(dict.fromkeys(_expected(alternative) for alternative in items))
    return f"{_shown(value)}: expected {' or '.join(expected)}{_hint(value, expected)}"


def _near_names(key: str, names: Sequence[str]) -> str:
    """Return the near miss of an unknown key, or all keys that the block may have."""
    hint = near_miss(key, names)
    if hint:
        return hint
    return f"; known: {', '.join(sorted(names)) or 'none'}"


def _expected(item: Any) -> str:
    """Return the expected value of one of pydantic's errors, in words."""
    template = _EXPECTED.get(item["type"])
    if template is None:
        message: str = item["msg"]
        return message.removeprefix("Input should be ")
    return template.format(**item.get("ctx", {}))


def _shown(value: Any) -> str:
    """Return a value as an option file would write it, cut short."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    if len(text) > 60:
        text = text[:57] + "..."
    return text


def _hint(value: Any, expected: Sequence[str]) -> str:
    """Return a likely correction of a value, or ''."""
    if isinstance(value, str):
        wants_number = {_NUMBER, _WHOLE} & set(expected)
        if wants_number and re.fullmatch(r"[-+]?[\d.]+([eE][-+]?\d+)?", value.strip()):
            return "; remove the quotes"
        return near_miss(value, _QUOTED.findall(" ".join(expected)))
    if _TEXT in expected and isinstance(value, (int, float)):
        return "; put it in quotes"
    return ""
