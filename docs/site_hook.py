"""MkDocs hook: the site shows files that lie outside docs/, each of which stands once in the repository.

A document links to such a file relative to itself, so that the link works on a code host. For the site, this hook adds
the file under the name that OUTSIDE gives and changes the links.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {  # path in the repository: path in the site
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "datasets/README.md": "data-sets.md",
    "datasets/quickstart/comparison.png": "images/comparison.png",
}
LINK = re.compile(r"(\]\()([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of OUTSIDE to the site."""
    for path, name in OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change links between docs/ and the files of OUTSIDE to their names in the site."""
    origins = {name: path for path, name in OUTSIDE.items()}
    folder = posixpath.dirname(origins.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def site_link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        if target in OUTSIDE:
            return match[1] + OUTSIDE[target]
        if target.startswith("docs/"):
            return match[1] + target.removeprefix("docs/")
        return match[0]

    return LINK.sub(site_link, markdown)
