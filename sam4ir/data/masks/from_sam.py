"""Masks as segment-anything writes them -> what a mask record holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sam4ir import regions
from sam4ir.data.masks.record import MaskColumns, MaskStoreError, encode_record
from sam4ir.errors import UserError

Size = tuple[int, int]
_LARGEST_SIDE = 1 << 31


def read_sam_json(path: str | Path) -> tuple[list[Any], Size | None]:
    """The masks of a JSON file and the image size it states beside them, if it does.

    Accepts the list of segment-anything's automatic generator and SA-1B's {image, annotations}.
    Raises MaskStoreError naming the file and what is wrong with it.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MaskStoreError(f"{path}: not a JSON file ({error})") from None
    except RecursionError:
        raise MaskStoreError(f"{path}: not masks, its JSON is nested too deeply") from None
    size = None
    if isinstance(content, dict):
        if not isinstance(content.get("annotations"), list):
            raise MaskStoreError(f"{path}: key 'annotations' must be the list of masks, as in SA-1B")
        image = content.get("image")
        if isinstance(image, dict) and {"height", "width"} <= set(image):
            size = _checked(f"{path}: key 'image'", _size, [image["height"], image["width"]])
        content = content["annotations"]
    if not isinstance(content, list):
        raise MaskStoreError(
            f"{path}: must hold a list of masks or SA-1B's {{image, annotations}}, not {type(content).__name__}"
        )
    return content, size


def record_from_sam(
    masks: Sequence[Mapping[str, Any]],
    size: Size | None = None,
    image_sha256: bytes = b"",
    spe_sums: Sequence[float] | None = None,
) -> bytes:
    """A record's bytes from segment-anything's mask dictionaries.

    masks: {segmentation, bbox, area, predicted_iou, stability_score, ...}; `segmentation` is COCO RLE with
    compressed (str, bytes) or uncompressed (list) counts, or an (h, w) bool array. Missing bbox and area
    follow from the pixels, missing scores are NaN, other keys are not kept.
    size: (h, w) of the image; needed where the list is empty, checked where it is not.
    image_sha256: 32 bytes (pixel_sha256), empty where it is not known.
    spe_sums: (n,) the rotary table summed over each whole mask, where `masks` are only what is in sight of them; None
    sums it over the masks.
    Raises MaskStoreError naming the mask's number and key.
    """
    runs: list[regions.Runs] = []
    rows: list[list[float]] = []
    for index, mask in enumerate(masks):
        found, one = _checked(f"mask {index}", _segmentation, mask)
        if size is None:
            size = found
        if found != size:
            raise MaskStoreError(f"mask {index}: key 'segmentation' is of size {list(found)}, the image {list(size)}")
        runs.append(one)
        rows.append([*_checked(f"mask {index}", _row, mask, one, size), np.nan])
    if size is None:
        raise MaskStoreError("no masks, so the image's size is not known; give the size, or the folder of images")
    values = np.array(rows, np.float64).reshape(len(runs), 8)
    values[:, 7] = regions.spe_sums(runs, size) if spe_sums is None else spe_sums
    return _record(runs, values, size, image_sha256)


def record_from_atoms(
    atoms: regions.Atoms,
    predicted_iou: np.ndarray,
    stability_score: np.ndarray,
    image_sha256: bytes = b"",
) -> bytes:
    """A record's bytes from masks as atoms: those that record_from_sam makes of the same masks.

    atoms: its labels may leave out atoms of the table, as those of a crop do. predicted_iou, stability_score: (n,).
    Areas, boxes and SPE sums are those of the pixels that are there.
    """
    h, w = atoms.labels.shape
    runs = regions.runs_of_atoms(atoms)
    rows = [
        [regions.area(r), *regions.box(r, (h, w)), iou, stability, regions.spe_sum(r, (h, w))]
        for r, iou, stability in zip(runs, predicted_iou, stability_score, strict=True)
    ]
    return _record(runs, np.array(rows, np.float64).reshape(len(runs), 8), (h, w), image_sha256)


def _record(runs: Sequence[regions.Runs], values: np.ndarray, size: Size, image_sha256: bytes) -> bytes:
    """values: (n, 8) area, box (4), predicted_iou, stability_score, spe_sum."""
    atoms = regions.atoms_of_runs(runs, size)
    first = np.array([regions.first_pixel(r, size) for r in runs], np.int64)
    region = regions.top_masks(atoms.table, regions.paint_order(values[:, 0], first))
    columns = MaskColumns(values[:, 0], values[:, 1:5], *values[:, 5:].T)
    return encode_record(atoms, region, columns, image_sha256)


def pixel_sha256(image: np.ndarray) -> str:
    """Hexadecimal sha256 of an (h, w, 3) RGB image's pixels in raster order, however its file was encoded."""
    return hashlib.sha256(image.tobytes()).hexdigest()


def _checked(place: str, parse: Any, *arguments: Any) -> Any:
    """parse(*arguments); its ValueErrors become MaskStoreErrors that name the place."""
    try:
        return parse(*arguments)
    except ValueError as error:
        raise MaskStoreError(f"{place}: {error}") from None


def _segmentation(mask: Any) -> tuple[Size, regions.Runs]:
    if not isinstance(mask, Mapping):
        raise UserError(f"must be a dictionary, not {type(mask).__name__}")
    if "segmentation" not in mask:
        raise UserError(f"has no key 'segmentation' (it has {', '.join(map(str, mask)) or 'none'})")
    rle = mask["segmentation"]
    if isinstance(rle, np.ndarray):
        if rle.ndim != 2 or not rle.size:
            raise UserError(f"key 'segmentation' must be an (h, w) array, its shape is {rle.shape}")
        return (rle.shape[0], rle.shape[1]), regions.mask_to_runs(rle)
    if not isinstance(rle, Mapping):
        raise UserError("key 'segmentation' must be COCO RLE {size, counts}; polygons are not read")
    for key in ("size", "counts"):
        if key not in rle:
            raise UserError(f"key 'segmentation' has no {key!r}")
    size = _size(rle["size"])
    if not isinstance(rle["counts"], (str, bytes, list, tuple, np.ndarray)):
        raise UserError("key 'segmentation.counts' must be a compressed string or a list of run lengths")
    try:
        return size, regions.parse_counts(rle["counts"], size)
    except regions.RleError as error:
        raise UserError(f"key 'segmentation.counts': {error}") from None


def _size(value: Any) -> Size:
    """(h, w) from a JSON pair."""
    if not (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) and 0 < v < _LARGEST_SIDE for v in value)
    ):
        raise UserError(f"the size must be [height, width], two whole numbers above 0, not {value!r}")
    return int(value[0]), int(value[1])


def _row(mask: Mapping[str, Any], runs: regions.Runs, size: Size) -> list[float]:
    """area, box (4), predicted_iou, stability_score."""
    pixels = regions.area(runs)
    stated = _number(mask, "area", pixels)
    if stated != pixels:
        raise UserError(f"key 'area' is {stated:g}, but the segmentation covers {pixels} pixels")
    bbox = mask.get("bbox", regions.box(runs, size))
    if not (isinstance(bbox, (list, tuple, np.ndarray)) and len(bbox) == 4):
        raise UserError(f"key 'bbox' must be four numbers [x, y, width, height], not {bbox!r}")
    corners = [_number({"bbox": v}, "bbox", 0.0) for v in bbox]
    scores = [_number(mask, key, float("nan")) for key in ("predicted_iou", "stability_score")]
    return [pixels, *corners, *scores]


def _number(mask: Mapping[str, Any], key: str, otherwise: float) -> float:
    value = mask.get(key, otherwise)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise UserError(f"key {key!r} must be a number, not {value!r}")
    return float(value)
