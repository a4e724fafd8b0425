"""Label maps, SPE maps and folders of binary masks -> masks in segment-anything's form."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError  # what numpy lets through of a header that is no dictionary
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam4ir import regions
from sam4ir.data.masks.record import MaskStoreError
from sam4ir.errors import UserError
from sam4ir.utils.image import read_labels

MAX_LABELS = 10_000  # beyond, it is a photograph; atoms x masks would not fit into memory either
SPE_SUM_KEY = "spe_sum"  # key of a mask whose sum of the rotary table is stated, because only a part of it is in sight
METADATA = "metadata.csv"

_SCORES = ("predicted_iou", "stability_score")
# what ends the pickle of np.array(None): the list of its one element, behind '[' and '(' with or without a memo
_PICKLED_NONE = re.compile(rb"\](?:\x94|q.)?Nat(?:\x94|q.)?b\.\Z", re.DOTALL)
_BOX = ("bbox_x0", "bbox_y0", "bbox_w", "bbox_h")
Masks = list[dict[str, Any]]


@dataclass(frozen=True)
class LabelRules:
    """How the values of a label map are read.

    background: labels that are no region. rgb: each colour is a label, 65536 R + 256 G + B.
    """

    background: tuple[int, ...] = (0,)
    rgb: bool = False


def masks_of_labels(labels: NDArray[Any], background: Collection[float] = ()) -> Masks:
    """One mask a label of an (h, w) map, ascending, however many pieces it has; `background` gives none."""
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


def read_spe_map(path: Path) -> tuple[Masks, regions.Size | None]:
    """The masks of an SPE map's .npy file as SAM-DiffSR's data_gen/merge_mask_to_one.py writes it, and its size.

    (h, w) floating point, 0 where no mask lies: each other value is a mask, as much of it as later masks left in sight.
    Its sum of the rotary table, of the whole mask, is the value times h w and stands under SPE_SUM_KEY, so that the map
    comes back. Values alike are one mask, a value of 0 is none. An image without masks is a file of None, whose size
    nothing tells; it is recognised without being unpickled.
    Raises ValueError naming file and reason.
    """
    try:
        found = _npy(path)
    except (ValueError, OSError, EOFError, OverflowError, SyntaxError, TokenError) as error:
        raise MaskStoreError(f"{path}: cannot be read as an array of numpy ({error})") from None
    if found is None:
        return [], None
    if found.ndim != 2 or found.dtype.kind != "f" or not found.size:
        raise MaskStoreError(f"{path}: is {found.shape} {found.dtype}; an SPE map is (h, w) of floating point numbers")
    if not np.isfinite(found).all():
        raise MaskStoreError(f"{path}: has values that are not finite; an SPE map has none")
    values = np.unique(found[found != 0])
    if len(values) > MAX_LABELS:
        raise MaskStoreError(f"{path}: {len(values)} values (at most {MAX_LABELS}); is it an SPE map?")
    masks = masks_of_labels(found, (0.0,))
    for mask, value in zip(masks, values.tolist(), strict=True):
        mask[SPE_SUM_KEY] = value * found.size
    return masks, (found.shape[0], found.shape[1])


def _npy(path: Path) -> NDArray[Any] | None:
    """The array of a .npy file; None where it holds Python's None. Raises ValueError, OSError or EOFError."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise UserError(f"format version {version}")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        held = path.stat().st_size - file.tell()
        if dtype.hasobject:
            if shape == () and held < 1000 and _PICKLED_NONE.search(file.read()):
                return None
            raise UserError("it holds Python objects, not numbers")
        count = math.prod(shape)
        if held != count * dtype.itemsize:  # before anything of that size is allocated
            raise UserError(f"{held} bytes of data, {shape} {dtype} are {count * dtype.itemsize}")
        return np.fromfile(file, dtype, count).reshape(shape, order="F" if fortran else "C")


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
