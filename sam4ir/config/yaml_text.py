"""Reading and writing of YAML: text to plain values, with the line of every key, and back.

The YAML is stricter and friendlier than PyYAML's default: ``2e-4`` is a float with or without ``!!float``, dates stay
strings, a repeated key is an error, and a text that aliases make huge is refused before it fills the memory.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

Path = tuple["str | int", ...]

DEEPEST = 32
MOST_VALUES = 20_000
LARGEST_TEXT = 1_000_000  # bytes of an option file
LARGEST = 2**63 - 1

_TAG = "tag:yaml.org,2002:"
_EXPONENT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$")
_SIXTIES = re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?$")  # YAML 1.1: 1:20 is 80
_OCTAL = re.compile(r"[-+]?0[0-7_]*[1-7][0-7_]*$")
_ODD_SPACE = re.compile("[\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000\ufeff]")
_ODD_QUOTES = re.compile("[\u2018-\u201f\u00ab].*[\u2018-\u201f\u00bb]$", re.DOTALL)
_LINE_BREAK = re.compile("[\x85\u2028\u2029]")  # beside \n
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # no path and no UTF-8 file holds these


@dataclass(frozen=True)
class Problem:
    """One problem of an option file: its key path, a message, and its line (0 where there is none)."""

    path: Path
    message: str
    line: int = 0

    def __str__(self) -> str:
        words = []
        if self.line:
            words.append(f"line {self.line}")
        if self.path:
            words.append(".".join(map(str, self.path)))
        return ": ".join([*words, self.message])


class _RefusedError(Exception):
    """An error of a text that the reader does not read to its end."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 floats and tabs, without dates, numbers to base 60 and the key '='.

    It refuses a text that is too deep or too long while it reads, before it has read all of it.
    """

    _depth = 0
    _nodes = 0

    def scan_to_next_token(self) -> None:
        """Skip spaces, comments and line ends, and tabs that do not indent a key."""
        super().scan_to_next_token()
        while self.peek() == "\t" and not self._tab_indents():
            while self.peek() in " \t":
                self.forward()
            super().scan_to_next_token()

    def _tab_indents(self) -> bool:
        """Return whether the white space at this place stands before the first token of a line."""
        start = self.pointer - self.column
        if self.flow_level or self.buffer[start : self.pointer].strip(" \t"):
            return False
        ahead = 0
        while self.peek(ahead) in " \t":
            ahead += 1
        return self.peek(ahead) not in "#\r\n\0"

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node of the text. Raises _RefusedError."""
        self._depth += 1
        self._nodes += 1
        if self._depth > 2 * DEEPEST:
            raise _RefusedError(f"is nested more than {DEEPEST} levels deep")
        if self._nodes > 2 * MOST_VALUES:
            raise _RefusedError(f"holds more than {MOST_VALUES:,} values")
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes texts that _Loader would read as floats."""


def _resolvers(first: str, resolvers: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return the (tag, pattern) of plain scalars that begin with `first`: PyYAML's without dates, base 60 and '='."""
    own = [resolver for resolver in resolvers if resolver[0] not in (f"{_TAG}timestamp", f"{_TAG}value")]
    if first in "-+0123456789":
        own.insert(0, (f"{_TAG}str", _SIXTIES))
    return own


_Loader.yaml_implicit_resolvers = {
    first: _resolvers(first, resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}float", _EXPONENT, list("-+.0123456789"))
_Dumper.add_implicit_resolver(f"{_TAG}float", _EXPONENT, list("-+.0123456789"))


def _text_node(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Represent a text; quotes hold what `parse` refuses or reads otherwise without them."""
    style = None
    if _LINE_BREAK.search(text) or _odd_space(text) or _ODD_QUOTES.match(text):
        style = '"'
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)


_Dumper.add_representer(str, _text_node)


class _Reader:
    """The reader of a node tree: it makes plain values, and collects problems and lines."""

    def __init__(self, loader: _Loader) -> None:
        self.loader = loader
        self.problems: list[Problem] = []
        self.lines: dict[Path, int] = {}
        self._open: set[int] = set()
        self._count = 0
        self._keys = 0

    def plain(self, node: yaml.Node, path: Path) -> Any:
        """Return the value of a node, None where it has a problem. Raises _RefusedError for a huge text."""
        self._count += 1
        if self._count > MOST_VALUES:
            raise _RefusedError(f"holds more than {MOST_VALUES:,} values, its aliases written out")
        if len(path) > DEEPEST:
            raise _RefusedError(f"is nested more than {DEEPEST} levels deep")
        self.lines.setdefault(path, _line(node))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            return self._wrong(node, path, "refers to itself")
        if node.tag not in (f"{_TAG}map", f"{_TAG}seq"):
            return self._unknown_tag(node, path)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            return [self.plain(child, (*path, i)) for i, child in enumerate(node.value)]
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        """Return the values of a mapping by key; keys with a problem are left out."""
        values: dict[str, Any] = {}
        for key_node, value_node, own in self._pairs(node, path, {id(node)}):
            key = self._key(key_node, path)
            if key is None:
                continue
            place = (*path, key)
            self._keys += 1
            if self._keys > 10 * MOST_VALUES:  # also those that merges bring and the block has already
                raise _RefusedError(f"merges more than {10 * MOST_VALUES:,} keys")
            if key not in values:
                self.lines[place] = _line(key_node)
                values[key] = self.plain(value_node, place)
            elif own:
                self._wrong(key_node, place, f"stands twice (first in line {self.lines[place]}); keep one")
        return values

    def _pairs(
        self, node: yaml.MappingNode, path: Path, visited: set[int]
    ) -> Iterator[tuple[yaml.Node, yaml.Node, bool]]:
        """Yield (key, value, whether it is the mapping's own): its own pairs, then those of '<<', each source once."""
        sources: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == f"{_TAG}merge":
                sources += _items_of(value)
            else:
                yield key, value, True
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                self._wrong(source, (*path, "<<"), "takes a block of keys or a list of blocks")
            elif id(source) not in visited:
                visited.add(id(source))
                for key, value, _ in self._pairs(source, path, visited):
                    yield key, value, False

    def _key(self, node: yaml.Node, path: Path) -> str | None:
        """Return a key, or None where it has a problem."""
        if not isinstance(node, yaml.ScalarNode):
            self._wrong(node, path, "a key must be a word, not a list or a block")
        elif node.tag != f"{_TAG}str":
            self._wrong(node, (*path, _short(node.value)), "a key must be a word; put this one in quotes")
        elif _NO_TEXT.search(node.value):
            self._wrong(node, path, f"the key {node.value!r} holds a character that text may not hold")
        else:
            return str(self._plain_text(node, path))
        return None

    def _plain_text(self, node: yaml.ScalarNode, path: Path) -> str:
        """Return a text; one without quotes has a problem where its spaces or quotes are no YAML."""
        text = str(node.value)
        if node.style is None:
            odd = _odd_space(text)
            if odd:
                self._wrong(node, path, f"{_short(text)!r} {odd}")
            elif _ODD_QUOTES.match(text):
                self._wrong(node, path, f"{_short(text)!r} stands in curly quotes; write straight ones (\" or ')")
        return text

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        """Return the value of a single text, number, truth value or null, None where it has a problem."""
        kind = node.tag.removeprefix(_TAG)
        if kind not in ("null", "bool", "int", "float", "str"):
            return self._unknown_tag(node, path)
        text = repr(_short(node.value))
        if node.style is None and kind == "str":
            return self._plain_text(node, path)
        if kind == "int" and node.style is None and _OCTAL.match(node.value):
            return self._wrong(
                node,
                path,
                f"{text} reads as {int(node.value.replace('_', ''), 8)} to base 8; write "
                "the number without the leading 0, or in quotes where it is a name",
            )
        try:
            value = self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError, OverflowError):
            return self._wrong(node, path, f"{text} does not read as {kind}")
        if isinstance(value, str) and _NO_TEXT.search(value):
            return self._wrong(node, path, f"{text} holds a character that text may not hold")
        if isinstance(value, float) and not math.isfinite(value):
            return self._wrong(node, path, f"{text} is no finite number")
        if isinstance(value, int) and abs(value) > LARGEST:
            return self._wrong(node, path, f"{text} is too large; whole numbers go to {LARGEST}")
        return value

    def _unknown_tag(self, node: yaml.Node, path: Path) -> None:
        tag = node.tag.replace(_TAG, "!!")
        self._wrong(node, path, f"the tag {tag} has no meaning here; write plain text, numbers, lists and blocks")

    def _wrong(self, node: yaml.Node, path: Path, message: str) -> None:
        self.problems.append(Problem(path, message, _line(node)))


def _odd_space(text: str) -> str:
    """Return what is wrong with the space at the ends of a text or after a colon, '' where nothing is."""
    space = _ODD_SPACE.pattern
    match = re.search(f"^{space}|{space}$|:{space}", text)
    if match is None:
        return ""
    return _named_space(match[0])


def _named_space(text: str) -> str:
    """Return the words for the first odd space of a text."""
    match = _ODD_SPACE.search(text)
    if match is None:
        return ""
    name = unicodedata.name(match[0]).lower()
    return f"holds a {name} (U+{ord(match[0]):04X}), which YAML does not read as a space; write an ordinary space"


def _items_of(node: yaml.Node) -> list[yaml.Node]:
    """Return the nodes of a list, or a list with the node itself."""
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    return [node]


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _short(text: str) -> str:
    if len(text) > 40:
        return text[:37] + "..."
    return text


def parse(text: str) -> tuple[Any, dict[Path, int], list[Problem]]:
    """Return (plain values, line of each key path, problems) of a YAML text. Never raises.

    Plain values are dict with str keys, list, str, finite float, int of at most 64 bits, bool and None.
    An empty text and one that is no YAML give None.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}, []
        reader = _Reader(loader)
        return reader.plain(node, ()), reader.lines, reader.problems
    except (yaml.YAMLError, _RefusedError, RecursionError, ValueError, OverflowError) as error:
        return None, {}, [_failure(error, text, loader)]
    finally:
        if loader is not None:
            loader.dispose()


def _failure(error: Exception, text: str, loader: _Loader | None) -> Problem:
    """Return the problem of a text that cannot be read at all, in one line."""
    if isinstance(error, _RefusedError):
        return Problem((), str(error))
    if isinstance(error, RecursionError):
        return Problem((), f"is nested more than {DEEPEST} levels deep")
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return Problem((), f"not valid YAML: the character {chr(error.character)!r} is not allowed", line)
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        reason = ": ".join(filter(None, (error.context, error.problem)))
        reason += _remedy(reason, text, error)
        return Problem((), f"not valid YAML: {reason}", mark.line + 1 if mark else 0)
    # PyYAML's scanner lets errors of chr() and int() through, for escapes and versions beyond their range
    line = loader.line + 1 if loader is not None else 0
    return Problem((), "not valid YAML: an escaped character or a version is out of range", line)


def _remedy(reason: str, text: str, error: yaml.MarkedYAMLError) -> str:
    """Return what may help against an error: tabs and odd spaces are not seen in an editor."""
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return ""
    lines = [*text.split("\n"), ""]
    if r"'\t'" in reason:
        if lines[mark.line][: mark.column].strip():
            return f"; remove the tab in column {mark.column + 1}"
        return "; indent with spaces, not with tabs"
    first = max(0, (error.context_mark or mark).line - 1)  # a plain text ends at the next line's error
    for line in lines[first : mark.line + 1]:
        if _named_space(line):
            return f"; the line {line.strip()!r} {_named_space(line)}"
    return ""


def dump(values: Any) -> str:
    """Return YAML text of plain values, in their order; `parse` reads it back to equal values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def dump_line(value: Any) -> str:
    """Return a plain value as YAML for a line, such as that of --force_yml; `parse` reads it back to an equal value."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=10**9)
    return str(text).strip().removesuffix("...").strip()
