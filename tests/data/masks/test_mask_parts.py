"""Parts of a mask store are merged completely, once, by any process, and never while another process writes them."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam4ir import regions
from sam4ir.data.masks import parts as mask_parts
from sam4ir.data.masks.from_sam import record_from_sam
from sam4ir.data.masks.parts import merge_idle, merging, part_writer, parts_folder
from sam4ir.data.masks.store import MaskStore, MaskStoreError, MaskStoreWriter

META = {"generator": "test", "source": "gt"}


def record(number: int) -> bytes:
    mask = np.random.default_rng(number).random((40, 50)) < 0.5
    return record_from_sam([{"segmentation": {"size": [40, 50], "counts": regions.mask_to_runs(mask)}}])


def write_part(store: Path, name: str, *numbers: int, meta: dict[str, Any] = META) -> Path:
    with part_writer(store, name, meta) as writer:
        for number in numbers:
            writer.put_record(str(number), record(number))
    return parts_folder(store) / f"{name}.lmdb"


def merge(store: Path, meta: dict[str, Any] = META) -> mask_parts.MergeResult:
    with merging(store):
        return merge_idle(store, meta)


def contents(store: Path) -> dict[str, bytes]:
    mask_store = MaskStore(store)
    return {key: mask_store.record_bytes(key) for key in mask_store.keys()}  # noqa: SIM118  (no mapping)


def test_parts_of_any_number_of_processes_become_one_store(tmp_path: Path) -> None:
    store = tmp_path / "m.lmdb"
    for i in range(3):
        write_part(store, f"rank-{i}of3", *range(i, 30, 3))
    write_part(store, "shard-0of1", 2, 30)
    result = merge(store)
    assert (result.records, len(result.parts), result.living) == (31, 4, ())
    assert contents(store) == {str(i): record(i) for i in range(31)}
    assert MaskStore(store).meta["counts"] == {"images": 31, "masks": 31}
    assert not parts_folder(store).exists()
    assert merge(store) == mask_parts.MergeResult()


def test_the_first_record_of_a_key_stays(tmp_path: Path) -> None:
    store = tmp_path / "m.lmdb"
    with MaskStoreWriter(store, META) as writer:
        writer.put_record("1", record(10))
    write_part(store, "rank-0of1", 1, 2)
    assert merge(store).records == 1
    assert contents(store) == {"1": record(10), "2": record(2)}


def _hold(store: Path, ready: Any, go: Any) -> None:
    with part_writer(store, "rank-1of2", META) as writer:
        writer.put_record("1", record(1))
        ready.set()
        go.wait(60)


@pytest.mark.parametrize("killed", [False, True])
def test_a_part_that_a_living_process_writes_is_left_alone(killed: bool, tmp_path: Path) -> None:
    store, context = tmp_path / "m.lmdb", multiprocessing.get_context("fork")
    ready, go = context.Event(), context.Event()
    write_part(store, "rank-0of2", 0)
    process = context.Process(target=_hold, args=(store, ready, go))
    process.start()
    assert ready.wait(60)
    assert merge(store).living == ("rank-1of2.lmdb",)
    with (
        pytest.raises(MaskStoreError, match=r"rank-1of2\.lmdb: is being written by another process"),
        part_writer(store, "rank-1of2", META),
    ):
        pass
    with pytest.raises(MaskStoreError, match=r"rank-1of2\.lmdb is being written"):
        mask_parts.begin_new(store, META)
    if killed:
        process.kill()
    else:
        go.set()
    process.join(60)
    assert merge(store).records == 1
    assert sorted(contents(store)) == ["0", "1"]


class _Stopped(BaseException):
    """As if killed."""


@pytest.mark.parametrize("moment", ["before the second batch", "before it is removed", "while it is removed"])
def test_a_killed_merge_can_be_repeated(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "m.lmdb"
    write_part(store, "rank-0of1", *range(12))
    monkeypatch.setattr("sam4ir.data.masks.store._BATCH", 2000)
    put, batches = MaskStoreWriter.put_records, []

    def stop(*_: object, **__: object) -> None:
        raise _Stopped

    def put_once(self: MaskStoreWriter, batch: Any, overwrite: bool = False) -> int:
        batches.append(len(batch))
        if len(batches) == 2:
            raise _Stopped
        return put(self, batch, overwrite)

    with monkeypatch.context() as patch:
        if moment == "before the second batch":
            patch.setattr(MaskStoreWriter, "put_records", put_once)
        elif moment == "before it is removed":
            patch.setattr(mask_parts, "_remove", stop)
        else:
            patch.setattr(shutil, "rmtree", stop)
        with pytest.raises(_Stopped):
            merge(store)
    left = list(parts_folder(store).iterdir())
    assert left
    merge(store)
    assert contents(store) == {str(i): record(i) for i in range(12)}
    assert MaskStore(store).meta["counts"]["images"] == 12
    assert not parts_folder(store).exists()


def test_an_empty_part_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    store = tmp_path / "m.lmdb"
    merge(store)
    parts_folder(store).mkdir()
    (parts_folder(store) / "rank-0of1.lmdb").mkdir()
    half = parts_folder(store) / "rank-1of1.lmdb"
    half.mkdir()
    shutil.copy(store / "meta.json", half)
    empty = parts_folder(store) / "shard-0of1.lmdb"  # killed inside LMDB's own beginning
    shutil.copytree(half, empty)
    (empty / "data.mdb").touch()
    assert merge(store).records == 0
    assert not parts_folder(store).exists()


def test_a_part_that_is_about_to_begin_is_not_moved_aside(tmp_path: Path) -> None:
    store = tmp_path / "m.lmdb"
    merge(store)
    parts_folder(store).mkdir()
    lock = mask_parts._lock(parts_folder(store) / "rank-0of1.lmdb")
    assert lock is not None
    with pytest.raises(MaskStoreError, match=r"rank-0of1\.lmdb is being written"):
        mask_parts.begin_new(store, META)
    lock.release()
    mask_parts.begin_new(store, META)
    assert store.with_name("m.lmdb.old1").is_dir()


def test_a_part_made_in_another_way_is_refused_and_stays(tmp_path: Path) -> None:
    store = tmp_path / "m.lmdb"
    merge(store)
    part = write_part(store, "rank-0of1", 1, meta={**META, "source": "lq"})
    with pytest.raises(MaskStoreError, match=r"rank-0of1\.lmdb holds masks that were made differently \(source"):
        merge(store)
    assert contents(part) == {"1": record(1)}


def test_a_damaged_part_is_named_and_stays(tmp_path: Path) -> None:
    store = tmp_path / "m.lmdb"
    part = write_part(store, "rank-0of1", *range(9))
    data = (part / "data.mdb").read_bytes()
    (part / "data.mdb").write_bytes(data[:-5000])
    with pytest.raises(MaskStoreError, match=r"rank-0of1\.lmdb.*truncated"):
        merge(store)
    assert part.is_dir()


def test_the_machines_of_the_parts_are_recorded(tmp_path: Path) -> None:
    store = tmp_path / "m.lmdb"
    for i, device in enumerate(("cpu", "cuda", "cpu")):
        write_part(store, f"shard-{i}of3", i, meta={**META, "made_on": device})
    merge(store)
    assert MaskStore(store).meta["made_on"] == ["cpu", "cuda"]


def test_nothing_is_locked_in_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")
    with pytest.raises(MaskStoreError, match=r"no meta\.json"):
        merge(tmp_path / "photos")
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["a.png"]
