"""scripts/masks.py as its user calls it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from conftest import World, sam_masks

from sam4ir.data.masks import MaskStore

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "masks.py"))


def masks(*arguments: object) -> int:
    return SCRIPT["main"]([str(a) for a in arguments])


def json_folder(world: World, count: int = 5) -> Path:
    folder = world.root / "json"
    folder.mkdir(exist_ok=True)
    for i in range(count):
        (folder / f"photo_{i}.json").write_text(json.dumps(sam_masks()))
    return folder


def test_import_makes_a_store_that_verifies_and_shows(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    store = world.root / "made.lmdb"
    assert masks("import", "--input", json_folder(world), "--store", store, "--images", world.root / "gt") == 0
    assert masks("verify", store, "--images", world.root / "gt") == 0
    assert masks("info", store) == 0
    assert "5" in capsys.readouterr().out
    assert masks("view", store, "--images", world.root / "gt", "--output", world.root / "view") == 0
    assert len(list((world.root / "view").glob("*.png"))) == 5
    assert MaskStore(store).read("photo_2").count == 3


def test_a_bad_file_is_listed_and_the_rest_is_done(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    folder = json_folder(world)
    (folder / "photo_1.json").write_text("{")
    assert masks("import", "--input", folder, "--store", world.root / "made.lmdb") == 1
    assert "photo_1.json" in "".join(capsys.readouterr())
    assert MaskStore(world.root / "made.lmdb").keys() == [f"photo_{i}" for i in (0, 2, 3, 4)]


def test_verify_lists_what_lacks(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    masks("import", "--input", json_folder(world, count=4), "--store", world.root / "made.lmdb")
    assert masks("verify", world.root / "made.lmdb", "--images", world.root / "gt") == 1
    assert "photo_4" in "".join(capsys.readouterr())


def test_a_missing_store_is_one_message(tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, str(ROOT / "scripts" / "masks.py"), "info", str(tmp_path / "no.lmdb")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no.lmdb" in done.stderr
    assert "Traceback" not in done.stderr
