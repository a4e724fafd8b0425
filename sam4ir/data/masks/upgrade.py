"""Write the records of earlier formats again in the newest one, which has checksums (sam4ir masks upgrade)."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from sam4ir.data.masks.fill import inherited_meta
from sam4ir.data.masks.record import encode_again
from sam4ir.data.masks.store import MaskStore, MaskStoreWriter
from sam4ir.data.masks.verify import check_pixels
from sam4ir.data.workers import Failure, attempts, useful


@dataclass(frozen=True)
class EncodeAgain:
    """Returns the record of an image in the newest format, given its key; can be sent to worker processes.

    Raises MaskStoreError where the record is damaged.
    """

    store: MaskStore

    def __call__(self, key: str) -> bytes:
        record = self.store.read(key)
        check_pixels(record)
        return encode_again(record)


@dataclass
class UpgradeResult:
    """written: records in the new format. images: records of the store. bad: a sentence for each damaged record."""

    written: int = 0
    images: int = 0
    bad: list[str] = field(default_factory=list)


def upgrade(path: Path, workers: int = 1) -> UpgradeResult:
    """Replace each record without checksums by one that holds the same; damaged ones stay and are listed.

    Each record is replaced in one transaction, so an interrupted run loses nothing. Raises MaskStoreError where `path`
    is no store, or cannot be written.
    """
    result = UpgradeResult()
    with MaskStoreWriter(path, inherited_meta(MaskStore(path))) as writer:
        store = MaskStore(path)  # opened after the writer, whose environment it shares
        keys = store.unprotected()
        result.images = len(store)
        with closing(attempts(EncodeAgain(store), keys, useful(workers, len(keys)))) as outcomes:
            for key, outcome in tqdm(outcomes, desc="upgrade", total=len(keys), unit="image", disable=None):
                if isinstance(outcome, Failure):
                    result.bad.append(outcome.message)
                else:
                    writer.put_record(key, outcome)
                    result.written += 1
    return result
