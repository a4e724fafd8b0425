"""Measure how the project reads: density, words, names, references, descriptions.

python tests/readability.py               a table for the whole project
python tests/readability.py --folders     one row for each folder, to see where to look
python tests/readability.py --root DIR    the same for another checkout

tests/test_readability.py keeps the figures in bounds. Density is counted for each 1,000 lines of a file, words for each
10,000 words of docstrings.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
DOCUMENTED = (*DEFINITIONS, ast.Module)

# Words that describe the author's own work instead of the thing: as words of docstrings, and as names of variables.
WORK_WORDS = ("told", "tell", "tells")
WORK_NAMES = ("told", "found", "made", "seen", "placed", "taken", "kept")
# What cited documents that the project does not hold.
DANGLING = re.compile(r"(?<!docs/)\b(?:methods|design|performance)\.md\b|\[[PCSND]\]")


@dataclass
class Figures:
    """What is counted in some files."""

    lines: int = 0
    comprehensions: int = 0
    nested_comprehensions: int = 0
    conditional_expressions: int = 0
    conditional_statements: int = 0
    docstring_words: Counter[str] = field(default_factory=Counter)
    variables: Counter[str] = field(default_factory=Counter)
    dangling: list[str] = field(default_factory=list)

    def density(self, count: int) -> float:
        """A count for each 1,000 lines."""
        return 1000 * count / max(self.lines, 1)

    def share(self, words: Sequence[str]) -> float:
        """How often these words stand in each 10,000 words of docstrings."""
        total = max(sum(self.docstring_words.values()), 1)
        return 10_000 * sum(self.docstring_words[word] for word in words) / total


def source_files(root: Path) -> list[Path]:
    """The package, the scripts and the two entry points, sorted."""
    files = [root / "train.py", root / "test.py"]
    for folder in ("sam4ir", "scripts"):
        files += (root / folder).rglob("*.py")
    return sorted(files)


def add(figures: Figures, name: str, source: str) -> None:
    """Count one file."""
    tree = ast.parse(source)
    figures.lines += len(source.splitlines())
    for node in ast.walk(tree):
        _count(figures, node)
    for number, line in enumerate(source.splitlines(), 1):
        if DANGLING.search(line):
            figures.dangling.append(f"{name}:{number}: {line.strip()}")


def _count(figures: Figures, node: ast.AST) -> None:
    if isinstance(node, COMPREHENSIONS):
        figures.comprehensions += 1
        figures.nested_comprehensions += len(node.generators) > 1 or _holds_comprehension(node)
    elif isinstance(node, ast.IfExp):
        figures.conditional_expressions += 1
    elif _is_statement(node):
        figures.conditional_statements += 1
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        figures.variables[node.id] += 1
    if isinstance(node, DOCUMENTED):
        figures.docstring_words.update(re.findall(r"[a-z']+", (ast.get_docstring(node) or "").lower()))


def _is_statement(node: ast.AST) -> bool:
    """Whether a conditional expression or a comprehension stands where a statement should."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, (ast.IfExp, *COMPREHENSIONS))
    return isinstance(node, ast.For) and isinstance(node.iter, ast.IfExp)


def _holds_comprehension(node: ast.AST) -> bool:
    return any(isinstance(inner, COMPREHENSIONS) for inner in ast.walk(node) if inner is not node)


def measure(root: Path, files: Sequence[Path]) -> Figures:
    """The figures of these files together."""
    figures = Figures()
    for file in files:
        add(figures, str(file.relative_to(root)), file.read_text(encoding="utf-8"))
    return figures


def shared_names(root: Path) -> dict[str, set[str]]:
    """Public functions and classes that several modules of the package define: lower-case name -> modules.

    Benchmarks do not count: their reference forms have the names of what they are compared with.
    """
    modules: dict[str, set[str]] = defaultdict(set)
    for file in sorted((root / "sam4ir").rglob("*.py")):
        if "benchmarks" in file.relative_to(root).parts:
            continue
        for name in public_names(file.read_text(encoding="utf-8")):
            modules[name.lower()].add(str(file.relative_to(root)))
    return {name: places for name, places in sorted(modules.items()) if len(places) > 1}


def public_names(source: str) -> Iterator[str]:
    """The functions and classes that a module defines for others."""
    for node in ast.parse(source).body:
        if isinstance(node, DEFINITIONS) and not node.name.startswith("_"):
            yield node.name


def properties(schema: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every property of a JSON schema, with the path that leads to it."""
    if isinstance(schema, Mapping):
        for name, value in schema.get("properties", {}).items():
            yield f"{path}/{name}", value
        for key, value in schema.items():
            yield from properties(value, f"{path}/{key}")
    elif isinstance(schema, list):
        for number, value in enumerate(schema):
            yield from properties(value, f"{path}/{number}")


def undescribed(root: Path) -> tuple[int, list[str]]:
    """How many properties the schema of option files has, and which of them have no description."""
    command = [sys.executable, "-m", "sam4ir.config.schema"]
    schema = json.loads(subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout)
    described = list(properties(schema))
    return len(described), [path for path, value in described if not value.get("description")]


def rows(root: Path) -> list[tuple[str, str]]:
    """The table of the whole project."""
    figures = measure(root, source_files(root))
    shared = shared_names(root)
    total, lacking = undescribed(root)
    variables = ", ".join(f"{name} {figures.variables[name]}" for name in WORK_NAMES)
    return [
        ("lines of Python", str(figures.lines)),
        ("comprehensions per 1,000 lines", f"{figures.density(figures.comprehensions):.1f}"),
        ("nested comprehensions", str(figures.nested_comprehensions)),
        ("conditional expressions per 1,000 lines", f"{figures.density(figures.conditional_expressions):.1f}"),
        ("conditional expressions or comprehensions as statements", str(figures.conditional_statements)),
        ("told, tell, tells per 10,000 words of docstrings", f"{figures.share(WORK_WORDS):.1f}"),
        ("variables with names of one's own work", variables),
        ("public names in several modules", f"{len(shared)}: {', '.join(shared)}"),
        ("option properties without a description", f"{len(lacking)} of {total}"),
        ("dangling references", str(len(figures.dangling))),
    ]


def folder_rows(root: Path) -> Iterator[str]:
    """Density and words of each folder."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for file in source_files(root):
        groups[str(file.parent.relative_to(root))].append(file)
    for name, files in groups.items():
        figures = measure(root, files)
        names = sum(figures.variables[word] for word in WORK_NAMES)
        yield (
            f"{name:28} {figures.lines:6} lines {figures.density(figures.comprehensions):5.1f} comprehensions "
            f"{figures.density(figures.conditional_expressions):5.1f} conditional {names:4} names "
            f"{figures.share(WORK_WORDS):5.1f} told {len(figures.dangling):3} dangling"
        )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (default: this one)")
    parser.add_argument("--folders", action="store_true", help="one row for each folder")
    given = parser.parse_args()
    if given.folders:
        for row in folder_rows(given.root):
            print(row)
        return
    for name, value in rows(given.root):
        print(f"{name:58} {value}")


if __name__ == "__main__":
    main()
