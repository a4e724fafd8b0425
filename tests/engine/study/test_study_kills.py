"""A study in two shards whose processes kill -9 ends again and again: its table is that of a study nobody killed.

SAM4IR_KILLS sets the number of kills (default 20). Most of them end the study's process alone, so that trainings go on
as orphans, which the next start must neither repeat nor disturb; the others end its whole process group.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from conftest import World
from engine.study.small_study import STUDY, write_study
from test_kills import KILLS, MARK, ROOT, assert_none_left

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

LONGEST = 1200  # seconds that a study may take on a busy machine
ALONE = 0.7  # share of the kills that leave trainings as orphans


def start(folder: Path, file: Path, shard: str, mark: str) -> subprocess.Popen[bytes]:
    """Start a shard in a process group of its own, in the folder that gets its runs."""
    words = [sys.executable, "-m", "sam4ir", "study", "run", str(file), "--shard", shard, "--threads", "1"]
    with (folder / f"printed_{shard[0]}.txt").open("ab") as log:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), MARK: mark}
        return subprocess.Popen(
            words, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def table(folder: Path) -> dict[str, Any]:
    """All figures of a study but those of time."""
    summary: dict[str, Any] = json.loads((folder / "studies" / STUDY["name"] / "summary.json").read_text())
    for arm in summary["arms"].values():
        del arm["step"], arm["hours"]
    return summary


def test_a_killed_study_has_the_table_of_one_that_nobody_killed(world: World) -> None:
    values = world.values(path={"root": "."})
    values["logger"]["save_checkpoint_freq"] = 2
    tuned = {"path:pretrain_network_g": "{student}"}
    arms = {"plain": tuned, "l1": {**tuned, "train:pixel_opt:type": "L1Loss"}}
    file = write_study(world, values, arms=arms, seeds=6, shared={"student": {"set": {}, "every_seed": False}})
    straight, killed = world.root / "straight", world.root / "killed"
    for folder in (straight, killed):
        folder.mkdir()
    assert start(straight, file, "0/1", "none").wait(LONGEST) == 0, (straight / "printed_0.txt").read_text()

    moments, mark = random.Random(3), uuid.uuid4().hex
    shards = ("0/2", "1/2")
    processes = {shard: start(killed, file, shard, mark) for shard in shards}
    kills, alone, end = 0, 0, time.monotonic() + LONGEST
    while kills < KILLS and any(process.poll() is None for process in processes.values()):
        assert time.monotonic() < end
        time.sleep(moments.uniform(0, 6))
        shard = moments.choice(shards)
        process = processes[shard]
        if process.poll() is not None:
            assert process.returncode == 0, (killed / f"printed_{shard[0]}.txt").read_text()
            continue
        if moments.random() < ALONE:
            process.kill()
            alone += 1
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        processes[shard] = start(killed, file, shard, mark)
    for shard, process in processes.items():
        assert process.wait(LONGEST) == 0, (killed / f"printed_{shard[0]}.txt").read_text()
    assert_none_left(mark)
    again = start(killed, file, "0/1", mark)  # the shard that ended last may have reported before the other's end
    assert again.wait(LONGEST) == 0

    ours, expected = table(killed), table(straight)
    assert ours == expected
    assert ours["missing"] == []
    assert {len(arm["means"]) for arm in ours["arms"].values()} == {6}
    assert len(set(ours["arms"]["plain"]["means"].values())) == 6
    names = [path.name for path in (killed / "studies").rglob("*") if path.name.endswith(".part")]
    assert names == []
    for log in (killed / "studies" / STUDY["name"] / "logs").glob("*.log"):
        assert "another process is training this run" not in log.read_text(), log
    print(f"{kills} kills, {alone} of which left trainings as orphans")
    assert kills > min(KILLS, 20) / 2, "most kills came after the end"
