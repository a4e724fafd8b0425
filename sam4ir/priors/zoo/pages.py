"""Read a web page that a server sent in place of a file."""

from __future__ import annotations

import html.parser
import http.client

LENGTH = 1 << 18  # bytes of a page that are read


def is_page(response: http.client.HTTPResponse) -> bool:
    """Return whether a reply is a web page, by its content type."""
    return (response.headers.get("Content-Type") or "").lower().startswith("text/html")


class Page(html.parser.HTMLParser):
    """The title of a page, and its form `download-form`.

    action: the form's target, None if the page has no such form. fields: the values of its inputs by name.
    """

    def __init__(self, response: http.client.HTTPResponse) -> None:
        super().__init__()
        self.title = ""
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self._inside = ""
        self.feed(response.read(LENGTH).decode("utf-8", "replace"))
        self.title = " ".join(self.title.split())[:100] or "no title"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "title":
            self._inside = "title"
        elif tag == "form" and values.get("id") == "download-form":
            self._inside, self.action = "form", values.get("action", "")
        elif tag == "input" and self._inside == "form" and values.get("name"):
            self.fields[values["name"]] = values.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "title":
            self.title += data
