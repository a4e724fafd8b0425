"""A mask store in the formats of others (scripts/masks.py export)."""

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
from sam4ir.utils.files import atomic
from sam4ir.utils.image import encode_png

SUFFIXES = {"sam": ".json", "labels": ".png", "samdiffsr": ".npy"}

SpeMap = Callable[[MaskRecord, int, int, int, int], NDArray[np.float32]]  # (record, top, left, h, w) -> (h, w)


def sam_list(record: MaskRecord) -> list[dict[str, Any]]:
    """The masks as segment-anything's automatic generator lists them with output_mode='coco_rle'.

    Keys segmentation {size, counts as compressed text}, area, bbox, predicted_iou, stability_score; scores that are not
    known are left out, and so are point_coords and crop_box, which a store does not keep. Imported again, the records
    are the same byte by byte (with the same images given: the list has no place for their checksum).
    """
    h, w = record.size
    runs = regions.runs_of_atoms(regions.Atoms(record.labels(0, 0, h, w), record.table))
    rows = zip(runs, record.areas, record.boxes, record.predicted_iou, record.stability_score, strict=True)
    return [_entry(run, (h, w), int(area), box, float(iou), float(stable)) for run, area, box, iou, stable in rows]


def label_map(record: MaskRecord) -> NDArray[Any]:
    """(h, w, 1) uint8, uint16 beyond 255 masks: the region map, mask number + 1, small masks on top, 0 = none.

    Raises MaskStoreError beyond 65,535 masks.
    """
    if record.count > 65535:
        raise MaskStoreError(f"{record.name}: {record.count} masks do not fit in a label map of 16 bits")
    labels = record.region_map(0, 0, *record.size)
    return labels.astype(np.uint8 if record.count <= 255 else np.uint16)[:, :, None]


@dataclass(frozen=True)
class WriteFile:
    """key -> its file, written whole or not at all; goes to worker processes.

    form: 'sam' <key>.json (sam_list), 'labels' <key>.png (label_map), or 'samdiffsr' <key>.npy: the map (h, w) float32
    that SAM-DiffSR's data_gen/merge_mask_to_one.py stores in data/sam_embed. An image without masks gets a map of
    zeros, as which its data_gen/utils.py reads the None that the released code writes there.
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
        """Where an image's masks go. Raises MaskStoreError for a key that leads out of the folder."""
        if key.startswith("/") or ".." in key.split("/"):
            raise MaskStoreError(
                f"{self.store.path}: key {key!r} leads out of --output {self.output}; nothing is written"
            )
        return self.output / f"{key}{SUFFIXES[self.form]}"

    def _sam(self, record: MaskRecord) -> bytes:
        return json.dumps(sam_list(record)).encode()

    def _labels(self, record: MaskRecord) -> bytes:
        return encode_png(label_map(record))

    def _samdiffsr(self, record: MaskRecord) -> bytes:
        file = io.BytesIO()
        np.save(file, self.spe(record, 0, 0, *record.size))
        return file.getvalue()


@dataclass
class Exported:
    """Files written, files that were there, what is wrong with the rest."""

    written: int
    there: int
    bad: list[str]


def export(
    store: MaskStore,
    form: str,
    output: Path,
    spe: SpeMap,
    keys: Sequence[str] | None = None,
    overwrite: bool = False,
    workers: int = 1,
) -> Exported:
    """Writes a file an image below `output`; files that are there stay, unless overwrite. keys: None = all.

    Raises MaskStoreError naming the keys that the store lacks, where `output` is a file,
    and for keys that lead out of it.
    """
    if form not in SUFFIXES:
        raise MaskStoreError(f"--format: {form!r} must be one of {', '.join(SUFFIXES)}")
    if output.exists() and not output.is_dir():
        raise MaskStoreError(f"--output: {output} is a file; name a folder")
    lacking = [key for key in keys or () if key not in store]
    if lacking:
        raise MaskStoreError(
            f"--keys: {store.path} has no masks of {listed(lacking)}; its own are {listed(store.keys())}"
        )
    write = WriteFile(form, store, output, spe)
    wanted = store.keys() if keys is None else list(dict.fromkeys(keys))
    todo = [key for key in wanted if overwrite or not write.path(key).exists()]
    bad = []
    with closing(attempts(write, todo, useful(workers, len(todo)))) as results:
        for _, done in tqdm(results, desc="export", total=len(todo), unit="image", disable=None):
            if isinstance(done, Failure):
                bad.append(done.message)
    return Exported(len(todo) - len(bad), len(wanted) - len(todo), bad)


def _entry(
    run: regions.Runs, size: regions.Size, area: int, box: NDArray[np.float64], iou: float, stability: float
) -> dict[str, Any]:
    h, w = size
    rle = coco.frPyObjects({"size": [h, w], "counts": run.tolist()}, h, w)
    entry: dict[str, Any] = {
        "segmentation": {"size": [h, w], "counts": rle["counts"].decode()},
        "area": area,
        "bbox": [int(v) if v.is_integer() else v for v in box.tolist()],
    }
    scores = {"predicted_iou": iou, "stability_score": stability}
    return entry | {name: score for name, score in scores.items() if not np.isnan(score)}
