"""The wheel: what an installed package holds."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import sam4ir

ROOT = Path(__file__).resolve().parents[1]
BUILD = ("sam4ir", "options", "datasets", "setup.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE")


def can_build() -> bool:
    """Whether wheels can be built here without downloads."""
    newest = int(metadata.version("setuptools").partition(".")[0]) if importlib.util.find_spec("setuptools") else 0
    return newest >= 71 or importlib.util.find_spec("wheel") is not None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built of a copy of the checkout."""
    if not can_build():
        pytest.skip("needs setuptools>=71 or wheel")
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in BUILD:
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, source / name)
    flags = ["-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(output)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *flags, str(source)], check=True, timeout=200)
    (file,) = output.glob("*.whl")
    return file


@pytest.mark.slow
def test_the_wheel_holds_the_code_and_the_files_that_it_needs(wheel: Path) -> None:
    assert wheel.name.startswith(f"sam4ir-{sam4ir.__version__}-")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {"sam4ir/py.typed", "sam4ir/shipped/datasets/quickstart/masks.lmdb/data.mdb"}
    expected |= {"sam4ir/engine/report/page.css", "sam4ir/engine/report/page.js"}
    for path in (ROOT / "sam4ir").rglob("*.py"):
        expected.add(path.relative_to(ROOT).as_posix())
    for path in (ROOT / "options").rglob("*.yml"):
        expected.add(f"sam4ir/shipped/{path.relative_to(ROOT).as_posix()}")
    assert not expected - names
    others = {name for name in names if not name.startswith("sam4ir/") and ".dist-info/" not in name}
    assert not others
    assert not [name for name in names if "photos" in name or name.endswith("lock.mdb")]


@pytest.mark.slow
def test_the_wheel_names_the_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (entry_points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "sam4ir = sam4ir.cli.main:main" in archive.read(entry_points).decode()
