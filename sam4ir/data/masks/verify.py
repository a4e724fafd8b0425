"""Whether every image has a whole record of its size (scripts/masks.py verify)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from sam4ir.data.masks.fill import crop_hint
from sam4ir.data.masks.from_sam import pixel_sha256
from sam4ir.data.masks.info import atom_pixels
from sam4ir.data.masks.record import MaskRecord, MaskStoreError
from sam4ir.data.masks.store import MaskStore
from sam4ir.data.sources import ImageSource, listed
from sam4ir.data.windows import TABLE
from sam4ir.data.workers import Failure, attempts, useful


@dataclass(frozen=True)
class CheckRecord:
    """key -> whether the generator saw other pixels (False where not known); goes to worker processes.

    pixels: compare the image's pixels with the checksum in the record; else its file's header is enough.
    Raises MaskStoreError where the record is damaged or of another size, ValueError where the image cannot be read.
    """

    store: MaskStore
    images: ImageSource
    pixels: bool = True

    def __call__(self, key: str) -> bool:
        record = self.store.read(key)
        check_pixels(record)
        if not self.pixels or record.image_sha256 is None:
            _same_size(record, self.images.size(key))
            return False
        with self.images.open(key) as image:
            _same_size(record, (image.shape[0], image.shape[1]))
            return pixel_sha256(np.ascontiguousarray(image)) != record.image_sha256


def check_pixels(record: MaskRecord) -> None:
    """Decodes all of a record. Raises MaskStoreError where its areas do not fit its pixels or a part is damaged."""
    areas = atom_pixels(record) @ record.table
    whole = (0, 0, *record.size)
    if not np.array_equal(areas, record.areas) or record.region_map(*whole).max(initial=0) > record.count:
        raise MaskStoreError(f"{record.name}: damaged, the areas do not fit the pixels; make its masks again")


def _same_size(record: MaskRecord, size: tuple[int, int]) -> None:
    if record.size != size:
        masks, image = (f"{h}x{w}" for h, w in (record.size, size))
        raise MaskStoreError(f"{record.name}: the masks are of {masks}, the image of {image} (h x w)")


@dataclass
class Verdict:
    """What verify found. All lists are of keys, `problems` of sentences.

    lacking: images without a record; wrong: with one that is damaged or of another size, or an image that cannot be
    read; other_pixels: the generator saw another image; without_image: records that no image asks for.
    """

    images: int
    problems: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    other_pixels: list[str] = field(default_factory=list)
    without_image: list[str] = field(default_factory=list)
    hint: str = ""

    @property
    def to_make(self) -> list[str]:
        """The keys whose masks are to be made (again), sorted."""
        return sorted({*self.lacking, *self.wrong})

    def notes(self, source: str | None) -> Iterator[str]:
        """What is worth knowing and no error. source: which image the generator looked at."""
        if self.other_pixels:
            of = f"source: {source}" if source else "source not known"
            yield f"note: the generator saw other pixels ({of}) of {listed(self.other_pixels)}"
        if self.without_image:
            yield f"note: records without an image there: {listed(self.without_image)}"


def verify(store: MaskStore, images: ImageSource, workers: int = 1, pixels: bool = True) -> Verdict:
    """Compares a store with the images that it is for. workers, pixels: processes; see CheckRecord."""
    stored, wanted = set(store.keys()), set(images.keys)
    found = Verdict(len(images.keys), without_image=sorted(stored - wanted))
    found.lacking = [key for key in images.keys if key not in stored]
    found.problems = [f"{images.where(key)}: no record" for key in found.lacking]
    there = [key for key in images.keys if key in stored]
    with closing(attempts(CheckRecord(store, images, pixels), there, useful(workers, len(there)))) as results:
        for key, differs in tqdm(results, desc="verify", total=len(there), unit="image", disable=None):
            if isinstance(differs, Failure):
                found.problems.append(differs.message)
                found.wrong.append(key)
            elif differs:
                found.other_pixels.append(key)
    found.hint = crop_hint(images, stored) if found.lacking else _centre_hint(images, found)
    return found


def _centre_hint(images: ImageSource, found: Verdict) -> str:
    """Where images were cut under their own keys (validation patches), their masks must be cut as well."""
    table = images.root.parent / TABLE
    if not found.wrong or not table.exists():
        return ""
    return (
        f"; {table} tells how these images were cut: masks of the whole ones are cut alike with: "
        f"python scripts/masks.py crop --store WHOLE.lmdb --windows {table} --output CUT.lmdb"
    )
