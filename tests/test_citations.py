"""Code cites the project's own documents, by page and anchor; pages name modules that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from readability import DANGLING

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))

# A page of ours has a lower-case name; other projects' pages that we cite begin with a capital.
CITATION = re.compile(r"\bdocs/([a-z][\w/-]*\.md)(?:#([\w-]+))?")
PATH = re.compile(r"`((?:\w+/)+(?:\w+\.py)?)`")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def sources() -> dict[str, str]:
    """The text of every Python file of the project but this one, by its path."""
    files = [*ROOT.glob("*.py")]
    for folder in ("sam4ir", "scripts", "tests"):
        files += (ROOT / folder).rglob("*.py")
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files if file != Path(__file__)}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts and mkdocs make them."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#{1,6} (.+?)\s*$", text, re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower())) for heading in headings}


def problem_of(page: Path, anchor: str) -> str | None:
    """What is wrong with a reference to a page, or to an anchor of it; None where nothing is."""
    if not page.exists():
        return f"there is no {page}"
    if anchor and anchor not in anchors(page):
        return f"{page.name} has no anchor {anchor}; it has {', '.join(sorted(anchors(page)))}"
    return None


def test_code_cites_pages_and_anchors_that_exist() -> None:
    wrong = []
    for name, source in sources().items():
        for page, anchor in CITATION.findall(source):
            problem = problem_of(ROOT / "docs" / page, anchor)
            if problem:
                wrong.append(f"{name}: {problem}")
    assert wrong == []


def test_code_cites_no_document_that_the_project_does_not_hold() -> None:
    dangling = []
    for name, source in sources().items():
        dangling += [f"{name}: {line.strip()}" for line in source.splitlines() if DANGLING.search(line)]
    assert dangling == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_that_a_page_names_exist(page: Path) -> None:
    """A path is one of the repository, or of the package: `engine/train/loop.py`."""
    folders = {file.name for root in (ROOT, ROOT / "sam4ir") for file in root.iterdir() if file.is_dir()}
    folders -= {"datasets", "experiments", "results", "tb_logger"}  # what users make
    lacking = []
    for path in PATH.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        exists = (ROOT / path).exists() or (ROOT / "sam4ir" / path).exists()
        if path.split("/")[0] in folders and not exists:
            lacking.append(path)
    assert lacking == []


@pytest.mark.parametrize(
    ("source", "citations"),
    [
        ("as in docs/method.md#spf.", [("method.md", "spf")]),
        ("(ours: docs/method.md)", [("method.md", "")]),
        ("BasicSR's docs/DatasetPreparation.md", []),
        ("datasets/README.md", []),
    ],
)
def test_citations_are_read(source: str, citations: list[tuple[str, str]]) -> None:
    assert CITATION.findall(source) == citations


def test_anchors_are_those_of_headings(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# The two methods\n\n```python\n# no heading\n```\n\n### Bit-exact `resume`, always\n", encoding="utf-8"
    )
    assert anchors(page) == {"the-two-methods", "bit-exact-resume-always"}
