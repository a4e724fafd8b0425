"""Tools that kill -9 stops at random moments: the same command goes on, and its results are those of one whole run.

SAM4IR_KILLS sets how often each is killed (20). A command that ends before all its kills begins again in a new place.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import lmdb
import pytest
import torch
from conftest import World, photograph, sam_masks

from sam4ir.data.lmdb_io import LmdbWriter
from sam4ir.data.masks.store import MaskStoreWriter
from sam4ir.utils.image import write_image

ROOT = Path(__file__).resolve().parents[1]
KILLS = int(os.environ.get("SAM4IR_KILLS", "20"))
IMAGES = 60
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

Contents = dict[str, object]


def start(command: Sequence[object]) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own."""
    words = [sys.executable, *map(str, command)]
    return subprocess.Popen(
        words, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def finish(command: Sequence[object], codes: Sequence[int] = (0,)) -> float:
    """Run a command to its end; return the seconds that it took."""
    begun = time.monotonic()
    process = start(command)
    text, _ = process.communicate(timeout=600)
    assert process.returncode in codes, text.decode()
    return time.monotonic() - begun


def killed(command: Sequence[object], after: float) -> bool:
    """Start a command and kill its whole group after some seconds; return False where it was over before."""
    process = start(command)
    try:
        process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=120)
        assert not alive(process.pid)
        return True
    return False


def alive(group: int) -> list[str]:
    """Return the processes of a group that still run a second after it was killed."""
    time.sleep(0.2)
    left = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            left.append(status.parent.name)
    return left


def contents(folder: Path) -> Contents:
    """Return what the files below a folder hold: records of LMDBs by key, tensors of weights, and other files' bytes.

    Left out: locks, logs and TensorBoard's files, whose times differ, and the times and speeds in tables.
    """
    result: Contents = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or path.name in ("lock.mdb", ".lock", ".meta.lock", ".merge.lock", "options.yml"):
            continue
        assert ".part" not in path.name, f"{path} is left over"
        if path.suffix == ".log" or path.name.startswith("events.") or path.name == "log.jsonl":
            continue
        if path.name == "data.mdb":
            result[name] = records(path.parent)
        elif path.suffix in (".pth", ".state"):
            result[name] = tensors(torch.load(path, weights_only=True))
        elif path.name == "meta.json":
            meta = json.loads(path.read_text())
            result[name] = {key: meta[key] for key in ("counts", "format_version", "source")}
        elif path.suffix != ".txt" or path.name == "meta_info.txt":
            result[name] = path.read_bytes()
    return result


def records(folder: Path) -> dict[bytes, bytes]:
    with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as transaction:
        return dict(transaction.cursor())


def tensors(content: object, place: str = "") -> dict[str, bytes]:
    """Return the bytes of all tensors in nested dictionaries."""
    if isinstance(content, torch.Tensor):
        return {place: content.contiguous().view(-1).view(torch.uint8).numpy().tobytes()}
    result: dict[str, bytes] = {}
    if isinstance(content, dict):
        for key, value in content.items():
            result |= tensors(value, f"{place}/{key}")
    return result


def kill_again_and_again(
    command_of: Callable[[Path], Sequence[object]], folder: Path, longest: float = 0, codes: Sequence[int] = (0,)
) -> None:
    """Kill the command for a folder KILLS times, compare each finished folder with that of one whole run.

    longest: seconds until the last moment of a kill; 0 takes those of the whole run.
    """
    whole = folder / "whole"
    seconds = finish(command_of(whole), codes)
    expected = contents(whole)
    assert expected
    draw = random.Random(0)
    kills, rounds = 0, 0
    while kills < KILLS:
        place = folder / f"round_{rounds}"
        rounds += 1
        for _ in range(4):
            kills += killed(command_of(place), draw.uniform(0.4, 1.05) * (longest or seconds))
        finish(command_of(place), codes)
        assert contents(place) == expected
        shutil.rmtree(place)
    print(f"{kills} kills in {rounds} rounds of {seconds:.1f} s")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(IMAGES):
        write_image(tmp_path / "photos" / f"{number:03}.png", photograph(number, 96, 120))
    return tmp_path / "photos"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with MaskStoreWriter(tmp_path / "masks.lmdb", {"generator": "drawn", "source": "gt"}) as writer:
        for number in range(IMAGES):
            writer.put(f"{number:03}", sam_masks(96, 120))
    return tmp_path / "masks.lmdb"


def test_prepare_data(photos: Path, tmp_path: Path) -> None:
    def command(place: Path) -> Sequence[object]:
        return ["scripts/prepare_data.py", "folder", "--gt", photos, "--scale", 2, "--make-lq", "--output", place]

    kill_again_and_again(command, tmp_path)


def test_masks_import(tmp_path: Path) -> None:
    (tmp_path / "json").mkdir()
    for number in range(IMAGES):
        (tmp_path / f"json/{number:03}.json").write_text(json.dumps(sam_masks(96, 120)))

    def command(place: Path) -> Sequence[object]:
        flags = ("--generator", "drawn", "--source", "gt")
        return ["scripts/masks.py", "import", "--input", tmp_path / "json", "--store", place / "m.lmdb", *flags]

    kill_again_and_again(command, tmp_path)


def test_masks_crop(photos: Path, store: Path, tmp_path: Path) -> None:
    def command(place: Path) -> Sequence[object]:
        cut = ("--crop-size", 48, "--step", 24, "--images", photos, "--output-images", place / "images")
        return ["scripts/masks.py", "crop", "--store", store, "--output", place / "m.lmdb", *cut]

    kill_again_and_again(command, tmp_path)


@pytest.fixture
def weights(world: World) -> Path:
    """Train the small world's network for a moment; return its weights."""
    options = world.write(world.values(), "plain.yml")
    finish(["train.py", "-opt", options])
    return world.root / "experiments/small/models/net_g_latest.pth"


def test_restore(weights: Path, photos: Path) -> None:
    def command(place: Path) -> Sequence[object]:
        return ["scripts/restore.py", "--weights", weights, "--input", photos, "--output", place]

    kill_again_and_again(command, weights.parents[3] / "restored")


def test_test(world: World, weights: Path, photos: Path) -> None:
    def command(place: Path) -> Sequence[object]:
        values = world.values(path={"root": str(place), "pretrain_network_g": str(weights)})
        values["datasets"]["val"]["dataroot_gt"] = str(photos)
        values["val"] |= {"save_img": True}
        del values["datasets"]["train"], values["train"]
        place.mkdir(parents=True, exist_ok=True)
        return ["test.py", "-opt", world.write(values, f"{place.name}.yml")]

    kill_again_and_again(command, world.root / "scored")


@pytest.mark.parametrize("processes", [1, 3])
def test_training_killed_also_while_it_validates(processes: int, world: World, photos: Path) -> None:
    launch: tuple[object, ...] = ()
    if processes > 1:
        launch = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")

    def command(place: Path) -> Sequence[object]:
        values = world.values(path={"root": str(place)})
        values["train"]["total_iter"] = 60
        values["datasets"]["val"]["dataroot_gt"] = str(photos)
        values["val"]["val_freq"] = 5  # it validates for most of the time
        values["logger"]["save_checkpoint_freq"] = 5
        place.mkdir(parents=True, exist_ok=True)
        return [*launch, "train.py", "-opt", world.write(values, f"{place.name}.yml"), "--auto_resume"]

    kill_again_and_again(command, world.root / "runs")


def test_the_keys_of_an_image_lmdb(tmp_path: Path) -> None:
    """The comparison itself: two LMDBs of other pixels differ."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        with LmdbWriter(tmp_path / name / "x.lmdb") as writer:
            writer.put("x", photograph(seed))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")
