"""--check: everything that can be known of a run before it starts, and what it will take. Trains and writes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from sam4ir.config.load import notices
from sam4ir.config.schema import Options
from sam4ir.engine import build
from sam4ir.engine.evaluate.build import build_metrics
from sam4ir.engine.evaluate.metric import prepared
from sam4ir.engine.evaluate.validate import Outputs, evaluate
from sam4ir.engine.restore import build as restore_build
from sam4ir.engine.train import build as build_train
from sam4ir.engine.train import checkpoint
from sam4ir.engine.train import data as train_data
from sam4ir.engine.train.batches import stage_batches
from sam4ir.engine.train.parts import TrainingParts
from sam4ir.engine.train.stages import Stage
from sam4ir.engine.train.step import Step
from sam4ir.engine.weights import locate
from sam4ir.errors import UserError
from sam4ir.utils.cli import USER_ERROR
from sam4ir.utils.dist import PeerError, World
from sam4ir.utils.memory import in_words, out_of_memory, peak_memory, reset_peak
from sam4ir.utils.rng import generator, seed_defaults

STEPS = 4  # a stage's steps are timed at its end, where every term takes part
PATIENCE = 20.0  # seconds after which one step is enough
DECODED = 16  # images of a data set that are read whole; of the others only the headers
SHOWN = 5


@dataclass
class Findings:
    """What was looked at, as lines for the user, and how much of it was wrong."""

    show: bool
    problems: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """A line of the report."""
        if self.show:
            print(text, flush=True)

    def problem(self, text: str) -> None:
        """What would stop or spoil the run."""
        self.problems += 1
        print(f"PROBLEM  {text}", flush=True)

    @contextlib.contextmanager
    def judging(self) -> Iterator[None]:
        """An error inside the block is a problem, and the check goes on."""
        try:
            yield
        except PeerError:
            raise
        except (UserError, OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not out_of_memory(error):
                raise
            self.problem(str(error) or type(error).__name__)


def check(options: Options, resume: bool = False, world: World = build.ALONE) -> int:
    """Look at options, data, masks, weights, disk, then take real steps of every stage and a validation image.

    resume: as the run would be started. Prints what was found and an estimate of the whole run; returns 0, or 2 where
    there are problems.
    """
    findings = Findings(show=world.main)
    for notice in notices(options):
        findings.say(f"notice   {notice}")
    device = build.device_of(options, world)
    findings.say(f"device   {device}, {world.size} process(es), {options.precision}")
    seed_defaults(options.manual_seed)
    sets, before = None, findings.problems
    for key, block in options.datasets.items():
        with findings.judging():
            if train_data.views_of(options) and block.masks is not None:
                train_data.mask_store(key, block)
        with findings.judging():
            if not block.placeholder:
                build.dataset(key, block, options)
    if world.main:
        _folder(options, resume, findings)
    with findings.judging():
        sets = train_data.data_sets(options) if findings.problems == before else None
    if sets is not None:
        for name, data in {"train": sets.train, **sets.val}.items() if world.main else ():
            _look_at(name, data, findings)
        with findings.judging():
            stages = build_train.stages_of(options, sets.loader, world)
            parts = build_train.build_parts(options, device, world, sets.channels)
            _weights(options, parts, findings)
            _disk(options, parts, findings)
            _checkpoint(options, resume, parts, findings)
            _steps(options, sets, stages, parts, world, findings)
            _validation(options, sets, parts, world, findings)
    if sets is None:
        _weights_files(options, findings)
        findings.say("time and memory were not measured, since not all data can be read")
    findings.problems = world.largest(findings.problems)
    return _verdict(options, findings)


def _folder(options: Options, resume: bool, findings: Findings) -> None:
    """Whether the run may begin where it would be written."""
    paths = build.run_paths(options)
    with findings.judging():
        if not resume:
            checkpoint.refuse_overwrite(paths, options.path.resume_state)
        there = next(p for p in (paths.run.absolute(), *paths.run.absolute().parents) if p.exists())
        if not os.access(there, os.W_OK):
            raise UserError(f"{there}: cannot be written; set path.root to a folder of yours")


def _weights_files(options: Options, findings: Findings) -> None:
    """Whether the weights that the run begins with are there, where no network is built that would ask for them."""
    path = options.path
    for key, source in {"g": path.pretrain_network_g, "c": path.pretrain_network_c}.items():
        with findings.judging(), build.naming(f"path.pretrain_network_{key}"):
            if source and not locate(source).is_file():
                raise UserError(f"{source}: no such weights file")


def _checkpoint(options: Options, resume: bool, parts: TrainingParts, findings: Findings) -> None:
    """Load what the run would go on from."""
    paths, state = build.run_paths(options), options.path.resume_state
    with findings.judging():
        if resume and (found := checkpoint.find_resume(paths, parts, logging.getLogger("sam4ir"))):
            findings.say(f"resume   from iteration {found[0].iteration}")
        elif state:
            progress, _ = checkpoint.load(Path(state), parts)
            findings.say(f"resume   {state}, iteration {progress.iteration}")


def _phases(options: Options, stage: Stage) -> list[Stage]:
    """A stage cut where other networks or terms begin to train, so that each part's cost is its own."""
    train = options.train
    assert train is not None
    distill = train.distill
    begins = distill.refine_iter or distill.start_iter or math.ceil(train.total_iter / 10)
    if not options.distills or not stage.start < begins < stage.end:
        return [stage]
    return [dataclasses.replace(stage, end=begins), dataclasses.replace(stage, start=begins)]


def _look_at(name: str, data: Any, findings: Findings) -> None:
    """Every image by its header, with its partner and its masks; some of them whole."""
    begun, wrong, small = time.perf_counter(), 0, 0
    whole = set(range(0, len(data), max(len(data) // DECODED, 1)))
    examine = getattr(data, "examine", None)
    images = tqdm(
        range(len(data)), desc=f"look at {name}", unit="image", disable=None if findings.show else True, leave=False
    )
    for index in images:
        if examine is None and index not in whole:
            continue
        try:
            if examine is not None:
                small += not examine(index)
            if index in whole:
                data.get(index, generator(0, "check", index))
        except (UserError, OSError) as error:
            wrong += 1
            if wrong <= SHOWN:
                findings.problem(f"{name}: {error}")
    if wrong > SHOWN:
        findings.problem(f"{name}: {wrong - SHOWN} more images are wrong")
    if small:
        findings.say(f"notice   {name}: {small} images are smaller than the patch; they are mirrored at their borders")
    looked = f"{len(whole)} read whole, the others by their headers" if examine is not None else f"{len(whole)} read"
    findings.say(f"data     {name}: {len(data)} images ({looked}) in {time.perf_counter() - begun:.1f} s")


def _weights(options: Options, parts: TrainingParts, findings: Findings) -> None:
    for label, network in parts.model.networks.items():
        findings.say(f"network  net_{label}: {_count(network) / 1e6:.3f} M parameters")
    if options.path.pretrain_network_g:
        findings.say(f"weights  {options.path.pretrain_network_g} fits network_g")


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _disk(options: Options, parts: TrainingParts, findings: Findings) -> None:
    """The checkpoints of the whole run against what is free where they go."""
    train, root = options.train, Path(options.path.root)
    assert train is not None
    copies = 2 + (2 if train.ema_decay else 1)  # two moments, the weights, their average
    one = sum(4 * copies * _count(network) for network in parts.model.networks.values())
    number = -(-train.total_iter // options.logger.save_checkpoint_freq)
    there = next(p for p in (root.absolute(), *root.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    needed = f"{number} checkpoints take {in_words(number * one)}, {in_words(free)} are free in {there}"
    if number * one > free:
        findings.problem(f"disk: {needed}. Raise logger.save_checkpoint_freq, or set path.root to another disk")
    else:
        findings.say(f"disk     {needed}")


def _steps(
    options: Options,
    sets: train_data.Sets,
    stages: list[Stage],
    parts: TrainingParts,
    world: World,
    findings: Findings,
) -> None:
    device = build.device_of(options, world)
    step = Step(parts, device, world, options)
    total = 0.0
    phases = [phase for stage in stages for phase in _phases(options, stage)]
    for number, stage in enumerate(phases, 1):
        reset_peak(device)
        batches = stage_batches(sets, stage, options, world, sample=0, iterations=STEPS, workers=0)
        times, loading = [], []
        for iteration in range(max(stage.end - STEPS, stage.start) + 1, stage.end + 1):
            begun = time.perf_counter()
            micro = list(itertools.islice(batches, stage.rounds))
            loaded = time.perf_counter()
            outcome = step(micro, iteration, measure=False)
            times.append(time.perf_counter() - loaded)
            loading.append(loaded - begun)
            if not outcome.taken and not outcome.overflow:
                findings.problem(f"stage {number}: loss or gradient is not finite; images {[b.keys for b in micro]}")
            if world.largest(int(sum(times) > PATIENCE)):
                break
        seconds = sum(times[1:]) / len(times[1:]) if len(times) > 1 else times[0]  # the first one warms up
        load = min(loading) / max(build_train.worker_count(sets.loader), 1)
        total += max(seconds, load) * (stage.end - stage.start)
        slow = "" if load <= seconds else "; LOADING IS SLOWER than computing: raise num_worker_per_gpu, or use an LMDB"
        findings.say(
            f"stage {number}  {stage}: {seconds:.3g} s a step, {load:.3g} s to load its images with "
            f"{sets.loader.num_worker_per_gpu} workers{slow}; peak memory {in_words(peak_memory(device))}"
        )
    findings.seconds["training"] = total


def _validation(
    options: Options, sets: train_data.Sets, parts: TrainingParts, world: World, findings: Findings
) -> None:
    """One image of each validation set through the network and the metrics."""
    val, train = options.val, options.train
    if val is None or val.val_freq is None or train is None:
        return
    device = build.device_of(options, world)
    emas = parts.emas
    refiner = emas["r"].module if val.refiner and "r" in emas else None
    outputs = Outputs(restore_build.build_restorer(options, emas["g"].module), device, refiner)
    runs, total = -(-train.total_iter // val.val_freq), 0.0
    metrics = prepared(build_metrics(options.val, options.basicsr), device)
    for name, data in sets.val.items():
        reset_peak(device)
        begun = time.perf_counter()
        evaluate(name, _First(data), outputs, metrics, seed=options.manual_seed)
        seconds = time.perf_counter() - begun
        total += seconds * -(-len(data) // world.size) * runs
        memory = in_words(peak_memory(device))
        findings.say(
            f"val      {name}: {seconds:.3g} s an image, {len(data)} images, {runs} times; peak memory {memory}"
        )
    findings.seconds["validation"] = total


class _First:
    """The first image of a data set."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return min(len(self.data), 1)

    def key(self, index: int) -> str:
        return str(self.data.key(index))

    def get(self, index: int, rng: Any) -> Any:
        return self.data.get(index, rng)


def _verdict(options: Options, findings: Findings) -> int:
    whole = sum(findings.seconds.values())
    if findings.seconds:
        parts = ", ".join(f"{name} {_time(seconds)}" for name, seconds in findings.seconds.items())
        findings.say(f"estimate {_time(whole)} in all ({parts}), if this machine stays as it was")
    if findings.problems:
        findings.say(f"{options.name}: {findings.problems} problem(s); nothing was changed")
        return USER_ERROR
    findings.say(f"{options.name}: ready to train")
    return 0


def _time(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
