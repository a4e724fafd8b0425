"""Paired timing of programs that do the same work: the protocol behind every figure of sam4ir benchmark.

Forms whose results agree are timed in one process on one thread: first warm-up rounds, then rounds in which every form
runs once, forwards and backwards by turns. A ratio compares two times of one round, so that a slow minute of the
machine affects both. One form runs twice in each round and is the control: where the median of its ratio lies outside
0.95..1.05 the machine was too restless and no figure counts. A claim may state the quartile on the unfavourable side.
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

from sam4ir.engine.devices import synchronize
from sam4ir.errors import UserError

CONTROL_LIMITS = 0.95, 1.05
PACKAGES = ("torch", "numpy", "opencv-python-headless", "lmdb", "zstandard", "pycocotools")


@dataclass(frozen=True)
class Plan:
    """The number of rounds: those that count (at least 2, for quartiles), and warm-up rounds before them."""

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
        """Whether the difference is within its limit."""
        return self.value <= self.limit

    def __str__(self) -> str:
        return f"{self.value:.1e}{'' if self.holds else ' TOO FAR'}"


@dataclass(frozen=True)
class Aim:
    """The goal of a form: a speed-up of at least `ratio`, or, with `cost`, a cost of at most `ratio` baselines."""

    ratio: float
    cost: bool = False


@dataclass(frozen=True)
class Form:
    """One way to do the work.

    run: does the work `repeat` times. agreement: measure -> difference to the baseline, measured before the timing.
    """

    name: str
    run: Callable[[], object]
    repeat: int = 1
    aim: Aim | None = None
    agreement: Mapping[str, Agreement] = field(default_factory=dict)


@dataclass(frozen=True)
class Contest:
    """The forms of one work. The first is the baseline; `control` names the form that runs twice in each round.

    cost: ratios are costs (form / baseline) instead of speed-ups (baseline / form).
    """

    name: str
    settings: Mapping[str, Any]
    forms: Sequence[Form]
    control: str
    cost: bool = False

    @property
    def again(self) -> str:
        """The name of the control's second run among the times."""
        return f"{self.control} (again)"


class Quartiles(NamedTuple):
    """The quartiles of paired ratios."""

    lower: float
    median: float
    upper: float

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.lower:.3g}-{self.upper:.3g}]"


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the quartiles of at least two values, interpolated between neighbours."""
    return Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))


class Times(NamedTuple):
    """The seconds that a form took, one value for each round.

    cpu: CPU time of this process, all threads. wall: time by the clock.
    """

    cpu: list[float]
    wall: list[float]


@dataclass(frozen=True)
class Result:
    """The times of a contest and what follows from them.

    Ratios compare CPU time on a CPU, and time by the clock on an accelerator. seconds: duration of the whole contest.
    """

    contest: Contest
    plan: Plan
    times: Mapping[str, Times]
    device: torch.device
    seconds: float

    def ratio(self, name: str) -> Quartiles:
        """Return the quartiles of the paired ratios of a form and the baseline."""
        baseline, own = self._primary(self.contest.forms[0].name), self._primary(name)
        return _paired_ratios(own, baseline) if self.contest.cost else _paired_ratios(baseline, own)

    @property
    def control(self) -> Quartiles:
        """The quartiles of the paired ratios of the control's two runs."""
        return _paired_ratios(self._primary(self.contest.control), self._primary(self.contest.again))

    @property
    def calm(self) -> bool:
        """Whether the control lies within its limits."""
        return CONTROL_LIMITS[0] <= self.control.median <= CONTROL_LIMITS[1]

    def counts(self, form: Form) -> bool:
        """Return whether the form's ratio counts: it agrees with the baseline, and the machine was calm."""
        return self.calm and all(a.holds for a in form.agreement.values())

    def met(self, form: Form) -> bool | None:
        """Return whether the quartile that may be claimed reaches the aim; None without an aim or without a count."""
        if form.aim is None or not self.counts(form):
            return None
        ratio = self.ratio(form.name)
        if form.aim.cost:
            return ratio.upper <= form.aim.ratio
        return ratio.lower >= form.aim.ratio

    def _primary(self, name: str) -> list[float]:
        """Return the times that ratios compare."""
        return self.times[name].wall if self.device.type != "cpu" else self.times[name].cpu

    def as_json(self) -> dict[str, Any]:
        """Return all measurements and verdicts as plain values."""
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
            "agreement": {measure: agreement._asdict() for measure, agreement in form.agreement.items()},
            "counts": self.counts(form),
            "met": self.met(form),
        }

    def table(self) -> str:
        """Return the result as a table for people."""
        settings = ", ".join(f"{name} {value}" for name, value in self.contest.settings.items())
        ratio = "cost" if self.contest.cost else "speed-up"
        head = f"  {'form':34}{'time':>10}  {ratio + ' [quartiles]':25}{'aim':20}agreement with the first"
        lines = [f"{self.contest.name} ({settings})", head]
        for form in self.contest.forms:
            duration = _readable(statistics.median(self._primary(form.name)))
            agreement = ", ".join(f"{measure} {value}" for measure, value in form.agreement.items())
            lines.append(f"  {form.name:34}{duration:>10}  {self.ratio(form.name)!s:25}{self._aim(form):20}{agreement}")
        verdict = "the run counts" if self.calm else "THE RUN DOES NOT COUNT: repeat it on a calmer machine"
        lines.append(f"  control, {self.contest.control} twice: {self.control}: {verdict}")
        return "\n".join(lines)

    def _aim(self, form: Form) -> str:
        """Return a form's aim and whether it was met, as the table shows it."""
        if form.aim is None:
            return ""
        verdict = {True: "met", False: "missed", None: "not counted"}[self.met(form)]
        return f"{'<=' if form.aim.cost else '>='} {form.aim.ratio:g} {verdict}"


def _paired_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Quartiles:
    """Return the quartiles of the ratios of two forms' times, round by round."""
    return quartiles([a / b for a, b in zip(numerators, denominators, strict=True)])


def measure(contest: Contest, plan: Plan, device: torch.device) -> Result:
    """Run a contest. The caller sets the threads: torch.set_num_threads(1) for figures of one thread.

    Raises UserError where two forms have one name.
    """
    start = time.perf_counter()
    runs = {form.name: (form.run, form.repeat) for form in contest.forms}
    runs[contest.again] = runs[contest.control]
    if len(runs) != len(contest.forms) + 1:
        raise UserError(f"{contest.name}: two forms have one name")
    times = {name: Times([], []) for name in runs}
    for number in range(plan.warmup + plan.rounds):
        names = list(runs)
        if not number % 2:
            names.reverse()
        with _no_garbage_collection():
            for name in names:
                run, repeat = runs[name]
                cpu, wall = _time_call(run, device)
                if number >= plan.warmup:
                    times[name].cpu.append(cpu / repeat)
                    times[name].wall.append(wall / repeat)
    return Result(contest, plan, times, device, time.perf_counter() - start)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect garbage before the block, so that no collection falls into the time of one form."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _time_call(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Return the CPU seconds and the seconds by the clock of one call."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    synchronize(device)
    return time.process_time() - cpu, time.perf_counter() - wall


def environment(device: torch.device) -> dict[str, Any]:
    """Return what the figures depend on besides the code: versions, processor with its flags, threads, load."""
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
    """Return the first processor's lines of /proc/cpuinfo, empty where there is no such file."""
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


def relative_error(actual: Iterable[torch.Tensor], expected: Iterable[torch.Tensor], euclidean: bool = False) -> float:
    """Return the largest difference over the largest expected value, of all tensors together.

    euclidean: take L2 norms instead of largest values.
    """
    order = 2.0 if euclidean else float("inf")
    differences, sizes = [], []
    for a, b in zip(actual, expected, strict=True):
        reference = b.detach().double()
        differences.append(torch.linalg.vector_norm(a.detach().double() - reference, order))
        sizes.append(torch.linalg.vector_norm(reference, order))
    difference = torch.linalg.vector_norm(torch.stack(differences), order)
    return float(difference / torch.linalg.vector_norm(torch.stack(sizes), order))
