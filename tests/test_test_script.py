"""test.py by its command line: several weights, every checkpoint of a run, published figures, several processes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import World
from engine.evaluate.test_curves import run_folder
from engine.evaluate.test_evaluation import own_parts, sr_values  # noqa: F401
from test_quick_run import ROOT, call

from sam4ir.cli.main import main as sam4ir

SMALL_FID = """
import torch
from torch import nn
from sam4ir.metrics.fid import FrechetDistance
from sam4ir.metrics.kinds import Traits
from sam4ir.registry import METRICS


class Colours(nn.Module):
    def forward(self, image):
        return torch.cat([image.mean(dim=(2, 3)), image.std(dim=(2, 3))], dim=1)


@METRICS.register("small_fid")
class SmallFid(FrechetDistance):
    traits = Traits(lower_is_better=True, definition="of the mean and deviation of each channel")

    def __init__(self) -> None:
        super().__init__(Colours(), dimensions=6)
"""


@pytest.fixture
def option_file(world: World) -> Path:
    (world.root / "small_fid.py").write_text(SMALL_FID, encoding="utf-8")
    values = sr_values(world)
    values["plugins"].append("small_fid")
    values["val"]["metrics"]["fid"] = {"type": "small_fid"}
    return world.write(values)


@pytest.mark.slow
def test_every_checkpoint_of_a_run_is_scored_once_and_drawn(
    world: World,
    option_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = run_folder(world, {10: 0.2, 20: 0.0})
    command = ["test.py", "-opt", option_file, "--checkpoints", run, "--published", "sam-diffsr"]
    out = call(*command).stdout
    assert "net_g_20" in out
    folder = world.root / "results" / "sr"
    with (folder / "curve.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert {(r["iter"], r["stage"], r["metric"]) for r in table} == {
        (iteration, stage, metric)
        for iteration in ("10", "20")
        for stage in ("bicubic", "restored")
        for metric in ("psnr_y", "lr_psnr", "fid")
    }
    assert {p.name for p in folder.glob("*.png")} == {f"curve_{m}.png" for m in ("psnr_y", "lr_psnr", "fid")}
    assert "30.99" in (folder / "net_g_20" / "summary.txt").read_text(encoding="utf-8")
    before = (folder / "net_g_10" / "summary.json").stat().st_mtime_ns
    run_folder(world, {30: 0.1})
    assert sam4ir(list(map(str, ["test", *command[1:]]))) == 0
    assert "net_g_30" in capsys.readouterr().out
    assert (folder / "net_g_10" / "summary.json").stat().st_mtime_ns == before


def test_what_is_wrong_on_the_command_line_is_one_message(
    world: World,
    option_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, expected in (
        (["--weights", world.root / "gone.pth"], "gone.pth"),
        (["--weights", world.root / "gt"], "gt: is no folder of a run"),
        (["--checkpoints", world.root / "gt"], "holds no net_g_<iteration>.pth"),
        (["--published", "nothing"], "known: SAM-DiffSR"),
    ):
        assert sam4ir(["test", "-opt", str(option_file), *map(str, arguments)]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert expected in told
    assert not (world.root / "results").exists()


def test_an_image_at_fault_is_listed_and_scored_by_the_next_run(
    world: World,
    option_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = sorted((world.root / "gt").glob("*.png"))[0]
    whole = first.read_bytes()
    for flags, name in (((), "single"), (("--checkpoints", run_folder(world, {10: 0.2})), "several")):
        first.write_bytes(whole[:100])
        words = list(map(str, ["test", "-opt", option_file, *flags, "--force_yml", f"name={name}"]))
        assert sam4ir(words) == 1
        printed = capsys.readouterr()
        assert "PSNR" in printed.out or "psnr_y" in printed.out
        assert f"{first.name}: truncated PNG" in printed.err
        first.write_bytes(whole)
        assert sam4ir(words) == 0
        folder = world.root / "results" / name
        (summary,) = [*folder.glob("summary.json"), *folder.glob("*/summary.json")]
        assert "not_scored" not in json.loads(summary.read_text())


@pytest.mark.slow
def test_two_processes_score_as_one(world: World, option_file: Path) -> None:
    other = world.root / "other.pth"
    torch.save({"params": {"shift": torch.full((1,), 0.1)}}, other)
    arguments = ["test.py", "-opt", option_file, "--weights", world.root / "net.pth", other]
    call(*arguments, "--force_yml", "name=one")
    call("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments, "--force_yml", "name=two")
    one, two = (world.root / "results" / name for name in ("one", "two"))
    for name in ("net", "other"):
        assert json.loads((one / name / "summary.json").read_text()) == json.loads(
            (two / name / "summary.json").read_text()
        )
        assert (one / name / "metrics.csv").read_text() == (two / name / "metrics.csv").read_text()
    assert (one / "curve.csv").read_text() == (two / "curve.csv").read_text()


@pytest.mark.slow
def test_an_ascii_console_gets_plain_arrows(world: World, option_file: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "test.py", "-opt", str(option_file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=120, check=True)
    assert "fid v" in done.stdout
