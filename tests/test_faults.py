"""What the world does to a run: kill -9 again and again, a full disk, a folder that cannot be written, lost data."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import World, photograph
from engine.train.test_training import assert_same_run, records

from sam4ir.data.lmdb_io import LmdbWriter

ROOT = Path(__file__).resolve().parents[1]
KILLS = 50
pytestmark = pytest.mark.slow


def start(world: World, *force: str, sam: bool = False, resume: bool = False, **kwargs) -> subprocess.Popen[str]:
    options = world.write(world.values(sam), "sam.yml" if sam else "plain.yml")
    return subprocess.Popen(
        [
            sys.executable,
            "train.py",
            "-opt",
            str(options),
            *(["--auto_resume"] if resume else []),
            "--force_yml",
            *force,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **kwargs,
    )


def train(world: World, *force: str, **kwargs) -> tuple[int, str]:
    """(exit code, all that it printed)"""
    process = start(world, *force, **kwargs)
    out, _ = process.communicate(timeout=400)
    return process.returncode, out


def lines(log: Path) -> int:
    return log.read_text().count("\n") if log.exists() else 0


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("sam", "total", "longest"), [(False, 1600, 45), (True, 800, 22)])
def test_killed_fifty_times_at_random_moments_and_still_the_same_weights(
    world: World, sam: bool, total: int, longest: int
) -> None:
    common = [f"train:total_iter={total}", "val:val_freq=200", "logger:save_checkpoint_freq=10"]
    code, out = train(world, "name=straight", *common, sam=sam)
    assert code == 0, out
    killed = world.root / "experiments" / "killed"
    moments = random.Random(7)
    for kill in range(KILLS):
        process = start(world, "name=killed", *common, sam=sam, resume=True)
        if moments.random() < 0.2:
            time.sleep(moments.uniform(0, 4))  # while it starts, loads the checkpoint, cuts its logs
        else:
            seen, wanted = lines(killed / "log.jsonl"), moments.randrange(1, longest)
            while lines(killed / "log.jsonl") not in range(seen + wanted, seen + 10_000):
                assert process.poll() is None, process.communicate()[0]
                seen = min(seen, lines(killed / "log.jsonl"))  # a start cuts what lies past its checkpoint
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 0.05))
        assert process.poll() is None, f"finished before kill {kill}"
        process.kill()
        process.communicate()
    code, out = train(world, "name=killed", *common, sam=sam, resume=True)
    assert code == 0, out
    assert_same_run(world.root / "experiments" / "straight", killed, total)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which a test may fill or make read-only."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting a file system needs rights that this machine does not give")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_stops_the_run_and_loses_nothing(world: World, disk: Path) -> None:
    common = ["train:total_iter=40", "val={}", "logger:save_checkpoint_freq=10"]
    assert train(world, "name=straight", *common)[0] == 0
    code, out = train(world, "name=full", f"path:root={disk}", *common)
    assert code == 2, out
    assert "cannot be written" in out
    assert "Traceback" not in out
    run = disk / "experiments" / "full"
    assert not list(run.rglob("*.part"))
    states = sorted(run.rglob("*.state"))
    assert states
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
    code, out = train(world, "name=full", f"path:root={disk}", *common, resume=True)
    assert code == 0, out
    assert "Resuming full from iteration" in out
    shutil.copytree(run, world.root / "experiments" / "full")
    straight = world.root / "experiments" / "straight"
    same_columns = (straight / "validation.csv").read_text() == (run / "validation.csv").read_text()
    assert same_columns
    assert_same_run(straight, run, 40)


def test_a_limit_on_file_size_is_the_same_message(world: World) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    code, out = train(world, "train:total_iter=8", preexec_fn=limit)
    assert code == 2
    assert "cannot be written" in out
    assert "Traceback" not in out
    assert not list((world.root / "experiments").rglob("*.state"))
    code, out = train(world, "train:total_iter=8", resume=True)
    assert code == 0, out


def test_a_folder_that_cannot_be_written_is_named(world: World, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    code, out = train(world, f"path:root={disk}")
    assert code == 2
    assert str(disk) in out
    assert "Traceback" not in out


def lmdb_world(world: World) -> Path:
    folder = world.root / "train.lmdb"
    with LmdbWriter(folder) as writer:
        for i in range(5):
            writer.put(f"photo_{i}", photograph(i))
    return folder


def test_an_lmdb_that_is_gone_is_named_and_back_again_the_run_goes_on(world: World) -> None:
    folder = lmdb_world(world)
    force = [f"datasets:train:dataroot_gt={folder}", "val={}", "logger:save_checkpoint_freq=10"]
    assert train(world, "name=straight", "train:total_iter=20", *force)[0] == 0
    assert train(world, "name=short", "train:total_iter=10", *force)[0] == 0
    away = folder.rename(world.root / "away.lmdb")
    code, out = train(world, "name=short", "train:total_iter=20", *force, resume=True)
    assert code == 2
    assert "train.lmdb" in out
    assert "Traceback" not in out
    away.rename(folder)
    data = folder / "data.mdb"
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    code, out = train(world, "name=short", "train:total_iter=20", *force, resume=True)
    assert (code, "truncated" in out) == (2, True), out
    data.write_bytes(whole)
    code, out = train(world, "name=short", "train:total_iter=20", *force, resume=True)
    assert code == 0, out
    a, b = (world.root / "experiments" / name for name in ("straight", "short"))
    assert [r for r in records(a) if r["iter"] > 10] == [r for r in records(b) if r["iter"] > 10]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_image_stops_or_is_skipped_and_named(world: World, workers: int) -> None:
    broken = world.root / "gt" / "photo_2.png"
    broken.write_bytes(broken.read_bytes()[:400])
    force = ["train:total_iter=12", "val={}", f"datasets:train:num_worker_per_gpu={workers}"]
    code, out = train(world, "name=stops", *force)
    assert code == 2
    assert "photo_2.png" in out
    assert "Traceback" not in out
    code, out = train(world, "name=skips", "datasets:train:bad_images=skip", *force)
    assert code == 0, out
    assert "image skipped" in out
    assert "photo_2.png" in out


def test_two_starts_at_once_on_one_folder_train_once(world: World) -> None:
    force = ["train:total_iter=300", "val={}"]
    first, second = (start(world, *force) for _ in range(2))
    ends = [p.communicate(timeout=200)[0] for p in (first, second)]
    assert sorted(p.returncode for p in (first, second)) == [0, 2], ends
    loser = next(out for p, out in zip((first, second), ends, strict=True) if p.returncode == 2)
    assert "another process is training this run" in loser or "holds a run" in loser
    assert len(records(world.root / "experiments" / "small")) == 300
