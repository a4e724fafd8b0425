"""Several gloo processes on this machine, started by torchrun as a user starts them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import World
from test_diffusion_runs import NETWORK, RRDB, values

ROOT = Path(__file__).resolve().parents[3]
COMMON = ["train:total_iter=6", "train:total_batch=4", "datasets:train:batch_size_per_gpu=1"]


def command(
    world: World,
    processes: int,
    *force: str,
    sam: bool = False,
    flags: tuple[str, ...] = (),
    resume: bool = False,
    content: dict | None = None,
) -> list[str]:
    options = world.write(content or world.values(sam), f"{'sam' if sam else 'plain'}.yml")
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *flags]
    own = ["train.py", "-opt", str(options), *(["--auto_resume"] if resume else []), "--force_yml", *force]
    return [sys.executable, *(torchrun if processes > 1 else []), *own]


def train(world: World, processes: int, *force: str, sam: bool = False, check: bool = True, **kwargs):
    done = subprocess.run(
        command(world, processes, *force, sam=sam, **kwargs),
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=200,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def start(world: World, processes: int, *force: str, **kwargs) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(world, processes, *force, **kwargs),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_close_runs(a: Path, b: Path, iteration: int) -> None:
    """Losses, weights and validation agree to the order of fp32 summation."""
    assert len(records(a)) == len(records(b))
    for one, other in zip(records(a), records(b), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if name.startswith("share_"):
                continue  # of each micro-batch, then averaged
            assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-4), (one["iter"], name)
    files = sorted((a / "models").glob(f"net_?_{iteration}.pth"))
    assert files
    for file in files:
        first, second = (torch.load(f, weights_only=True) for f in (file, b / "models" / file.name))
        for kind in ("params", "params_ema"):
            for key, value in first[kind].items():
                torch.testing.assert_close(second[kind][key], value, rtol=1e-3, atol=1e-5)
    assert (a / "validation.csv").read_text().count("\n") == (b / "validation.csv").read_text().count("\n")


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_total_batch(world: World) -> None:
    train(world, 2, "name=two", *COMMON, sam=True)
    train(world, 1, "name=one", *COMMON, sam=True)
    experiments = world.root / "experiments"
    assert_close_runs(experiments / "one", experiments / "two", 6)
    names = {p.name.replace("train_two", "train_one") for p in (experiments / "two").iterdir()}
    assert names - {".launch"} == {p.name for p in (experiments / "one").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("sam", [False, True])
def test_four_processes_train_as_one_large_batch(world: World, sam: bool) -> None:
    whole = ["train:total_iter=6", "datasets:train:batch_size_per_gpu=4"]
    train(world, 4, "name=four", *COMMON, sam=sam)
    train(world, 1, "name=one", *whole, sam=sam)
    assert_close_runs(world.root / "experiments" / "one", world.root / "experiments" / "four", 6)


@pytest.mark.slow
def test_a_diffusion_network_learns_alike_in_two_processes(world: World) -> None:
    train(world, 1, "name=rrdb", "train:total_iter=2", content=values(world, "SRModel", RRDB))
    path = {"root": str(world.root), "pretrain_network_c": str(world.root / "experiments/rrdb/models/net_g_latest.pth")}
    diffusion = {"modulation": "invertible", "strength": 0.3, "timesteps": 20}
    content = {**values(world, "SAMDiffSRModel", NETWORK), "path": path, "diffusion": diffusion}
    for name, processes in (("one", 1), ("two", 2)):
        train(world, processes, f"name={name}", "val:sampling:steps=2", *COMMON, content=content)
    one, two = (world.root / "experiments" / name for name in ("one", "two"))
    assert_close_runs(one, two, 6)
    states = [torch.load(f / "training_states" / "6.state", weights_only=True)["model"] for f in (one, two)]
    assert states[0] == states[1]
    assert states[0]["spe_rms"] > 0


@pytest.mark.slow
def test_a_process_that_fails_takes_the_job_down_with_its_own_message(world: World) -> None:
    (world.root / "gt" / "photo_2.png").write_bytes(b"no picture")
    begun = time.monotonic()
    done = train(world, 2, "train:total_iter=500", *COMMON[1:], "val={}", check=False)
    assert done.returncode != 0
    ours, torchruns = done.stderr.split("Traceback (most recent call last)", 1)  # the only one is torchrun's own
    assert "photo_2.png" in ours
    assert "ImageError" in torchruns
    assert "photo_2.png" in torchruns.split("Root Cause")[1]
    assert time.monotonic() - begun < 60


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_the_run_goes_on_as_if_it_had_not_been(world: World) -> None:
    common = ["train:total_iter=300", *COMMON[1:], "val={}", "logger:save_checkpoint_freq=1000"]
    train(world, 2, "name=straight", *common)
    folder = world.root / "experiments" / "stopped"
    process = start(world, 2, "name=stopped", *common)
    while not (folder / "log.jsonl").exists() or len((folder / "log.jsonl").read_text().splitlines()) < 20:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert "go on with --auto_resume" in out
    train(world, 2, "name=stopped", *common, resume=True)
    from engine.train.test_training import assert_same_run

    assert_same_run(world.root / "experiments" / "straight", folder, 300)


@pytest.mark.slow
def test_torchrun_starts_a_killed_process_again_and_it_goes_on(world: World) -> None:
    common = ["train:total_iter=200", *COMMON[1:], "val={}", "logger:save_checkpoint_freq=20"]
    train(world, 2, "name=straight", *common)
    folder = world.root / "experiments" / "killed"
    process = start(world, 2, "name=killed", *common, flags=("--max-restarts=3",))
    while not (folder / "training_states" / "40.state").exists():
        assert process.poll() is None
        time.sleep(0.01)
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(listed.split()[-1]), signal.SIGKILL)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    assert "Resuming killed from iteration" in out
    from engine.train.test_training import assert_same_run

    assert_same_run(world.root / "experiments" / "straight", folder, 200)


@pytest.mark.slow
def test_four_processes_resumed_equal_four_uninterrupted_bit_for_bit(world: World) -> None:
    """Sums of three or more depend on their order, which DistributedDataParallel changes after its first pass."""
    from engine.train.test_training import same

    common = ["train:total_iter=6", *COMMON[1:], "logger:save_checkpoint_freq=3"]
    train(world, 4, "name=straight", *common, sam=True)
    train(world, 4, "name=stopped", *common, "train:total_iter=3", sam=True)
    train(world, 4, "name=stopped", *common, sam=True, resume=True)
    for label in "gr":
        files = [world.root / "experiments" / run / "models" / f"net_{label}_6.pth" for run in ("straight", "stopped")]
        assert same(*(torch.load(file, weights_only=True) for file in files))


@pytest.mark.slow
def test_two_phases_in_two_processes_are_those_of_one(world: World) -> None:
    train(world, 1, "name=first", "train:total_iter=2")
    pretrained = f"path:pretrain_network_g={world.root / 'experiments' / 'first' / 'models' / 'net_g_2.pth'}"
    phases = "train:distill={schedule: two_phase, refine_iter: 3, teacher: ema}"
    for processes, name in ((2, "two"), (1, "one")):
        train(world, processes, f"name={name}", pretrained, phases, *COMMON, sam=True)
    assert_close_runs(world.root / "experiments" / "one", world.root / "experiments" / "two", 6)


@pytest.mark.slow
def test_a_restart_does_not_go_on_with_a_run_that_its_launch_did_not_begin(world: World) -> None:
    train(world, 1, "name=mine", "train:total_iter=4")
    folder = world.root / "experiments" / "mine"
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    done = train(world, 2, "name=mine", *COMMON, check=False, flags=("--max-restarts=2",))
    assert done.returncode != 0
    assert "holds a run" in done.stderr
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_loader_process_that_dies_loses_no_training(world: World) -> None:
    folder = world.root / "experiments" / "orphan"
    process = start(world, 1, "name=orphan", "train:total_iter=5000", "val={}", "datasets:train:num_worker_per_gpu=2")
    while not (folder / "log.jsonl").exists() or len((folder / "log.jsonl").read_text().splitlines()) < 10:
        assert process.poll() is None
        time.sleep(0.01)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(workers.split()[-1]), signal.SIGKILL)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 2, out
    assert "num_worker_per_gpu" in out
    assert list((folder / "training_states").glob("*.state"))


@pytest.mark.slow
def test_another_number_of_processes_goes_on_with_the_same_total_batch_or_not_at_all(world: World) -> None:
    train(world, 2, "name=kept", *COMMON, "train:total_iter=4")
    done = train(world, 1, "name=kept", *COMMON, resume=True)
    assert "Trained by 2 process(es) so far, and by 1 from here; the total batch stays 4." in done.stdout
    train(world, 2, "name=two", *COMMON)
    assert_close_runs(world.root / "experiments" / "two", world.root / "experiments" / "kept", 6)

    train(world, 2, "name=grown", "train:total_iter=4")
    done = train(world, 1, "name=grown", "train:total_iter=6", resume=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert (
        "by 2 process(es) with a total batch of 4; 1 would make it 2. Start 2, or set train.total_batch: 4"
        in done.stderr
    )
    train(world, 1, "name=grown", "train:total_iter=6", "train:total_batch=4", resume=True)


@pytest.mark.slow
def test_processes_that_see_other_options_or_images_end_alike(world: World) -> None:
    other = world.root / "other"
    shutil.copytree(world.root / "gt", other)
    sorted(other.iterdir())[0].unlink()
    for own, named in {
        "train:total_iter=9": "rank 1 sees other options: train.total_iter 9, rank 0: 6",
        f"datasets:train:dataroot_gt={other}": "in data set train, rank 0:",
    }.items():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = []
        for rank, force in enumerate(("manual_seed=0", own)):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in place.items()}}
            line = command(world, 1, "name=unlike", *COMMON, "manual_seed=0", force)
            processes.append(subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment))
        for rank, process in enumerate(processes):
            _, text = process.communicate(timeout=100)
            assert process.returncode == 2
            assert "Traceback" not in text
            assert f"error in process {rank}: the processes of this run do not see the same: " in text
            assert named in text
    assert not (world.root / "experiments" / "unlike").exists()


FAULTY = """
from sam4ir.data.noisy import GaussianDenoisingDataset
from sam4ir.registry import DATASETS


@DATASETS.register()
class FaultyImages(GaussianDenoisingDataset):
    def get(self, index, rng):
        if self.key(index).endswith("2"):
            raise KeyError("label_of_it")
        return super().get(index, rng)
"""


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_bug_in_a_loader_process_ends_the_run_with_its_traceback(world: World, processes: int) -> None:
    (world.root / "faulty_images.py").write_text(FAULTY)
    content = world.values(False)
    content["plugins"] = ["faulty_images"]
    content["datasets"]["train"]["type"] = "FaultyImages"
    begun = time.monotonic()
    force = ["train:total_iter=500", *COMMON[1:], "val={}", "datasets:train:num_worker_per_gpu=1"]
    done = train(world, processes, *force, content=content, check=False)
    assert done.returncode == 1
    assert "in a worker process, image photo_2 of FaultyImages:" in done.stderr
    assert 'raise KeyError("label_of_it")' in done.stderr
    assert "memory" not in done.stderr
    assert time.monotonic() - begun < 60
