"""Work through the jobs of a study: several at a time, in shards, and after any kill where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from sam4ir.engine.study.plan import Job, Plan, StudyError
from sam4ir.utils.files import make_folder, read_text, write_text
from sam4ir.utils.shell import command_words, yaml_value

POLL = 1.0  # seconds between two looks at jobs that other processes work on


@dataclass(frozen=True)
class RunChoice:
    """How jobs are run.

    jobs: at a time. threads: of each; None for an equal share of the cores. devices: one for each job, in turn; empty
    for those of the option files. processes: torchrun's, for each training. shard: (i, n) of the runs. arms: that are
    run; None for all.
    """

    jobs: int = 1
    threads: int | None = None
    devices: Sequence[str] = ()
    processes: int = 1
    shard: tuple[int, int] = (0, 1)
    arms: Sequence[str] | None = None


@dataclass
class Outcome:
    """What became of the jobs. failed: {job: its log}. signal: that stopped the study, or 0."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, Path] = field(default_factory=dict)
    signal: int = 0


def is_done(plan: Plan, job: Job) -> bool:
    """Return whether a job is done. Raises StudyError where it was done by another study file."""
    record = _record(plan, job)
    if not record.is_file():
        return False
    try:
        stated = json.loads(read_text(record))["facts"]
    except (ValueError, KeyError, TypeError):
        return False
    if stated != job.facts:
        raise StudyError(
            f"{plan.file}: {job.name} was run with other options than the file has now. Give the changed study another "
            f"name, or remove {record} to run {job.name} anew"
        )
    return True


def seconds_of(plan: Plan, job: Job) -> float | None:
    """Return the seconds that a job took in all its starts; None where it is not done."""
    try:
        return float(json.loads(read_text(_record(plan, job)))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _record(plan: Plan, job: Job) -> Path:
    return plan.folder / "done" / f"{job.name}.json"


def run_jobs(plan: Plan, choice: RunChoice, say: Callable[[str], None]) -> Outcome:
    """Run the jobs of a shard that are not done yet; return what became of them.

    A job that fails stops what needs it, and nothing else. Jobs that another process works on are waited for where
    something here needs them. say: prints a line.
    """
    jobs = plan.share(choice.shard, choice.arms)
    for part in ("done", "locks", "logs"):
        make_folder(plan.folder / part)
    work = _Work(plan, choice, jobs, say)
    with work.signals():
        workers = [threading.Thread(target=work.loop, args=(number,)) for number in range(choice.jobs)]
        for worker in workers:
            worker.start()
        for worker in workers:
            while worker.is_alive():  # a join without a time would keep signals away
                worker.join(0.2)
    if work.error is not None:
        raise work.error
    return work.outcome


class _Work:
    """The jobs of a shard, taken by several threads."""

    def __init__(self, plan: Plan, choice: RunChoice, jobs: Sequence[Job], say: Callable[[str], None]) -> None:
        self.plan = plan
        self.choice = choice
        self.say = say
        self.outcome = Outcome()
        self.error: Exception | None = None
        self._left = {job.name: job for job in jobs}
        self._total = len(jobs)
        self._guard = threading.Lock()
        self._here: set[str] = set()  # jobs that a thread of this process works on
        self._children: set[subprocess.Popen[bytes]] = set()

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Hand SIGINT and SIGTERM to the trainings, which save what they have, and take no further job."""
        before = {}

        def stop(number: int, _: object) -> None:
            self.outcome.signal = self.outcome.signal or number
            for child in list(self._children):
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(signal.SIGTERM)

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def loop(self, slot: int) -> None:
        """Take one job after the other until none is left."""
        try:
            while not self.outcome.signal and self.error is None:
                taken = self._take()
                if taken is None:
                    with self._guard:
                        finished = not self._left
                    if finished:
                        return
                    time.sleep(POLL)
                    continue
                job, lock = taken
                try:
                    self._do(job, slot)
                finally:
                    lock.release()
                    with self._guard:
                        self._here.discard(job.name)
        except Exception as error:
            self.error = self.error or error

    def _take(self) -> tuple[Job, FileLock] | None:
        """Return a job that can begin, with its lock; None where none can now."""
        with self._guard:
            for job in list(self._left.values()):
                if job.name in self._here:
                    continue
                if is_done(self.plan, job):
                    self._finish(job)
                    continue
                lost = [name for name in job.needs if name in self.outcome.failed]
                if lost:
                    self._left.pop(job.name)
                    self.outcome.failed[job.name] = self.outcome.failed[lost[0]]
                    self.say(f"{job.name}: left out, since {lost[0]} failed")
                    continue
                if not all(is_done(self.plan, self.plan.jobs[name]) for name in job.needs):
                    continue
                lock = FileLock(self.plan.folder / "locks" / f"{job.name}.lock", is_singleton=False, thread_local=False)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    continue
                if is_done(self.plan, job) or not self._is_free(job):
                    lock.release()
                    continue
                self._here.add(job.name)
                return job, lock
        return None

    def _finish(self, job: Job) -> None:
        self._left.pop(job.name, None)
        self.outcome.done.append(job.name)

    def _is_free(self, job: Job) -> bool:
        """Return whether no process trains the run of a job: one that outlived a killed study goes on."""
        if job.base is None:
            return True
        file = job.paths().run / ".lock"
        if not file.exists():
            return True
        try:
            with FileLock(file, is_singleton=False, timeout=0):
                return True
        except Timeout:
            return False

    def _do(self, job: Job, slot: int) -> None:
        """Run a job and record its end."""
        log = self.plan.folder / "logs" / f"{job.name}.log"
        place = len(self.outcome.done) + len(self.outcome.failed) + len(self._here)
        self.say(f"{job.name}: begins ({place} of {self._total}); log {log}")
        begun = time.monotonic()
        with log.open("ab") as output:
            words = self._words(job, slot)
            output.write(f"$ {command_words(*words)}\n".encode())
            output.flush()
            child = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=self._environment())
            self._children.add(child)
            code = child.wait()
            self._children.discard(child)
        seconds = time.monotonic() - begun
        spent = _spent(self.plan, job, seconds)
        if self.outcome.signal:
            return
        with self._guard:
            if code:
                self._left.pop(job.name)
                self.outcome.failed[job.name] = log
                self.say(f"{job.name}: failed with exit status {code}; see the end of {log}")
                return
            record = {"facts": job.facts, "seconds": round(spent, 1)}
            write_text(_record(self.plan, job), json.dumps(record))
            self._finish(job)
        self.say(f"{job.name}: done in {seconds:.0f} s")

    def _words(self, job: Job, slot: int) -> list[str]:
        """Return the command line of a job."""
        python = [sys.executable, "-m"]
        if job.base is None:
            return [*python, "sam4ir", *job.words]
        if self.choice.processes > 1:
            python += ["torch.distributed.run", f"--nproc_per_node={self.choice.processes}", "--rdzv_backend=c10d"]
            python += ["--rdzv_endpoint=localhost:0", "-m"]
        words = [*python, "sam4ir", "train", "-opt", str(job.base), "--auto_resume"]
        if self.choice.processes > 1:
            words += ["--launcher", "pytorch"]
        forced = [f"{':'.join(each.keys)}={yaml_value(each.value)}" for each in job.overrides]
        if self.choice.devices:
            forced.append(f"device={self.choice.devices[slot % len(self.choice.devices)]}")
        return [*words, "--force_yml", *forced]

    def _environment(self) -> dict[str, str]:
        threads = self.choice.threads
        if threads is None:
            threads = max((os.cpu_count() or 1) // self.choice.jobs, 1)
        return {**os.environ, "OMP_NUM_THREADS": str(threads)}


def _spent(plan: Plan, job: Job, seconds: float) -> float:
    """Add the seconds of a start of a job to those of earlier ones; return the sum."""
    file = plan.folder / "logs" / f"{job.name}.seconds"
    earlier = 0.0
    with contextlib.suppress(OSError, ValueError):
        earlier = float(read_text(file))
    write_text(file, f"{earlier + seconds:.1f}")
    return earlier + seconds
