"""Report what a mask store holds, as JSON values or as text with histograms (sam4ir masks info)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sam4ir.data.masks.record import MaskRecord
from sam4ir.data.masks.store import MaskStore
from sam4ir.data.workers import TASKS_A_PROCESS, Failure, attempts, useful

_WIDTH = 40  # of the longest bar, in characters
_NOT_PROVENANCE = ("format", "format_version", "counts")
_TITLES = {"told": "remarks"}  # of keys of meta.json that are no words for a reader


class RecordFigures(NamedTuple):
    """The figures of one record.

    bytes: its length. size: (h, w). masks: n. covered, shared: parts of the pixels, 0 to 1, under at least one mask and
    under at least two. areas: (n,) pixels of each mask.
    """

    bytes: int
    size: tuple[int, int]
    masks: int
    covered: float
    shared: float
    areas: NDArray[np.int64]


def record_figures(record: MaskRecord, size: int) -> RecordFigures:
    """Return the figures of a record of `size` bytes; MaskStoreError where it is damaged."""
    pixels = record.atom_pixels()
    depth = record.table.sum(axis=1)
    total = max(int(pixels.sum()), 1)
    return RecordFigures(
        size,
        record.size,
        record.count,
        float(pixels[depth > 0].sum() / total),
        float(pixels[depth > 1].sum() / total),
        record.areas,
    )


@dataclass(frozen=True)
class ReadFigures:
    """Returns the figures of an image's record, given its key; can be sent to worker processes."""

    store: MaskStore

    def __call__(self, key: str) -> RecordFigures:
        data = self.store.record_bytes(key)
        return record_figures(MaskRecord(data, f"{self.store.path}: {key}"), len(data))


@dataclass(frozen=True)
class StoreReport:
    """The report on a mask store: its meta, the number of images, and the figures of the records that were read.

    file_bytes: length of data.mdb. keys: of all images. bad: one sentence for each damaged record.
    """

    path: Path
    meta: Mapping[str, Any]
    images: int
    file_bytes: int
    keys: Sequence[str]
    figures: Sequence[RecordFigures]
    bad: Sequence[str]

    def values(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        masks = self._column("masks")
        return {
            "store": str(self.path),
            "images": self.images,
            "masks": self.meta.get("counts", {}).get("masks"),
            "bytes": self.file_bytes,
            "looked_at": {
                "images": len(self.figures),
                "damaged": list(self.bad),
                "masks_an_image": _spread(masks),
                "bytes_an_image": _spread(self._column("bytes")),
                "covered": _spread(self._column("covered")),
                "covered_twice": _spread(self._column("shared")),
                "mask_area_pixels": _spread(self._areas().tolist()),
                "images_without_masks": masks.count(0),
            },
            "first_keys": list(self.keys[:10]),
            "meta": dict(self.meta),
        }

    def text(self) -> str:
        """Return the report as text."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        counts = self.meta.get("counts", {})
        total = f"{self.path}: {self.images} images, {counts.get('masks', '?')} masks, {_bytes(self.file_bytes)}"
        if self.images:
            total += f", {_bytes(self.file_bytes / self.images)} an image on disk"
        yield total
        yield from describe_provenance(self.meta)
        if self.figures:
            yield from self._figure_lines()

    def _figure_lines(self) -> Iterator[str]:
        extent = f"{len(self.figures)}, evenly spread (--all looks at every one)"
        if len(self.figures) + len(self.bad) == self.images:
            extent = "all"
        yield f"images looked at: {extent}"
        sizes = sorted(set(self._column("size")), key=math.prod)
        yield "image sizes (h x w): " + _few([f"{h}x{w}" for h, w in sizes])
        yield f"bytes of a record: {_range(self._column('bytes'), _bytes)}"
        masks = np.array(self._column("masks"))
        yield f"masks an image: {_range(masks, '{:.0f}'.format)}; without any: {int((masks == 0).sum())} images"
        yield from histogram(masks, whole_bins(masks), "{:.0f}", inclusive=True)
        yield from _share_lines("pixels under a mask", self._column("covered"))
        yield from _share_lines("pixels under two masks or more", self._column("shared"))
        areas = self._areas()
        if len(areas):
            yield f"mask areas in pixels: {_range(areas, '{:.0f}'.format)}"
            yield from histogram(areas, half_decades(areas), "{:.0f}")
        if self.keys:
            yield f"keys: {_few(self.keys)}"

    def _column(self, name: str) -> list[Any]:
        """Return one figure of all records."""
        return [getattr(figures, name) for figures in self.figures]

    def _areas(self) -> NDArray[np.int64]:
        return np.concatenate([np.zeros(0, np.int64), *self._column("areas")])


def _share_lines(title: str, shares: Sequence[float]) -> Iterator[str]:
    yield f"{title}: {_range(shares, '{:.0%}'.format)} of an image"
    yield from histogram(np.array(shares), np.linspace(0, 1, 11), "{:.0%}")


def inspect_store(store: MaskStore, sample: int | None, workers: int = 1) -> StoreReport:
    """Read `sample` records, evenly spread over the keys, or all (None), and report on them and on the store.

    Damaged records are listed in the report.
    """
    keys = store.keys()
    count = len(keys) if sample is None else min(sample, len(keys))
    sampled = [keys[number * len(keys) // count] for number in range(count)]
    figures: list[RecordFigures] = []
    bad: list[str] = []
    processes = useful(workers, count, 4 * TASKS_A_PROCESS)
    with closing(attempts(ReadFigures(store), sampled, processes)) as outcomes:
        for _, outcome in tqdm(outcomes, desc="info", total=count, unit="image", disable=None, leave=False):
            if isinstance(outcome, Failure):
                bad.append(outcome.message)
            else:
                figures.append(outcome)
    file_bytes = (store.path / "data.mdb").stat().st_size
    return StoreReport(store.path, store.meta, len(keys), file_bytes, keys, figures, bad)


def describe_provenance(meta: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines that describe how the masks were made, from the content of meta.json."""
    checkpoint, sha256 = meta.get("checkpoint"), meta.get("checkpoint_sha256")
    maker = f"made by: {meta.get('generator') or 'not known'}"
    if checkpoint or sha256:
        maker += f", weights {checkpoint or 'not known'}"
    if sha256:
        maker += f" (sha256 {sha256[:12]}...)"
    yield maker
    yield f"of the images: {meta.get('source') or 'not known which (gt, lq or restored)'}"
    for key, value in meta.items():
        if value and key not in (*_NOT_PROVENANCE, "generator", "checkpoint", "checkpoint_sha256", "source"):
            title = _TITLES.get(key, key.replace("_", " "))
            yield f"{title}: {_words(value)}"


def whole_bins(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the edges of at most twelve bins of whole numbers, from 0 to above the largest value."""
    top = int(values.max(initial=0)) + 1
    step = max(1, -(-top // 12))
    return np.arange(0, top + step, step).astype(np.float64)


def half_decades(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return edges 1, 3, 10, 32, ... that enclose all values; the first edge is 0 where some values are 0."""
    low = np.floor(2 * np.log10(max(float(values.min()), 1.0)))
    high = np.ceil(2 * np.log10(max(float(values.max() + 1), 1.0)))
    edges = np.round(10 ** (np.arange(low, high + 1) / 2))
    return np.concatenate(([0.0], edges)) if values.min() == 0 else edges


def histogram(values: NDArray[Any], edges: NDArray[Any], form: str, inclusive: bool = False) -> Iterator[str]:
    """Yield one line for each bin: its name, a bar and its count.

    Bins are [edge, next edge), the last one closed. form: the format of an edge. inclusive: the values are whole
    numbers, so a bin's name ends with the number before the next edge.
    """
    counts, edges = np.histogram(values, np.unique(edges))
    names = []
    for low, next_low in itertools.pairwise(edges):
        high = next_low - 1 if inclusive else next_low
        names.append(form.format(low) if low == high else f"{form.format(low)} - {form.format(high)}")
    width = max(map(len, names))
    for name, count in zip(names, counts.tolist(), strict=True):
        bar = "#" * int(np.ceil(_WIDTH * count / max(counts.max(), 1)))
        yield f"  {name:>{width}} | {bar} {count}"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_words(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_words, value))}]"
    return "none" if value is None else str(value)


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not len(values):
        return None
    array = np.asarray(values, np.float64)
    return {
        "min": float(array.min()),
        "median": float(np.median(array)),
        "mean": float(array.mean()),
        "max": float(array.max()),
    }


def _range(values: Any, form: Any) -> str:
    spread = _spread(values)
    assert spread is not None
    return f"{form(spread['min'])} to {form(spread['max'])}, median {form(spread['median'])}"


def _few(names: Sequence[str]) -> str:
    text = ", ".join(names[:8])
    return text if len(names) <= 8 else f"{text}, ... ({len(names)} in all)"


def _bytes(size: float) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 2**10:.1f} KiB"
