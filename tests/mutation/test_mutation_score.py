"""The share of small changes of the code that the tests notice: pytest -m mutation tries a sample, for half an hour."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.mutation
@pytest.mark.timeout(4 * 3600)
def test_nine_of_ten_changes_are_noticed(tmp_path: Path) -> None:
    table = tmp_path / "mutation.jsonl"
    command = [sys.executable, "tests/mutation/run.py", "--sample", "10", "--least", "0.9", "--table", str(table)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_and_test_of_the_job_is_there() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from targets import TARGETS

    names = [name for module, tests in TARGETS.items() for name in (module, *tests)]
    assert [name for name in names if not (ROOT / name).is_file()] == []
