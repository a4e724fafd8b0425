"""Read label maps, SPE maps and folders of binary masks as lists of masks in segment-anything's form.

A mask is a dictionary with `segmentation` (COCO RLE or an (h, w) bool array), as from_sam.record_from_sam takes it.
"""

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
from sam4ir.utils.folders import is_hidden
from sam4ir.utils.image import read_labels
from sam4ir.utils.tables import number_in, read_csv

MAX_LABELS = 10_000  # a map with more is a photograph, and atoms x masks would not fit into memory
SPE_SUM_KEY = "spe_sum"  # key of the stated sum of the rotary table, for a mask of which only a part is visible
METADATA = "metadata.csv"

_SCORES = ("predicted_iou", "stability_score")
# the end of the pickle of np.array(None): a list of one element, with or without memo codes
_PICKLED_NONE = re.compile(rb"\](?:\x94|q.)?Nat(?:\x94|q.)?b\.\Z", re.DOTALL)
_BOX = ("bbox_x0", "bbox_y0", "bbox_w", "bbox_h")
Masks = list[dict[str, Any]]


@dataclass(frozen=True)
class LabelRules:
    """The rules for the values of a label map.

    background: labels that are no region. rgb: each colour is a label, 65536 R + 256 G + B.
    """

    background: tuple[int, ...] = (0,)
    rgb: bool = False


def masks_of_labels(labels: NDArray[Any], background: Collection[float] = ()) -> Masks:
    """Return one mask for each label of an (h, w) map, in ascending order; labels in `background` give none."""
    h, w = labels.shape
    flat = labels.T.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    ends = np.append(starts[1:], h * w)
    run_values = flat[starts]
    order = np.argsort(run_values, kind="stable")
    values, first = np.unique(run_values[order], return_index=True)
    masks = []
    for value, runs in zip(values.tolist(), np.split(order, first[1:]), strict=True):
        if value not in background:
            edges = np.column_stack((starts[runs], ends[runs])).ravel()
            masks.append({"segmentation": {"size": [h, w], "counts": np.diff(edges, prepend=0, append=h * w)}})
    return masks


def read_label_map(path: Path, rules: LabelRules) -> tuple[Masks, regions.Size]:
    """Return the masks and the size (h, w) of a label map's file; MaskStoreError with the file and the reason."""
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
    """Return the masks and the size (h, w) of an SPE map's .npy file.

    SAM-DiffSR's data_gen/merge_mask_to_one.py writes such files: (h, w) floating point, 0 where no mask lies. Each
    other value is a mask, or what later masks leave visible of it; equal values are one mask. The value times h w is
    the rotary table's sum over the whole mask; it stands under SPE_SUM_KEY, so that an export gives the same map. The
    file of an image without masks holds None; it is recognised without being unpickled, and its size is None.
    Raises MaskStoreError with the file and the reason.
    """
    try:
        spe_map = _read_npy(path)
    except (ValueError, OSError, EOFError, OverflowError, SyntaxError, TokenError) as error:
        raise MaskStoreError(f"{path}: cannot be read as an array of numpy ({error})") from None
    if spe_map is None:
        return [], None
    if spe_map.ndim != 2 or spe_map.dtype.kind != "f" or not spe_map.size:
        raise MaskStoreError(
            f"{path}: is {spe_map.shape} {spe_map.dtype}; an SPE map is (h, w) of floating point numbers"
        )
    if not np.isfinite(spe_map).all():
        raise MaskStoreError(f"{path}: has values that are not finite; an SPE map has none")
    values = np.unique(spe_map[spe_map != 0])
    if len(values) > MAX_LABELS:
        raise MaskStoreError(f"{path}: {len(values)} values (at most {MAX_LABELS}); is it an SPE map?")
    masks = masks_of_labels(spe_map, (0.0,))
    for mask, value in zip(masks, values.tolist(), strict=True):
        mask[SPE_SUM_KEY] = value * spe_map.size
    return masks, (spe_map.shape[0], spe_map.shape[1])


def _read_npy(path: Path) -> NDArray[Any] | None:
    """Return the array of a .npy file, None where it holds Python's None; ValueError, OSError or EOFError."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise UserError(f"format version {version}")
        read_header = np.lib.format.read_array_header_1_0
        if version == (2, 0):
            read_header = np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        data_bytes = path.stat().st_size - file.tell()
        if dtype.hasobject:
            if shape == () and data_bytes < 1000 and _PICKLED_NONE.search(file.read()):
                return None
            raise UserError("it holds Python objects, not numbers")
        count = math.prod(shape)
        if data_bytes != count * dtype.itemsize:  # checked before memory of that size is allocated
            raise UserError(f"{data_bytes} bytes of data, {shape} {dtype} are {count * dtype.itemsize}")
        return np.fromfile(file, dtype, count).reshape(shape, order="F" if fortran else "C")


def read_binary_folder(folder: Path) -> tuple[Masks, regions.Size | None]:
    """Return the masks and the size (h, w) of one image's folder of PNG files, where a nonzero pixel is covered.

    The masks are in the order of the files' numbers. Where metadata.csv exists, as segment-anything's scripts/amg.py
    writes it (columns id, area, bbox_x0, bbox_y0, bbox_w, bbox_h, point_input_x, point_input_y, predicted_iou,
    stability_score, crop_box_*; mask `id` is in <id>.png), its rows give order, areas, boxes and scores. Files
    *matting.png, which forks of segment-anything write, are left out.
    Raises MaskStoreError, with the file, on more than two values, a row without its file and a file without a row.
    """
    files = {}
    for path in sorted(folder.iterdir(), key=_number_order):
        if path.suffix.lower() == ".png" and not is_hidden(path.name) and not path.stem.endswith("matting"):
            files[path.stem] = path
    table = folder / METADATA
    rows: Sequence[Mapping[str, Any]]
    if table.exists():
        rows = _rows(table)
    else:
        rows = [{"id": name} for name in files]
    unlisted = files.keys() - {row["id"] for row in rows}
    if unlisted:
        raise MaskStoreError(f"{table}: has no row for {', '.join(sorted(unlisted)[:5])}")
    masks, size = [], None
    for row in rows:
        if row["id"] not in files:
            raise MaskStoreError(f"{table}: row {row['id']!r} has no file {row['id']}.png beside it")
        covered = _binary(files[row["id"]])
        size = (covered.shape[0], covered.shape[1])
        mask = {"segmentation": covered, **row}
        del mask["id"]
        masks.append(mask)
    return masks, size


def is_binary(labels: NDArray[Any]) -> bool:
    """Return whether a picture can be a mask: grey, with one value, or with two values of which one is 0."""
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
    """Return the rows of metadata.csv: id (text), and area, bbox and scores where the table has these columns."""
    try:
        return [_parse_row(row.cells) for row in read_csv(table).rows]
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise MaskStoreError(f"{table}: not the table that segment-anything's amg.py writes ({error!r})") from None


def _parse_row(cells: Mapping[str, str | None]) -> dict[str, Any]:
    row = {name: cell for name, cell in cells.items() if cell}
    mask: dict[str, Any] = {"id": row["id"].strip()}
    for name in _SCORES:
        if name in row:
            mask[name] = number_in(row[name])
    if "area" in row:
        mask["area"] = int(number_in(row["area"]))
    if all(name in row for name in _BOX):
        mask["bbox"] = [number_in(row[name]) for name in _BOX]
    return mask


def _number_order(path: Path) -> list[tuple[int, str]]:
    """Return a key for sorting that puts 2.png before 10.png."""
    key = []
    for text in re.split(r"(\d+)", path.stem):
        key.append((len(text) if text.isdigit() else 0, text))
    return key
