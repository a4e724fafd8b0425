"""Label maps and folders of binary masks -> masks in segment-anything's form."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam4ir import regions
from sam4ir.data.mask_record import MaskStoreError
from sam4ir.utils.image import read_labels

MAX_LABELS = 10_000  # beyond, it is a photograph; atoms x masks would not fit into memory either
METADATA = "metadata.csv"

_SCORES = ("predicted_iou", "stability_score")
_BOX = ("bbox_x0", "bbox_y0", "bbox_w", "bbox_h")
Masks = list[dict[str, Any]]


@dataclass(frozen=True)
class LabelRules:
    """How the values of a label map are read.

    background: labels that are no region. rgb: each colour is a label, 65536 R + 256 G + B.
    """

    background: tuple[int, ...] = (0,)
    rgb: bool = False


def masks_of_labels(labels: NDArray[Any], background: Collection[int] = ()) -> Masks:
    """One mask a label of an (h, w) integer map, ascending, however many pieces it has; `background` gives none."""
    h, w = labels.shape
    flat = labels.T.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    ends = np.append(starts[1:], h * w)
    of_run = flat[starts]
    order = np.argsort(of_run, kind="stable")
    values, first = np.unique(of_run[order], return_index=True)
    masks = []
    for value, runs in zip(values.tolist(), np.split(order, first[1:]), strict=True):
        if value not in background:
            edges = np.column_stack((starts[runs], ends[runs])).ravel()
            masks.append({"segmentation": {"size": [h, w], "counts": np.diff(edges, prepend=0, append=h * w)}})
    return masks


def read_label_map(path: Path, rules: LabelRules) -> tuple[Masks, regions.Size]:
    """The masks of a label map's file and its size. Raises ValueError naming file and reason."""
    labels: NDArray[Any] = read_labels(path)
    if labels.ndim == 3:
        if not rules.rgb:
            raise MaskStoreError(f"{path}: a colour picture; if each colour is a label, say --rgb")
        if labels.dtype != np.uint8:
            raise MaskStoreError(f"{path}: colours of 16 bits; labels coded as colours need 8")
        labels = labels.astype(np.int64) @ [65536, 256, 1]
    elif rules.rgb and labels.dtype == np.uint8:  # the channels were equal
        labels = labels.astype(np.int64) * 0x10101
    count = len(np.unique(labels))
    if count > MAX_LABELS:
        raise MaskStoreError(f"{path}: {count} labels (at most {MAX_LABELS}); is it a photograph?")
    return masks_of_labels(labels, rules.background), (labels.shape[0], labels.shape[1])


def read_binary_folder(folder: Path) -> tuple[Masks, regions.Size | None]:
    """The masks of one image: a folder of PNGs, nonzero = covered, in the order of their numbers.

    With metadata.csv, as segment-anything's scripts/amg.py writes it (columns id, area, bbox_x0, bbox_y0, bbox_w,
    bbox_h, point_input_x, point_input_y, predicted_iou, stability_score, crop_box_*; mask `id` is in <id>.png):
    its rows, order, areas, boxes and scores. Files *matting.png, of its forks, are left out.
    Raises ValueError naming file and reason: more than two values, a row without its file or a file without a row.
    """
    files = {path.stem: path for path in _natural(folder.glob("*.png")) if not path.stem.endswith("matting")}
    table = folder / METADATA
    rows: Sequence[Mapping[str, Any]] = _rows(table) if table.exists() else [{"id": name} for name in files]
    unlisted = files.keys() - {row["id"] for row in rows}
    if unlisted:
        raise MaskStoreError(f"{table}: has no row for {', '.join(sorted(unlisted)[:5])}")
    masks, size = [], None
    for row in rows:
        if row["id"] not in files:
            raise MaskStoreError(f"{table}: row {row['id']!r} has no file {row['id']}.png beside it")
        covered = _binary(files[row["id"]])
        size = (covered.shape[0], covered.shape[1])
        masks.append({"segmentation": covered, **{k: v for k, v in row.items() if k != "id"}})
    return masks, size


def is_binary(labels: NDArray[Any]) -> bool:
    """Whether a stored picture can be one mask: grey, of two values of which one is 0, or of one value."""
    if labels.ndim != 2:
        return False
    low, high = int(labels.min()), int(labels.max())
    return bool(((labels == low) | (labels == high)).all()) and (low == 0 or low == high)


def _binary(path: Path) -> NDArray[np.bool_]:
    labels = read_labels(path)
    if not is_binary(labels):
        raise MaskStoreError(f"{path}: not a binary mask, which is grey with 0 and one other value")
    return labels != 0


def _rows(table: Path) -> list[dict[str, Any]]:
    """id (text), and area, bbox and scores where the columns are there."""
    try:
        with table.open(newline="", encoding="utf-8") as file:
            return [_row(row) for row in csv.DictReader(file)]
    except (ValueError, KeyError, TypeError) as error:
        raise MaskStoreError(f"{table}: not the table that segment-anything's amg.py writes ({error!r})") from None


def _row(row: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {"id": row["id"].strip()}
    found |= {name: float(row[name]) for name in _SCORES if row.get(name)}
    if row.get("area"):
        found["area"] = int(float(row["area"]))
    if all(row.get(name) for name in _BOX):
        found["bbox"] = [float(row[name]) for name in _BOX]
    return found


def _natural(paths: Any) -> list[Path]:
    """2.png before 10.png."""
    return sorted(paths, key=lambda p: [(len(t), t) if t.isdigit() else (0, t) for t in re.split(r"(\d+)", p.stem)])
