"""The page of a report: its parts in one HTML file, which asks nothing of any other machine."""

from __future__ import annotations

import base64
import hashlib
import platform
from collections.abc import Sequence
from pathlib import Path

from sam4ir import __version__
from sam4ir.engine.report.markup import Markup, element, joined, trusted
from sam4ir.utils.files import read_text

_PARTS = Path(__file__).parent
_NAMES = {"training": "Training", "scores": "Scores", "images": "Images"}


def whole_page(title: str, sections: Sequence[Markup]) -> str:
    """Return the HTML document of some sections; empty ones are left out."""
    script = read_text(_PARTS / "page.js")
    full = [section for section in sections if section]
    links = []
    for section in full:
        for name, words in _NAMES.items():
            if section.startswith(f'<section aria-labelledby="{name}"'):
                links.append(element("li", element("a", words, href=f"#{name}")))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content=f"sam4ir {__version__}"),
        element("title", title),
        element("link", rel="icon", href="data:,"),
        element("style", trusted(read_text(_PARTS / "page.css"))),
    )
    body = element(
        "body",
        element("header", element("h1", title), element("nav", element("ul", *links), aria_label="sections")),
        element("main", *full),
        element("footer", element("p", f"Made by sam4ir {__version__} with Python {platform.python_version()}.")),
        element("script", trusted(script)),
    )
    return f"<!DOCTYPE html>\n{joined([element('html', head, body, lang='en')])}\n"


def _policy(script: str) -> str:
    """Return the policy that forbids the page to ask for anything, and any script but its own."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
