"""Files that an earlier version wrote still mean the same: a checkpoint, a mask store and every option file.

tests/golden/earlier_run.zip and earlier_options.zip were written by commit 86f6a2e, before the folders were renamed: a
SAM4IR run of eight iterations on the small world of conftest.py, stopped after four, and all option files with their
resolved values.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import World, photograph, sam_masks
from pycocotools import mask as coco

from sam4ir.config.load import load_options
from sam4ir.data.masks.store import MaskStore
from sam4ir.engine.train.loop import Trainer
from sam4ir.utils.image import write_image

GOLDEN = Path(__file__).parent / "golden"
OPTIONS = GOLDEN / "earlier_options.zip"
WHERE = "/tmp/fix/run"  # where the run was made; its option file names it


@pytest.fixture
def earlier(tmp_path: Path) -> World:
    """The small world with the earlier run in it, stopped after four of eight iterations."""
    with zipfile.ZipFile(GOLDEN / "earlier_run.zip") as archive:
        archive.extractall(tmp_path)
    for number in range(5):
        write_image(tmp_path / "gt" / f"photo_{number}.png", photograph(number))
    options = tmp_path / "sam.yml"
    options.write_text(options.read_text(encoding="utf-8").replace(WHERE, str(tmp_path)), encoding="utf-8")
    return World(tmp_path)


def test_an_earlier_checkpoint_goes_on_to_the_same_weights(earlier: World) -> None:
    run = earlier.root / "experiments" / "earlier"
    Trainer(load_options(earlier.root / "sam.yml"), resume=True).run()
    expected = torch.load(run / "expected_8.pth", weights_only=True)
    weights = torch.load(run / "models" / "net_g_8.pth", weights_only=True)["params"]
    assert list(weights) == list(expected)
    for name, value in expected.items():
        # not bit for bit: this machine may sum in another order than the one that made the file
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6, msg=name)
    iterations = [json.loads(line)["iter"] for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(set(iterations)) == list(range(1, 9)), "the run went on from its fourth iteration"


def test_an_earlier_mask_store_is_read(earlier: World) -> None:
    store = MaskStore(str(earlier.root / "masks.lmdb"))
    assert sorted(store.keys()) == [f"photo_{number}" for number in range(5)]
    record = store.read("photo_3")
    wanted = [coco.decode(mask["segmentation"]).astype(bool) for mask in sam_masks()]
    stack = record.stack(0, 0, *record.size)
    assert len(stack) == len(wanted)
    for mask, area in zip(stack, wanted, strict=True):
        assert (mask == area).all()


def earlier_options() -> list[str]:
    """The names of the option files in the archive."""
    with zipfile.ZipFile(OPTIONS) as archive:
        return [name for name in archive.namelist() if name.endswith(".yml")]


def differences(earlier: Any, now: Any, path: str = "") -> Iterator[str]:
    """Where a value of the earlier options is missing or another one now; keys that are new may be there."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        for key, value in earlier.items():
            yield from differences(value, now.get(key), f"{path}/{key}")
    elif earlier != now:
        yield f"{path}: {earlier!r} was, {now!r} is"


@pytest.mark.parametrize("name", earlier_options())
def test_an_earlier_option_file_means_the_same(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(OPTIONS) as archive:
        archive.extract(name, tmp_path)
        resolved = json.loads(archive.read("resolved.json"))[name]
    if resolved["logger"]["use_tb_logger"] is False and "use_tb_logger" not in (tmp_path / name).read_text("utf-8"):
        resolved["logger"]["use_tb_logger"] = None  # the default was off, and is now on where TensorBoard is installed
    options = load_options(tmp_path / name)
    assert list(differences(resolved, json.loads(json.dumps(options.model_dump(mode="json"))))) == []
