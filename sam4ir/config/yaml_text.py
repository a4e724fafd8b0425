"""YAML text -> plain values, with the line of every key.

A stricter and friendlier YAML than PyYAML's default: ``2e-4`` is a float with or without
``!!float``, dates stay strings, a key that stands twice is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

Path = tuple["str | int", ...]


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an option file: where (key path, line or 0) and what."""

    path: Path
    message: str
    line: int = 0

    def __str__(self) -> str:
        place = ".".join(str(p) for p in self.path)
        line = f"line {self.line}: " if self.line else ""
        return f"{line}{place}: {self.message}" if place else f"{line}{self.message}"


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 floats and without dates."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"), list("-+.0123456789")
)


class _Reader:
    """Turns a node tree into plain values; collects problems and lines on the way."""

    def __init__(self, loader: _Loader) -> None:
        self.loader = loader
        self.problems: list[Problem] = []
        self.lines: dict[Path, int] = {}
        self._open: set[int] = set()

    def plain(self, node: yaml.Node, path: Path) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            return self._wrong(node, path, "refers to itself")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            return [self.plain(child, (*path, i)) for i, child in enumerate(node.value)]
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        own = {id(key) for key, _ in node.value}
        self.loader.flatten_mapping(node)  # '<<' merges come first, so that own keys override them
        for key_node, value_node in node.value:
            key = self._scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                self._wrong(key_node, path, f"a key must be a word, not {key!r}")
                continue
            if key in values and id(key_node) in own and (*path, key) in self.lines:
                first = self.lines[(*path, key)]
                self._wrong(key_node, (*path, key), f"stands twice (first in line {first}); keep one")
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            values[key] = self.plain(value_node, (*path, key))
        return values

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        try:
            value = self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError):
            return self._wrong(node, path, f"{node.value!r} does not read as {node.tag.rsplit(':', 1)[-1]}")
        if value is None or isinstance(value, (str, int, float)):
            return value
        return self._wrong(node, path, f"{node.value!r} is no text, number or true/false")

    def _wrong(self, node: yaml.Node, path: Path, message: str) -> None:
        self.problems.append(Problem(path, message, node.start_mark.line + 1))


def parse(text: str) -> tuple[Any, dict[Path, int], list[Problem]]:
    """(plain values, line of each key path, problems) of a YAML text. Never raises."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return {}, {}, []
        reader = _Reader(loader)
        return reader.plain(node, ()), reader.lines, reader.problems
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "not valid YAML"
        return {}, {}, [Problem((), f"not valid YAML: {what}", mark.line + 1 if mark else 0)]
    except (yaml.YAMLError, RecursionError) as error:
        return {}, {}, [Problem((), f"not valid YAML: {str(error).splitlines()[0] if str(error) else 'nested too deep'}")]
    finally:
        if loader is not None:
            loader.dispose()
