"""Make control stores, whose regions know nothing of Segment Anything, to measure what its knowledge gains.

superpixels and grid: each image gets as many regions as the region map of the given store shows for it, because
training reads that map. They cover the whole image; SAM's masks need not. shuffled: each image gets the masks of
another image. The command is sam4ir masks control.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sam4ir import regions
from sam4ir.data.masks.fill import FillResult, TaskResult, crop_hint, fill, inherited_meta
from sam4ir.data.masks.from_sam import pixel_sha256, record_from_atoms, record_from_sam
from sam4ir.data.masks.labels import masks_of_labels
from sam4ir.data.masks.record import MaskRecord, MaskStoreError
from sam4ir.data.masks.store import MaskStore
from sam4ir.data.sources import ImageSource, listed, read
from sam4ir.errors import UserError
from sam4ir.utils.rng import generator

ControlKind = Literal["superpixels", "grid", "shuffled"]
CONTROL_KINDS: tuple[ControlKind, ...] = ("superpixels", "grid", "shuffled")
GENERATORS = {"superpixels": "control: slic", "grid": "control: grid", "shuffled": "control: shuffled"}
COMPACTNESS = 10.0  # skimage's default: colour distance (CIELAB) against distance in the image

_TRIES = 6
_TASKS_A_PROCESS = {"superpixels": 8, "grid": 100, "shuffled": 50}

Labels = NDArray[np.int64]


def count_regions(record: MaskRecord) -> int:
    """Return how many masks are visible in the region map, where small masks lie on top."""
    visible = np.unique(record.region_map(0, 0, *record.size))
    return int((visible > 0).sum())


def grid_labels(size: tuple[int, int], count: int) -> Labels:
    """Return a grid of nearly equal rectangles as (h, w) labels 1..count; all 0 for count 0.

    The rectangles stand in rows and are as square as the count allows. Raises UserError for more cells than pixels.
    """
    h, w = size
    if count > h * w:
        raise UserError(f"{count} regions do not fit in an image of {h}x{w} (h x w)")
    if count == 0:
        return np.zeros(size, np.int64)
    rows = int(np.clip(round(np.sqrt(count * h / w)), 1, min(h, count)))
    cells = np.full(rows, count // rows)
    cells[np.linspace(0, rows - 1, count % rows).round().astype(int)] += 1
    first = np.concatenate(([0], np.cumsum(cells)))  # cells above each row, which give its top as well
    tops = (first * h + count // 2) // count
    if cells.max() > w or (np.diff(tops) == 0).any():  # so many cells that the rows are thinner than a pixel
        return 1 + np.arange(h * w).reshape(size) * count // (h * w)
    row = np.repeat(np.arange(rows), np.diff(tops))
    return 1 + first[row][:, None] + np.arange(w) * cells[row][:, None] // w


def superpixel_labels(image: NDArray[Any], count: int) -> Labels:
    """Return superpixels of an (h, w, 3) RGB image as (h, w) labels 1..count; all 0 for count 0.

    They are those of skimage's SLIC (Achanta et al., TPAMI 2012), which rarely makes exactly the requested number. The
    request therefore grows until there are enough; then the smallest superpixel joins the neighbour of the nearest mean
    colour until there are `count`. Where there are never enough (tiny images), the largest is halved.
    """
    from skimage.segmentation import slic  # half a second of imports that only this needs

    if count < 2:
        return grid_labels((image.shape[0], image.shape[1]), count)
    requested = count + 1 + count // 5  # SLIC mostly makes fewer
    labels, number = np.ones(image.shape[:2], np.int64), 1
    for _ in range(_TRIES):
        labels, number = regions.densify(slic(image, n_segments=requested, compactness=COMPACTNESS, start_label=1))
        if number >= count:
            break
        requested = max(requested + 1, round(requested * min(2.0, 1.05 * count / number)))
    if number > count:
        labels = merge_smallest(labels, image, count)
    else:
        labels = halve_largest(labels, count)
    return regions.densify(labels)[0]


def merge_smallest(labels: Labels, image: NDArray[Any], count: int) -> Labels:
    """Return labels 1..n where the smallest joined the neighbour of the nearest mean colour until `count` were left."""
    number = int(labels.max())
    flat = labels.ravel()
    pixels = np.bincount(flat, minlength=number + 1).astype(np.float64)
    colours = [np.bincount(flat, image[..., c].ravel(), number + 1) for c in range(image.shape[2])]
    colour = np.stack(colours, axis=1)
    neighbours = [set[int]() for _ in range(number + 1)]
    for a, b in _neighbour_pairs(labels):
        neighbours[a].add(b)
        neighbours[b].add(a)
    current = np.arange(number + 1)  # the label that each label belongs to now
    remaining = set(range(1, number + 1))
    while len(remaining) > max(count, 1):
        smallest = min(remaining, key=lambda label: (pixels[label], label))
        mean = colour[smallest] / pixels[smallest]
        target = min(neighbours[smallest], key=lambda n: (float(((colour[n] / pixels[n] - mean) ** 2).sum()), n))
        pixels[target] += pixels[smallest]
        colour[target] += colour[smallest]
        for other in neighbours[smallest]:
            neighbours[other].discard(smallest)
            if other != target:
                neighbours[other].add(target)
                neighbours[target].add(other)
        remaining.discard(smallest)
        current[current == smallest] = target
    return current[labels]


def halve_largest(labels: Labels, count: int) -> Labels:
    """Return labels 1..n where the largest was cut in two along its longer side until there were `count`."""
    labels = labels.copy()
    for label in range(int(labels.max()) + 1, count + 1):
        y, x = np.nonzero(labels == np.bincount(labels.ravel()).argmax())
        order = np.lexsort((x, y) if np.ptp(y) >= np.ptp(x) else (y, x))[: len(y) // 2]
        labels[y[order], x[order]] = label
    return labels


def _neighbour_pairs(labels: Labels) -> list[list[int]]:
    """Return the pairs of labels that are 4-neighbours somewhere."""
    below = np.stack((labels[1:], labels[:-1]), -1).reshape(-1, 2)
    beside = np.stack((labels[:, 1:], labels[:, :-1]), -1).reshape(-1, 2)
    pairs = np.concatenate((below, beside))
    distinct: list[list[int]] = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0).tolist()
    return distinct


def resize_record(record: MaskRecord, size: tuple[int, int]) -> bytes:
    """Return the record of the masks resized to another size (h, w): each pixel takes the masks of the nearest centre.

    Masks that lose all their pixels are left out; order and scores stay.
    """
    atoms = regions.Atoms(record.labels(0, 0, *record.size), record.table)
    resized, remaining = regions.drop_absent_masks(regions.resize_atoms(atoms, size))
    return record_from_atoms(resized, record.predicted_iou[remaining], record.stability_score[remaining])


def draw_partners(keys: list[str], seed: int) -> dict[str, str]:
    """Draw another image for each: one random cycle through all keys (Sattolo), so that no image keeps its own.

    The result depends only on the set of keys and the seed. Raises UserError for fewer than two keys.
    """
    if len(keys) < 2:
        raise UserError("shuffled masks are another image's, so the store needs two images or more")
    order, rng = sorted(keys), generator(seed, "shuffled masks")
    for i in range(len(order) - 1, 0, -1):
        j = int(rng.integers(i))
        order[i], order[j] = order[j], order[i]
    return dict(zip(sorted(keys), order, strict=True))


@dataclass(frozen=True)
class ControlTask:
    """One image of the store, and the image whose masks it gets in a shuffled control."""

    key: str
    partner: str = ""

    @property
    def keys(self) -> list[str]:
        return [self.key]

    def __str__(self) -> str:
        return self.key


@dataclass(frozen=True)
class MakeControl:
    """Makes the control's record of a ControlTask; can be sent to worker processes."""

    kind: ControlKind
    like: MaskStore
    images: ImageSource | None = None

    def __call__(self, task: ControlTask) -> TaskResult:
        record = self.like.read(task.key)
        make: dict[ControlKind, Callable[[MaskRecord, ControlTask], bytes]] = {
            "grid": self._grid,
            "superpixels": self._superpixels,
            "shuffled": self._shuffled,
        }
        return TaskResult({task.key: make[self.kind](record, task)})

    def _grid(self, record: MaskRecord, task: ControlTask) -> bytes:
        return record_from_sam(masks_of_labels(grid_labels(record.size, count_regions(record)), {0}), record.size)

    def _shuffled(self, record: MaskRecord, task: ControlTask) -> bytes:
        return resize_record(self.like.read(task.partner), record.size)

    def _superpixels(self, record: MaskRecord, task: ControlTask) -> bytes:
        assert self.images is not None
        image = read(self.images, task.key)
        if image.shape[:2] != record.size:
            raise MaskStoreError(
                f"{record.name}: the masks are of {record.size[0]}x{record.size[1]}, {self.images.where(task.key)} of "
                f"{image.shape[0]}x{image.shape[1]} (h x w)"
            )
        labels = superpixel_labels(image, count_regions(record))
        return record_from_sam(masks_of_labels(labels, {0}), record.size, bytes.fromhex(pixel_sha256(image)))


def make_control(
    kind: ControlKind,
    like: MaskStore,
    output: Path,
    images: ImageSource | None = None,
    seed: int = 0,
    new: bool = False,
    workers: int = 1,
) -> FillResult:
    """Make a control store with the keys of `like`. images: needed for superpixels; the other kinds read no images.

    Its provenance records the kind: generator 'control: slic | grid | shuffled', settings, and under `like` the
    provenance of that store. `source` is that of `like`, so that option files with masks.source accept the control in
    its place. Raises MaskStoreError where a store or an image does not fit.
    """
    if kind not in CONTROL_KINDS:
        raise MaskStoreError(f"--kind: {kind!r} must be one of {', '.join(CONTROL_KINDS)}")
    keys = like.keys()
    if not keys:
        raise MaskStoreError(f"{like.path}: the store is empty")
    if kind == "superpixels":
        images = _checked_images(like, keys, images)
    partners: dict[str, str] = {}
    if kind == "shuffled":
        try:
            partners = draw_partners(keys, seed)
        except UserError as error:
            raise MaskStoreError(f"{like.path}: {error}") from None
    tasks = [ControlTask(key, partners.get(key, "")) for key in keys]
    meta = _meta(kind, like, keys, seed)
    return fill(output, meta, tasks, MakeControl(kind, like, images), workers, new, _TASKS_A_PROCESS[kind])


def _checked_images(like: MaskStore, keys: list[str], images: ImageSource | None) -> ImageSource:
    if images is None:
        raise MaskStoreError("--kind superpixels needs --images, the images of the store")
    lacking = set(keys) - set(images.keys)
    if lacking:
        raise MaskStoreError(
            f"--images: {images.root} lacks {listed(lacking)} of {like.path}{crop_hint(images, lacking)}"
        )
    return images


def _meta(kind: ControlKind, like: MaskStore, keys: list[str], seed: int) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if kind == "shuffled":
        settings = {"seed": seed}
    if kind == "superpixels":
        settings = {"algorithm": f"skimage {metadata.version('scikit-image')} slic", "compactness": COMPACTNESS}
    descriptions = {
        "superpixels": "as many superpixels as the store `like` has regions in sight, exactly: SLIC, then merged",
        "grid": "as many rectangles of nearly equal area as the store `like` has regions in sight, exactly",
        "shuffled": "the masks of another image of the store `like`, resized (nearest neighbour)",
    }
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()
    origin = inherited_meta(like)
    like_meta = {key: origin.get(key) for key in ("generator", "checkpoint", "checkpoint_sha256", "settings")}
    return {
        "generator": GENERATORS[kind],
        "settings": settings,
        "source": origin.get("source"),
        "exif_orientation": like.exif_orientation,
        "regions": descriptions[kind],
        "like": {"store": like.path.name, "images": len(keys), "keys_sha256": digest, **like_meta},
    }
