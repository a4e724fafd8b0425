"""The lists of the mutation trial name modules, tests and lines that are there. It needs no cosmic-ray."""

from __future__ import annotations

import json
from pathlib import Path

from targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]


def test_targets_are_files() -> None:
    for module, tests in TARGETS.items():
        for name in (module, *tests):
            assert (ROOT / name).is_file(), name


def test_equivalent_mutants_name_lines_that_are_there_and_a_reason() -> None:
    entries = json.loads(Path(__file__).with_name("equivalent.json").read_text(encoding="utf-8"))
    assert entries
    for entry in entries:
        assert entry["module"] in TARGETS
        assert entry["reason"]
        text = " ".join((ROOT / entry["module"]).read_text(encoding="utf-8").split())
        assert entry["before"] in text, entry
