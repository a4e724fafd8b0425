"""JSON schema of a `type:` block: the parts of a table, each with the arguments of its own signature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sam4ir.config.descriptions import first_sentence
from sam4ir.config.official import GEOMETRIC, SPELLINGS, TOTAL, idle, takes_geometric
from sam4ir.config.signature import arguments_model
from sam4ir.registry import DATASETS, SCHEDULES, Registry


def block_schema(registry: Registry, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a choice between the parts of a table, and a branch for names of plugins and of other libraries.

    extra: properties that every part of the table has beside its arguments.
    """
    branches = [part_schema(registry, name, extra or {}) for name in registry.names()]
    description = f"Name of a {registry.kind} that one of your plugins registers."
    for prefix in registry.families:
        description += f" Or {prefix}:NAME for one of the library {prefix}, with its arguments there."
    unknown = {"type": "string", "not": {"enum": registry.names()}, "description": description}
    branches.append({"type": "object", "properties": {"type": unknown}, "required": ["type"]})
    return {"anyOf": branches}


def part_schema(registry: Registry, name: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of one part of a table: its `type`, the `extra` properties and its own arguments."""
    part = registry.get(name)
    schema = arguments_model(part, registry.handed).model_json_schema()
    schema.pop("title", None)
    own_name = getattr(part, "__name__", name)
    description = first_sentence(part)
    if own_name != name and own_name in registry:
        description = f"Another name of {own_name}, from official files."
    constant = {"const": name, "description": description}
    properties = {"type": constant, **extra, **schema.get("properties", {})}
    required = ["type", *schema.get("required", [])]
    if registry is DATASETS:
        _data_set_spellings(name, properties)
    if registry is SCHEDULES and TOTAL in required:
        required.remove(TOTAL)  # as_ours fills it in
    return {**schema, "description": first_sentence(part), "properties": properties, "required": required}


def _data_set_spellings(name: str, properties: dict[str, Any]) -> None:
    """Add the keys that official files give to a data set, and allow the null dataroots of their placeholders."""
    if takes_geometric(name):
        properties[GEOMETRIC] = {"type": "boolean", "description": SPELLINGS[GEOMETRIC]}
    for key in idle(name):
        properties[key] = {"type": "string", "description": SPELLINGS[key]}
    for key, own in properties.items():
        if key.startswith("dataroot"):
            own = dict(own)
            description = own.pop("description", "")
            properties[key] = {"anyOf": [own, {"type": "null"}], "description": description}
