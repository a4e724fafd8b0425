"""Checks the arguments of a `type:` block against the signature of what it names.

No network, loss, data set or metric knows about option files; the file is held against the
constructor itself, so a misspelt argument or a value of the wrong kind is found before anything is built.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import PydanticSerializationError, to_json

from sam4ir.config.yaml_text import Path, Problem
from sam4ir.registry import Registry, UnknownNameError, near_miss

_STRICT = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True, protected_namespaces=()
)


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target  # type: ignore[misc]
    try:
        return typing.get_type_hints(function)
    except NameError:  # annotations that exist for the type checker only
        return {}


@functools.lru_cache(maxsize=None)
def arguments_model(target: Callable[..., Any], handed: frozenset[str]) -> type[BaseModel]:
    """A pydantic model of the arguments that an option file may give to `target`."""
    hints, fields, config = _hints(target), {}, _STRICT
    for i, parameter in enumerate(inspect.signature(target).parameters.values()):
        if parameter.kind is parameter.VAR_KEYWORD:
            config = ConfigDict(**{**_STRICT, "extra": "allow"})
        elif parameter.kind is not parameter.VAR_POSITIONAL and parameter.name not in handed:
            default = ... if parameter.default is parameter.empty else parameter.default
            # neutral field names: an argument may be called 'copy' or 'json', names that pydantic keeps for itself
            fields[f"argument{i}"] = (hints.get(parameter.name, Any), Field(default, alias=parameter.name))
    return create_model(getattr(target, "__name__", "Arguments"), __config__=config, **fields)  # type: ignore[call-overload, no-any-return]


def accepts(target: Callable[..., Any], name: str) -> bool:
    """Whether `target` takes an argument called `name`."""
    return name in inspect.signature(target).parameters


def validate(model: type[BaseModel], values: Mapping[str, Any], path: Path = ()) -> tuple[BaseModel | None, list[Problem]]:
    """(model instance or None, problems with their key paths) of plain values."""
    try:
        # JSON rules: a YAML list is fine for a tuple, an int for a float, and nothing else is converted
        return model.model_validate_json(to_json(values, inf_nan_mode="constants")), []
    except ValidationError as error:
        return None, _problems(error, model, path)
    except (PydanticSerializationError, RecursionError) as error:
        return None, [Problem(path, f"holds a value that is no plain text or number ({error})")]


def check_block(registry: Registry, block: Mapping[str, Any], path: Path) -> list[Problem]:
    """Problems of {type: NAME, argument: value ...}, the key paths below `path`."""
    arguments = {k: v for k, v in block.items() if k != "type"}
    try:
        target = registry.get(str(block["type"]))
    except UnknownNameError as error:
        return [Problem((*path, "type"), str(error))]
    return validate(arguments_model(target, registry.handed), arguments, path)[1]


def block_arguments(registry: Registry, type_name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a checked block, converted as the signature says (lists to tuples and the like)."""
    model = arguments_model(registry.get(type_name), registry.handed)
    checked, problems = validate(model, arguments)
    if checked is None:
        raise ValueError(f"{type_name}: " + "; ".join(map(str, problems)))
    given = {model.model_fields[f].alias or f: getattr(checked, f) for f in checked.model_fields_set if f in model.model_fields}
    return {**given, **(checked.model_extra or {})}


def _problems(error: ValidationError, model: type[BaseModel], path: Path) -> list[Problem]:
    problems: dict[tuple[Path, str], Problem] = {}
    for item in error.errors(include_url=False):
        place = tuple(p for p in item["loc"] if not _is_union_branch(p))
        message = _wording(item, _known_names(model, place[:-1]))
        problems.setdefault(((*path, *place), message), Problem((*path, *place), message))
    return list(problems.values())


def _is_union_branch(part: str | int) -> bool:
    """pydantic names the branch of a union inside the place: 'list[int]', 'int', 'function-before[...]'."""
    return isinstance(part, str) and (part in {"int", "float", "str", "bool", "none", "dict", "list", "tuple"} or "[" in part)


def _known_names(model: Any, place: tuple[str | int, ...]) -> list[str]:
    """The keys that the model at `place` knows."""
    for part in place:
        fields = getattr(model, "model_fields", {})
        model = _model_of(fields[part].annotation) if part in fields else model
    return [f.alias or name for name, f in getattr(model, "model_fields", {}).items()]


def _model_of(annotation: Any) -> Any:
    """The pydantic model inside `X | None` or `dict[str, X]`, else the annotation."""
    for inner in typing.get_args(annotation):
        found = _model_of(inner)
        if inspect.isclass(found) and issubclass(found, BaseModel):
            return found
    return annotation


def _wording(item: Any, known: list[str]) -> str:
    kind, value = item["type"], item["input"]
    if kind == "extra_forbidden":
        key = str(item["loc"][-1])
        return f"unknown key{near_miss(key, known) or '; known: ' + ', '.join(sorted(known))}"
    if kind == "missing":
        return "is required and missing"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    shown = repr(value)
    return f"{shown if len(shown) < 60 else shown[:57] + '...'}: {item['msg'][0].lower()}{item['msg'][1:]}"
