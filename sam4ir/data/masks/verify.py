"""Check that every image has an undamaged record of its size (sam4ir masks verify)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from sam4ir.data.masks.fill import crop_hint
from sam4ir.data.masks.from_sam import pixel_sha256
from sam4ir.data.masks.record import MaskRecord, MaskStoreError
from sam4ir.data.masks.store import MaskStore
from sam4ir.data.sources import ImageSource, listed
from sam4ir.data.windows import TABLE
from sam4ir.data.workers import Failure, attempts, useful
from sam4ir.utils.shell import command_words


@dataclass(frozen=True)
class CheckRecord:
    """Returns, given an image's key, whether the generator read other pixels; can be sent to worker processes.

    It returns False where the record has no checksum. pixels: compare the image's pixels with the checksum; otherwise
    only the size in the file's header is checked. Raises MaskStoreError where the record is damaged or of another size,
    ValueError where the image cannot be read.
    """

    store: MaskStore
    images: ImageSource
    pixels: bool = True

    def __call__(self, key: str) -> bool:
        record = self.store.read(key)
        if not self.pixels or record.image_sha256 is None:
            _same_size(record, self.images.size(key))
            check_pixels(record)
            return False
        with self.images.open(key) as image:
            _same_size(record, (image.shape[0], image.shape[1]))
            check_pixels(record)
            return pixel_sha256(np.ascontiguousarray(image)) != record.image_sha256


def check_pixels(record: MaskRecord) -> None:
    """Decode a whole record; raise MaskStoreError where its areas do not fit its pixels or a part is damaged."""
    areas = record.atom_pixels() @ record.table
    record.region_map(0, 0, 1, 1)  # reads the region of each atom, and checks it
    if not np.array_equal(areas, record.areas):
        raise MaskStoreError(f"{record.name}: damaged, the areas do not fit the pixels; make its masks again")


def _same_size(record: MaskRecord, size: tuple[int, int]) -> None:
    if record.size != size:
        h, w = record.size
        raise MaskStoreError(f"{record.name}: the masks are of {h}x{w}, the image of {size[0]}x{size[1]} (h x w)")


@dataclass
class Verdict:
    """The result of verify.

    images: the number of images. problems: one sentence for each image with a problem. hint: '; ...' with a remedy, or
    ''. The other lists hold keys. lacking: images without a record. wrong: images with a record that is damaged or of
    another size, and images that cannot be read. other_pixels: the generator read another image. without_image: records
    without an image. unprotected: records of earlier formats, which have no checksums.
    """

    images: int
    problems: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    other_pixels: list[str] = field(default_factory=list)
    without_image: list[str] = field(default_factory=list)
    unprotected: list[str] = field(default_factory=list)
    hint: str = ""

    @property
    def keys_to_make(self) -> list[str]:
        """The keys of the images that need new masks, sorted."""
        return sorted({*self.lacking, *self.wrong})

    def notes(self, source: str | None) -> Iterator[str]:
        """Yield remarks that are no errors. source: the kind of image that the generator read."""
        if self.other_pixels:
            origin = f"source: {source}" if source else "source not known"
            yield f"note: the generator saw other pixels ({origin}) of {listed(self.other_pixels)}"
        if self.without_image:
            yield f"note: records without an image there: {listed(self.without_image)}"
        if self.unprotected:
            yield (
                f"note: records of an earlier format, without checksums, in which damage may go unnoticed: "
                f"{listed(self.unprotected)}; sam4ir masks upgrade STORE writes them again with checksums"
            )


def verify(store: MaskStore, images: ImageSource, workers: int = 1, pixels: bool = True) -> Verdict:
    """Compare a store with the images that it belongs to. workers: processes; pixels: see CheckRecord."""
    stored = set(store.keys())
    verdict = Verdict(len(images.keys), without_image=sorted(stored - set(images.keys)))
    verdict.unprotected = store.unprotected()
    with_record = []
    for key in images.keys:
        if key in stored:
            with_record.append(key)
        else:
            verdict.lacking.append(key)
            verdict.problems.append(f"{images.where(key)}: no record")
    processes = useful(workers, len(with_record))
    with closing(attempts(CheckRecord(store, images, pixels), with_record, processes)) as outcomes:
        for key, outcome in tqdm(outcomes, desc="verify", total=len(with_record), unit="image", disable=None):
            if isinstance(outcome, Failure):
                verdict.problems.append(outcome.message)
                verdict.wrong.append(key)
            elif outcome:
                verdict.other_pixels.append(key)
    if verdict.lacking:
        verdict.hint = crop_hint(images, stored)
    elif verdict.wrong:
        verdict.hint = _centre_hint(images)
    return verdict


def _centre_hint(images: ImageSource) -> str:
    """Return a hint to cut the masks where the images were cut under their own keys (validation patches)."""
    table = images.root.parent / TABLE
    if not table.exists():
        return ""
    return (
        f"; {table} records how these images were cut; cut the masks of the whole images in the same way: "
        f"sam4ir masks crop --store WHOLE.lmdb {command_words('--windows', table)} --output CUT.lmdb"
    )
