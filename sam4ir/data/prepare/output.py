"""The folder of one part: its LMDB folders, the table of sub-images, the record of how they were made."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2

from sam4ir.data.lmdb_io import LmdbReader, LmdbWriter, append_text, read_image_keys
from sam4ir.data.prepare.make import PreparedImages
from sam4ir.data.prepare.parts import Job, Summary
from sam4ir.data.sources import listed
from sam4ir.data.windows import TABLE, Cut, read_table
from sam4ir.errors import UserError
from sam4ir.utils.files import read_json, write_text

FORMAT = "sam4ir prepared data"
RECORD = "prepared.json"


class Output:
    """The LMDB folders and the table of one job; a context manager that keeps what was committed.

    finished: the folder was whole already. done: the images that need not be made again, {key: Cut}.
    Raises ValueError where the folder holds something else.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.done: dict[str, Cut] = {}
        self.finished = False
        self._writers: list[LmdbWriter] = []
        self._fresh: list[Cut] = []
        folder = job.folder
        self._record, self._table = folder / RECORD, folder / TABLE
        self._part_record, self._part_table = folder / f"{RECORD}.part", folder / f"{TABLE}.part"
        if self._record.exists():
            self._check_finished()
        elif self._part_record.exists():
            self._check_settings(_read_json(self._part_record))
            self._go_on()
        else:
            self._begin()

    def _begin(self) -> None:
        for path in self.job.stores():
            for there in (path, path.with_name(path.name + ".part")):
                if there.exists():
                    raise UserError(f"{there}: exists already; remove it or choose another --output")
        write_text(self._part_record, json.dumps({"settings": self.job.settings()}) + "\n")
        self._part_table.unlink(missing_ok=True)
        self._writers = [LmdbWriter(path, self.job.encoding, resume=True) for path in self.job.stores()]

    def _go_on(self) -> None:
        if self._part_table.exists():
            self.done = {cut.key: cut for cut in read_table(self._part_table)}
            self._rewrite(self._part_table, self.done.values())
        gone = set(self.done) - {item.key for item in self.job.part.items}
        if gone:
            raise UserError(
                f"{self.job.folder}: holds {listed(gone)} that --input no longer has; bring them back, or remove the "
                "folder and begin anew"
            )
        keys = {key for cut in self.done.values() for key in cut.keys}
        complete = len(self.done) == len(self.job.part.items)
        for path in self.job.stores():
            if path.exists() and complete:  # killed while the LMDB folders got their names
                continue
            writer = LmdbWriter(path, self.job.encoding, resume=True)
            self._writers.append(writer)
            there = set(writer.keys())
            if keys - there:
                raise UserError(
                    f"{path}.part: lacks {listed(keys - there)} that are done; remove the folder, begin anew"
                )
            writer.discard(there - keys)  # committed, but the image was not whole in every LMDB

    def _check_finished(self) -> None:
        record = _read_json(self._record)
        self._check_settings(record)
        if record.get("digest") != self.job.digest():
            raise UserError(
                f"{self._record}: the folder was made of {record.get('images')} images, --input now has "
                f"{len(self.job.part.items)}, or of other names; remove the folder or choose another --output"
            )
        lost = [str(path) for path in self.job.stores() if not (path / "meta_info.txt").exists()]
        if lost:
            raise UserError(f"{self._record}: is there, but {' and '.join(lost)} is not; remove it to make them again")
        self.finished = True
        self._sweep()

    def _check_settings(self, record: dict[str, Any]) -> None:
        known, given = record.get("settings", {}), self.job.settings()
        differing = [key for key in sorted({*known, *given}) if known.get(key) != given.get(key)]
        if differing:
            which = "; ".join(f"{key}: there {known.get(key)!r}, now {given.get(key)!r}" for key in differing)
            raise UserError(
                f"{self.job.folder}: holds a set that was made differently ({which}); choose another --output, or "
                "remove the folder"
            )

    def add(self, made: PreparedImages) -> None:
        """Takes the values of one image."""
        for window, values in zip(made.cut.windows, made.values, strict=True):
            for writer, value in zip(self._writers, values, strict=True):
                writer.add(made.cut.key + window.suffix, value)
        self._fresh.append(made.cut)

    def commit(self) -> int:
        """Makes what was added last; the number of images that are done thereby."""
        for writer in self._writers:
            writer.commit()
        if self._fresh:
            append_text(self._part_table, "".join(cut.line() for cut in self._fresh))
        self.done |= {cut.key: cut for cut in self._fresh}
        count, self._fresh = len(self._fresh), []
        return count

    def finish(self) -> Summary:
        """Checks that every LMDB folder has the same keys, gives all their names, writes table and record."""
        for writer in self._writers:
            writer.close()
        self._writers = []
        cuts = sorted(self.done.values(), key=lambda cut: cut.key)
        keys = sorted(key for cut in cuts for key in cut.keys)
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
        self._sweep()
        return Summary(self.job, len(cuts), len(keys), size, fresh=True)

    def summary(self) -> Summary:
        """Of a folder that was finished before."""
        record = _read_json(self._record)
        return Summary(self.job, record["images"], record["sub_images"], record["bytes"], fresh=False)

    def _rewrite(self, path: Path, cuts: Iterable[Cut]) -> None:
        write_text(path, "".join(cut.line() for cut in cuts))

    def _sweep(self) -> None:
        self._part_record.unlink(missing_ok=True)
        self._part_table.unlink(missing_ok=True)

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers:
            writer.abandon()


def _disk_bytes(folders: Sequence[Path]) -> int:
    return sum((folder / "data.mdb").stat().st_size for folder in folders)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove the folder and begin anew") from None
    if not isinstance(record, dict) or "settings" not in record:
        raise UserError(f"{path}: is not of a prepared set; choose another --output")
    return record


def _versions() -> dict[str, str]:
    packages = {name: metadata.version(name) for name in ("numpy", "lmdb")}
    return {"python": platform.python_version(), "opencv": cv2.__version__, **packages}
