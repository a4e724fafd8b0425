"""docs/python.md: its programs run as they stand, in their order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import NETWORK, World, photograph

from sam4ir.registry import ARCHS
from sam4ir.utils.image import write_image

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "python.md"
PROGRAM = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_programs_of_the_document_run(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world.root)
    tiny = ARCHS.get("NAFNet")(**{key: value for key, value in NETWORK.items() if key != "type"})
    torch.save(tiny.state_dict(), "net_g_latest.pth")
    write_image("in/photo.png", photograph(1))
    values = world.values()
    world.write(values, "options.yml")
    del values["train"]
    test_set = {**values["datasets"]["val"], "name": "set"}
    world.write({**values, "name": "test", "datasets": {"test": test_set}}, "test.yml")
    programs = PROGRAM.findall(DOCUMENT.read_text(encoding="utf-8"))
    assert len(programs) == 3
    names: dict[str, object] = {}
    for program in programs:
        exec(compile(program, str(DOCUMENT), "exec"), names)
    printed = capsys.readouterr().out
    assert "photo.png (40, 52, 3)" in printed
    assert "psnr" in printed
