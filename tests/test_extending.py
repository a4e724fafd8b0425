"""Every example of docs/extending.md runs as it stands: its plugin trains, validates and scores on the small world."""

from __future__ import annotations

import csv
import importlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import World

from sam4ir import registry
from sam4ir.config.load import load_options
from sam4ir.data.loader import train_batches
from sam4ir.data.masks.store import MaskStore
from sam4ir.engine.evaluate.score import score_network
from sam4ir.engine.train.data import data_sets
from sam4ir.engine.train.loop import Trainer
from sam4ir.errors import UserError
from sam4ir.registry import Registry
from sam4ir.utils.image import read_image, write_image

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"
BLOCK = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
BLOCKS: dict[str, str] = dict(BLOCK.findall(PAGE.read_text(encoding="utf-8")))

# Examples that need SAM4IR's model beneath them.
WITH_MASKS = {"my_fusion", "my_term", "my_view", "my_burst", "bright_areas"}


@pytest.fixture
def folder(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The small world with the page's modules in it; what they register is forgotten after the test."""
    for table in vars(registry).values():
        if isinstance(table, Registry):
            monkeypatch.setattr(table, "_entries", dict(table._entries))
    monkeypatch.syspath_prepend(world.root)
    monkeypatch.chdir(world.root)
    for name, text in BLOCKS.items():
        (world.root / name).write_text(text, encoding="utf-8")
    yield world
    for name in BLOCKS:
        sys.modules.pop(Path(name).stem, None)


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the lines of an example; a block with another `type` replaces the whole block."""
    result = dict(values)
    for key, change in changes.items():
        old = values.get(key)
        result[key] = change
        if isinstance(old, Mapping) and isinstance(change, Mapping) and "type" not in change:
            result[key] = merged(old, change)
    return result


def values_of(world: World, name: str) -> dict[str, Any]:
    """An example over the small world: two iterations, validated and saved at the second."""
    values = merged(world.values(sam=name in WITH_MASKS), yaml.safe_load(BLOCKS[f"{name}.yml"]))
    values["train"]["total_iter"] = 2
    if name in WITH_MASKS:
        values["train"]["distill"]["start_iter"] = 0
    values["val"]["val_freq"] = 2
    values["logger"] = {"print_freq": 1, "save_checkpoint_freq": 2}
    return values


def train(world: World, values: Mapping[str, Any]) -> Path:
    """Train by an example's options; returns the folder of the run."""
    Trainer(load_options(world.write(dict(values))), resume=False).run()
    return world.root / "experiments" / values["name"]


def scores(world: World, values: Mapping[str, Any], weights: Path) -> list[dict[str, str]]:
    """The rows that test.py writes of the deployed network, with these weights, on the validation set."""
    data = {key: value for key, value in values["datasets"]["val"].items() if key != "masks"}
    options = {
        "name": "scored",
        "plugins": values.get("plugins", []),
        "device": "cpu",
        "datasets": {"test": data},
        "network_g": values["network_g"],
        "path": {**values["path"], "pretrain_network_g": str(weights)},
        "val": {"metrics": values["val"]["metrics"]},
    }
    score_network(load_options(world.write(options, "test.yml")))
    with (world.root / "results" / "scored" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["stage"] == "restored"]


def records(run: Path) -> list[dict[str, Any]]:
    """The lines of the journal."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def write_bursts(root: Path) -> None:
    """Write two darker images of each photograph, as the burst data set reads them."""
    for file in (root / "gt").glob("*.png"):
        for number in range(2):
            write_image(root / "burst" / file.stem / f"{number}.png", read_image(file) // (number + 2))


EXAMPLES = sorted(Path(name).stem for name in BLOCKS if name.endswith(".yml"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_trains_and_scores(name: str, folder: World) -> None:
    if name == "bright_areas":
        importlib.import_module(name).main("gt", "bright.lmdb")
    if name == "my_burst":
        write_bursts(folder.root)
    values = values_of(folder, name)
    run = train(folder, values)
    lines = [line for line in records(run) if "l_pix" in line]
    assert [line["iter"] for line in lines] == [1, 2]
    assert all(math.isfinite(line["l_pix"]) for line in lines)
    rows = scores(folder, values, run / "models" / "net_g_2.pth")
    assert len(rows) == 5
    for metric in values["val"]["metrics"]:
        assert all(math.isfinite(float(row[metric])) for row in rows), metric


@pytest.mark.parametrize(("name", "term"), [("my_term", "means"), ("my_view", "inner")])
def test_the_term_of_an_example_teaches(folder: World, name: str, term: str) -> None:
    run = train(folder, values_of(folder, name))
    first, second = (line for line in records(run) if f"l_{term}" in line)
    assert first[f"l_{term}"] == 0, "the weight follows the steps before"
    assert second[f"l_{term}"] > 0
    assert second[f"share_{term}"] > 0


def test_the_bursts_of_an_example_pair_with_gt_and_masks(folder: World) -> None:
    """Every value of GT is 2 or 3 times that of the drawn LQ image, up to the division's remainder."""
    write_bursts(folder.root)
    data = data_sets(load_options(folder.write(values_of(folder, "my_burst")))).train
    batch = next(train_batches(data, seed=0, batch_size=8, total_samples=8))
    factors = []
    for lq, gt in zip((batch.lq * 255).round(), (batch.gt * 255).round(), strict=True):
        factors.append(next(factor for factor in (2, 3) if torch.equal(lq, gt.div(factor, rounding_mode="floor"))))
    assert set(factors) == {2, 3}
    assert batch.regions is not None


def test_a_missing_burst_of_an_example_is_named(folder: World) -> None:
    write_bursts(folder.root)
    (folder.root / "burst" / "photo_1" / "0.png").unlink()
    with pytest.raises(UserError, match="photo_1/0"):
        data_sets(load_options(folder.write(values_of(folder, "my_burst"))))


def test_the_map_of_an_example_arrives_in_the_batch(folder: World) -> None:
    data = data_sets(load_options(folder.write(values_of(folder, "my_view")))).train
    batch = next(train_batches(data, seed=0, batch_size=2, total_samples=2))
    distance = batch.maps["BorderDistance"]
    assert distance.shape == (2, 1, 24, 24)
    assert (distance.min(), distance.max()) == (0, 1)
    assert batch.regions is not None, "what the model reads is there too"


@pytest.mark.slow
def test_the_example_of_a_mask_source_makes_a_store_and_goes_on_with_it(folder: World) -> None:
    command = [sys.executable, "bright_areas.py", "gt", "bright.lmdb"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=folder.root, env=environment, check=True, capture_output=True)
    importlib.import_module("bright_areas").main("gt", "bright.lmdb")
    store = MaskStore(folder.root / "bright.lmdb")
    assert store.meta["generator"] == "bright areas"
    assert len(store) == 5
    assert store.read("photo_0").count > 0


def test_a_misspelt_argument_of_an_example_is_an_error(folder: World) -> None:
    values = values_of(folder, "my_network")
    values["network_g"] = {"type": "ThreeConvolutions", "widht": 8}
    with pytest.raises(ValueError, match=r"widht.*width"):
        load_options(folder.write(values))


def test_every_example_has_a_module_and_the_lines_of_an_option_file() -> None:
    assert sorted(Path(name).stem for name in BLOCKS if name.endswith(".py")) == EXAMPLES
