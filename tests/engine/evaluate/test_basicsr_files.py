"""BasicSR's option files in use: ESRGAN is tested with and without GT, and its weights restore images by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import photograph
from torch import nn

from sam4ir.cli import restore
from sam4ir.config.load import load_options
from sam4ir.engine.evaluate.score import score_network
from sam4ir.registry import ARCHS
from sam4ir.utils.image import read_image, to_float_tensor, to_uint8, write_image

TINY: dict[str, Any] = {"num_feat": 8, "num_block": 2, "num_grow_ch": 4}


@pytest.fixture
def esrgan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A small RRDBNet whose weights lie in net.pth, with two images in lq and their ground truth in gt."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    network: nn.Module = ARCHS.get("RRDBNet")(**TINY)
    torch.save({"params_ema": network.state_dict()}, "net.pth")
    for i in range(2):
        write_image(Path(f"lq/p{i}.png"), photograph(i, 12, 15))
        write_image(Path(f"gt/p{i}.png"), photograph(i, 48, 60))
    return network


def restored(network: nn.Module, image: np.ndarray) -> np.ndarray:
    """What the network makes of an image, as 8 bits."""
    with torch.no_grad():
        result: np.ndarray = to_uint8(network(to_float_tensor(image)[None])[0].clamp(0, 1))
    return result


FILE = """name: esr
model_type: ESRGANModel
scale: 4
num_gpu: 0
datasets: {test_1: {name: Two, type: TYPE, GT dataroot_lq: lq, io_backend: {type: disk}}}
network_g: {type: RRDBNet, num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_block: 2, num_grow_ch: 4}
path: {pretrain_network_g: net.pth, strict_load_g: true}
val: {save_img: true, suffix: ~ METRICS}
"""
WITH_GT = ("PairedImageDataset", "dataroot_gt: gt,", ", metrics: {psnr: {type: calculate_psnr, crop_border: 4}}")


@pytest.mark.parametrize("parts", [WITH_GT, ("SingleImageDataset", "", "")], ids=["with GT", "without GT"])
def test_an_esrgan_file_tests_and_saves_images(esrgan: nn.Module, parts: tuple[str, str, str]) -> None:
    text = FILE.replace("TYPE", parts[0]).replace("GT ", f"{parts[1]} ").replace(" METRICS", parts[2])
    Path("o.yml").write_text(text, encoding="utf-8")
    table = score_network(load_options("o.yml"))
    assert ("psnr" in table) is bool(parts[2])
    for i in range(2):
        (file,) = Path("results/esr/visualization/Two").glob(f"p{i}_*.png")
        expected = restored(esrgan, read_image(Path(f"lq/p{i}.png")))
        assert np.abs(read_image(file).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("scale", "size"), [(4, (12, 15)), (2, (13, 15)), (1, (13, 18))])
def test_weights_of_esrgan_alone_restore_images_of_any_size(
    esrgan: nn.Module, scale: int, size: tuple[int, int]
) -> None:
    network = ARCHS.get("RRDBNet")(scale=scale, **TINY)
    torch.save({"params_ema": network.state_dict()}, "x.pth")
    image = photograph(5, *size)
    write_image(Path("one.png"), image)
    assert restore.main(["--weights", "x.pth", "--input", "one.png", "--output", "out", "--device", "cpu"]) == 0
    unshuffle = 4 // scale
    around = np.pad(image, ((0, -size[0] % unshuffle), (0, -size[1] % unshuffle), (0, 0)), mode="reflect")
    expected = restored(network, around)[: size[0] * scale, : size[1] * scale]
    assert np.abs(read_image(Path("out/one.png")).astype(int) - expected).max() <= 1
