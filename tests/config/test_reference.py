"""docs/options.md is generated from the schema, whole and current."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sam4ir.config.load import load_options, notices
from sam4ir.config.reference import EXAMPLE, kind
from sam4ir.config.schema import Options

ROOT = Path(__file__).parents[2]
COMMAND = "python -m sam4ir.config.reference > docs/options.md"


def printed(module: str) -> str:
    """What a module prints in a process of its own, without the parts that other tests register."""
    command = [sys.executable, "-m", module]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, encoding="utf-8").stdout


@functools.cache
def document() -> str:
    return printed("sam4ir.config.reference")


def test_the_document_is_current() -> None:
    current = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert current == document(), f"docs/options.md is old; run: {COMMAND}"


def test_the_example_loads_and_every_key_of_it_counts() -> None:
    assert f"```yaml\n{EXAMPLE.read_text(encoding='utf-8')}```" in document()
    options = load_options(EXAMPLE)
    assert options.distills
    assert notices(options) == []


def keys(schema: Any) -> set[str]:
    """All keys of a schema."""
    names: set[str] = set()
    if isinstance(schema, list):
        for inner in schema:
            names |= keys(inner)
    elif isinstance(schema, dict):
        names |= schema.get("properties", {}).keys()
        for inner in schema.values():
            names |= keys(inner)
    return names


def test_every_key_and_every_part_has_its_row() -> None:
    schema = json.loads(printed("sam4ir.config.schema"))
    lacking = [key for key in keys(schema) - {"type"} if f"\n| `{key}` |" not in document()]
    assert lacking == []
    parts = set(re.findall(r'"const": "(\w+)"', json.dumps(schema))) - {"auto"}
    assert [part for part in sorted(parts) if f"`{part}`" not in document() and f"type: {part}" not in document()] == []


def test_top_level_blocks_have_sections_and_links_lead_to_headings() -> None:
    text = document()
    blocks = [key for key in Options.model_fields if re.search(rf"\n\| `{key}` \| block ", text)]
    headings = re.findall(r"\n#+ (\S+)\n", text)
    for key in {*blocks} - {"dist_params", "img_path"}:
        assert any(heading.split(".")[0] == key for heading in headings), key
    anchors = {heading.replace(".", "").lower() for heading in headings}
    assert set(re.findall(r"\]\(#(\S+)\)", text)) <= anchors


def test_tables_are_whole() -> None:
    tables = [line for line in document().splitlines() if line.startswith("|")]
    assert tables
    for line in tables:
        assert len(re.findall(r"(?<!\\)\|", line)) in {3, 5}, line
        assert line.endswith("|")


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer", "minimum": 1}, "`int >= 1`"),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 1}, "`float >= 0 and < 1`"),
        ({"enum": ["l1", "psnr"], "type": "string"}, '`"l1"` or `"psnr"`'),
        ({"anyOf": [{"type": "integer"}, {"const": "auto", "type": "string"}, {"type": "null"}]}, '`int` or `"auto"`'),
        ({"type": "array", "items": {"type": "string"}}, "list of `str`"),
        ({"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}]}, "`[float, float]`"),
        ({"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]}, "list of `int`"),
        ({"$ref": "#/$defs/OptimOptions"}, "block"),
        ({"title": "Wandb"}, "anything"),
    ],
)
def test_a_type_reads_as_words(schema: dict[str, Any], text: str) -> None:
    assert kind(schema) == text
