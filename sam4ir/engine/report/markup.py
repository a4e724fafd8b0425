"""HTML that is safe by its type: a text is escaped wherever it joins a page, and only what this module made is not."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable
from typing import Any

_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})
_NO_TEXT = re.compile("[\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # no characters of an HTML document
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class Markup(str):
    """HTML that holds no text of others unescaped; `element`, `joined` and `trusted` make it."""

    __slots__ = ()


def escaped(text: object) -> Markup:
    """Return a text as HTML that shows it, also inside a quoted attribute; markup stays as it is."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(_NO_TEXT.sub(_UNKNOWN, str(text)), quote=True))


def trusted(text: str) -> Markup:
    """Return a text of this package, such as its style sheet, as it is."""
    return Markup(text)


def joined(parts: Iterable[object], between: str = "") -> Markup:
    """Return the parts one after the other; texts among them are escaped. between: markup of this package."""
    return Markup(between.join(map(escaped, parts)))


def element(name: str, /, *content: object, **attributes: object) -> Markup:
    """Return an element with its content; texts in it and in attributes are escaped.

    attributes: one of None or False is left out, one of True stands without a value. `class_` is class, and other
    underscores are dashes.
    """
    words = [name]
    for key, value in attributes.items():
        spelt = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(spelt)
        elif value is not None and value is not False:
            words.append(f'{spelt}="{escaped(value)}"')
    start = f"<{' '.join(words)}>"
    if name in _VOID:
        return Markup(start)
    return Markup(f"{start}{joined(content)}</{name}>")


def json_attribute(value: Any) -> str:
    """Return plain values as compact JSON, for an attribute that the page's script reads."""
    return json.dumps(value, separators=(",", ":"))


def data_address(data: bytes, kind: str) -> Markup:
    """Return the address that holds a picture itself. kind: its media type, such as image/png."""
    return Markup(f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}")


def table(head: Iterable[object], rows: Iterable[Iterable[object]], class_: str = "") -> Markup:
    """Return a table that scrolls by itself where the page is narrow; the first cell of a row is its head."""
    lines = [element("tr", *(element("th", cell, scope="col") for cell in head))]
    body = []
    for row in rows:
        first, *others = row
        cells = [element("td", cell) for cell in others]
        body.append(element("tr", element("th", first, scope="row"), *cells))
    whole = element("table", element("thead", *lines), element("tbody", *body), class_=class_ or None)
    return element("div", whole, class_="scroll", tabindex="0", role="group", aria_label="table")


def details(summary: object, *content: object, open_: bool = False) -> Markup:
    """Return content that a click on the summary shows."""
    return element("details", element("summary", summary), *content, open=open_)
