"""Errors in worker processes: each arrives with its image and traceback, and no worker outlives its parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
import traceback
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sam4ir.data.loader import WorkerDiedError, eval_sample, eval_samples, train_batches
from sam4ir.data.sample import Sample
from sam4ir.data.workers import attempts
from sam4ir.errors import UserError

ROOT = Path(__file__).parents[2]
LIMIT = 60  # seconds; a run that hangs would need for ever


class NeedsArguments(Exception):
    """Pickle writes it, and cannot read it."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name} {number}")


class HoldsAFunction(Exception):
    """Pickle cannot write it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.function = lambda: text


class UserErrorWithArguments(UserError):
    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name}.png: fault {number}")


def endless(depth: int) -> int:
    return endless(depth + 1) + 1


def throw(error: BaseException) -> None:
    raise error


FAILURES = {
    "key": lambda: throw(KeyError("label_of_c")),
    "memory": lambda: throw(MemoryError("Unable to allocate 4.00 GiB")),
    "opencv": lambda: cv2.resize(np.zeros((2, 2), np.uint8), (0, 0)),
    "recursion": lambda: endless(0),
    "exit": lambda: sys.exit(0),
    "unreadable": lambda: throw(NeedsArguments("odd", 3)),
    "unwritable": lambda: throw(HoldsAFunction("a held function")),
    "user": lambda: throw(UserErrorWithArguments("seven", 4)),
    "group": lambda: throw(BaseException("bare")),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "leave": lambda: os._exit(3),
}


def fail(kind: str) -> None:
    FAILURES[kind]()


KINDS = {  # kind: (type that arrives, text of it)
    "key": (KeyError, "label_of_c"),
    "memory": (UserError, r"image image7 of Images: memory ran out \(Unable to allocate 4.00 GiB\)"),
    "opencv": (cv2.error, "resize"),
    "recursion": (RecursionError, "recursion"),
    "exit": (RuntimeError, "SystemExit: 0"),
    "unreadable": (Exception, "odd 3"),
    "unwritable": (Exception, "a held function"),
    "user": (UserError, "^seven.png: fault 4$"),
    "group": (RuntimeError, "BaseException: bare"),
}


class Images:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 10

    def key(self, index: int) -> str:
        return f"image{index}"

    def get(self, index: int, rng: np.random.Generator) -> Sample:
        if index == 7:
            if self.kind == "result":
                return Sample("image7", torch.zeros(3, 2, 2), torch.zeros(3, 2, 2), skipped=(fail, lambda: 0))
            fail(self.kind)
        return Sample(self.key(index), torch.zeros(3, 2, 2), torch.zeros(3, 2, 2))


def train(kind: str, workers: int, **options: object) -> None:
    list(train_batches(Images(kind), seed=0, batch_size=5, total_samples=10, num_workers=workers, **options))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_error_of_the_loader_arrives_with_its_image(kind: str, workers: int) -> None:
    others = set(multiprocessing.active_children())
    expected, text = KINDS[kind]
    with pytest.raises(expected, match=text) as caught:
        train(kind, workers)
    assert set(multiprocessing.active_children()) <= others
    if not isinstance(caught.value, UserError):
        shown = "".join(traceback.format_exception(caught.value))
        assert "in fail" in shown
        assert "image image7 of Images" in shown + str(getattr(caught.value, "__notes__", ""))


@pytest.mark.parametrize("kind", ["key", "exit", "unreadable", "memory"])
def test_validation_names_the_image_of_an_error(kind: str) -> None:
    with pytest.raises(KINDS[kind][0], match=KINDS[kind][1]):
        eval_sample(Images(kind), 0, 7)
    with pytest.raises(KINDS[kind][0], match=KINDS[kind][1]):
        list(eval_samples(Images(kind), 0, num_workers=1))


@pytest.mark.parametrize("kind", ["key", "exit"])
def test_bugs_are_no_bad_images(kind: str) -> None:
    with pytest.raises(KINDS[kind][0], match=KINDS[kind][1]):
        train(kind, 1, bad_images="skip")


@pytest.mark.parametrize(
    ("kind", "text", "memory"),
    [("kill", "signal SIGKILL", True), ("segv", "signal SIGSEGV", False), ("leave", "exit code 3", False)],
)
def test_the_death_of_a_loader_process_names_its_signal(kind: str, text: str, memory: bool) -> None:
    with pytest.raises(WorkerDiedError) as caught:
        train(kind, 2)
    assert text in str(caught.value)
    assert ("memory" in str(caught.value)) is memory


def test_a_sample_that_cannot_be_sent_ends_the_loader(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkerDiedError, match="exit code 1"):
        train("result", 1)
    assert "lambda" in capfd.readouterr().err


def task(kind: str, number: int) -> int:
    if number == 3:
        fail(kind)
    return number


@pytest.mark.parametrize("kind", ["key", "recursion", "exit", "unreadable", "unwritable", "opencv"])
def test_every_bug_of_a_task_arrives_with_its_traceback(kind: str) -> None:
    expected = {"unreadable": RuntimeError, "unwritable": RuntimeError}.get(kind, KINDS[kind][0])
    with pytest.raises(expected, match=KINDS[kind][1]) as caught:
        list(attempts(partial(task, kind), range(6), workers=2))
    shown = "".join(traceback.format_exception(caught.value))
    assert "in a worker process, at 3" in shown
    assert "in fail" in shown


@pytest.mark.parametrize(
    ("kind", "text", "memory"),
    [("kill", "signal SIGKILL", True), ("segv", "signal SIGSEGV", False), ("leave", "exit code 3", False)],
)
def test_the_death_of_a_pool_process_names_its_signal(kind: str, text: str, memory: bool) -> None:
    with pytest.raises(UserError, match=text) as caught:
        list(attempts(partial(task, kind), range(6), workers=2))
    assert ("memory" in str(caught.value)) is memory


PARENT = """
    import os, sys, time, torch
    from sam4ir.data.loader import train_batches
    from sam4ir.data.sample import Sample
    from sam4ir.data.workers import attempts

    class Images:
        def __len__(self): return 1000
        def key(self, index): return str(index)
        def get(self, index, rng):
            time.sleep(0.01)
            return Sample(str(index), torch.zeros(3, 2, 2), torch.zeros(3, 2, 2))

    def begin():
        if sys.argv[1] == "pool":
            return attempts(time.sleep, [0.01] * 1000, workers=2)
        return train_batches(Images(), seed=0, batch_size=2, total_samples=2000, num_workers=2)

    if __name__ == "__main__":
        results = begin()
        next(results)
        print("begun", flush=True)
        if sys.argv[2] == "exit":
            sys.exit(4)
        if sys.argv[2] == "error":
            raise KeyError("kept")
        time.sleep(600)
"""


def of_run(mark: str) -> list[int]:
    """The processes that have the environment variable MARK=<mark>."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"WORKERS_OF={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def wait_until(no_longer: float, mark: str) -> list[int]:
    end = time.monotonic() + no_longer
    while of_run(mark) and time.monotonic() < end:
        time.sleep(0.1)
    return of_run(mark)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    "ending", ["kill", *(pytest.param(word, marks=pytest.mark.slow) for word in ("terminate", "exit", "error"))]
)
@pytest.mark.parametrize("pool", ["loader", "pool"])
def test_no_worker_outlives_its_parent(pool: str, ending: str, tmp_path: Path) -> None:
    script, mark = tmp_path / "parent.py", f"{os.getpid()}-{tmp_path.name}"
    script.write_text(textwrap.dedent(PARENT))
    environment = os.environ | {"WORKERS_OF": mark, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), pool, ending]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True)
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "begun\n"
        assert ending in ("exit", "error") or len(of_run(mark)) >= 3
        if ending in ("kill", "terminate"):
            getattr(parent, ending)()
        code = parent.wait(LIMIT)
        assert code == {"kill": -signal.SIGKILL, "terminate": -signal.SIGTERM, "exit": 4, "error": 1}[ending]
        assert wait_until(10, mark) == []
    finally:
        for process in of_run(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        parent.wait()
