"""The check of a `type:` block: its arguments against the signature of the part that it names.

No network, loss, data set or metric reads option files. The file is checked against the constructor itself, so a
misspelt argument or a value of the wrong kind is an error before anything is built.
"""

from __future__ import annotations

import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
    create_model,
)
from pydantic_core import to_json

from sam4ir.config.descriptions import argument_descriptions
from sam4ir.config.messages import problems_of
from sam4ir.config.yaml_text import Path, Problem
from sam4ir.errors import UserError
from sam4ir.registry import Registry, UnknownNameError

_STRICT = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True, protected_namespaces=()
)
_CONTAINERS = (list, tuple, dict, Sequence, Iterable, Collection, Mapping, typing.Union, types.UnionType)


def _whole(value: Any) -> Any:
    """Return a float without a fraction as an int, anything else unchanged."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


# BasicSR files write counts as `!!float 4e5`; it follows an int's limits, so that they reach the JSON schema
WHOLE = BeforeValidator(_whole)


def _with_whole(hint: Any) -> Any:
    """Return the annotation where every int also takes whole floats, but not where a float is allowed anyway."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is int or (origin is Annotated and inner[0] is int):
        return Annotated[hint, WHOLE]
    if origin not in _CONTAINERS or float in inner:
        return hint
    changed = tuple(_with_whole(part) for part in inner)
    if origin in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, changed)
    return origin[changed]


def argument_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Return argument -> annotation, resolved; more names may be among them. Raises what typing.get_type_hints does.

    The __init__ that @dataclass writes has the annotations of all bases as texts, which only their own modules can
    resolve: there the class is asked.
    """
    if not inspect.isclass(target):
        return typing.get_type_hints(target, include_extras=True)
    owner = _owner_of_init(target)
    fields = vars(owner).get("__dataclass_fields__", {})
    if fields and set(inspect.signature(owner).parameters) <= set(fields):
        return typing.get_type_hints(owner, include_extras=True)
    return typing.get_type_hints(target.__init__, include_extras=True)


def _owner_of_init(target: type) -> type:
    """Return the class that defines the __init__ of a class: itself or the nearest base."""
    for base in target.__mro__:
        if "__init__" in vars(base):
            return base
    return object


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Return argument -> annotation; nothing where an annotation exists for the type checker only."""
    try:
        hints = argument_hints(target)
    except (NameError, AttributeError, TypeError, SyntaxError):
        return {}
    return {name: _with_whole(hint) for name, hint in hints.items()}


def _checkable(hint: Any) -> bool:
    """Return whether pydantic can check this annotation; a user's own part may have any."""
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:
        return False
    return True


@functools.cache
def arguments_model(target: Callable[..., Any], handed: frozenset[str]) -> type[BaseModel]:
    """Return a pydantic model of the arguments that an option file may give to `target`, with their descriptions."""
    hints, descriptions = _hints(target), argument_descriptions(target)
    fields: dict[str, Any] = {}
    config = _STRICT
    for i, parameter in enumerate(inspect.signature(target).parameters.values()):
        name = parameter.name
        if parameter.kind is parameter.VAR_KEYWORD:
            config = ConfigDict(**{**_STRICT, "extra": "allow"})
        elif parameter.kind is not parameter.VAR_POSITIONAL and name not in handed:
            hint = hints.get(name, Any)
            if not _checkable(hint):
                hint = Any
            default = parameter.default
            if default is parameter.empty:
                default = ...  # pydantic's mark of a required field
            # neutral field names: an argument may be called 'copy' or 'json', names that pydantic keeps for itself
            fields[f"argument{i}"] = (hint, Field(default, alias=name, description=descriptions.get(name)))
    return create_model(getattr(target, "__name__", "Arguments"), __config__=config, **fields)


def accepts(target: Callable[..., Any], name: str) -> bool:
    """Return whether `target` has an argument called `name`."""
    return name in inspect.signature(target).parameters


def validate(
    model: type[BaseModel], values: Mapping[str, Any], path: Path = (), also_known: Collection[str] = ()
) -> tuple[BaseModel | None, list[Problem]]:
    """Return (model instance or None, problems with their key paths) of plain values (see yaml_text.parse).

    also_known: further names that a misspelt key of the outermost block may have meant.
    """
    try:
        # JSON rules: a YAML list is fine for a tuple, an int for a float, and nothing else is converted
        return model.model_validate_json(to_json(values)), []
    except ValidationError as error:
        return None, problems_of(error, model, values, path, also_known)


def check_block(
    registry: Registry, block: Mapping[str, Any], path: Path, also_known: Collection[str] = ()
) -> list[Problem]:
    """Return the problems of {type: NAME, argument: value ...}, with key paths below `path`."""
    try:
        target = registry.get(str(block["type"]))
    except UnknownNameError as error:
        return [Problem((*path, "type"), str(error))]
    problems: list[Problem] = []
    arguments = {}
    for key, value in block.items():
        if key in registry.handed:
            problems.append(Problem((*path, key), "is handed over by the program; remove it here"))
        elif key != "type":
            arguments[key] = value
    problems += validate(arguments_model(target, registry.handed), arguments, path, also_known)[1]
    if not problems:
        problems += _own_check(target, {**plain_defaults(registry, str(block["type"])), **arguments}, path)
    return problems


def _own_check(target: Callable[..., Any], arguments: Mapping[str, Any], path: Path) -> list[Problem]:
    """Let a part refuse arguments that do not go together: by a static method check_options(argument, ...)."""
    check = getattr(target, "check_options", None)
    if check is None:
        return []
    checked = {name: arguments[name] for name in inspect.signature(check).parameters}
    try:
        check(**checked)
    except UserError as error:
        return [Problem(path, str(error))]
    return []


def plain_defaults(registry: Registry, type_name: str) -> dict[str, Any]:
    """Return the defaults of a part's arguments that an option file can hold: numbers, texts, null, lists."""
    defaults = {}
    for field in arguments_model(registry.get(type_name), registry.handed).model_fields.values():
        value = field.default
        if isinstance(value, tuple):
            value = list(value)
        if not field.is_required() and _is_plain(value):
            defaults[str(field.alias)] = value
    return defaults


def _is_plain(value: Any) -> bool:
    """Return whether a value is a number, a text, null or a list of these."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def block_arguments(registry: Registry, type_name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a checked block, converted as the signature demands (lists to tuples and the like).

    Raises UserError with all problems of a block that was not checked.
    """
    model = arguments_model(registry.get(type_name), registry.handed)
    checked, problems = validate(model, arguments)
    if checked is None:
        raise UserError(f"{type_name}: " + "; ".join(map(str, problems)))
    values = {}
    for name, field in model.model_fields.items():
        if name in checked.model_fields_set:
            values[field.alias or name] = getattr(checked, name)
    return {**values, **(checked.model_extra or {})}
