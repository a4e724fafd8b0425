"""Which processes belong to a run, as torchrun's and Slurm's environment tells."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sam4ir.utils.dist import LaunchError, PeerError, Tally, World, peers, restarted, world

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _outside_of_any_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what the code sets is undone after the test
        monkeypatch.delenv(name)


def test_nobody_started_many_processes() -> None:
    with world("none", cuda=False) as alone:
        assert alone == World(0, 1, 0)
        assert alone.main


def test_alone_every_question_is_answered_without_communication() -> None:
    alone, values = World(), torch.tensor([1.0, 2.0])
    assert alone.mean(values) is values
    assert (alone.largest(3), alone.gather("x"), alone.from_main("y")) == (3, ["x"], "y")
    alone.wait()
    alone.share_buffers(torch.nn.BatchNorm2d(3))


def test_torchruns_only_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with world("pytorch", cuda=False) as joined:
        assert joined.size == 1
        assert not torch.distributed.is_initialized()


def test_a_launcher_that_is_asked_for_and_not_there_is_told_how_to_start_it() -> None:
    with pytest.raises(LaunchError, match=r"torchrun --nproc_per_node"), world("pytorch", cuda=False):
        pass
    with pytest.raises(LaunchError, match=r"needs srun: SLURM_PROCID"), world("slurm", cuda=False):
        pass


def test_slurms_variables_become_torchruns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[3-4]" ] && printf "node3\\nnode4\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    values = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_NODELIST": "node[3-4]"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with world("slurm", cuda=False):
        assert [os.environ[name] for name in VARIABLES] == ["0", "1", "0", "node3", "29500"]
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(LaunchError, match=r"scontrol show hostnames.*set MASTER_ADDR"), world("slurm", cuda=False):
        pass


def test_a_connection_that_breaks_is_told_apart_from_other_errors() -> None:
    with pytest.raises(PeerError, match=r"other processes.*Connection closed"), peers():
        raise RuntimeError("[pair.cc:561] Connection closed by peer [127.0.0.1]:43907")
    with pytest.raises(RuntimeError, match="size mismatch"), peers():
        raise RuntimeError("size mismatch")


@pytest.mark.parametrize(("count", "expected"), [(None, False), ("0", False), ("2", True)])
def test_a_restart_by_torchrun_is_seen(count: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    if count is not None:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
    assert restarted() is expected


def test_a_tally_of_one_process_is_its_own_counters() -> None:
    tally = Tally(World(), 2)
    assert tally.post((1, 2)) == [1, 2]
    assert tally.finish((3, 4)) == [3, 4]


def _count(rank: int, port: int, works: tuple[int, ...], results: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(len(works)), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with world("pytorch", cuda=False) as joined:
        for _ in range(2):  # a second one finds nothing of the first
            tally, seen = Tally(joined, 2), []
            for done in range(1, works[rank] + 1):
                time.sleep(0.01 * rank)
                seen.append(tally.post((done, 100)))
            last = tally.finish((works[rank], 100), seen.append)
            results.put((rank, seen, last))


@pytest.mark.parametrize("works", [(40, 3), (0, 12)])
def test_uneven_processes_count_together_and_leave_together(works: tuple[int, ...]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_count, args=(rank, port, works, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in range(4)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for _, seen, last in found:
        assert last == [sum(works), 200]
        sums = [totals[0] for totals in seen]
        assert sums == sorted(sums)
        assert all(total <= sum(works) for total in sums)


def test_processes_that_do_not_meet_are_a_message_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, value in zip(VARIABLES, ("0", "2", "0", "127.0.0.1", port), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sam4ir.utils.dist.START_TIMEOUT", datetime.timedelta(seconds=2))
    with pytest.raises(LaunchError, match="the 2 processes of this run have not met"), world("pytorch", cuda=False):
        pass
