"""Controls: stores of regions that know nothing of Segment Anything, to compare a gain with (scripts/masks.py control).

superpixels and grid: as many regions as the given store has, image by image: those that are seen in its region map,
since that is what training reads. They cover the whole image, SAM's masks need not. shuffled: as many as the other
image has.
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

Kind = Literal["superpixels", "grid", "shuffled"]
KINDS: tuple[Kind, ...] = ("superpixels", "grid", "shuffled")
GENERATORS = {"superpixels": "control: slic", "grid": "control: grid", "shuffled": "control: shuffled"}
COMPACTNESS = 10.0  # skimage's default: colour distance (CIELAB) against distance in the image

_TRIES = 6
_TASKS_A_PROCESS = {"superpixels": 8, "grid": 100, "shuffled": 50}

Labels = NDArray[np.int64]


def seen_regions(record: MaskRecord) -> int:
    """Number of masks that are seen in the region map (small masks on top)."""
    seen = np.unique(record.region_map(0, 0, *record.size))
    return int((seen > 0).sum())


def grid(size: tuple[int, int], count: int) -> Labels:
    """(h, w) labels 1..count: rows of rectangles of nearly equal area, as square as the count allows; 0 for count 0.

    Raises ValueError for more cells than pixels.
    """
    h, w = size
    if count > h * w:
        raise UserError(f"{count} regions do not fit in an image of {h}x{w} (h x w)")
    if count == 0:
        return np.zeros(size, np.int64)
    rows = int(np.clip(round(np.sqrt(count * h / w)), 1, min(h, count)))
    in_row = np.full(rows, count // rows)
    in_row[np.linspace(0, rows - 1, count % rows).round().astype(int)] += 1
    first = np.concatenate(([0], np.cumsum(in_row)))  # cells above each row; its share of the height too
    tops = (first * h + count // 2) // count
    if in_row.max() > w or (np.diff(tops) == 0).any():  # so many cells that the rows are thinner than a pixel
        return 1 + np.arange(h * w).reshape(size) * count // (h * w)
    row = np.repeat(np.arange(rows), np.diff(tops))
    return 1 + first[row][:, None] + np.arange(w) * in_row[row][:, None] // w


def superpixels(image: NDArray[Any], count: int) -> Labels:
    """(h, w) labels 1..count: SLIC (Achanta et al., TPAMI 2012; skimage's) of an (h, w, 3) RGB image; 0 for count 0.

    SLIC comes near the number that it is asked for, seldom to it: it is asked for more until there are enough, then the
    smallest superpixel joins the neighbour of the nearest mean colour until there are `count`. Where it never gives
    enough (tiny images), the largest is halved.
    """
    from skimage.segmentation import slic  # half a second of imports that only this needs

    if count < 2:
        return grid((image.shape[0], image.shape[1]), count)
    asked = count + 1 + count // 5  # it mostly gives fewer
    labels, there = np.ones(image.shape[:2], np.int64), 1
    for _ in range(_TRIES):
        labels, there = regions.densify(slic(image, n_segments=asked, compactness=COMPACTNESS, start_label=1))
        if there >= count:
            break
        asked = max(asked + 1, round(asked * min(2.0, 1.05 * count / there)))
    labels = merged(labels, image, count) if there > count else halved(labels, count)
    return regions.densify(labels)[0]


def merged(labels: Labels, image: NDArray[Any], count: int) -> Labels:
    """Labels 1..n of which the smallest join their neighbour of the nearest mean colour until `count` are left."""
    number = int(labels.max())
    flat = labels.ravel()
    pixels = np.bincount(flat, minlength=number + 1).astype(np.float64)
    colours = [np.bincount(flat, image[..., c].ravel(), number + 1) for c in range(image.shape[2])]
    colour = np.stack(colours, axis=1)
    near = [set[int]() for _ in range(number + 1)]
    for a, b in _touching(labels):
        near[a].add(b)
        near[b].add(a)
    now = np.arange(number + 1)
    alive = set(range(1, number + 1))
    while len(alive) > max(count, 1):
        least = min(alive, key=lambda label: (pixels[label], label))
        mean = colour[least] / pixels[least]
        into = min(near[least], key=lambda n: (float(((colour[n] / pixels[n] - mean) ** 2).sum()), n))
        pixels[into] += pixels[least]
        colour[into] += colour[least]
        for other in near[least]:
            near[other].discard(least)
            if other != into:
                near[other].add(into)
                near[into].add(other)
        alive.discard(least)
        now[now == least] = into
    return now[labels]


def halved(labels: Labels, count: int) -> Labels:
    """Labels 1..n of which the largest is cut in two along its longer side until there are `count`."""
    labels = labels.copy()
    for label in range(int(labels.max()) + 1, count + 1):
        y, x = np.nonzero(labels == np.bincount(labels.ravel()).argmax())
        order = np.lexsort((x, y) if np.ptp(y) >= np.ptp(x) else (y, x))[: len(y) // 2]
        labels[y[order], x[order]] = label
    return labels


def _touching(labels: Labels) -> list[list[int]]:
    """Pairs of labels that are 4-neighbours somewhere."""
    pairs = [np.stack((labels[1:], labels[:-1]), -1), np.stack((labels[:, 1:], labels[:, :-1]), -1)]
    every = np.concatenate([pair.reshape(-1, 2) for pair in pairs])
    found: list[list[int]] = np.unique(every[every[:, 0] != every[:, 1]], axis=0).tolist()
    return found


def stretched(record: MaskRecord, size: tuple[int, int]) -> bytes:
    """The record of masks resized to an image of another size: a pixel takes the masks of the nearest one (by centres).

    Masks that lose all their pixels are left out; order and scores stay.
    """
    whole = regions.Atoms(record.labels(0, 0, *record.size), record.table)
    atoms, kept = regions.drop_absent_masks(regions.resize_atoms(whole, size))
    return record_from_atoms(atoms, record.predicted_iou[kept], record.stability_score[kept])


def partners(keys: list[str], seed: int) -> dict[str, str]:
    """Another image for each: one random cycle through all keys (Sattolo), so that no image keeps its own.

    A function of the set of keys and the seed. Raises ValueError for fewer than two keys.
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
    """One image of the store, and the image whose masks it gets where they are shuffled."""

    key: str
    partner: str = ""

    @property
    def keys(self) -> list[str]:
        return [self.key]

    def __str__(self) -> str:
        return self.key


@dataclass(frozen=True)
class MakeControl:
    """ControlTask -> the control's record; goes to worker processes."""

    kind: Kind
    like: MaskStore
    images: ImageSource | None = None

    def __call__(self, task: ControlTask) -> TaskResult:
        record = self.like.read(task.key)
        make: dict[Kind, Callable[[MaskRecord, ControlTask], bytes]] = {
            "grid": self._grid,
            "superpixels": self._superpixels,
            "shuffled": self._shuffled,
        }
        return TaskResult({task.key: make[self.kind](record, task)})

    def _grid(self, record: MaskRecord, task: ControlTask) -> bytes:
        return record_from_sam(masks_of_labels(grid(record.size, seen_regions(record)), {0}), record.size)

    def _shuffled(self, record: MaskRecord, task: ControlTask) -> bytes:
        return stretched(self.like.read(task.partner), record.size)

    def _superpixels(self, record: MaskRecord, task: ControlTask) -> bytes:
        assert self.images is not None
        image = read(self.images, task.key)
        if image.shape[:2] != record.size:
            raise MaskStoreError(
                f"{record.name}: the masks are of {record.size[0]}x{record.size[1]}, {self.images.where(task.key)} of "
                f"{image.shape[0]}x{image.shape[1]} (h x w)"
            )
        labels = superpixels(image, seen_regions(record))
        return record_from_sam(masks_of_labels(labels, {0}), record.size, bytes.fromhex(pixel_sha256(image)))


def make_control(
    kind: Kind,
    like: MaskStore,
    output: Path,
    images: ImageSource | None = None,
    seed: int = 0,
    new: bool = False,
    workers: int = 1,
) -> FillResult:
    """A control store with the keys of `like`. images: what superpixels are made of; the other kinds look at none.

    Its provenance says what it is: generator 'control: slic | grid | shuffled', settings, and `like`, that store's own.
    `source` is that of `like`, so that option files with masks.source take it in its place.
    """
    if kind not in KINDS:
        raise MaskStoreError(f"--kind: {kind!r} must be one of {', '.join(KINDS)}")
    keys = like.keys()
    if not keys:
        raise MaskStoreError(f"{like.path}: the store is empty")
    if kind == "superpixels":
        images = _checked_images(like, keys, images)
    try:
        pairs = partners(keys, seed) if kind == "shuffled" else {}
    except ValueError as error:
        raise MaskStoreError(f"{like.path}: {error}") from None
    tasks = [ControlTask(key, pairs.get(key, "")) for key in keys]
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


def _meta(kind: Kind, like: MaskStore, keys: list[str], seed: int) -> dict[str, Any]:
    settings: dict[str, Any] = {"seed": seed} if kind == "shuffled" else {}
    if kind == "superpixels":
        settings |= {"algorithm": f"skimage {metadata.version('scikit-image')} slic", "compactness": COMPACTNESS}
    regions_are = {
        "superpixels": "as many superpixels as the store `like` has regions in sight, exactly: SLIC, then merged",
        "grid": "as many rectangles of nearly equal area as the store `like` has regions in sight, exactly",
        "shuffled": "the masks of another image of the store `like`, resized (nearest neighbour)",
    }
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()
    given = inherited_meta(like)
    about = {k: given.get(k) for k in ("generator", "checkpoint", "checkpoint_sha256", "settings")}
    return {
        "generator": GENERATORS[kind],
        "settings": settings,
        "source": given.get("source"),
        "regions": regions_are[kind],
        "like": {"store": like.path.name, "images": len(keys), "keys_sha256": digest, **about},
    }
