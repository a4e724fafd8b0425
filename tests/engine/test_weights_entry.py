"""Which entry of a weights file is read: the average, or params for official option files, unless param_key says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from sam4ir.config.load import load_options
from sam4ir.config.schema import Options, PathOptions
from sam4ir.engine.build import load_pretrained
from sam4ir.engine.restore.images import image_restorer

NETWORK = {"type": "NAFNet", "width": 4, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [1]}


def options(tmp_path: Path, **values: Any) -> Options:
    file = tmp_path / "o.yml"
    file.write_text(yaml.safe_dump({"name": "x", "device": "cpu", "network_g": NETWORK, **values}), encoding="utf-8")
    return load_options(file, training=False)


@pytest.mark.parametrize(
    ("model_type", "average"),
    [("SRModel", False), ("ImageRestorationModel", False), ("ImageCleanModel", False), (None, True)],
)
def test_official_model_types_read_params(model_type: str | None, average: bool, tmp_path: Path) -> None:
    stated = {"model_type": model_type} if model_type else {}
    assert options(tmp_path, **stated).reads_average is average


def linear(path: Path, key: str | None, average: bool) -> float:
    network = nn.Linear(1, 1, bias=False)
    load_pretrained(network, PathOptions(pretrain_network_g=str(path), param_key_g=key), average)
    return network.weight.item()


def test_param_key_decides(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"params": {"weight": torch.ones(1, 1)}, "params_ema": {"weight": 2 * torch.ones(1, 1)}}, path)
    assert linear(path, None, average=True) == 2
    assert linear(path, None, average=False) == 1
    assert linear(path, "params_ema", average=False) == 2
    assert linear(path, "params", average=True) == 1
    torch.save({"params_ema": {"weight": 2 * torch.ones(1, 1)}}, path)
    assert linear(path, None, average=False) == 2


@pytest.mark.parametrize(("stated", "entry"), [({}, 2), ({"model_type": "SRModel"}, 1)])
@pytest.mark.parametrize("key", [None, "params", "params_ema"])
def test_restoring_reads_the_same_entry(stated: dict[str, str], entry: int, key: str | None, tmp_path: Path) -> None:
    from sam4ir.registry import ARCHS

    arguments = {name: value for name, value in NETWORK.items() if name != "type"}
    zeros = {name: tensor * 0 for name, tensor in ARCHS.get("NAFNet")(**arguments).state_dict().items()}
    files = {"params": {**zeros, "ending.bias": torch.full((3,), 0.25)}}
    files["params_ema"] = {**zeros, "ending.bias": torch.full((3,), 0.5)}
    torch.save(files, tmp_path / "w.pth")
    path = {"param_key_g": key} if key else {}
    restored = image_restorer(options(tmp_path, path=path, **stated), str(tmp_path / "w.pth"))
    image = restored(torch.zeros(16, 16, 3, dtype=torch.uint8).numpy())
    taken = {"params": 1, "params_ema": 2}.get(key or "", entry)
    assert set(image.ravel()) == {64 if taken == 1 else 128}
