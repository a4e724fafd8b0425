"""The command lines, as a user types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import World, photograph

from sam4ir.utils.image import read_image, write_image

ROOT = Path(__file__).resolve().parents[1]

# makes an import of SAM, of the frozen VGG or of the mask store fail, then runs a script
BLOCKED = """
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in {"segment_anything", "pycocotools", "torchvision"} or name.startswith(
            ("sam4ir.priors", "sam4ir.distill", "sam4ir.data.masks", "sam4ir.models.sam_distill")):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def call(*arguments: object, blocked: bool = False, check: bool = True) -> subprocess.CompletedProcess[str]:
    prefix = [sys.executable, "-c", BLOCKED] if blocked else [sys.executable]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*prefix, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_train_test_and_restore_by_their_command_lines(world: World) -> None:
    """SAM4IR training; then test.py and restore.py with the plain network, all that knows masks being blocked."""
    call("train.py", "-opt", world.write(world.values(sam=True)), "--force_yml", "train:total_iter=4")
    weights = world.root / "experiments" / "small" / "models" / "net_g_latest.pth"
    values = world.values()
    values |= {"name": "tested", "datasets": {"test": values["datasets"]["val"]}}
    values["path"]["pretrain_network_g"] = str(weights)
    done = call("test.py", "-opt", world.write(values), blocked=True)
    assert "restored" in done.stdout
    validated = [
        json.loads(line) for line in (world.root / "experiments" / "small" / "log.jsonl").read_text().splitlines()
    ]
    tested = json.loads((world.root / "results" / "tested" / "summary.json").read_text())
    assert tested["mean"]["small_val"]["restored"]["psnr"] == validated[-1]["metrics/small_val/psnr"]
    photos = world.root / "mine"
    write_image(photos / "deep" / "a.jpg", photograph(7))
    write_image(photos / "b.png", photograph(8).astype("uint16") * 257)
    (photos / "broken.png").write_bytes((photos / "b.png").read_bytes()[:300])
    restored = ["scripts/restore.py", "--weights", weights, "--input", photos, "--output", world.root / "out"]
    done = call(*restored, blocked=True, check=False)
    assert done.returncode == 1
    assert "broken.png" in done.stderr
    assert read_image(world.root / "out" / "deep" / "a.png").shape == (40, 52, 3)
    assert read_image(world.root / "out" / "b.png").dtype == "uint16"
    done = call(*restored, check=False)
    assert "2 were there already" in done.stdout


@pytest.mark.slow
def test_the_student_is_the_plain_network_of_the_official_keys(world: World) -> None:
    call("train.py", "-opt", world.write(world.values(sam=True)), "--force_yml", "train:total_iter=2")
    from sam4ir.archs.nafnet import NAFNet

    weights = torch.load(world.root / "experiments" / "small" / "models" / "net_g_2.pth", weights_only=True)
    plain = NAFNet(width=4, enc_blk_nums=[1], middle_blk_num=1, dec_blk_nums=[1])
    plain.load_state_dict(weights["params"], strict=True)
    plain.load_state_dict(weights["params_ema"], strict=True)


WRONG = {
    "misspelt key": ("traim:total_iter=4", "traim"),
    "misspelt argument": ("network_g:widht=4", "did you mean 'width'"),
    "unknown network": ("network_g:type=NafNet", "did you mean 'NAFNet'"),
    "wrong kind": ("network_g:width=wide", "network_g.width"),
    "missing folder": ("datasets:train:dataroot_gt=/nowhere", "/nowhere"),
    "mask store of nowhere": ("datasets:train:masks:store=/nowhere.lmdb", "/nowhere.lmdb"),
    "negative count": ("train:total_iter=-1", "train.total_iter"),
    "both weights": ("train:spd_opt={balance: 0.3, loss_weight: 1}", "keep one"),
    "unknown metric": ("val:metrics:x={type: pnsr}", "did you mean 'psnr'"),
    "unset variable": ("datasets:train:dataroot_gt=$NOT_SET_AT_ALL", "NOT_SET_AT_ALL"),
    "cut weights": ("path:pretrain_network_g={cut}", "cut.pth"),
    "truncated photograph": ("datasets:train:dataroot_gt={broken}", "photo_0.png"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gives_one_clear_message_and_no_traceback(world: World, case: str) -> None:
    override, expected = WRONG[case]
    cut, broken = world.root / "cut.pth", world.root / "broken"
    torch.save({"params": {"a": torch.zeros(1000)}}, cut)
    cut.write_bytes(cut.read_bytes()[:700])
    for i in range(5):
        write_image(broken / f"photo_{i}.png", photograph(i))
    (broken / "photo_0.png").write_bytes((broken / "photo_0.png").read_bytes()[:400])
    override = override.replace("{cut}", str(cut)).replace("{broken}", str(broken))
    done = call("train.py", "-opt", world.write(world.values(sam=True)), "--force_yml", override, check=False)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("sam", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_with_9_and_resumed_equals_uninterrupted_to_the_last_bit(world: World, sam: bool, workers: int) -> None:
    from engine.train.test_training import assert_same_run

    common = ["train:total_iter=60", "logger:save_checkpoint_freq=25", f"datasets:train:num_worker_per_gpu={workers}"]
    options = world.write(world.values(sam))
    call("train.py", "-opt", options, "--force_yml", "name=straight", *common)
    killed = world.root / "experiments" / "killed"
    command = [sys.executable, "train.py", "-opt", str(options), "--force_yml", "name=killed", *common]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while not (killed / "log.jsonl").exists() or len((killed / "log.jsonl").read_text().splitlines()) < 32:
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert (killed / "training_states" / "25.state").exists()
    call("train.py", "-opt", options, "--auto_resume", "--force_yml", "name=killed", *common)
    assert_same_run(world.root / "experiments" / "straight", killed, 60)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_saves_first(world: World, number: int) -> None:
    options = world.write(world.values(True))
    force = ["train:total_iter=5000", "datasets:train:num_worker_per_gpu=2"]
    command = [sys.executable, "train.py", "-opt", str(options), "--force_yml", *force]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    log = world.root / "experiments" / "small" / "log.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 6:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in out
    assert "go on with --auto_resume" in out
    assert list((world.root / "experiments" / "small" / "training_states").glob("*.state"))


@pytest.mark.slow
def test_restore_lists_what_is_not_finite(world: World) -> None:
    call("train.py", "-opt", world.write(world.values()), "--force_yml", "train:total_iter=1")
    weights = world.root / "experiments" / "small" / "models" / "net_g_1.pth"
    state = torch.load(weights, weights_only=True)
    for entry in ("params", "params_ema"):  # which of them is read is not asked here
        state[entry]["ending.bias"].fill_(float("nan"))
    torch.save(state, weights)
    done = call(
        "scripts/restore.py",
        "--weights",
        weights,
        "--input",
        world.root / "gt",
        "--output",
        world.root / "o",
        check=False,
    )
    assert done.returncode == 1
    assert "photo_3.png: the restored image has values that are not finite" in done.stderr
    assert not list((world.root / "o").glob("*.png"))
