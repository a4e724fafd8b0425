"""The contest of scripts/benchmark.py between segment-anything's mask generator and ours, on the same SAM."""

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

from benchmarks.timing import Agreement, Aim, Contest, Form
from sam4ir.data.sources import open_source, read
from sam4ir.priors.sam.automatic_masks import PRECISIONS, AutomaticMaskGenerator, AutomaticMaskSettings
from sam4ir.priors.sam.load import build_sam, load_sam
from sam4ir.utils.image import eight_bits

Generate = Callable[[np.ndarray], list[dict[str, Any]]]
PACKAGE = "segment-anything, {} points a batch"
AIM = Aim(1.3)
# of masks that are made in another precision: the mean distance from 1 of the IoU with their counterparts
DISTANCES = {"fp32": 0.0, "fast": 1e-3, "bf16": 0.1}


@dataclass(frozen=True)
class SamSetting:
    """What the contest is made from: weights (zoo name or file), images (None: two of scikit-image's), the grid."""

    weights: str
    device: torch.device
    images: Path | None = None
    number: int = 2
    points_per_side: int = 8
    quick: bool = False


def photographs(setting: SamSetting) -> list[np.ndarray]:
    """(h, w, 3) uint8 RGB each."""
    if setting.images is None:
        return [skimage.data.chelsea(), skimage.data.astronaut()][: setting.number]
    source = open_source(setting.images, None, "--images")
    return [eight_bits(read(source, key)) for key in source.keys[: setting.number]]


def contest(setting: SamSetting) -> Contest:
    """Masks of photographs: the package with 64 and 16 points a batch, and ours in every precision."""
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
        chosen = AutomaticMaskSettings(points_per_batch=batch, **settings)
        return AutomaticMaskGenerator(sam, chosen, precision).generate

    expected = [package(16)(image) for image in images]
    forms = [_form(PACKAGE.format(64), package(64), images), _form(PACKAGE.format(16), package(16), images)]
    for precision in PRECISIONS:
        alike = [ours(precision, 16)(image) for image in images]
        found = [ours(precision, None)(image) for image in images]
        agreement = {"masks": Agreement(_unlike(expected, alike, precision), 0.0 if precision != "bf16" else 1.0)}
        agreement["1 - matched IoU"] = Agreement(1 - matched_iou(expected, found), DISTANCES[precision])
        agreement["count"] = Agreement(abs(_count(found) / max(_count(expected), 1) - 1), DISTANCES[precision])
        aim = AIM if precision == "fp32" and not setting.quick else None
        name = f"ours, {precision}"
        forms.append(Form(name, _form(name, ours(precision, None), images).run, aim=aim, agreement=agreement))
    told = {"weights": setting.weights, "images": [f"{i.shape[0]}x{i.shape[1]}" for i in images], **settings}
    return Contest("masks of photographs", {**told, "masks": _count(expected)}, forms, forms[2].name)


def _form(name: str, generate: Generate, images: list[np.ndarray]) -> Form:
    def run() -> None:
        for image in images:
            generate(image)

    return Form(name, run)


def _count(listed: list[list[dict[str, Any]]]) -> int:
    return sum(map(len, listed))


def _unlike(expected: list[list[dict[str, Any]]], found: list[list[dict[str, Any]]], precision: str) -> float:
    """Share of masks, at the same points a batch, whose pixels are not those of the package; in fp32 all counts."""
    if [len(masks) for masks in expected] != [len(masks) for masks in found]:
        return 1.0
    pairs = [pair for both in zip(expected, found, strict=True) for pair in zip(*both, strict=True)]
    keys = None if precision == "fp32" else "segmentation"
    return float(np.mean([(a != b) if keys is None else a[keys] != b[keys] for a, b in pairs])) if pairs else 0.0


def matched_iou(expected: list[list[dict[str, Any]]], found: list[list[dict[str, Any]]]) -> float:
    """Mean over all masks of both sides of the IoU with the most alike mask of the other side."""
    best: list[float] = []
    for one, other in zip(expected, found, strict=True):
        best += _best(one, other) + _best(other, one)
    return float(np.mean(best)) if best else 1.0


def _best(masks: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[float]:
    if not masks or not others:
        return [0.0] * len(masks)
    left, right = (
        [coco.frPyObjects(m["segmentation"], *m["segmentation"]["size"]) for m in x] for x in (masks, others)
    )
    table = coco.iou(left, right, [0] * len(right))
    return [float(row.max()) for row in table]
