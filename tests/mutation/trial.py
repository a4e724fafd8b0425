"""One trial: a forked process that runs tests with one module's source replaced in memory."""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import types
from collections.abc import Sequence
from pathlib import Path

WALL_SECONDS = 900  # for a trial that waits instead of computing, such as a deadlock
MEMORY = 24 * 2**30  # address space, far above what a test needs
# imported once before the trials fork, because they take most of a short test's time
HEAVY = (
    *("torch", "torch.distributed", "torch.nn.parallel", "torch.utils.checkpoint", "torch.utils.data", "torchvision"),
    *("numpy", "cv2", "skimage.io", "PIL.Image", "pycocotools.mask", "segment_anything", "safetensors.torch", "lmdb"),
    *("pydantic", "yaml", "tqdm", "zstandard", "filelock", "annotated_types", "multiprocessing.pool"),
    *("pytest", "_pytest.doctest", "pytest_timeout", "hypothesis", "hypothesis.strategies"),
)


def warm_up() -> None:
    """Import the libraries that the tests need; none of this project, since each trial imports its own."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a process that forks must have no other threads
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


class Trial:
    """A trial in its own process. outcome: survived, killed or slow, once it has ended; by: the test that failed.

    cpu: seconds of CPU time that it took. cpu_seconds: the limit, beyond which it counts as slow.
    """

    def __init__(self, module: str, source: str, tests: Sequence[str], cpu_seconds: int) -> None:
        self.outcome, self.by, self.cpu = "", "", 0.0
        self.folder = Path(tempfile.mkdtemp(prefix="mutant_"))
        self.begin = time.monotonic()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _trial(module, source, tests, cpu_seconds, self.folder)

    def ended(self) -> bool:
        """Return whether the trial has ended, and read its result then."""
        if time.monotonic() - self.begin > WALL_SECONDS:
            os.killpg(self.pid, signal.SIGKILL)
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if pid:
            self._read(status, usage)
        return bool(pid)

    def wait(self) -> None:
        """Wait until the trial has ended."""
        while not self.ended():
            time.sleep(0.02)

    def _read(self, status: int, usage: resource.struct_rusage) -> None:
        with contextlib.suppress(ProcessLookupError):  # what it started and left running
            os.killpg(self.pid, signal.SIGKILL)
        self.cpu = usage.ru_utime + usage.ru_stime
        self.outcome = "killed"
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
            self.outcome = "slow"
        elif os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            self.outcome = "survived"
        failed = self.folder / "failed"
        if failed.exists():
            self.by = failed.read_text(encoding="utf-8")
        shutil.rmtree(self.folder, ignore_errors=True)


class FirstFailure:
    """A plugin of pytest that writes the name of the first failing test to a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed and not self.file.exists():
            self.file.write_text(report.nodeid.rpartition("/")[2], encoding="utf-8")

    def pytest_collectreport(self, report) -> None:
        if report.failed and not self.file.exists():
            self.file.write_text("import", encoding="utf-8")


class MutatedModule(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """An importer of one module, whose source is another than that of its file."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self.name, self.path, self.source = name, path, source

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)  # type: ignore[arg-type]

    def get_source(self, fullname: str) -> str:
        return self.source

    def get_code(self, fullname: str) -> types.CodeType:
        return compile(self.source, str(self.path), "exec")


def _trial(module: str, source: str, tests: Sequence[str], cpu_seconds: int, folder: Path) -> None:
    """Run the tests in this process and leave it with pytest's exit status."""
    status = 1
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # examples that fail with a mutant must not come back in later runs
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(folder / "hypothesis")
        sys.path.insert(0, os.getcwd())
        path = Path(module).resolve()
        name = module.removesuffix(".py").replace("/", ".")
        sys.meta_path.insert(0, MutatedModule(name, path, source))
        import pytest

        flags = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:timeout", "--no-header"]
        flags += ["--basetemp", str(folder / "tmp"), "--hypothesis-seed=0"]
        status = int(pytest.main([*flags, *tests], plugins=[FirstFailure(folder / "failed")]))
    finally:
        os._exit(status)
