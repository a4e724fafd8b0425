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

from sam4ir.config.yaml_text import dump_line
from sam4ir.engine.interrupt import PATIENT
from sam4ir.engine.study.lock import InheritedLock
from sam4ir.engine.study.plan import StudyError, StudyJob, StudyPlan
from sam4ir.utils.files import make_folder, read_text, write_text
from sam4ir.utils.shell import command_words

POLL = 1.0  # seconds between two looks at jobs that other processes work on
BEAT = 10.0  # seconds between two notes of how long a job has taken, so that a kill loses few of them
AGAIN = 1.0  # seconds after a signal in which a second one counts as the same
PARTS = ("begun", "done", "locks", "logs")  # folders below that of the study


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
class StudyOutcome:
    """What became of the jobs. failed: {job: its log}. signal: that stopped the study, or 0."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, Path] = field(default_factory=dict)
    signal: int = 0


def is_done(plan: StudyPlan, job: StudyJob) -> bool:
    """Return whether a job is done. Raises StudyError where it was done by another study file."""
    return _has_record(plan, job, "done", "was run")


def _has_record(plan: StudyPlan, job: StudyJob, kind: str, words: str) -> bool:
    """Return whether a job has a record. Raises StudyError where it is one of other options; words: what it records."""
    record = _record(plan, job, kind)
    try:
        stated = json.loads(read_text(record))["facts"]
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        return False  # no whole record: the job is done again, which takes a moment where its work is there
    if stated != job.facts:
        left = f"{record}"
        if job.base is not None:
            left += f" and {job.paths().run}"
        raise StudyError(
            f"{plan.file}: {job.name} {words} with other options than the file has now. Give the changed study another "
            f"name, or remove {left} to run {job.name} anew"
        )
    return True


def refuse_changed(plan: StudyPlan, jobs: Sequence[StudyJob] | None = None) -> None:
    """Raise StudyError where a job was run or begun with other options, or where another study has a run's folder.

    jobs: that are looked at; without them all.
    """
    if jobs is None:
        jobs = list(plan.jobs.values())
    for job in jobs:
        done = is_done(plan, job)
        begun = _has_record(plan, job, "begun", "was begun") or _log(plan, job).is_file()
        if done or begun or job.base is None:
            continue
        run = job.paths().run
        if (run / "models").is_dir():
            raise StudyError(
                f"{run}: holds a run that this study has not begun. Move it away, or give the study another name"
            )


def seconds_of(plan: StudyPlan, job: StudyJob) -> float | None:
    """Return the seconds that a job took in all its starts, as far as a study watched it; None before it is done."""
    try:
        return float(json.loads(read_text(_record(plan, job)))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _record(plan: StudyPlan, job: StudyJob, kind: str = "done") -> Path:
    return plan.folder / kind / f"{job.name}.json"


def _log(plan: StudyPlan, job: StudyJob) -> Path:
    return plan.folder / "logs" / f"{job.name}.log"


def run_jobs(
    plan: StudyPlan, choice: RunChoice, say: Callable[[str], None], jobs: Sequence[StudyJob] | None = None
) -> StudyOutcome:
    """Run jobs that are not done yet; return what became of them.

    A job that fails stops what needs it, and nothing else. Jobs that another process works on are waited for. say:
    prints a line. jobs: in an order that may be worked through; without them those of the shard.
    """
    if jobs is None:
        jobs = plan.share(choice.shard, choice.arms)
    for part in PARTS:
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

    def __init__(
        self, plan: StudyPlan, choice: RunChoice, jobs: Sequence[StudyJob], say: Callable[[str], None]
    ) -> None:
        self.plan = plan
        self.choice = choice
        self.say = say
        self.outcome = StudyOutcome()
        self.error: Exception | None = None
        self._left = {job.name: job for job in jobs}
        self._total = len(jobs)
        self._guard = threading.Lock()
        self._here: set[str] = set()  # jobs that a thread of this process works on
        self._waited: set[str] = set()  # jobs of another process that were spoken of
        self._children: set[subprocess.Popen[bytes]] = set()
        self._signalled = 0.0  # when the last signal came

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Hand SIGINT, SIGTERM and SIGHUP to the trainings as SIGTERM, on which they save and end; take no further job.

        A later second signal kills them. Signals that are ignored stay so, such as SIGHUP below nohup.
        """
        before = {}
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, self._stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _: object) -> None:
        """Take a signal."""
        now = time.monotonic()
        again = self.outcome.signal != 0 and now - self._signalled > AGAIN
        self._signalled = now
        self.outcome.signal = self.outcome.signal or number
        for child in list(self._children):
            self._end(child, at_once=again)

    def _end(self, child: subprocess.Popen[bytes], *, at_once: bool = False) -> None:
        with contextlib.suppress(ProcessLookupError):
            if at_once:
                child.kill()
            else:
                child.terminate()

    def loop(self, slot: int) -> None:
        """Take one job after the other until none is left."""
        try:
            while not self.outcome.signal and self.error is None:
                job_and_lock = self._take()
                if job_and_lock is None:
                    with self._guard:
                        finished = not self._left
                    if finished:
                        return
                    time.sleep(POLL)
                    continue
                job, lock = job_and_lock
                try:
                    self._do(job, slot, lock)
                finally:
                    lock.release()
                    with self._guard:
                        self._here.discard(job.name)
        except Exception as error:
            self.error = self.error or error

    def _take(self) -> tuple[StudyJob, InheritedLock] | None:
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
                lock = InheritedLock(self.plan.folder / "locks" / f"{job.name}.lock")
                if not lock.acquire():
                    self._say_waiting(job)
                    continue
                try:
                    free = not is_done(self.plan, job) and self._is_free(job)
                except BaseException:
                    lock.release()
                    raise
                if not free:
                    lock.release()
                    continue
                self._here.add(job.name)
                return job, lock
        return None

    def _say_waiting(self, job: StudyJob) -> None:
        """Say once that another process works on a job."""
        if job.name not in self._waited:
            self._waited.add(job.name)
            self.say(f"{job.name}: another process works on it")

    def _finish(self, job: StudyJob) -> None:
        self._left.pop(job.name, None)
        self.outcome.done.append(job.name)

    def _is_free(self, job: StudyJob) -> bool:
        """Return whether no process trains the run of a job: one that somebody started by hand goes on.

        One that outlived a killed study holds the lock of the job as well, where the file system can hand it on.
        """
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

    def _do(self, job: StudyJob, slot: int, lock: InheritedLock) -> None:
        """Run a job and record its end."""
        log, facts = _log(self.plan, job), job.facts
        write_text(_record(self.plan, job, "begun"), json.dumps({"facts": facts}))
        with self._guard:
            place = len(self.outcome.done) + len(self.outcome.failed) + len(self._here)
        self.say(f"{job.name}: begins ({place} of {self._total}); log {log}")
        begun = time.monotonic()
        with log.open("ab") as output:
            words = self._words(job, slot)
            output.write(f"$ {command_words(*words)}\n".encode())
            output.flush()
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                pass_fds=lock.descriptors,
            )
        code = self._wait(job, child)
        seconds = time.monotonic() - begun
        if self.outcome.signal and code:
            return
        with self._guard:
            if code:
                self._left.pop(job.name)
                self.outcome.failed[job.name] = log
                self.say(f"{job.name}: failed with exit status {code}; see the end of {log}")
                return
            record = {"facts": facts, "seconds": round(_spent(self.plan, job), 1)}
            write_text(_record(self.plan, job), json.dumps(record))
            self._finish(job)
        self.say(f"{job.name}: done in {seconds:.0f} s")

    def _wait(self, job: StudyJob, child: subprocess.Popen[bytes]) -> int:
        """Wait for the end of a job and note its seconds; return its exit status."""
        earlier, begun = _spent(self.plan, job), time.monotonic()
        self._children.add(child)
        try:
            if self.outcome.signal:  # it came after the job was taken
                self._end(child)
            while True:
                code = None
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = child.wait(BEAT)
                write_text(_seconds_file(self.plan, job), f"{earlier + time.monotonic() - begun:.1f}")
                if code is not None:
                    return code
        finally:
            self._children.discard(child)

    def _words(self, job: StudyJob, slot: int) -> list[str]:
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
        forced = [f"{':'.join(each.keys)}={dump_line(each.value)}" for each in job.overrides]
        if self.choice.devices:
            forced.append(f"device={self.choice.devices[slot % len(self.choice.devices)]}")
        return [*words, "--force_yml", *forced]

    def _environment(self) -> dict[str, str]:
        threads = self.choice.threads
        if threads is None:
            threads = max(_cores() // (self.choice.jobs * self.choice.processes), 1)
        return {**os.environ, "OMP_NUM_THREADS": str(threads), PATIENT: "1"}


def _cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _seconds_file(plan: StudyPlan, job: StudyJob) -> Path:
    return plan.folder / "logs" / f"{job.name}.seconds"


def _spent(plan: StudyPlan, job: StudyJob) -> float:
    """Return the seconds that a job has taken in all its starts so far."""
    with contextlib.suppress(OSError, ValueError):
        return float(read_text(_seconds_file(plan, job)))
    return 0.0
