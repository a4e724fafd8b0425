"""Paired timing of programs that do the same work: the protocol behind every figure of scripts/benchmark.py.

What agrees is timed, in one process on one thread: warm-up rounds, then rounds in which every form runs once, in
turning order. A ratio is taken inside each round, so that a slow minute of the machine is in both its sides. The same
form run twice is the control: where the median of its ratio leaves 0.95..1.05 the machine was too restless and nothing
counts. What may be claimed is the quartile on the unfavourable side.
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sam4ir.errors import UserError

CONTROL_LIMITS = 0.95, 1.05
PACKAGES = ("torch", "numpy", "opencv-python-headless", "lmdb", "zstandard", "pycocotools")


@dataclass(frozen=True)
class Plan:
    """How often everything runs: rounds that count (at least 2, for quartiles), and rounds before them that do not."""

    rounds: int = 9
    warmup: int = 2

    def __post_init__(self) -> None:
        if self.rounds < 2 or self.warmup < 0:
            raise UserError(f"rounds {self.rounds}, warm-up {self.warmup}: quartiles need at least 2 and 0")


class Agreement(NamedTuple):
    """A measured difference to the baseline and the largest that lets the form count."""

    value: float
    limit: float

    @property
    def holds(self) -> bool:
        return self.value <= self.limit

    def __str__(self) -> str:
        return f"{self.value:.1e}{'' if self.holds else ' TOO FAR'}"


@dataclass(frozen=True)
class Aim:
    """What is aimed at: a speed-up of at least `ratio`; with `cost`, a form that costs at most `ratio` baselines."""

    ratio: float
    cost: bool = False


@dataclass(frozen=True)
class Form:
    """One way to do the work.

    run: does it `repeat` times. agreement: measure -> how it differs from the baseline, found before the timing.
    """

    name: str
    run: Callable[[], object]
    repeat: int = 1
    aim: Aim | None = None
    agreement: Mapping[str, Agreement] = field(default_factory=dict)


@dataclass(frozen=True)
class Contest:
    """Forms of one work. The first is the baseline; `control` names the one that runs twice a round.

    cost: ratios are told as cost (form / baseline) and not as speed-up (baseline / form).
    """

    name: str
    settings: Mapping[str, Any]
    forms: Sequence[Form]
    control: str
    cost: bool = False

    @property
    def again(self) -> str:
        """What the control's second run is called among the times."""
        return f"{self.control} (again)"


class Quartiles(NamedTuple):
    """Of paired ratios."""

    lower: float
    median: float
    upper: float

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.lower:.3g}-{self.upper:.3g}]"


def quartiles(values: Sequence[float]) -> Quartiles:
    """Quartiles of at least two values, interpolated between neighbours."""
    return Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))


class Times(NamedTuple):
    """Seconds of one run of a form a round. cpu: of this process, all threads; wall: of the clock."""

    cpu: list[float]
    wall: list[float]


@dataclass(frozen=True)
class Result:
    """What a contest gave. Ratios are of CPU time on a CPU, of the clock where an accelerator does the work."""

    contest: Contest
    plan: Plan
    times: Mapping[str, Times]
    device: torch.device
    seconds: float

    def ratio(self, name: str) -> Quartiles:
        """Paired ratios of a form to the baseline."""
        baseline, own = (self._primary(n) for n in (self.contest.forms[0].name, name))
        pairs = zip(own, baseline, strict=True) if self.contest.cost else zip(baseline, own, strict=True)
        return quartiles([a / b for a, b in pairs])

    @property
    def control(self) -> Quartiles:
        """Paired ratios of a form to itself."""
        pairs = zip(self._primary(self.contest.control), self._primary(self.contest.again), strict=True)
        return quartiles([a / b for a, b in pairs])

    @property
    def calm(self) -> bool:
        """Whether the control lies within its limits."""
        return CONTROL_LIMITS[0] <= self.control.median <= CONTROL_LIMITS[1]

    def counts(self, form: Form) -> bool:
        """Whether the form's ratio may be told: it agrees with the baseline, and the machine was calm."""
        return self.calm and all(a.holds for a in form.agreement.values())

    def met(self, form: Form) -> bool | None:
        """Whether the quartile that may be claimed reaches the aim; None where there is no aim or no count."""
        if form.aim is None or not self.counts(form):
            return None
        ratio = self.ratio(form.name)
        return ratio.upper <= form.aim.ratio if form.aim.cost else ratio.lower >= form.aim.ratio

    def _primary(self, name: str) -> list[float]:
        return self.times[name].wall if self.device.type != "cpu" else self.times[name].cpu

    def as_json(self) -> dict[str, Any]:
        """Plain values: everything measured and every judgement."""
        return {
            "contest": self.contest.name,
            "settings": dict(self.contest.settings),
            "ratio": "form / baseline" if self.contest.cost else "baseline / form",
            "primary": "wall" if self.device.type != "cpu" else "cpu",
            "rounds": self.plan.rounds,
            "warmup": self.plan.warmup,
            "took_s": round(self.seconds, 1),
            "control": {"form": self.contest.control, **self.control._asdict(), "counts": self.calm},
            "forms": [self._form_json(form) for form in self.contest.forms],
            "seconds": {name: times._asdict() for name, times in self.times.items()},
        }

    def _form_json(self, form: Form) -> dict[str, Any]:
        aim = form.aim
        return {
            "form": form.name,
            "median_s": statistics.median(self._primary(form.name)),
            "ratio": self.ratio(form.name)._asdict(),
            "aim": None if aim is None else {"ratio": aim.ratio, "at": "most" if aim.cost else "least"},
            "agreement": {name: a._asdict() for name, a in form.agreement.items()},
            "counts": self.counts(form),
            "met": self.met(form),
        }

    def table(self) -> str:
        """Lines for people."""
        told = ", ".join(f"{k} {v}" for k, v in self.contest.settings.items())
        ratio = "cost" if self.contest.cost else "speed-up"
        head = f"  {'form':34}{'time':>10}  {ratio + ' [quartiles]':25}{'aim':20}agreement with the first"
        lines = [f"{self.contest.name} ({told})", head]
        for form in self.contest.forms:
            time_ = _readable(statistics.median(self._primary(form.name)))
            agreement = ", ".join(
                f"{n} {a.value:.1e}{'' if a.holds else ' TOO FAR'}" for n, a in form.agreement.items()
            )
            lines.append(f"  {form.name:34}{time_:>10}  {self.ratio(form.name)!s:25}{self._aim(form):20}{agreement}")
        verdict = "the run counts" if self.calm else "THE RUN DOES NOT COUNT: repeat it on a calmer machine"
        lines.append(f"  control, {self.contest.control} twice: {self.control}: {verdict}")
        return "\n".join(lines)

    def _aim(self, form: Form) -> str:
        if form.aim is None:
            return ""
        verdict = {True: "met", False: "missed", None: "not counted"}[self.met(form)]
        return f"{'<=' if form.aim.cost else '>='} {form.aim.ratio:g} {verdict}"


def measure(contest: Contest, plan: Plan, device: torch.device) -> Result:
    """Run a contest. Threads are the caller's matter: torch.set_num_threads(1) for figures of one thread."""
    begun = time.perf_counter()
    runs = {form.name: (form.run, form.repeat) for form in contest.forms}
    runs[contest.again] = runs[contest.control]
    if len(runs) != len(contest.forms) + 1:
        raise UserError(f"{contest.name}: two forms have one name")
    times = {name: Times([], []) for name in runs}
    for number in range(plan.warmup + plan.rounds):
        names = list(runs)
        with _collected():
            for name in names if number % 2 else reversed(names):
                run, repeat = runs[name]
                cpu, wall = _timed(run, device)
                if number >= plan.warmup:
                    times[name].cpu.append(cpu / repeat)
                    times[name].wall.append(wall / repeat)
    return Result(contest, plan, times, device, time.perf_counter() - begun)


@contextlib.contextmanager
def _collected() -> Iterator[None]:
    """Garbage is collected before the block, and not by chance inside the time of one form."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _timed(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """(CPU seconds, seconds of the clock) of one call."""
    _synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    _synchronize(device)
    return time.process_time() - cpu, time.perf_counter() - wall


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def environment(device: torch.device) -> dict[str, Any]:
    """What figures depend on beside the code: versions, processor with its flags, threads, load."""
    cpu = _cpuinfo()
    load = os.getloadavg() if hasattr(os, "getloadavg") else ()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": cpu.get("model name", platform.processor()),
        "cpu_flags": cpu.get("flags", "").split(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(value, 2) for value in load],
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; nothing where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _readable(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def relative_error(got: Iterable[torch.Tensor], expected: Iterable[torch.Tensor], euclidean: bool = False) -> float:
    """Largest difference over the largest value of all tensors together; `euclidean`: their L2 norms instead."""
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(got, expected, strict=True)]
    order = 2.0 if euclidean else float("inf")
    far = torch.stack([torch.linalg.vector_norm(a - b, order) for a, b in pairs])
    size = torch.stack([torch.linalg.vector_norm(b, order) for _, b in pairs])
    return float(torch.linalg.vector_norm(far, order) / torch.linalg.vector_norm(size, order))
