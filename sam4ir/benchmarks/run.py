"""Measure the subjects that were asked for, print a table of each, and write all of it as JSON (`sam4ir benchmark`)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch

from sam4ir.benchmarks import data, diffusion, exported, networks, sam
from sam4ir.benchmarks.networks import RECIPES, Setting
from sam4ir.benchmarks.sam import SamSetting
from sam4ir.benchmarks.timing import Contest, Plan, environment, measure
from sam4ir.engine.devices import choose_device
from sam4ir.utils.files import write_text
from sam4ir.utils.precision import number_format

SUBJECTS = ("train", "infer", "data", "masks", "spe")
APART = ("diffusion", "export", "sam", "bookkeeping")
QUICK = Plan(rounds=2, warmup=1)


@dataclass(frozen=True)
class BenchmarkRequest:
    """What to measure and how: the flags of `sam4ir benchmark`, which has a sentence for each."""

    command: str
    network: str
    precision: str
    patch: int | None
    batch: int
    width: int | None
    sam4ir: bool
    reference_bf16: bool
    compile: bool
    sam: str
    images: Path | None
    number: int
    points_per_side: int
    masks: Path | None
    keys: int
    rounds: int
    threads: int
    device: str
    json: Path | None
    quick: bool


def run_benchmark(request: BenchmarkRequest) -> int:
    """Return the exit status: 1 where a control shows that the run does not count, except in a quick run."""
    torch.set_num_threads(request.threads)
    cv2.setNumThreads(request.threads)
    plan = QUICK if request.quick else Plan(request.rounds)
    device = choose_device(request.device, place="--device")
    report: dict[str, Any] = {"environment": environment(device), "contests": []}
    if request.command == "bookkeeping":
        return _measure_bookkeeping(request, report)
    calm = True
    commands = SUBJECTS if request.command == "all" else (request.command,)
    for command in commands:
        for contest in _contests(request, command):
            result = measure(contest, plan, device)
            print(result.table(), end="\n\n", flush=True)
            report["contests"].append({"command": command, **result.as_json()})
            calm &= result.calm
            if request.json:  # after each, so that a run that is stopped leaves its results
                write_text(request.json, json.dumps(report, indent=1))
    return 0 if calm or request.quick else 1


def _setting(request: BenchmarkRequest) -> Setting:
    """Return the setting of the networks' contests."""
    device = choose_device(request.device, place="--device")
    precisions: tuple[str, ...] = ("fp32", "bf16")
    if request.precision != "both":
        precisions = (number_format(request.precision, device),)
    return Setting(
        device=device,
        precisions=precisions,
        patch=request.patch,
        batch=request.batch,
        width=request.width,
        compiled=request.compile,
        reference_bf16=request.reference_bf16,
        quick=request.quick,
    )


def _contests(request: BenchmarkRequest, command: str) -> Iterator[Contest]:
    """Yield the contests of a command one by one, so that only one holds memory."""
    names = list(RECIPES) if request.network == "all" else [request.network]
    everything = request.command == "all"
    if command == "train":
        if everything or not request.sam4ir:
            for network in names:
                yield networks.training(network, _setting(request))
        if everything or request.sam4ir:
            yield networks.sam4ir(_setting(request))
    elif command == "infer":
        for network in names:
            yield networks.inference(network, _setting(request))
    elif command == "diffusion":
        yield from diffusion.contests(_setting(request))
    elif command == "sam":
        device = choose_device(request.device, place="--device")
        yield sam.contest(
            SamSetting(request.sam, device, request.images, request.number, request.points_per_side, request.quick)
        )
    else:
        with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
            yield from _contests_with_files(request, command, Path(folder))


def _contests_with_files(request: BenchmarkRequest, command: str, folder: Path) -> Iterator[Contest]:
    """Yield the contests of a command that writes files into a folder."""
    if command == "export":
        yield exported.contest(_setting(request), folder)
    elif command == "spe":
        yield from data.spe_contests(folder, request.quick, request.masks)
    else:
        yield from data.contests(command, folder, request.quick)


def _measure_bookkeeping(request: BenchmarkRequest, report: dict[str, Any]) -> int:
    """Measure the microseconds for each image of all work but reading images and making masks, by the clock."""
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        figures = data.bookkeeping(Path(folder), 300 if request.quick else request.keys)
    for name, value in figures.items():
        text = value if isinstance(value, (str, int)) else f"{value:.1f}"
        print(f"{name:45} {text}")
    if request.json:
        write_text(request.json, json.dumps({"environment": report["environment"], "bookkeeping": figures}, indent=1))
    return 0
