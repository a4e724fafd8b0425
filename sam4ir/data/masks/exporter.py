"""Write the masks of a store in the formats of other programs (sam4ir masks export)."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from tqdm import tqdm

from sam4ir import regions
from sam4ir.data.masks.record import MaskRecord, MaskStoreError
from sam4ir.data.masks.store import MaskStore
from sam4ir.data.sources import listed
from sam4ir.data.workers import Failure, attempts, useful
from sam4ir.errors import UserError
from sam4ir.utils.files import atomic, output_path
from sam4ir.utils.image import encode_png

EXPORT_SUFFIXES = {"sam": ".json", "labels": ".png", "samdiffsr": ".npy"}

SpeMap = Callable[[MaskRecord, int, int, int, int], NDArray[np.float32]]  # (record, top, left, h, w) -> (h, w)


def sam_list(record: MaskRecord) -> list[dict[str, Any]]:
    """Return the masks as segment-anything's automatic generator lists them with output_mode='coco_rle'.

    The keys are segmentation {size, counts as compressed text}, area, bbox, predicted_iou, stability_score. Unknown
    scores are left out, and so are point_coords and crop_box, which a store does not hold. An import of the list gives
    the same records byte by byte, provided that it reads the same images: the list does not hold their checksums.
    """
    h, w = record.size
    runs = regions.runs_of_atoms(regions.Atoms(record.labels(0, 0, h, w), record.table))
    entries = []
    for number, mask_runs in enumerate(runs):
        entries.append(_entry(record, number, mask_runs))
    return entries


def label_map(record: MaskRecord) -> NDArray[Any]:
    """Return the region map: mask number + 1, small masks on top, 0 where no mask lies.

    It is (h, w, 1) uint8, or uint16 beyond 255 masks.

    Raises MaskStoreError beyond 65,535 masks.
    """
    if record.count > 65535:
        raise MaskStoreError(f"{record.name}: {record.count} masks do not fit in a label map of 16 bits")
    labels = record.region_map(0, 0, *record.size)
    return labels.astype(np.uint8 if record.count <= 255 else np.uint16)[:, :, None]


@dataclass(frozen=True)
class WriteFile:
    """Writes the file of an image, given its key, whole or not at all; can be sent to worker processes.

    form: 'sam' <key>.json (sam_list), 'labels' <key>.png (label_map), or 'samdiffsr' <key>.npy: the map (h, w) float32
    that SAM-DiffSR's data_gen/merge_mask_to_one.py stores in data/sam_embed. An image without masks gets a map of
    zeros: the released code writes None there, which its data_gen/utils.py reads as zeros.
    spe: makes that map (priors.spe.spe_map).
    """

    form: str
    store: MaskStore
    output: Path
    spe: SpeMap

    def __call__(self, key: str) -> None:
        record = self.store.read(key)
        data = {"sam": self._sam, "labels": self._labels, "samdiffsr": self._samdiffsr}[self.form](record)
        with atomic(self.path(key)) as part:
            part.write_bytes(data)

    def path(self, key: str) -> Path:
        """Return the path of an image's file; raise UserError for a key that leads out of the folder."""
        return output_path(self.output, key, EXPORT_SUFFIXES[self.form], self.store.path)

    def exists(self, key: str) -> bool:
        """Return whether an image's file is there; False for a key that can have none."""
        try:
            return self.path(key).exists()
        except UserError:
            return False  # the call for this key reports it

    def _sam(self, record: MaskRecord) -> bytes:
        return json.dumps(sam_list(record)).encode()

    def _labels(self, record: MaskRecord) -> bytes:
        return encode_png(label_map(record))

    def _samdiffsr(self, record: MaskRecord) -> bytes:
        file = io.BytesIO()
        np.save(file, self.spe(record, 0, 0, *record.size))
        return file.getvalue()


@dataclass
class ExportResult:
    """written: new files. present: files that existed and were left. bad: one sentence for each image that failed."""

    written: int
    present: int
    bad: list[str]


def export_masks(
    store: MaskStore,
    form: str,
    output: Path,
    spe: SpeMap,
    keys: Sequence[str] | None = None,
    overwrite: bool = False,
    workers: int = 1,
) -> ExportResult:
    """Write one file for each image below `output`. Files that exist stay, unless overwrite. keys: None = all.

    Keys that cannot be a file below `output` are among the bad ones. Raises MaskStoreError where the store lacks some
    keys, and where `output` is a file.
    """
    if form not in EXPORT_SUFFIXES:
        raise MaskStoreError(f"--format: {form!r} must be one of {', '.join(EXPORT_SUFFIXES)}")
    if output.exists() and not output.is_dir():
        raise MaskStoreError(f"--output: {output} is a file; name a folder")
    lacking = [key for key in keys or () if key not in store]
    if lacking:
        raise MaskStoreError(
            f"--keys: {store.path} has no masks of {listed(lacking)}; its own are {listed(store.keys())}"
        )
    write = WriteFile(form, store, output, spe)
    keys = store.keys() if keys is None else list(dict.fromkeys(keys))
    missing = [key for key in keys if overwrite or not write.exists(key)]
    bad = []
    with closing(attempts(write, missing, useful(workers, len(missing)))) as outcomes:
        for _, outcome in tqdm(outcomes, desc="export", total=len(missing), unit="image", disable=None):
            if isinstance(outcome, Failure):
                bad.append(outcome.message)
    return ExportResult(len(missing) - len(bad), len(keys) - len(missing), bad)


def _entry(record: MaskRecord, number: int, runs: regions.Runs) -> dict[str, Any]:
    """Return segment-anything's dictionary of the mask with this number (from 0) in the record."""
    h, w = record.size
    rle = coco.frPyObjects({"size": [h, w], "counts": runs.tolist()}, h, w)
    entry: dict[str, Any] = {
        "segmentation": {"size": [h, w], "counts": rle["counts"].decode()},
        "area": int(record.areas[number]),
        "bbox": [int(v) if v.is_integer() else v for v in record.boxes[number].tolist()],
    }
    scores = {"predicted_iou": record.predicted_iou, "stability_score": record.stability_score}
    for name, column in scores.items():
        if not np.isnan(column[number]):
            entry[name] = float(column[number])
    return entry
