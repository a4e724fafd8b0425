"""Descriptions of parts and of their arguments, read from docstrings.

A registered part documents its arguments in a Google-style block; a class inherits the entries of its bases:

    Args:
        width: Channels at full resolution.
        sigma: Noise level, in units of 0 to 255; one number, or a list
            of two, from which it is drawn.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

_ENTRY = re.compile(r"(\w+)(?: \([^)]*\))?:\s*(.*)")
_SENTENCE = re.compile(r"(.+?[.])(?=\s+[A-Z(]|$)")


def argument_descriptions(part: Callable[..., Any]) -> dict[str, str]:
    """Return argument -> description of a class or function; the entry of the nearest class wins."""
    if not inspect.isclass(part):
        return args_block(part.__doc__)
    descriptions: dict[str, str] = {}
    for owner in reversed(part.__mro__):
        descriptions.update(args_block(vars(owner).get("__doc__")))
    return descriptions


def args_block(docstring: str | None) -> dict[str, str]:
    """Return argument -> description of the `Args:` block of one docstring, wrapped lines joined.

    A docstring without the block gives nothing. Lines that are indented deeper than the first entry continue the
    entry above; the block ends at the next line without indentation.
    """
    descriptions: dict[str, str] = {}
    name, outer = "", 0
    for line in _block_lines(docstring):
        indentation = len(line) - len(line.lstrip())
        outer = outer or indentation
        entry = _ENTRY.fullmatch(line.strip())
        if entry is not None and indentation <= outer:
            name = entry[1]
            descriptions[name] = entry[2].strip()
        elif name:
            descriptions[name] = f"{descriptions[name]} {line.strip()}".strip()
    return descriptions


def _block_lines(docstring: str | None) -> list[str]:
    """Return the lines below `Args:`, without empty ones."""
    lines: list[str] = []
    inside = False
    for line in inspect.cleandoc(docstring or "").splitlines():
        if line.strip() == "Args:" and not line.startswith(" "):
            inside = True
        elif line and not line.startswith(" "):
            inside = False
        elif inside and line.strip():
            lines.append(line)
    return lines


def first_sentence(part: Callable[..., Any]) -> str:
    """Return the first sentence of a part's own docstring without a leading "Return", or '' without a docstring."""
    paragraph = inspect.cleandoc(part.__doc__ or "").split("\n\n")[0]
    text = " ".join(paragraph.split())
    sentence = _SENTENCE.match(text)
    if sentence is not None:
        text = sentence[1]
    if text.startswith("Return "):
        text = text[7:8].upper() + text[8:]
    return text
