"""The mask store used by several processes: readers beside a writer, killed processes, forks, damaged files."""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from sam4ir import regions
from sam4ir.data import lmdb_env
from sam4ir.data.masks.from_sam import record_from_sam
from sam4ir.data.masks.store import MaskStore, MaskStoreError, MaskStoreWriter

META = {"source": "gt"}
ROOT = Path(__file__).resolve().parents[3]
SMALL_MAP = 32 * 1024


@functools.cache
def record(number: int) -> bytes:
    """About 2 KB that only this number has."""
    noise = np.random.default_rng(number).random((2, 64, 64)) < 0.5
    masks = [{"segmentation": {"size": [64, 64], "counts": regions.mask_to_runs(m)}} for m in noise]
    return record_from_sam(masks)


def write(path: Path, count: int, pause: float = 0.0) -> None:
    """Stores the records 0 ... count - 1 that lack, in a map that must grow."""
    with MaskStoreWriter(path, META, map_size=SMALL_MAP) as writer:
        for number in range(count):
            if str(number) not in writer:
                writer.put_record(str(number), record(number), overwrite=False)
                time.sleep(pause)


def read_until(store: MaskStore, count: int, seed: int) -> None:
    """Compares records drawn at random until `count` are there; raises where one differs."""
    draw = random.Random(seed)
    while True:
        keys = store.keys()
        for key in draw.sample(keys, min(8, len(keys))):
            assert store.record_bytes(key) == record(int(key))
        if len(keys) >= count:
            return
        time.sleep(0.005)


def store_of(path: Path, count: int = 3) -> Path:
    write(path, count)
    return path


def start(method: str, work: Callable[..., None], *arguments: Any) -> Any:
    process = multiprocessing.get_context(method).Process(target=work, args=arguments)  # type: ignore[attr-defined]
    process.start()
    return process


@pytest.mark.slow
def test_readers_follow_a_growing_store_and_outlive_killed_writers_and_readers(tmp_path: Path) -> None:
    path, count = store_of(tmp_path / "m.lmdb", 2), 120
    store = MaskStore(path)
    readers = [start(m, read_until, store, count, i) for i, m in enumerate(("fork", "fork", "spawn"))]
    victim = start("fork", read_until, store, 10**9, 9)
    for stop_at in (30, 60):
        writer = start("fork", write, path, count, 0.002)
        while len(store) < stop_at:
            assert writer.exitcode is None
            time.sleep(0.002)
        writer.kill()
        writer.join()
    victim.kill()
    victim.join()
    last = start("fork", write, path, count)
    read_until(store, count, 7)
    for process in (*readers, last):
        process.join(60)
        assert process.exitcode == 0
    assert (path / "data.mdb").stat().st_size > 4 * SMALL_MAP
    assert MaskStore(path).meta["counts"] == {"images": count, "masks": 2 * count}
    del store
    held = MaskStoreWriter(path, META)  # gives back what the killed ones held
    slots = held._open().env.readers()
    assert str(victim.pid) not in slots, slots


def test_writing_processes_share_a_store_and_the_first_record_of_a_key_stays(tmp_path: Path) -> None:
    path, count = tmp_path / "m.lmdb", 60
    writers = [start("fork", write, path, count) for _ in range(3)]
    for process in writers:
        process.join(60)
        assert process.exitcode == 0
    store = MaskStore(path)
    assert store.meta["counts"] == {"images": count, "masks": 2 * count}
    read_until(store, count, 0)
    del store
    with MaskStoreWriter(path, META) as writer:
        assert not writer.put_record("3", record(4), overwrite=False)
        assert writer.put_records([(b"3", record(4)), (b"x", record(5))]) == 1
    assert MaskStore(path).record_bytes("3") == record(3)


def test_the_last_of_two_writers_counts_the_records(tmp_path: Path) -> None:
    first, go = MaskStoreWriter(tmp_path / "m.lmdb", META), multiprocessing.get_context("fork").Event()

    def other() -> None:
        with MaskStoreWriter(tmp_path / "m.lmdb", META) as second:
            second.put_record("b", record(1))
            go.wait(30)

    process = start("fork", other)
    first.put_record("a", record(0))
    while "b" not in first:
        time.sleep(0.01)
    with pytest.raises(MaskStoreError, match="another process is writing into it"):
        MaskStoreWriter(tmp_path / "m.lmdb", META, new=True)
    first.close()
    assert MaskStore(tmp_path / "m.lmdb").meta["counts"] == {"images": 0, "masks": 0}
    go.set()
    process.join(30)
    assert MaskStore(tmp_path / "m.lmdb").meta["counts"] == {"images": 2, "masks": 4}


def test_a_fork_while_other_threads_read_leaves_the_parents_slots_alone(tmp_path: Path) -> None:
    """A child that closed an environment with an open transaction would give back the parent's slot."""
    store = MaskStore(store_of(tmp_path / "m.lmdb", 8))
    stop = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                read_until(store, 8, 0)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        child = start("fork", read_until, store, 8, 1)
        child.join(30)
        assert child.exitcode == 0
    stop.set()
    for thread in threads:
        thread.join(30)
    assert not failures
    slots: list[str] = []

    def fork_and_look(transaction: lmdb.Transaction) -> None:
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
        slots.append(store._environment().env.readers())

    store._environment().read(fork_and_look)
    assert str(os.getpid()) in slots[0]


def test_threads_open_and_drop_a_store_while_the_process_forks(tmp_path: Path) -> None:
    """The last user of an environment goes in one thread while another opens the file or forks."""
    path = store_of(tmp_path / "m.lmdb", 3)
    stop = threading.Event()
    failures: list[BaseException] = []
    opened = [0, 0, 0]

    def open_and_drop(number: int) -> None:
        try:
            while not stop.is_set() or opened[number] < 300:
                assert MaskStore(path).record_bytes("1") == record(1)
                opened[number] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=open_and_drop, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(12):
        child = start("fork", read_until, MaskStore(path), 3, 0)
        child.join(20)
        if child.exitcode != 0:
            child.kill()
            failures.append(AssertionError(f"child: {child.exitcode}"))
            break
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not failures


def test_a_closed_or_dropped_writer_is_gone_though_a_child_lives(tmp_path: Path) -> None:
    writer, context = MaskStoreWriter(tmp_path / "m.lmdb", META), multiprocessing.get_context("fork")
    tried, go = context.Event(), context.Event()

    def other() -> None:
        assert not writer._presence.last()  # nor does this take the parent's presence away
        writer._presence.leave()
        tried.set()
        go.wait(60)

    child = start("fork", other)
    writer.put_record("a", record(0))
    assert tried.wait(30)
    again = subprocess.run([sys.executable, "-c", _NEW, str(ROOT), str(writer.path)], capture_output=True, timeout=60)
    assert b"another process is writing" in again.stderr
    writer.close()
    MaskStoreWriter(tmp_path / "m.lmdb", META).put_record("b", record(1))  # and dropped without closing
    begun = time.monotonic()
    MaskStoreWriter(tmp_path / "m.lmdb", META).close()
    assert child.is_alive()
    assert time.monotonic() - begun < 30
    assert MaskStore(tmp_path / "m.lmdb").meta["counts"] == {"images": 2, "masks": 4}
    MaskStoreWriter(tmp_path / "m.lmdb", META, new=True).close()
    go.set()
    child.join(30)
    assert child.exitcode == 0


_NEW = """
import sys
sys.path.insert(0, sys.argv[1])
from sam4ir.data.masks.store import MaskStoreWriter
MaskStoreWriter(sys.argv[2], {"source": "gt"}, new=True)
"""


def test_a_reader_and_a_writer_of_one_process_share_the_file(tmp_path: Path) -> None:
    with MaskStoreWriter(tmp_path / "m.lmdb", META, map_size=SMALL_MAP) as writer:
        store = MaskStore(tmp_path / "m.lmdb")
        for number in range(20):
            writer.put_record(str(number), record(number))
            assert store.record_bytes(str(number)) == record(number)
    assert store.record_bytes("7") == record(7)
    with pytest.raises(MaskStoreError, match="this writer is closed"):
        writer.put_record("8", record(8))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter (pytest's are root's own)."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_a_read_only_folder_is_read(open_folder: Path) -> None:
    path = store_of(open_folder / "m.lmdb")
    (path / "lock.mdb").unlink()
    os.chmod(path, 0o555)

    def read() -> None:
        if os.getuid() == 0:
            os.setuid(65534)
        read_until(MaskStore(path), 3, 0)
        with pytest.raises((MaskStoreError, PermissionError)):
            MaskStoreWriter(path, META)

    child = start("fork", read)
    child.join(30)
    assert child.exitcode == 0
    assert not (path / "lock.mdb").exists()
    os.chmod(path, 0o755)


def test_on_a_network_file_system_no_lock_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_env, "network_filesystem", lambda _: "nfs4")
    path = store_of(tmp_path / "m.lmdb")
    read_until(MaskStore(path), 3, 0)
    assert not (path / "lock.mdb").exists()


@pytest.mark.parametrize(
    ("line", "place", "expected"),
    [
        ("36 35 0:32 / / rw - ext4 /dev/sda rw", "/data/x", None),
        ("36 35 0:32 / / rw shared:1 - nfs4 server:/x rw", "/data/x", "nfs4"),
        ("36 35 0:32 / / rw - ext4 a rw\n37 36 0:33 / /data rw - lustre b rw", "/data/x", "lustre"),
        ("36 35 0:32 / / rw - ext4 a rw\n37 36 0:33 / /data rw - lustre b rw", "/database", None),
        ("36 35 0:32 / / rw - nfs a rw\n37 36 0:33 / /my\\040data rw - xfs b rw", "/my data/x", None),
        ("36 35 0:32 / / rw - xfs a rw\n37 36 0:33 / / rw - beegfs b rw", "/x", "beegfs"),
        ("36 35 0:32 / / rw - fuse.sshfs a rw", "/x", "fuse.sshfs"),
        ("36 35 0:32 / / rw - fuse.ntfs-3g a rw", "/x", None),
        ("server:/x / nfs rw 0 0", "/x", "nfs"),
    ],
)
def test_network_file_systems_are_recognised_from_the_mount_table(
    line: str, place: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(line + "\n")
    monkeypatch.setattr(lmdb_env, "_MOUNTS", (tmp_path / "nothing", table))
    assert lmdb_env.network_filesystem(Path(place)) == expected


def test_without_a_mount_table_everything_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_env, "_MOUNTS", (tmp_path / "nothing",))
    assert lmdb_env.network_filesystem(tmp_path) is None


_OPEN_CUT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from sam4ir.data.masks.store import MaskStore, MaskStoreError, MaskStoreWriter
path = Path(sys.argv[1])
whole = (path / "data.mdb").read_bytes()
for cut in map(int, sys.argv[3].split(",")):
    (path / "data.mdb").write_bytes(whole[:cut])
    for attempt in (lambda: MaskStore(path).keys(), lambda: MaskStoreWriter(path, {"source": "gt"})):
        try:
            attempt()
        except MaskStoreError as error:
            assert str(path) in str(error) and "\\n" not in str(error), error
        else:
            if cut:  # an empty file is where LMDB begins
                raise SystemExit(f"{cut} of {len(whole)} bytes: opened")
print("all refused")
"""


@pytest.mark.slow
def test_a_data_file_cut_anywhere_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = store_of(tmp_path / "m.lmdb", 6)
    size = (path / "data.mdb").stat().st_size
    draw = random.Random(0)
    cuts = {1, 100, 4095, 4096, 4097, 4200, 8191, 8192, 8193, 12288, size - 4096, size - 1}
    cuts |= {draw.randrange(1, size) for _ in range(60)}
    command = [sys.executable, "-c", _OPEN_CUT, str(path), str(ROOT), ",".join(map(str, sorted(cuts)))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.strip() == "all refused", (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("kind", ["random bytes", "image LMDB", "another program's", "named databases"])
def test_a_foreign_data_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = store_of(tmp_path / "m.lmdb")
    for name in ("data.mdb", "lock.mdb"):
        (path / name).unlink()
    if kind == "random bytes":
        (path / "data.mdb").write_bytes(np.random.default_rng(0).bytes(50_000))
    elif kind == "image LMDB":
        from sam4ir.data.lmdb_io import LmdbWriter  # loads torch, which the spawned processes above need not

        with LmdbWriter(tmp_path / "images.lmdb") as images:
            images.put("a", np.zeros((4, 4, 3), np.uint8))
        (tmp_path / "images.lmdb" / "data.mdb").rename(path / "data.mdb")
    else:
        with lmdb.open(str(tmp_path / "other"), max_dbs=2) as other:
            database = other.open_db(b"table") if kind == "named databases" else None
            with other.begin(write=True, db=database) as transaction:
                transaction.put(b"key", b"value")
        (tmp_path / "other" / "data.mdb").rename(path / "data.mdb")
    with pytest.raises(MaskStoreError, match=r"m\.lmdb.*sam4ir (make-masks|masks)"):
        MaskStore(path)


def test_a_full_disk_names_store_and_space_and_loses_nothing(tmp_path: Path) -> None:
    path = store_of(tmp_path / "m.lmdb", 2)

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))  # bytes; lock.mdb has 262,144
        with pytest.raises(MaskStoreError, match=r"m\.lmdb: cannot be written .* MB free"):
            write(path, 100)
        with pytest.raises(MaskStoreError, match="cannot be written"):
            write(path, 100)

    child = start("fork", fill)
    child.join(60)
    assert child.exitcode == 0
    stored = MaskStore(path)
    assert 2 < len(stored) < 100
    read_until(stored, len(stored), 0)
    del stored
    write(path, 100)
    assert MaskStore(path).meta["counts"]["images"] == 100
