"""What a mask store holds, in words and as text histograms (scripts/masks.py info)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sam4ir.data.masks.record import MaskRecord, MaskStoreError
from sam4ir.data.masks.store import MaskStore
from sam4ir.data.workers import TASKS_A_PROCESS, Failure, attempts, useful

_WIDTH = 40  # of the longest bar, in characters
_PLAIN = ("format", "format_version", "counts")


class Figures(NamedTuple):
    """Of one record: bytes, (h, w), masks, shares of pixels under at least one and under two masks, (n,) areas."""

    bytes: int
    size: tuple[int, int]
    masks: int
    covered: float
    shared: float
    areas: NDArray[np.int64]


def atom_pixels(record: MaskRecord) -> NDArray[np.int64]:
    """(atoms,) pixels of each atom; decodes the whole map. Raises MaskStoreError where it is damaged."""
    pixels = np.bincount(record.labels(0, 0, *record.size).ravel(), minlength=record.atom_count)
    if len(pixels) != record.atom_count:
        raise MaskStoreError(f"{record.name}: damaged, its map has more atoms than its table; make its masks again")
    return pixels


def figures(record: MaskRecord, size: int) -> Figures:
    """The figures of a record of `size` bytes. Raises MaskStoreError where it is damaged."""
    pixels = atom_pixels(record)
    deep = record.table.sum(axis=1)
    total = max(int(pixels.sum()), 1)
    return Figures(
        size,
        record.size,
        record.count,
        float(pixels[deep > 0].sum() / total),
        float(pixels[deep > 1].sum() / total),
        record.areas,
    )


@dataclass(frozen=True)
class ReadFigures:
    """key -> figures; goes to worker processes."""

    store: MaskStore

    def __call__(self, key: str) -> Figures:
        data = self.store.record_bytes(key)
        return figures(MaskRecord(data, f"{self.store.path}: {key}"), len(data))


@dataclass(frozen=True)
class Report:
    """What info tells: the provenance, the plain counts, the figures of the records that were looked at."""

    path: Path
    meta: Mapping[str, Any]
    images: int
    file_bytes: int
    keys: Sequence[str]
    figures: Sequence[Figures]
    bad: Sequence[str]

    def values(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        masks = [f.masks for f in self.figures]
        return {
            "store": str(self.path),
            "images": self.images,
            "masks": self.meta.get("counts", {}).get("masks"),
            "bytes": self.file_bytes,
            "looked_at": {
                "images": len(self.figures),
                "damaged": list(self.bad),
                "masks_an_image": _spread(masks),
                "bytes_an_image": _spread([f.bytes for f in self.figures]),
                "covered": _spread([f.covered for f in self.figures]),
                "covered_twice": _spread([f.shared for f in self.figures]),
                "mask_area_pixels": _spread(_joined(self.figures).tolist()),
                "images_without_masks": masks.count(0),
            },
            "first_keys": list(self.keys[:10]),
            "meta": dict(self.meta),
        }

    def text(self) -> str:
        """All of it for reading."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        counts = self.meta.get("counts", {})
        each = f", {_bytes(self.file_bytes / self.images)} an image on disk" if self.images else ""
        yield f"{self.path}: {self.images} images, {counts.get('masks', '?')} masks, {_bytes(self.file_bytes)}{each}"
        yield from provenance(self.meta)
        if not self.figures:
            return
        everything = len(self.figures) + len(self.bad) == self.images
        looked = "all" if everything else f"{len(self.figures)}, evenly spread (--all looks at every one)"
        yield f"images looked at: {looked}"
        sizes = sorted({f.size for f in self.figures}, key=lambda s: s[0] * s[1])
        yield "image sizes (h x w): " + _few([f"{h}x{w}" for h, w in sizes])
        yield f"bytes of a record: {_told([f.bytes for f in self.figures], _bytes)}"
        masks = np.array([f.masks for f in self.figures])
        yield f"masks an image: {_told(masks, '{:.0f}'.format)}; without any: {int((masks == 0).sum())} images"
        yield from histogram(masks, whole_bins(masks), "{:.0f}", inclusive=True)
        yield from self._share("pixels under a mask", [f.covered for f in self.figures])
        yield from self._share("pixels under two masks or more", [f.shared for f in self.figures])
        areas = _joined(self.figures)
        if len(areas):
            yield f"mask areas in pixels: {_told(areas, '{:.0f}'.format)}"
            yield from histogram(areas, half_decades(areas), "{:.0f}")
        if self.keys:
            yield f"keys: {_few(self.keys)}"

    def _share(self, what: str, shares: Sequence[float]) -> Iterator[str]:
        yield f"{what}: {_told(shares, '{:.0%}'.format)} of an image"
        yield from histogram(np.array(shares), np.linspace(0, 1, 11), "{:.0%}")


def look(store: MaskStore, sample: int | None, workers: int = 1) -> Report:
    """Reads `sample` records, evenly spread over the keys, or all (None). Damaged ones are listed in the report."""
    keys = store.keys()
    wanted = keys if sample is None or sample >= len(keys) else [keys[i * len(keys) // sample] for i in range(sample)]
    found: list[Figures] = []
    bad: list[str] = []
    count = useful(workers, len(wanted), 4 * TASKS_A_PROCESS)
    with closing(attempts(ReadFigures(store), wanted, count)) as results:
        for _, one in tqdm(results, desc="info", total=len(wanted), unit="image", disable=None, leave=False):
            if isinstance(one, Failure):
                bad.append(one.message)
            else:
                found.append(one)
    return Report(store.path, store.meta, len(keys), (store.path / "data.mdb").stat().st_size, keys, found, bad)


def provenance(meta: Mapping[str, Any]) -> Iterator[str]:
    """How the masks were made, a line each."""
    checkpoint, sha256 = meta.get("checkpoint"), meta.get("checkpoint_sha256")
    weights = f", weights {checkpoint or 'not known'}{f' (sha256 {sha256[:12]}...)' if sha256 else ''}"
    yield f"made by: {meta.get('generator') or 'not known'}{weights if checkpoint or sha256 else ''}"
    source = meta.get("source")
    yield f"of the images: {source}" if source else "of the images: not known which (gt, lq or restored)"
    for key, value in meta.items():
        if value and key not in (*_PLAIN, "generator", "checkpoint", "checkpoint_sha256", "source"):
            yield f"{key.replace('_', ' ')}: {_words(value)}"


def whole_bins(values: NDArray[Any]) -> NDArray[np.float64]:
    """Edges of at most a dozen bins of whole numbers."""
    top = int(values.max(initial=0)) + 1
    step = max(1, -(-top // 12))
    return np.arange(0, top + step, step).astype(np.float64)


def half_decades(values: NDArray[Any]) -> NDArray[np.float64]:
    """Edges 1, 3, 10, 32, ... that hold all values, from 0 where some are 0."""
    low, high = (np.log10(max(float(v), 1.0)) * 2 for v in (values.min(), values.max() + 1))
    edges = np.round(10 ** (np.arange(np.floor(low), np.ceil(high) + 1) / 2))
    return np.concatenate(([0.0], edges)) if values.min() == 0 else edges


def histogram(values: NDArray[Any], edges: NDArray[Any], form: str, inclusive: bool = False) -> Iterator[str]:
    """A bar a bin [edge, next edge), the last one closed; inclusive: whole numbers, whose bins end before the next."""
    counts, edges = np.histogram(values, np.unique(edges))
    highs = edges[1:] - 1 if inclusive else edges[1:]
    names = [
        form.format(low) if inclusive and low == high else f"{form.format(low)} - {form.format(high)}"
        for low, high in zip(edges[:-1], highs, strict=True)
    ]
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
    points = {"min": array.min(), "median": np.median(array), "mean": array.mean(), "max": array.max()}
    return {name: float(value) for name, value in points.items()}


def _told(values: Any, form: Any) -> str:
    spread = _spread(values)
    assert spread is not None
    return f"{form(spread['min'])} to {form(spread['max'])}, median {form(spread['median'])}"


def _joined(found: Sequence[Figures]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, np.int64), *(f.areas for f in found)])


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f", ... ({len(listed)} in all)" if len(listed) > 8 else "")


def _bytes(size: float) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 2**10:.1f} KiB"
