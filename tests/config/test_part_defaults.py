"""Parts without arguments do what docs/options.md states; compared in this process, where a mutant can be seen."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sam4ir import registry
from sam4ir.registry import Registry

DOCUMENT = Path(__file__).parents[2] / "docs" / "options.md"
TABLES = [value for value in vars(registry).values() if isinstance(value, Registry)]
ROW = re.compile(r"^\| `(\w+)` \| .*? \| (?:`(.*?)`)? \| ", re.MULTILINE)


def stated() -> dict[str, dict[str, str]]:
    """The defaults of each part by name, as the document states them; '' where a cell is empty."""
    parts: dict[str, dict[str, str]] = {}
    for section in re.split(r"^#+ ", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE):
        name = section.split("\n", 1)[0]
        if f"`type: {name}`" in section:
            parts[name] = dict(ROW.findall(section))
    return parts


STATED = stated()


def cell(default: Any) -> str:
    """A default as the document writes it."""
    if default in (None, inspect.Parameter.empty):
        return ""
    return default if isinstance(default, str) else json.dumps(default)


def test_the_parts_of_the_document_are_found() -> None:
    assert len(STATED) > 40
    assert STATED["SPF"] == {"channels": "3", "width": "32", "with_input": "false", "mask_dropout": "0.0"}


@pytest.mark.parametrize("name", STATED)
def test_defaults_are_the_stated_ones(name: str) -> None:
    (table,) = [table for table in TABLES if name in table]
    arguments = inspect.signature(table.get(name)).parameters
    common = STATED[name].keys() & arguments.keys()
    assert {key: cell(arguments[key].default) for key in common} == {key: STATED[name][key] for key in common}
