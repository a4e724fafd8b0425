"""The contest of sam4ir benchmark between segment-anything's mask generator and ours, on the same SAM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from pycocotools import mask as coco
from segment_anything import SamAutomaticMaskGenerator

from sam4ir.benchmarks.timing import Agreement, Aim, Contest, Form
from sam4ir.data.sources import open_source, read
from sam4ir.priors.sam.automatic_masks import PRECISIONS, AutomaticMaskGenerator, AutomaticMaskSettings
from sam4ir.priors.sam.load import build_sam, load_sam
from sam4ir.utils.image import eight_bits

MasksOfImages = list[list[dict[str, Any]]]  # for each image, masks as segment-anything's generator lists them
Generate = Callable[[np.ndarray], list[dict[str, Any]]]
PACKAGE = "segment-anything, {} points a batch"
AIM = Aim(1.3)
# limits for masks in another precision: the mean distance from 1 of their IoU with their counterparts
DISTANCES = {"fp32": 0.0, "fast": 1e-3, "bf16": 0.1}


@dataclass(frozen=True)
class SamSetting:
    """The settings of the contest.

    weights: zoo name or file. images: a folder, None for photographs of scikit-image. number: of photographs.
    points_per_side: of the grid of points. quick: tiny sizes and random weights.
    """

    weights: str
    device: torch.device
    images: Path | None = None
    number: int = 2
    points_per_side: int = 8
    quick: bool = False


def photographs(setting: SamSetting) -> list[np.ndarray]:
    """Return the photographs, (h, w, 3) uint8 RGB each."""
    if setting.images is None:
        return [skimage.data.chelsea(), skimage.data.astronaut()][: setting.number]
    source = open_source(setting.images, None, "--images")
    return [eight_bits(read(source, key)) for key in source.keys[: setting.number]]


def contest(setting: SamSetting) -> Contest:
    """Return the contest of making masks of photographs.

    The package runs with 64 and 16 points in a batch, ours in every precision.
    """
    images = photographs(setting)
    settings: dict[str, Any] = {"points_per_side": 2 if setting.quick else setting.points_per_side}
    if setting.quick:
        sam = build_sam("mobile_sam").to(setting.device)
        images = [image[:96, :128] for image in images[:1]]
        settings |= {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    else:
        sam = load_sam(setting.weights, setting.device).sam

    def package(batch: int) -> Generate:
        return SamAutomaticMaskGenerator(
            sam, points_per_batch=batch, output_mode="uncompressed_rle", **settings
        ).generate

    def ours(precision: Any, batch: int | None) -> Generate:
        mask_settings = AutomaticMaskSettings(points_per_batch=batch, **settings)
        return AutomaticMaskGenerator(sam, mask_settings, precision).generate

    expected = [package(16)(image) for image in images]
    forms = [_form(PACKAGE.format(64), package(64), images), _form(PACKAGE.format(16), package(16), images)]
    for precision in PRECISIONS:
        same_batches = [ours(precision, 16)(image) for image in images]
        masks = [ours(precision, None)(image) for image in images]
        limit = 1.0 if precision == "bf16" else 0.0
        agreement = {"masks": Agreement(_unequal_share(expected, same_batches, precision), limit)}
        agreement["1 - matched IoU"] = Agreement(1 - matched_iou(expected, masks), DISTANCES[precision])
        agreement["count"] = Agreement(abs(_count(masks) / max(_count(expected), 1) - 1), DISTANCES[precision])
        aim = AIM if precision == "fp32" and not setting.quick else None
        name = f"ours, {precision}"
        forms.append(Form(name, _form(name, ours(precision, None), images).run, aim=aim, agreement=agreement))
    sizes = [f"{image.shape[0]}x{image.shape[1]}" for image in images]
    conditions = {"weights": setting.weights, "images": sizes, **settings, "masks": _count(expected)}
    return Contest("masks of photographs", conditions, forms, forms[2].name)


def _form(name: str, generate: Generate, images: list[np.ndarray]) -> Form:
    """Return a form that makes the masks of all images."""

    def run() -> None:
        for image in images:
            generate(image)

    return Form(name, run)


def _count(masks: MasksOfImages) -> int:
    """Return the number of masks of all images."""
    return sum(map(len, masks))


def _unequal_share(expected: MasksOfImages, actual: MasksOfImages, precision: str) -> float:
    """Return the share of masks that differ from the package's, at equal points in a batch; 1 if the numbers differ.

    In fp32 every entry of a mask counts, in other precisions only its pixels.
    """
    if [len(masks) for masks in expected] != [len(masks) for masks in actual]:
        return 1.0
    unequal = []
    for expected_masks, actual_masks in zip(expected, actual, strict=True):
        for one, other in zip(expected_masks, actual_masks, strict=True):
            if precision == "fp32":
                unequal.append(one != other)
            else:
                unequal.append(one["segmentation"] != other["segmentation"])
    return float(np.mean(unequal)) if unequal else 0.0


def matched_iou(expected: MasksOfImages, actual: MasksOfImages) -> float:
    """Return the mean, over all masks of both sides, of the largest IoU with a mask of the other side."""
    best: list[float] = []
    for one, other in zip(expected, actual, strict=True):
        best += _best_ious(one, other) + _best_ious(other, one)
    return float(np.mean(best)) if best else 1.0


def _best_ious(masks: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[float]:
    """Return the largest IoU of each mask with one of the others, 0 where there are no others."""
    if not masks or not others:
        return [0.0] * len(masks)
    table = coco.iou(_compressed(masks), _compressed(others), [0] * len(others))
    return [float(row.max()) for row in table]


def _compressed(masks: list[dict[str, Any]]) -> list[Any]:
    """Return the masks' uncompressed RLE in COCO's compressed form."""
    return [coco.frPyObjects(mask["segmentation"], *mask["segmentation"]["size"]) for mask in masks]
