"""Fill a mask store image by image, as import, crop and control do.

fill() makes the records of many tasks on many processes, continues where an earlier run stopped, and lists the tasks
that fail.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from sam4ir.data.lmdb_io import Packed
from sam4ir.data.masks.meta import holds_nothing, stored_provenance
from sam4ir.data.masks.store import MaskStore, MaskStoreError, MaskStoreWriter
from sam4ir.data.masks.writer import key_bytes
from sam4ir.data.sources import ImageSource
from sam4ir.data.windows import TABLE
from sam4ir.data.workers import TASKS_A_PROCESS, Failure, attempts, useful
from sam4ir.utils.shell import command_words

_SUB_IMAGE = re.compile(r"(.+)_s\d{3,}")


class Task(Protocol):
    """The work for one source image, with the keys of the records that it makes; str(task) names it in messages."""

    @property
    def keys(self) -> Sequence[str]: ...


T = TypeVar("T", bound=Task)


@dataclass(frozen=True)
class TaskResult:
    """The records of a task by key, and their images where the task makes images too."""

    records: Mapping[str, bytes]
    images: Mapping[str, Packed] = field(default_factory=dict)


class ImageSink(Protocol):
    """Stores the images of tasks beside their records."""

    def __contains__(self, key: str) -> bool: ...

    def add(self, key: str, image: Packed) -> None: ...

    def check(self, key: str, image: Packed) -> None:
        """Raise MaskStoreError where the image stored under `key` differs."""
        ...


@dataclass
class FillResult:
    """stored: new records. present: records that the store held before. bad: one sentence for each task that failed."""

    stored: int = 0
    present: int = 0
    bad: list[str] = field(default_factory=list)


class LateStore:
    """A mask store that is made with its first record, so that a run without records leaves no store behind.

    An existing store is opened at once, which raises MaskStoreError where its masks were made differently. With
    new=True it is moved aside, also with the first record.
    """

    def __init__(self, path: Path, meta: Mapping[str, Any], new: bool = False) -> None:
        self._path, self._meta, self._new = path, meta, new
        self._writer: MaskStoreWriter | None = None
        if not new and not holds_nothing(path):
            self._writer = MaskStoreWriter(path, meta)

    def __contains__(self, key: str) -> bool:
        return self._writer is not None and key in self._writer

    def put(self, records: Mapping[str, bytes]) -> None:
        """Store records, all or none of them."""
        if self._writer is None:
            self._writer = MaskStoreWriter(self._path, self._meta, new=self._new)
        self._writer.put_records([(key.encode(), record) for key, record in records.items()], overwrite=True)

    def __enter__(self) -> LateStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()


def fill(
    path: Path,
    meta: Mapping[str, Any],
    tasks: Sequence[T],
    make: Callable[[T], TaskResult],
    workers: int = 1,
    new: bool = False,
    tasks_a_process: int = TASKS_A_PROCESS,
    images: ImageSink | None = None,
) -> FillResult:
    """Make and store the records of all tasks that the store at `path` does not hold; skip tasks that fail.

    make: runs in the workers; its ValueErrors and OSErrors become `FillResult.bad`. images: stores a task's images,
    before its records; a task is done when both are stored. Raises MaskStoreError where another image is already stored
    under a key.
    """
    result = FillResult()
    with LateStore(path, meta, new) as store:
        open_tasks = []
        for task in tasks:
            fault = _fault_of_keys(task, path)
            if fault:
                result.bad.append(fault)
            elif _is_done(task, store, images):
                result.present += len(task.keys)
            else:
                open_tasks.append(task)
        done = len(tasks) - len(open_tasks)
        bar = tqdm(desc=path.name, total=len(tasks), initial=done, unit="image", disable=None)
        processes = useful(workers, len(open_tasks), tasks_a_process)
        with bar, closing(attempts(make, open_tasks, processes)) as outcomes:
            for _, outcome in outcomes:
                bar.update()
                if isinstance(outcome, Failure):
                    result.bad.append(outcome.message)
                    continue
                if images is not None:
                    _add_images(outcome, images)
                store.put(outcome.records)
                result.stored += len(outcome.records)
    return result


def _fault_of_keys(task: Task, path: Path) -> str:
    """Return what is wrong with a task's keys, '' where the store can hold all of them."""
    try:
        for key in task.keys:
            key_bytes(key, path)
    except MaskStoreError as error:
        return str(error)
    return ""


def _is_done(task: Task, store: LateStore, images: ImageSink | None) -> bool:
    if images is None:
        return all(key in store for key in task.keys)
    return all(key in store and key in images for key in task.keys)


def _add_images(outcome: TaskResult, images: ImageSink) -> None:
    for key, image in outcome.images.items():
        if key in images:
            images.check(key, image)
        else:
            images.add(key, image)


def inherited_meta(store: MaskStore) -> dict[str, Any]:
    """Return the meta of a store that is made from the records of `store`: its provenance and package versions."""
    meta = stored_provenance(store.meta)
    meta["exif_orientation"] = store.exif_orientation
    versions = dict(store.meta.get("versions", {}))
    for name in ("python", "numpy", "lmdb", "zstandard"):  # every writer adds its own
        versions.pop(name, None)
    if versions:
        meta["versions"] = versions
    return meta


def refuse_same(store: Path, output: Path) -> None:
    """Raise MaskStoreError where --output names the store that is read."""
    if output.exists() and output.resolve() == store.resolve():
        raise MaskStoreError(f"--output: {output} is the store that is read; name another")


def crop_hint(images: ImageSource, keys_with_masks: Collection[str]) -> str:
    """Return '; ...' with a remedy where the images are sub-images of images that have masks, otherwise ''.

    keys_with_masks: keys of the images that have masks.
    """
    matches = filter(None, map(_SUB_IMAGE.fullmatch, images.keys[:10_000]))
    if not any(match[1] in keys_with_masks for match in matches):
        return ""
    table = images.root.parent / TABLE
    how = "--images WHOLE_IMAGES --crop-size N --step N"
    if table.exists():
        how = command_words("--windows", table)
    return (
        "; they are sub-images of images that have masks: take the masks of the whole images into a store, then cut it "
        f"as the images were cut: sam4ir masks crop --store WHOLE.lmdb {how} --output CUT.lmdb"
    )
