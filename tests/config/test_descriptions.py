"""Every key of an option file is described, in the words of its own docstring."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sam4ir.config.descriptions import args_block, argument_descriptions, first_sentence

ROOT = Path(__file__).parents[2]

# parts whose `Args:` blocks are still to be written; empty this set
PENDING = {"L1Loss", "MSELoss", "CharbonnierLoss", "PSNRLoss"}


class Property(NamedTuple):
    """A key of the schema. part: the `type` of the block around it, '' where there is none."""

    path: str
    key: str
    part: str
    description: str


def properties(schema: Any, path: str = "", part: str = "") -> Iterator[Property]:
    """Yield every property of a schema: of blocks, of $defs and of the branches of anyOf."""
    if isinstance(schema, list):
        for number, value in enumerate(schema):
            yield from properties(value, f"{path}/{number}", part)
    if not isinstance(schema, dict):
        return
    own = schema.get("properties", {})
    part = own.get("type", {}).get("const", part)
    for key, value in own.items():
        yield Property(f"{path}/{key}", key, part, value.get("description", ""))
        yield from properties(value, f"{path}/{key}", part)
    for key, value in schema.items():
        if key not in {"properties", "default"}:
            yield from properties(value, f"{path}/{key}", part)


@pytest.fixture(scope="module")
def described() -> list[Property]:
    """The keys that the schema prints in a process of its own, without the parts that other tests register."""
    command = [sys.executable, "-m", "sam4ir.config.schema"]
    schema = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return list(properties(json.loads(schema)))


def is_sentence(text: str) -> bool:
    return text.endswith(".") and len(text.split()) >= 4 and not text[0].islower() and "  " not in text


def test_every_key_is_described_by_a_sentence(described: list[Property]) -> None:
    assert len(described) > 600
    lacking = []
    for entry in described:
        if not is_sentence(entry.description) and entry.part not in PENDING:
            lacking.append(f"{entry.part or entry.path}: {entry.key}: {entry.description!r}")
    assert lacking == [], "give each argument a sentence under Args: in the docstring of its part"


def test_pending_parts_lack_descriptions(described: list[Property]) -> None:
    """A part that is described leaves the set."""
    lacking = {entry.part for entry in described if not is_sentence(entry.description)}
    assert lacking >= PENDING


def test_unlike_keys_have_unlike_descriptions(described: list[Property]) -> None:
    """Keys of one block differ, and so do all keys outside of `type:` blocks; networks may have like keys."""
    keys = defaultdict(set)
    for entry in described:
        block = entry.path.rpartition("/")[0] if entry.part else ""
        if entry.description:
            keys[block, entry.description].add(entry.key)
    assert {place: names for place, names in keys.items() if len(names) > 1} == {}


def test_descriptions_are_no_restatement_of_the_key(described: list[Property]) -> None:
    for entry in described:
        words = set(re.findall(r"[a-z0-9]+", entry.description.lower()))
        assert not words or words - {"the", "of", "a", *re.findall(r"[a-z0-9]+", entry.key.lower())}, entry.path


class Base:
    """A part with common arguments.

    Args:
        width: Channels at full resolution.
        depth: Levels of the base.
    """


class Derived(Base):
    """A derived part restores images (see Fig. 2, and eq. 3). Its second sentence has details.

    Raises ValueError for a depth of 0.

    Args:
        depth: Levels of the network: 1 or more,
            counted from the finest
            one.
        sigma (float): Noise level; a number, or
            a list: of two.

        last:
            Whether the last level counts.

    Notes follow without indentation.
        other: No argument.
    """


class Plain(Derived):
    pass


def function(width: int) -> None:
    """Return the width of an image. And more.

    Args:
        width: Width in pixels.
    """


def test_the_nearest_class_describes_an_argument() -> None:
    expected = {
        "width": "Channels at full resolution.",
        "depth": "Levels of the network: 1 or more, counted from the finest one.",
        "sigma": "Noise level; a number, or a list: of two.",
        "last": "Whether the last level counts.",
    }
    assert argument_descriptions(Derived) == expected
    assert argument_descriptions(Plain) == expected


def test_a_function_describes_its_arguments() -> None:
    assert argument_descriptions(function) == {"width": "Width in pixels."}


@pytest.mark.parametrize(
    "docstring", [None, "", "One line.", "One.\n\nArgs: none here.", "Args:\n", "Args:\nwidth: 1."]
)
def test_a_docstring_without_a_block_describes_nothing(docstring: str | None) -> None:
    assert args_block(docstring) == {}


def test_an_argument_that_begins_its_block_with_text_is_ignored() -> None:
    assert args_block("One.\n\nArgs:\n    some text\n    width: In pixels.\n") == {"width": "In pixels."}


def test_the_summary_is_the_first_sentence() -> None:
    assert first_sentence(Derived) == "A derived part restores images (see Fig. 2, and eq. 3)."
    assert first_sentence(function) == "The width of an image."
    assert first_sentence(Plain) == ""
