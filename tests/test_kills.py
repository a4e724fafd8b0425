"""Commands that kill -9 ends while they work, again and again: the same command goes on, and nothing is lost.

Every kill hits a command that has work to do, most of them after its first output.

SAM4IR_KILLS sets the number of kills of each command (default 20). Every test compares the whole output with that of a
run that nobody killed: files and images byte for byte, LMDB values key by key, weights tensor for tensor.
"""

from __future__ import annotations

import contextlib
import csv
import fnmatch
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lmdb
import pytest
import torch
from conftest import NETWORK, World, photograph, sam_masks
from engine.train.test_training import same

from sam4ir.data.lmdb_io import LmdbWriter
from sam4ir.data.masks.store import MaskStoreWriter
from sam4ir.registry import ARCHS
from sam4ir.utils.image import write_image

ROOT = Path(__file__).resolve().parents[1]
KILLS = int(os.environ.get("SAM4IR_KILLS", "20"))
MARK = "SAM4IR_TEST_KILL_MARK"  # in the environment of a command, hence of all its processes
LONGEST = 180  # seconds that a command may take on a busy machine
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

# scripts/make_masks.py with a generator that needs no weights: the brighter half of an image, and everything
MAKE_MASKS = """
import sys, time
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
from sam4ir.cli import make_masks
from sam4ir.engine.make_masks import command
from engine.make_masks.test_mask_run import thresholds
from sam4ir.engine.make_masks.build import LoadedGenerator
from sam4ir.utils import cli

def slow(image):
    time.sleep(0.02)
    return thresholds(image)

def fake(weights, given, precision, *_):
    settings = {{"points_per_side": 32}}
    return LoadedGenerator(slow, weights, "vit_b", "x.pth", "00" * 32, settings, {{}}, precision, "test", {{}})

command.load_generator = fake
sys.exit(cli.run(make_masks.main))
"""


@dataclass(frozen=True)
class Command:
    """A command line that is killed.

    arguments: what follows `python`. output: the folder that all its output lies in. spread: longest time in seconds
    from the first sign of work to the kill; 0 takes four fifths of the time that the work takes without a kill.
    again: added from the second start on. work: a pattern of files whose change is a sign of work. ranks: whether
    torchrun starts processes, each in a session of its own.
    """

    arguments: tuple[object, ...]
    output: Path
    spread: float = 0
    again: tuple[str, ...] = ()
    work: str = "*"
    ranks: bool = False

    def start(self, mark: str, log: Path, again: bool) -> subprocess.Popen[bytes]:
        """Start it in a process group of its own; `log` gets what it prints."""
        arguments = [str(argument) for argument in self.arguments]
        if again:
            place = arguments.index("-opt") if "-opt" in arguments else len(arguments)
            arguments[place:place] = self.again
        with log.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", MARK: mark},
                start_new_session=True,
            )

    def signs(self) -> set[tuple[str, int, int]]:
        """Return (path, size, time of change) of the files that show work."""
        signs = set()
        for folder, _, names in os.walk(self.output):  # takes folders that vanish meanwhile, as rglob does not
            for name in fnmatch.filter(names, self.work):
                with contextlib.suppress(FileNotFoundError):
                    status = Path(folder, name).stat()
                    signs.add((f"{folder}/{name}", status.st_size, status.st_mtime_ns))
        return signs


def marked(mark: str) -> list[int]:
    """Return the processes that live and have the mark, from Linux's /proc."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                pids.append(int(folder.name))
    return pids


def assert_none_left(mark: str) -> None:
    deadline = time.monotonic() + 20
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert marked(mark) == []


def finish(command: Command, log: Path, again: bool) -> float:
    """Let the command finish; return the seconds from the first sign of work to the end."""
    before, mark = command.signs(), uuid.uuid4().hex
    process = command.start(mark, log, again)
    begun = wait_for_work(command, process, before, log)
    assert process.wait(LONGEST) == 0, log.read_text()
    assert_none_left(mark)
    return time.monotonic() - begun


def wait_for_work(
    command: Command, process: subprocess.Popen[bytes], before: set[tuple[str, int, int]], log: Path
) -> float:
    """Wait until files change or the process ends; return the time of it."""
    deadline = time.monotonic() + LONGEST
    while process.poll() is None and not command.signs() - before:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)
    return time.monotonic()


def killed(command: Command, log: Path, moments: random.Random, again: bool) -> bool:
    """Start the command and kill all its processes at a random moment; return False where it finished before."""
    before, mark = command.signs(), uuid.uuid4().hex
    process = command.start(mark, log, again)
    if moments.random() < 0.2:
        time.sleep(moments.uniform(0, 6))  # while it starts and reads what is there
    else:
        wait_for_work(command, process, before, log)
        time.sleep(moments.uniform(0, command.spread))
    if process.poll() is not None:
        assert process.returncode == 0, log.read_text()
        assert_none_left(mark)
        return False
    os.killpg(process.pid, signal.SIGKILL)
    if command.ranks:
        for pid in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()
    assert_none_left(mark)
    return True


def content(folder: Path, ignored: Callable[[str], bool]) -> dict[str, Any]:
    """Return relative path -> content of all files in a folder; of an LMDB, the path and key -> the value."""
    contents: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or ignored(name) or path.name == "lock.mdb":
            continue
        if path.name == "data.mdb":
            contents |= lmdb_content(path.parent, name)
        elif path.suffix in (".pth", ".state"):
            contents[name] = torch.load(path, weights_only=True)
        elif path.name == "prepared.json":
            contents[name] = json.loads(path.read_text()) | {"bytes": 0}  # on the disk, where LMDBs keep free pages
        else:
            contents[name] = path.read_bytes()
    return contents


def lmdb_content(folder: Path, name: str) -> dict[str, bytes]:
    with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as transaction:
        return {f"{name}[{key.decode()}]": bytes(value) for key, value in transaction.cursor()}


def amount(folder: Path, ignored: Callable[[str], bool]) -> int:
    """Return the number of files and records in a folder that a kill may have left half made."""
    count = 0
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.name == "data.mdb":
            with contextlib.suppress(lmdb.Error):  # killed while it made the LMDB
                count += len(lmdb_content(path.parent, name))
        elif not path.is_dir() and not ignored(name) and path.name != "lock.mdb":
            count += 1
    return count


def assert_same_content(command: Command, straight: Path, ignored: Callable[[str], bool]) -> None:
    ours, expected = content(command.output, ignored), content(straight, ignored)
    assert sorted(ours) == sorted(expected)
    assert [name for name, value in ours.items() if not same(value, expected[name])] == []
    names = [path.name for path in command.output.rglob("*")]
    assert [name for name in names if name.endswith((".part", ".parts", ".tmp"))] == []
    kept = [path for path in command.output.rglob("*.[0-9]") if path.is_file()]
    assert [path for path in kept if path.stat().st_size == 0] == []


def nothing(_: str) -> bool:
    return False


def kill_and_compare(command: Command, ignored: Callable[[str], bool] = nothing) -> None:
    """Run the command once without and once with kills, at the same place; its output must be the same.

    A start that finds its work done would be killed for nothing, so what is whole is compared, removed and begun anew.
    """
    straight = command.output.with_name("straight")
    log = command.output.with_name("printed.txt")
    seconds = finish(command, log, again=False)
    if not command.spread:
        command = replace(command, spread=0.8 * seconds)
    command.output.rename(straight)
    whole = amount(straight, ignored)
    moments = random.Random(7)
    kills, rounds, again = 0, 1, False
    held: list[int] = []  # files and records after each kill
    while kills < KILLS:
        if killed(command, log, moments, again):
            kills, again = kills + 1, True
            held.append(amount(command.output, ignored))
        if not again or held[-1] >= whole:
            finish(command, log, again=True)
            assert_same_content(command, straight, ignored)
            shutil.rmtree(command.output)
            rounds, again = rounds + 1, False
    finish(command, log, again)
    assert_same_content(command, straight, ignored)
    print(f"{kills} kills in {rounds} rounds; of {whole} files and records there were after each kill: {held}")
    assert KILLS < 20 or len(set(held)) > 2, "killed before anything happened"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Sixty photographs, 40x52."""
    for i in range(60):
        write_image(tmp_path / "images" / f"{i:03}.png", photograph(i))
    return tmp_path / "images"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work" / "out"


def tiny_weights(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    arguments = {key: value for key, value in NETWORK.items() if key != "type"}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"params": ARCHS.get("NAFNet")(**arguments).state_dict()}, path)
    return path


@pytest.mark.parametrize("parts", [(), ("--parts",)])
def test_make_masks(images: Path, output: Path, parts: tuple[str, ...]) -> None:
    script = images.with_name("killed_make_masks.py")
    script.write_text(MAKE_MASKS.format(root=str(ROOT)), encoding="utf-8")
    store = output / "masks.lmdb"
    kill_and_compare(Command((script, "--input", images, "--store", store, "--sam", "vit_b", *parts), output, 0.5))


def test_masks_import(images: Path, output: Path) -> None:
    folder = images.with_name("json")
    folder.mkdir()
    for file in images.iterdir():
        (folder / f"{file.stem}.json").write_text(json.dumps(sam_masks()))
    flags = ("--input", folder, "--store", output / "masks.lmdb", "--images", images, "--source", "gt")
    kill_and_compare(Command(("scripts/masks.py", "import", *flags, "--workers", "2"), output, 0.3))


@pytest.mark.parametrize("sink", ["crops.lmdb", "crops"])
def test_masks_crop(images: Path, output: Path, sink: str) -> None:
    whole = images.with_name("whole.lmdb")
    with MaskStoreWriter(whole, {"generator": "drawn", "source": "gt"}) as store:
        for file in sorted(images.iterdir()):
            store.put(file.stem, sam_masks())
    flags = ("--store", whole, "--images", images, "--crop-size", "16", "--step", "4", "--workers", "2")
    places = ("--output", output / "cut.lmdb", "--output-images", output / sink)
    kill_and_compare(Command(("scripts/masks.py", "crop", *flags, *places), output))


def test_prepare_data(images: Path, output: Path) -> None:
    folder = images.with_name("large")
    for i in range(24):
        write_image(folder / f"{i:03}.png", photograph(i, 300, 400))
    flags = ("--gt", folder, "--lq", folder, "--output", output, "--crop-size", "64", "--step", "16", "--workers", "2")
    kill_and_compare(Command(("scripts/prepare_data.py", "folder", *flags), output))


def test_restore(images: Path, output: Path) -> None:
    weights = tiny_weights(images.with_name("net.pth"), 0)
    flags = ("--weights", weights, "--input", images, "--output", output, "--device", "cpu")
    kill_and_compare(Command(("scripts/restore.py", *flags), output, 0.6))


@pytest.mark.parametrize("several", [True, False])
def test_test_py(world: World, several: bool) -> None:
    run = world.root / "trained"
    files = [tiny_weights(run / "models" / f"net_g_{i}.pth", i) for i in (10, 20, 30, 40)]
    values = world.values()
    values |= {"name": "tested", "datasets": {"test": values["datasets"]["val"]}}
    values["val"]["save_img"] = True
    flags: tuple[object, ...] = ("--checkpoints", run)
    spread = 0.0
    if not several:
        values["path"]["pretrain_network_g"] = str(files[0])
        flags, spread = (), 0.3
    kill_and_compare(Command(("test.py", "-opt", world.write(values), *flags), world.root / "results", spread))


def test_other_pixels_are_other_content(tmp_path: Path) -> None:
    """The comparison itself, with image LMDBs."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        with LmdbWriter(tmp_path / name / "x.lmdb") as writer:
            writer.put("x", photograph(seed))
    assert content(tmp_path / "a", nothing) == content(tmp_path / "b", nothing)
    assert content(tmp_path / "a", nothing) != content(tmp_path / "c", nothing)


def of_the_process(name: str) -> bool:
    """Return whether a file of a run is about its processes, not about what they compute: logs, launches."""
    kept = re.fullmatch(r".*/(log\.jsonl|validation\.csv)\.\d+", name)  # of a start that left no checkpoint
    return bool(kept) or name.endswith(".log") or ".launch" in name or "/tb_logger/" in f"/{name}"


def training(world: World, *force: str, torchrun: int = 1, **more: Any) -> Command:
    values = world.values()
    values["val"]["save_img"] = True
    launch: tuple[object, ...] = ()
    if torchrun > 1:
        launch = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={torchrun}")
    arguments = (*launch, "train.py", "-opt", world.write(values), "--force_yml", *force)
    output = world.root / "experiments"
    return Command(arguments, output, again=("--auto_resume",), ranks=torchrun > 1, **more)


def test_training_of_three_ranks(world: World) -> None:
    force = ("train:total_iter=240", "datasets:train:batch_size_per_gpu=1", "val:val_freq=60")
    command = training(world, *force, "logger:save_checkpoint_freq=5", torchrun=3, spread=1.5, work="log.jsonl")
    kill_and_compare(command, of_the_process)


def test_training_killed_while_it_validates(world: World) -> None:
    for i in range(12):
        write_image(world.root / "val" / f"{i:02}.png", photograph(i, 120, 160))
    force = (f"datasets:val:dataroot_gt={world.root / 'val'}", "train:total_iter=120", "val:val_freq=4")
    command = training(world, *force, "logger:save_checkpoint_freq=4", spread=0.6, work="*.png")
    kill_and_compare(command, of_the_process)


def test_training_that_keeps_its_best_and_its_last(world: World) -> None:
    """Nothing is lost or left over, the best weights have the best score, and TensorBoard has each point once."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    force = ("train:total_iter=160", "val:val_freq=4", "val:save_best=psnr", "logger:use_tb_logger=true")
    more = ("logger:print_freq=2", "logger:save_checkpoint_freq=6", "logger:keep_last=2", "logger:keep_last_weights=3")
    command = training(world, *force, *more, spread=0.8, work="log.jsonl")
    kill_and_compare(command, of_the_process)
    run = world.root / "experiments" / "small"
    assert sorted(path.name for path in (run / "training_states").iterdir()) == ["156.state", "160.state"]
    weights = {path.name for path in (run / "models").iterdir()}
    assert weights == {f"net_g_{name}.pth" for name in (150, 156, 160, "latest", "best")}
    with (run / "validation.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == "restored"]
    by_iteration: dict[int, list[float]] = {}
    for row in rows:
        by_iteration.setdefault(int(row["iter"]), []).append(float(row["psnr"]))
    means = {iteration: sum(values) / len(values) for iteration, values in by_iteration.items()}
    held = torch.load(run / "models" / "net_g_best.pth", weights_only=True)["run"]
    assert held["best"]["value"] == pytest.approx(max(means.values()), rel=1e-12)
    assert means[held["iteration"]] == max(means.values())
    board = events.EventAccumulator(str(world.root / "tb_logger" / "small"), size_guidance={"scalars": 0, "images": 0})
    board.Reload()
    steps = {tag: [event.step for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    assert steps["losses/l_pix"] == list(range(2, 161, 2))
    assert steps["metrics/small_val/psnr"] == list(range(4, 161, 4))
    for tag in board.Tags()["images"]:
        assert [event.step for event in board.Images(tag)] == list(range(4, 161, 4))
