"""How the engine calls metrics: 8-bit or float, each image prepared once, and what a report says of it."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import World
from torch import Tensor, nn

from sam4ir.config.load import load_options
from sam4ir.data.noisy import GaussianDenoisingDataset
from sam4ir.engine.evaluate import metric as metric_module
from sam4ir.engine.evaluate.build import build_metrics
from sam4ir.engine.evaluate.metric import Metric, Pixels
from sam4ir.engine.evaluate.validate import Outputs, evaluate
from sam4ir.engine.restore.one_pass import Inference, PlainRestorer
from sam4ir.metrics.psnr import psnr, psnr_y
from sam4ir.metrics.ssim import ssim, ssim3d
from sam4ir.registry import METRICS
from sam4ir.utils.image import to_uint8
from sam4ir.utils.rng import generator

PAIR = Path(__file__).parents[2] / "golden" / "golden_metrics.npz"


class Brighter(nn.Module):
    """Adds to every pixel, so that some leave [0, 1]."""

    def forward(self, image: Tensor) -> Tensor:
        return image + 0.3


def denoising(world: World) -> GaussianDenoisingDataset:
    return GaussianDenoisingDataset(dataroot_gt=str(world.root / "gt"), sigma_range=50, noise_seed=1)


def every_metric(uint8: bool) -> dict[str, Metric]:
    """Of two images alone: no degraded one, no network."""
    found = {name: Metric(name, name, METRICS.get(name), {}, uint8) for name in METRICS.names()}
    return {name: m for name, m in found.items() if not {"lq", "state"} & set(inspect.signature(m.function).parameters)}


@pytest.mark.parametrize(
    ("function", "uint8", "expected"),
    [
        (psnr, False, 24.792579290877356),  # NAFNet 2b4af71 calculate_psnr of float images in [0, 1]
        (ssim3d, False, 0.7138984203338623),  # its calculate_ssim of them
        (psnr, True, 24.792579148382607),  # calculate_psnr of the uint8 images
        (ssim3d, True, 0.7139455080032349),
    ],
)
def test_float_and_8_bit_values_are_nafnets(function, uint8: bool, expected: float) -> None:
    arrays = np.load(PAIR)
    noisy, reference = (torch.from_numpy(arrays[n].transpose(2, 0, 1).copy()).float() / 255 for n in ("noisy", "ref"))
    metric = Metric("m", function.__name__, function, {"crop_border": 0}, uint8)
    assert metric(Pixels(noisy), Pixels(reference)) == pytest.approx(expected, abs=1e-4)


def test_float_predictions_are_clamped_and_not_rounded(world: World) -> None:
    metrics = {"float": Metric("float", "psnr", psnr, {}, uint8=False), "bytes": Metric("bytes", "psnr", psnr, {})}
    dataset = denoising(world)
    outputs = Outputs(PlainRestorer(Brighter(), Inference()), torch.device("cpu"))
    scores = evaluate("set", dataset, outputs, metrics, seed=0).scores
    restored = {s.image: s.values for s in scores if s.output == "restored"}
    assert len(restored) == 5
    for i in range(5):
        sample = dataset.get(i, generator(0))
        output = (sample.lq + 0.3).clamp(0, 1)
        values = restored[sample.key]
        assert values["float"] == pytest.approx(psnr(output, sample.gt, data_range=1.0), abs=1e-9)
        rounded = (output * 255).round().to(torch.uint8), (sample.gt * 255).round().to(torch.uint8)
        assert values["bytes"] == pytest.approx(psnr(*rounded), abs=1e-9)
        assert values["float"] != values["bytes"]


def test_each_image_is_rounded_once_for_all_metrics(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(metric_module, "to_uint8", lambda image, real=to_uint8: calls.append(1) or real(image))
    outputs = Outputs(PlainRestorer(Brighter(), Inference()), torch.device("cpu"))
    assert len(evaluate("set", denoising(world), outputs, every_metric(True), seed=0).scores) == 10
    assert len(calls) == 5 * 3  # ground truth, input and restored of five images
    calls.clear()
    assert len(evaluate("set", denoising(world), outputs, every_metric(False), seed=0).scores) == 10
    assert calls == []


@pytest.mark.parametrize("uint8", [True, False])
def test_grey_images_are_scored(uint8: bool) -> None:
    a, b = (Pixels(x) for x in torch.rand(2, 1, 24, 30, generator=torch.Generator().manual_seed(0)).unbind(0))
    for metric in every_metric(uint8).values():
        assert math.isfinite(metric(a, b)), metric.protocol


def test_an_image_that_is_not_finite_scores_nan() -> None:
    good, bad = torch.rand(3, 16, 16), torch.full((3, 16, 16), math.nan)
    for uint8 in (True, False):
        assert math.isnan(Metric("m", "psnr", psnr, {}, uint8)(Pixels(bad), Pixels(good)))


def test_the_protocol_names_range_and_every_argument() -> None:
    plain = Metric("a", "psnr", psnr, {})
    assert plain.protocol == "psnr on 8-bit images, crop_border 0"
    assert Metric("b", "psnr", psnr, {"crop_border": 0}).protocol == plain.protocol
    others = [
        Metric("a", "psnr", psnr, {"crop_border": 4}),
        Metric("a", "psnr", psnr, {}, uint8=False),
        Metric("a", "psnr_y", psnr_y, {}),
    ]
    assert len({plain.protocol, *(m.protocol for m in others)}) == 4
    assert "float images in [0, 1]" in others[1].protocol


@pytest.mark.parametrize(("model_type", "name"), [("ImageRestorationModel", "ssim3d"), ("SRModel", "ssim")])
def test_reports_print_the_protocol_that_an_official_name_stands_for(world: World, model_type: str, name: str) -> None:
    block = {"type": "calculate_ssim", "crop_border": 0, "test_y_channel": False}
    values = world.values(model_type=model_type, val={"metrics": {"s": block}, "use_image": False})
    options = load_options(world.write(values))
    metric = build_metrics(options.val, options.basicsr)["s"]
    assert metric.protocol == f"{name} on float images in [0, 1], crop_border 0"
    assert metric.function is {"ssim3d": ssim3d, "ssim": ssim}[name]
