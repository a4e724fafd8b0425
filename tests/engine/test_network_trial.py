"""The small image with which every network is tried: its scale, its channels, and the sizes that it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam4ir.archs.diffusion_sr import DiffSR
from sam4ir.archs.rrdb import RRDBNet
from sam4ir.engine.build import BuildError, check_images, measured_scale
from sam4ir.engine.restore.one_pass import Inference
from sam4ir.errors import UserError

CPU = torch.device("cpu")


class Enlarging(nn.Module):
    """Repeats pixels. least: side that it needs; window: its sides are multiples of it; out: channels of its output."""

    def __init__(self, scale: int, least: int = 1, window: int = 1, out: int = 3, pad: int = 0) -> None:
        super().__init__()
        self.scale, self.least, self.window, self.out, self.pad = scale, least, window, out, pad

    def forward(self, image: Tensor) -> Tensor:
        side = image.shape[-1]
        if side < self.least or side % self.window:
            raise RuntimeError(f"side {side} does not suit")
        large = image.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)
        return nn.functional.pad(large[:, : self.out], (0, self.pad, 0, self.pad))


@pytest.mark.parametrize(
    ("network", "channels", "multiple", "scale"),
    [
        (Enlarging(1), 3, 1, 1),
        (Enlarging(3), 3, 1, 3),
        (Enlarging(2, out=1), 1, 1, 2),
        (Enlarging(1), 6, 1, 1),  # two views make one image
        (Enlarging(2, least=64), 3, 1, 2),
        (Enlarging(2, least=200), 3, 1, 2),
        (Enlarging(4, window=7), 3, 7, 4),
        (RRDBNet(num_feat=4, num_block=1, num_grow_ch=2, scale=4), 3, 1, 4),
        (RRDBNet(num_feat=4, num_block=1, num_grow_ch=2, scale=2), 3, 1, 2),
    ],
)
def test_the_scale_is_measured(network: nn.Module, channels: int, multiple: int, scale: int) -> None:
    assert measured_scale(network, CPU, channels, multiple=multiple) == scale
    check_images(network, scale, CPU, channels, multiple=multiple)
    with pytest.raises(BuildError, match=rf"scale: is {scale + 1}, but \w+ of network_g makes .*; set scale: {scale}"):
        check_images(network, scale + 1, CPU, channels, multiple=multiple)


@pytest.mark.parametrize("scale", [4, 8])
def test_the_scale_of_a_diffusion_network_is_measured(scale: int) -> None:
    small: dict[str, Any] = {"hidden_size": 8, "dim_mults": [1, 2], "rrdb_num_feat": 8, "rrdb_num_block": 2}
    network = DiffSR(**small, sr_scale=scale)
    assert measured_scale(network, CPU, diffusion=True) == scale
    with pytest.raises(BuildError, match=f"set scale: {scale}"):
        check_images(network, 1, CPU, diffusion=True)


@pytest.mark.parametrize("network", [Enlarging(1, out=1), Enlarging(1, pad=3), nn.AvgPool2d(2), nn.Flatten()])
def test_what_is_no_restored_image_is_named(network: nn.Module) -> None:
    with pytest.raises((UserError, RuntimeError), match="turns"):
        measured_scale(network, CPU)


def test_an_image_that_is_smaller_than_the_scale_says_is_no_result() -> None:
    image = torch.rand(1, 3, 20, 20)
    for tile in (None, 8):
        with pytest.raises(UserError, match="smaller than scale 4 says"):
            Inference(tile=tile, overlap=2, scale=4)(Enlarging(2), image)
    assert Inference(tile=8, overlap=2, scale=2)(Enlarging(2, pad=5), image).shape == (1, 3, 40, 40)
