"""The folder of one part: its LMDB folders, the table of sub-images, and the record of how they were prepared."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2

from sam4ir.data.lmdb_io import LmdbReader, LmdbWriter, read_image_keys
from sam4ir.data.prepare.make import PreparedImages
from sam4ir.data.prepare.parts import Job, Summary
from sam4ir.data.sources import listed
from sam4ir.data.windows import TABLE, Cut, read_table
from sam4ir.errors import UserError
from sam4ir.utils.files import append_text, read_json, write_text

FORMAT = "sam4ir prepared data"
RECORD = "prepared.json"


class JobFolder:
    """The writer of a job's LMDB folders and table; a context manager that keeps the committed images.

    finished: an earlier run finished the folder. done: the images that are committed, {key: Cut}.
    Raises UserError where the folder holds something else.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.done: dict[str, Cut] = {}
        self.finished = False
        self._writers: list[LmdbWriter] = []
        self._pending: list[Cut] = []
        folder = job.folder
        self._record, self._table = folder / RECORD, folder / TABLE
        self._part_record, self._part_table = folder / f"{RECORD}.part", folder / f"{TABLE}.part"
        if self._record.exists():
            self._check_finished()
        elif self._part_record.exists():
            self._check_settings(_read_json(self._part_record))
            self._continue()
        else:
            self._begin()

    def _begin(self) -> None:
        """Start a new folder. Raises UserError where one of its LMDB folders exists."""
        for store in self.job.stores():
            for path in (store, store.with_name(store.name + ".part")):
                if path.exists():
                    raise UserError(f"{path}: exists already; remove it or choose another --output")
        write_text(self._part_record, json.dumps({"settings": self.job.settings()}) + "\n")
        self._part_table.unlink(missing_ok=True)
        self._writers = [LmdbWriter(path, self.job.encoding, resume=True) for path in self.job.stores()]

    def _continue(self) -> None:
        """Open the folder of an interrupted run and remove images that did not reach every LMDB folder."""
        if self._part_table.exists():
            self.done = {cut.key: cut for cut in read_table(self._part_table)}
            self._rewrite(self._part_table, self.done.values())
        missing = set(self.done) - {item.key for item in self.job.part.items}
        if missing:
            raise UserError(
                f"{self.job.folder}: holds {listed(missing)} that --input no longer has; bring them back, or remove "
                "the folder and begin anew"
            )
        done_keys = set(_sub_image_keys(self.done.values()))
        complete = len(self.done) == len(self.job.part.items)
        for path in self.job.stores():
            if path.exists() and complete:  # killed while the LMDB folders got their names
                continue
            writer = LmdbWriter(path, self.job.encoding, resume=True)
            self._writers.append(writer)
            stored_keys = set(writer.keys())
            if done_keys - stored_keys:
                raise UserError(
                    f"{path}.part: lacks {listed(done_keys - stored_keys)} that are done; remove the folder, begin anew"
                )
            writer.discard(stored_keys - done_keys)  # committed here, but not in every LMDB folder

    def _check_finished(self) -> None:
        """Raise UserError where the finished folder is not of this job's images and settings, or lacks an LMDB."""
        record = _read_json(self._record)
        self._check_settings(record)
        if record.get("digest") != self.job.digest():
            raise UserError(
                f"{self._record}: the folder was made of {record.get('images')} images, --input now has "
                f"{len(self.job.part.items)}, or of other names; remove the folder or choose another --output"
            )
        missing = [str(path) for path in self.job.stores() if not (path / "meta_info.txt").exists()]
        if missing:
            raise UserError(
                f"{self._record}: is there, but {' and '.join(missing)} is not; remove it to make them again"
            )
        self.finished = True
        self._remove_part_files()

    def _check_settings(self, record: dict[str, Any]) -> None:
        """Raise UserError where the record's settings differ from the job's, naming each that does."""
        recorded, current = record.get("settings", {}), self.job.settings()
        changes = []
        for key in sorted({*recorded, *current}):
            if recorded.get(key) != current.get(key):
                changes.append(f"{key}: there {recorded.get(key)!r}, now {current.get(key)!r}")
        if changes:
            raise UserError(
                f"{self.job.folder}: holds a set that was made differently ({'; '.join(changes)}); choose another "
                "--output, or remove the folder"
            )

    def add(self, images: PreparedImages) -> None:
        """Write the values of one item's sub-images; they last after the next commit."""
        for key, values in zip(images.cut.keys, images.values, strict=True):
            for writer, value in zip(self._writers, values, strict=True):
                writer.add(key, value)
        self._pending.append(images.cut)

    def commit(self) -> int:
        """Flush the added images to disk and return their number."""
        for writer in self._writers:
            writer.commit()
        if self._pending:
            append_text(self._part_table, "".join(cut.line() for cut in self._pending))
        self.done |= {cut.key: cut for cut in self._pending}
        count = len(self._pending)
        self._pending = []
        return count

    def finish(self) -> Summary:
        """Give the LMDB folders their final names, then write the table and the record.

        Raises UserError where an LMDB folder's keys are not those of the table.
        """
        for writer in self._writers:
            writer.close()
        self._writers = []
        cuts = sorted(self.done.values(), key=lambda cut: cut.key)
        keys = sorted(_sub_image_keys(cuts))
        for path in self.job.stores():
            if not keys == read_image_keys(path) == sorted(LmdbReader(path).keys()):
                raise UserError(f"{path}: its keys are not those of {self._part_table}; remove the folder, begin anew")
        size = _disk_bytes(self.job.stores())
        record = {
            "format": FORMAT,
            "settings": self.job.settings(),
            "sources": list(self.job.sources),
            "images": len(cuts),
            "sub_images": len(keys),
            "as_published": not self.job.part.problems,
            "differs": list(self.job.part.problems),
            "bytes": size,
            "digest": self.job.digest(),
            "versions": _versions(),
        }
        self._rewrite(self._table, cuts)
        write_text(self._record, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        self._remove_part_files()
        return Summary(self.job, len(cuts), len(keys), size, fresh=True)

    def summary(self) -> Summary:
        """Return the summary of a folder that an earlier run finished."""
        record = _read_json(self._record)
        return Summary(self.job, record["images"], record["sub_images"], record["bytes"], fresh=False)

    def _rewrite(self, path: Path, cuts: Iterable[Cut]) -> None:
        """Replace a table by one of these images."""
        write_text(path, "".join(cut.line() for cut in cuts))

    def _remove_part_files(self) -> None:
        self._part_record.unlink(missing_ok=True)
        self._part_table.unlink(missing_ok=True)

    def __enter__(self) -> JobFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers:
            writer.abandon()


def _sub_image_keys(cuts: Iterable[Cut]) -> Iterator[str]:
    """Yield the keys of all sub-images of these images."""
    for cut in cuts:
        yield from cut.keys


def _disk_bytes(folders: Sequence[Path]) -> int:
    return sum((folder / "data.mdb").stat().st_size for folder in folders)


def _read_json(path: Path) -> dict[str, Any]:
    """Return a prepared folder's record. Raises UserError where the file is damaged or of something else."""
    try:
        record = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); remove the folder and begin anew") from None
    except UserError as error:  # it names the file
        raise UserError(f"{error}; remove the folder and begin anew") from None
    if not isinstance(record, dict) or "settings" not in record:
        raise UserError(f"{path}: is not of a prepared set; choose another --output")
    return record


def _versions() -> dict[str, str]:
    """Return the versions of the libraries that the values depend on."""
    return {
        "python": platform.python_version(),
        "opencv": cv2.__version__,
        "numpy": metadata.version("numpy"),
        "lmdb": metadata.version("lmdb"),
    }
