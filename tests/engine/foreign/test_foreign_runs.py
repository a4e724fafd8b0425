"""Whole runs with spandrel's networks: training, validation, resume, test, restoring by the weights alone."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import World, photograph

from sam4ir.cli import restore as script
from sam4ir.config.load import load_options
from sam4ir.engine.evaluate.score import score_network
from sam4ir.engine.foreign.network import network
from sam4ir.engine.train.check import check
from sam4ir.engine.train.loop import Trainer
from sam4ir.engine.weights import flow
from sam4ir.utils.image import read_image, write_image

spandrel = pytest.importorskip("spandrel")

COMPACT = {"type": "spandrel:Compact", "num_feat": 8, "num_conv": 2, "upscale": 4}
SCUNET = {"type": "spandrel:SCUNet", "config": [1, 1, 1, 1, 1, 1, 1], "dim": 64}
SWINIR = {
    "type": "spandrel:SwinIR",
    "img_size": 16,
    "embed_dim": 8,
    "depths": [2],
    "num_heads": [2],
    "window_size": 8,
    "upscale": 4,
    "upsampler": "pixelshuffledirect",
}
NAFNET = {"type": "spandrel:NAFNet", "width": 4, "enc_blk_nums": [1], "middle_blk_num": 1, "dec_blk_nums": [1]}


def values(world: World, block: dict[str, Any], name: str, sam: bool = False, scale: int = 1) -> dict[str, Any]:
    """The small world's option file with another network, for 5 iterations."""
    file = world.values(sam, name=name, network_g=block)
    if scale > 1:
        data = {"type": "SuperResolutionDataset", "dataroot_gt": str(world.root / "gt")}
        loader = {"gt_size": 32, "batch_size_per_gpu": 2}
        file |= {"scale": scale, "datasets": {"train": {**data, **loader}, "val": {**data, "name": "small_val"}}}
    file["train"] |= {"total_iter": 5, "pixel_opt": {"type": "L1Loss"}}
    file["train"]["scheduler"] = {"type": "TrueCosineAnnealingLR", "T_max": 5, "eta_min": 1e-7}
    file["val"] |= {"val_freq": 5}
    file["logger"] |= {"save_checkpoint_freq": 3}
    return file


def trained(world: World, file: dict[str, Any], resume: bool = False, *overrides: str) -> Path:
    trainer = Trainer(load_options(world.write(file, f"{file['name']}.yml"), overrides), resume)
    trainer.run()
    return trainer.paths.run


def weights(folder: Path, iteration: int = 5) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "models" / f"net_g_{iteration}.pth", weights_only=True)
    return content


def assert_trains_tests_and_restores(world: World, block: dict[str, Any], sam: bool, scale: int) -> None:
    file = values(world, block, "foreign", sam, scale)
    folder = trained(world, file)
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["l_pix"]) for line in logged if "l_pix" in line)
    content = weights(folder)
    assert any(not torch.equal(content["params"][key], value) for key, value in content["params_ema"].items())
    # a run that stopped after three steps goes on to the same weights
    stopped = {**file, "name": "stopped"}
    stopped_folder = trained(world, stopped)
    for kind in ("models/net_?_5.pth", "models/net_?_latest.pth", "training_states/5.state"):
        for path in stopped_folder.glob(kind):
            path.unlink()
    resumed = weights(trained(world, stopped, True))
    for key, value in content["params"].items():
        assert torch.equal(resumed["params"][key], value), key
    # test.py scores what validation scored
    net = folder / "models" / "net_g_5.pth"
    tested = {**file, "name": "tested", "datasets": {"test": file["datasets"]["val"]}}
    tested["path"] = {**file["path"], "pretrain_network_g": str(net)}
    score_network(load_options(world.write(tested, "tested.yml")))
    summary = json.loads((world.root / "results" / "tested" / "summary.json").read_text())
    assert summary["mean"]["small_val"]["restored"]["psnr"] == logged[-1]["metrics/small_val/psnr"]
    # restored by the run's file, which trains with an average, and by the weights alone
    alone = world.root / "elsewhere.pth"
    alone.write_bytes(net.read_bytes())
    image = photograph(5, 41, 37)
    write_image(world.root / "one.png", image)
    lq = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    state = content["params_ema"]
    for source, output in ((net, "a"), (alone, "b")):
        arguments = ["--weights", str(source), "--input", str(world.root / "one.png"), "--device", "cpu"]
        assert script.main([*arguments, "--output", str(world.root / output)]) == 0
        restored = read_image(world.root / output / "one.png")
        assert restored.shape == (41 * scale, 37 * scale, 3)
        theirs = spandrel.ModelLoader().load_from_state_dict(state).eval()
        assert np.abs(restored - theirs(lq)[0].permute(1, 2, 0).numpy() * 255).max() <= 0.51


def test_a_network_of_spandrel_trains_tests_and_restores(world: World) -> None:
    assert_trains_tests_and_restores(world, COMPACT, sam=False, scale=4)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("block", "sam", "scale"),
    [(SCUNET, False, 1), (SWINIR, False, 4), (NAFNET, True, 1)],
    ids=["SCUNet", "SwinIR x4", "NAFNet SAM4IR"],
)
def test_more_networks_train_test_and_restore(world: World, block: dict[str, Any], sam: bool, scale: int) -> None:
    assert_trains_tests_and_restores(world, block, sam, scale)


def test_check_names_a_scale_that_is_not_the_networks(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    file = values(world, COMPACT, "foreign", scale=4)
    assert check(load_options(world.write(file))) == 0
    assert check(load_options(world.write(file | {"scale": 2}))) == 2
    assert "scale: is 2, but Compact of network_g makes images 4 times as large as its input" in capsys.readouterr().out


@pytest.mark.parametrize("tiles", [(), ("--tile", "24")])
def test_weights_alone_restore_and_one_line_says_whose_network_it_is(
    tmp_path: Path,
    tiles: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("sam4ir"), "propagate", True)
    arguments = {"num_feat": 8, "num_conv": 2, "upscale": 4}
    torch.save({"params": network("Compact")(**arguments).state_dict()}, tmp_path / "4x-anything.pth")
    write_image(tmp_path / "in" / "a.png", photograph(1))
    files = ["--weights", str(tmp_path / "4x-anything.pth"), "--input", str(tmp_path / "in")]
    with caplog.at_level(logging.INFO, "sam4ir"):
        assert script.main([*files, "--output", str(tmp_path / "out"), "--device", "cpu", *tiles]) == 0
    printed = capsys.readouterr().out
    assert "network_g: {type: spandrel:Compact, num_feat: 8, num_conv: 2} (by the weights)" in printed
    assert "knows these weights: they are of its network spandrel:Compact" in caplog.text
    assert read_image(tmp_path / "out" / "a.png").shape == (160, 208, 3)


def test_the_printed_block_is_yaml() -> None:
    block = {"type": "spandrel:SwinIR", "depths": [2], "upsampler": "pixelshuffledirect"}
    assert yaml.safe_load(flow(block)) == block
