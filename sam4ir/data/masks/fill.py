"""Filling a mask store image by image: on many processes, going on where it stopped, listing what is bad."""

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
from sam4ir.data.sources import ImageSource
from sam4ir.data.windows import TABLE
from sam4ir.data.workers import TASKS_A_PROCESS, Failure, attempts, useful

_SUB_IMAGE = re.compile(r"(.+)_s\d{3,}")


class Task(Protocol):
    """What is done in one go, and the keys of the records that come of it; str(task) names it."""

    @property
    def keys(self) -> Sequence[str]: ...


T = TypeVar("T", bound=Task)


@dataclass(frozen=True)
class TaskResult:
    """What comes of a task: records by key, and the images that belong to them where images are made too."""

    records: Mapping[str, bytes]
    images: Mapping[str, Packed] = field(default_factory=dict)


class ImageSink(Protocol):
    """Takes images along with their records."""

    def __contains__(self, key: str) -> bool: ...

    def add(self, key: str, image: Packed) -> None: ...

    def check(self, key: str, image: Packed) -> None:
        """Raises MaskStoreError where the image that is there under `key` is another one."""
        ...


@dataclass
class Filled:
    """Records stored and records that were there before; what is wrong with the rest, a sentence each."""

    stored: int = 0
    there: int = 0
    bad: list[str] = field(default_factory=list)


class LateStore:
    """A store that begins with its first record, so that a run without any leaves none behind.

    An existing one is opened at once, which refuses masks that were made otherwise; new=True moves it aside, late too.
    """

    def __init__(self, path: Path, meta: Mapping[str, Any], new: bool = False) -> None:
        self._path, self._meta, self._new = path, meta, new
        self._writer = MaskStoreWriter(path, meta) if not (new or holds_nothing(path)) else None

    def __contains__(self, key: str) -> bool:
        return self._writer is not None and key in self._writer

    def put(self, records: Mapping[str, bytes]) -> None:
        """Stores records, all or none of them."""
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
) -> Filled:
    """Makes the records of all tasks that are not in the store at `path` and stores them; bad tasks are skipped.

    make: runs in the workers; its ValueErrors and OSErrors become `Filled.bad`. images: where a task's images go,
    before its records; a task is done when both are there. Raises MaskStoreError where another image is there already.
    """
    done = Filled()
    with LateStore(path, meta, new) as store:
        todo = [t for t in tasks if any(k not in store or (images is not None and k not in images) for k in t.keys)]
        done.there = sum(len(task.keys) for task in tasks) - sum(len(task.keys) for task in todo)
        bar = tqdm(desc=path.name, total=len(tasks), initial=len(tasks) - len(todo), unit="image", disable=None)
        with bar, closing(attempts(make, todo, useful(workers, len(todo), tasks_a_process))) as results:
            for _, made in results:
                bar.update()
                if isinstance(made, Failure):
                    done.bad.append(made.message)
                    continue
                _add_images(made, images)
                store.put(made.records)
                done.stored += len(made.records)
    return done


def _add_images(made: TaskResult, images: ImageSink | None) -> None:
    for key, image in made.images.items():
        if images is not None:
            (images.check if key in images else images.add)(key, image)


def inherited(store: MaskStore) -> dict[str, Any]:
    """The provenance of a store, for another that is made of its records."""
    ours = ("python", "numpy", "lmdb", "zstandard")  # of whoever writes
    versions = {k: v for k, v in store.meta.get("versions", {}).items() if k not in ours}
    return {**stored_provenance(store.meta), **({"versions": versions} if versions else {})}


def refuse_same(store: Path, output: Path) -> None:
    """MaskStoreError where the store that is read would be written."""
    if output.exists() and output.resolve() == store.resolve():
        raise MaskStoreError(f"--output: {output} is the store that is read; name another")


def crop_hint(images: ImageSource, known: Collection[str]) -> str:
    """'; ...' what to do where the images are sub-images of those that have masks, '' where they are not."""
    whole = {match[1] for key in images.keys[:10_000] if (match := _SUB_IMAGE.fullmatch(key))}
    if not any(key in known for key in whole):
        return ""
    table = images.root.parent / TABLE
    how = f"--windows {table}" if table.exists() else "--images WHOLE_IMAGES --crop-size N --step N"
    return (
        "; they are sub-images of images that have masks: take the masks of the whole images into a store, then cut it "
        f"as the images were cut: python scripts/masks.py crop --store WHOLE.lmdb {how} --output CUT.lmdb"
    )
