"""Make mask records from masks as segment-anything writes them, or from atoms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sam4ir import regions
from sam4ir.data.masks.record import MaskColumns, MaskStoreError, encode_record
from sam4ir.errors import UserError
from sam4ir.utils.containers import MAX_PIXELS

_LARGEST_SIDE = 1 << 31
_LARGEST_JSON = 256 << 20  # bytes


def read_sam_json(path: str | Path) -> tuple[list[Any], regions.Size | None]:
    """Return the masks of a JSON file of one image, and the image size (h, w) where the file states it.

    Accepts the list of segment-anything's automatic generator and SA-1B's {image, annotations}, in UTF-8, UTF-16 or
    UTF-32, with or without a byte order mark, up to _LARGEST_JSON bytes.
    Raises MaskStoreError, with the file and what is wrong with it, also where it holds the masks of several images.
    """
    content = _read_json(Path(path))
    size = None
    _refuse_several_images(Path(path), content)
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


def _read_json(path: Path) -> Any:
    length = path.stat().st_size
    if length > _LARGEST_JSON:
        raise MaskStoreError(f"{path}: has {length} bytes, the masks of one image at most {_LARGEST_JSON}")
    try:
        return json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise MaskStoreError(
            f"{path}: not a JSON file: no text in UTF-8, nor in UTF-16 with a byte order mark (byte {error.start})"
        ) from None
    except ValueError as error:
        raise MaskStoreError(f"{path}: not a JSON file ({error})") from None
    except RecursionError:
        raise MaskStoreError(f"{path}: not masks, its JSON is nested too deeply") from None


def _refuse_several_images(path: Path, content: Any) -> None:
    """Raise MaskStoreError where the annotations are of several images, or of one that the file's name denies.

    COCO's files {images, annotations} and lists of results say by image_id to which image a mask belongs.
    """
    images: Any = None
    annotations = content
    if isinstance(content, dict):
        images, annotations = content.get("images"), content.get("annotations")
    ids = set()
    if isinstance(annotations, list):
        for mask in annotations:
            if isinstance(mask, dict) and "image_id" in mask:
                ids.add(str(mask["image_id"])[:100] if isinstance(mask["image_id"], (int, str)) else "")
    count = len(ids)
    if isinstance(images, list):
        count = max(count, len(images))
    if count > 1:
        raise MaskStoreError(
            f"{path}: holds masks of {count} images, as COCO's files do; an import reads a file for each image: write "
            "the annotations of each image_id as a list to <file_name without suffix>.json"
        )
    if isinstance(images, list) and images and isinstance(images[0], dict):
        name = images[0].get("file_name")
        if not isinstance(name, str):
            return
        if PurePosixPath(name.replace("\\", "/")).stem not in (path.stem, Path(path.stem).stem):
            raise MaskStoreError(
                f"{path}: holds masks of {name!r}, as it says itself, but its name is that of another image; rename it"
            )


def record_from_sam(
    masks: Sequence[Mapping[str, Any]],
    size: regions.Size | None = None,
    image_sha256: bytes = b"",
    spe_sums: Sequence[float] | None = None,
) -> bytes:
    """Return a record's bytes from segment-anything's mask dictionaries.

    masks: {segmentation, bbox, area, predicted_iou, stability_score, ...}; `segmentation` is COCO RLE with
    compressed (str, bytes) or uncompressed (list) counts, or an (h, w) bool array. Missing bbox and area
    are computed from the pixels, missing scores are NaN, other keys are dropped.
    size: (h, w) of the image; needed where the list is empty, checked where it is not.
    image_sha256: 32 bytes (pixel_sha256), empty where it is not known.
    spe_sums: (n,) sum of the rotary table over each whole mask, where `masks` hold only the visible part of the masks;
    None computes the sums from `masks`.
    Raises MaskStoreError, with the mask's number and key.
    """
    runs: list[regions.Runs] = []
    rows: list[list[float]] = []
    for index, mask in enumerate(masks):
        mask_size, mask_runs = _checked(f"mask {index}", _segmentation, mask)
        if size is None:
            size = mask_size
        if mask_size != size:
            raise MaskStoreError(
                f"mask {index}: key 'segmentation' is of size {list(mask_size)}, the image {list(size)}"
            )
        runs.append(mask_runs)
        rows.append([*_checked(f"mask {index}", _row, mask, mask_runs, size), np.nan])
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
    """Return a record's bytes from masks as atoms, equal to those that record_from_sam makes of the same masks.

    atoms: the labels need not use all atoms of the table, as in a crop. predicted_iou, stability_score: (n,). Areas,
    boxes and SPE sums are computed from the pixels in the labels.
    """
    h, w = atoms.labels.shape
    runs = regions.runs_of_atoms(atoms)
    rows = []
    for mask_runs, iou, stability in zip(runs, predicted_iou, stability_score, strict=True):
        box, spe_sum = regions.box(mask_runs, (h, w)), regions.spe_sum(mask_runs, (h, w))
        rows.append([regions.area(mask_runs), *box, iou, stability, spe_sum])
    return _record(runs, np.array(rows, np.float64).reshape(len(runs), 8), (h, w), image_sha256)


def _record(runs: Sequence[regions.Runs], values: np.ndarray, size: regions.Size, image_sha256: bytes) -> bytes:
    """Return a record's bytes. values: (n, 8) area, box (4), predicted_iou, stability_score, spe_sum."""
    atoms = regions.atoms_of_runs(runs, size)
    first = np.array([regions.first_pixel(mask_runs, size) for mask_runs in runs], np.int64)
    region = regions.top_masks(atoms.table, regions.paint_order(values[:, 0], first))
    columns = MaskColumns(values[:, 0], values[:, 1:5], *values[:, 5:].T)
    return encode_record(atoms, region, columns, image_sha256)


def pixel_sha256(image: np.ndarray) -> str:
    """Return the hexadecimal sha256 of an (h, w, 3) RGB image's pixels in raster order."""
    return hashlib.sha256(image.tobytes()).hexdigest()


def _checked(place: str, parse: Any, *arguments: Any) -> Any:
    """Return parse(*arguments), whose ValueErrors become MaskStoreErrors that name the place."""
    try:
        return parse(*arguments)
    except ValueError as error:
        raise MaskStoreError(f"{place}: {error}") from None


def _segmentation(mask: Any) -> tuple[regions.Size, regions.Runs]:
    if not isinstance(mask, Mapping):
        raise UserError(f"must be a dictionary, not {type(mask).__name__}")
    if "segmentation" not in mask:
        raise UserError(f"has no key 'segmentation' (it has {_short(', '.join(map(str, mask))) or 'none'})")
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


def _size(value: Any) -> regions.Size:
    """Return (h, w) from a JSON pair."""
    if not (isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_side, value))):
        raise UserError(f"the size must be [height, width], two whole numbers above 0, not {_short(value)}")
    if value[0] * value[1] > MAX_PIXELS:
        raise UserError(f"the size {_short(value)} is beyond 2^30 pixels, which no image has")
    return int(value[0]), int(value[1])


def _short(value: Any) -> str:
    """Return the value as text for a message."""
    text = ascii(value) if isinstance(value, str) else _number_text(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _number_text(value: Any) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):  # Python refuses to print whole numbers of more than 4,300 digits
        return f"a {type(value).__name__} that is too long to print"


def _is_side(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        return False
    return bool(0 < value < _LARGEST_SIDE)


def _row(mask: Mapping[str, Any], runs: regions.Runs, size: regions.Size) -> list[float]:
    """Return area, box (4), predicted_iou, stability_score; UserError where a key contradicts the pixels."""
    pixels = regions.area(runs)
    stated = _number(mask, "area", pixels)
    if stated != pixels:
        raise UserError(f"key 'area' is {stated:.12g}, but the segmentation covers {pixels} pixels")
    bbox = mask.get("bbox", regions.box(runs, size))
    if not (isinstance(bbox, (list, tuple, np.ndarray)) and len(bbox) == 4):
        raise UserError(f"key 'bbox' must be four numbers [x, y, width, height], not {_short(bbox)}")
    numbers = [_number({"bbox": value}, "bbox", 0.0) for value in bbox]
    if not np.isfinite(numbers).all():
        raise UserError(f"key 'bbox' must be four finite numbers, not {_short(bbox)}")
    for key in ("predicted_iou", "stability_score"):
        score = _number(mask, key, float("nan"))
        if np.isinf(score):
            raise UserError(f"key {key!r} must be finite, not {score}")
        numbers.append(score)
    return [pixels, *numbers]


def _number(mask: Mapping[str, Any], key: str, otherwise: float) -> float:
    value = mask.get(key, otherwise)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise UserError(f"key {key!r} must be a number, not {_short(value)}")
    try:
        return float(value)
    except OverflowError:
        raise UserError(f"key {key!r} is a whole number beyond 10^308; no area, place or score is") from None
