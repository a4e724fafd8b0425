"""--check: examine a run before it starts, and measure its time, memory and disk. It trains and writes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import logging
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from sam4ir.config.load import notices
from sam4ir.config.paths import RunPaths
from sam4ir.config.schema import DatasetOptions, Options, PathOptions, TrainOptions
from sam4ir.data.sample import Dataset, Examinable, Sample
from sam4ir.engine import build
from sam4ir.engine.agreement import agree, run_facts
from sam4ir.engine.cost import parameter_count
from sam4ir.engine.devices import choose_device
from sam4ir.engine.evaluate.build import build_metrics
from sam4ir.engine.evaluate.metric import Metric, prepare_metrics
from sam4ir.engine.evaluate.validate import Outputs, evaluate
from sam4ir.engine.precision import settle_training
from sam4ir.engine.restore.build import restore_recipe
from sam4ir.engine.train import build as build_train
from sam4ir.engine.train import data as train_data
from sam4ir.engine.train import resume as resuming
from sam4ir.engine.train.batches import StageBatches
from sam4ir.engine.train.checkpoint import load_checkpoint
from sam4ir.engine.train.keeping import Keeping
from sam4ir.engine.train.milestones import validation_outputs
from sam4ir.engine.train.parts import TrainingParts
from sam4ir.engine.train.stages import Stage
from sam4ir.engine.train.step import Step
from sam4ir.engine.weights import locate
from sam4ir.errors import UserError
from sam4ir.utils.cli import USER_ERROR
from sam4ir.utils.dist import ALONE, PeerError, World
from sam4ir.utils.memory import in_words, out_of_memory, peak_memory, reset_peak
from sam4ir.utils.rng import generator, seed_defaults

STEPS = 4  # timed at least; a stage's steps are timed at its end, where every term takes part
MOST_STEPS = 40
ENOUGH = 2.0  # seconds of steps after which STEPS of them are enough: short ones need more for a steady figure
PATIENCE = 20.0  # seconds after which one step is enough
DECODED = 16  # images of a data set that are read whole; of the others only the headers
LISTED = 5  # wrong images that are reported one by one


@dataclass
class Findings:
    """The report of a check: lines for the user, the number of problems, and the estimated seconds of the run."""

    show: bool
    problems: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    multiply_adds: float = 0.0

    def line(self, text: str) -> None:
        """Print a line of the report, in the main process."""
        if self.show:
            print(text, flush=True)

    def problem(self, text: str) -> None:
        """Print and count a problem, which would stop or spoil the run."""
        self.problems += 1
        print(f"PROBLEM  {text}", flush=True)

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Turn an error inside the block into a problem, so that the check goes on."""
        try:
            yield
        except PeerError:
            raise
        except (UserError, OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not out_of_memory(error):
                raise
            self.problem(str(error) or type(error).__name__)


def check(options: Options, resume: bool = False, world: World = ALONE) -> int:
    """Examine options, data, masks, weights and disk, then take real steps of every stage and validate an image.

    resume: as the run would be started. Prints what it finds and an estimate of the whole run; returns 0, or 2 where
    there are problems.
    """
    findings = Findings(show=world.main)
    paths = build.run_paths(options.path, options.name)
    agree(world, *run_facts(options))
    device = choose_device(options.device, world)
    formats = settle_training(options, device, world)
    for notice in (*notices(options), *formats.chosen, *formats.warnings):
        findings.line(f"notice   {notice}")
    options = formats.options
    findings.line(f"device   {device}, {world.size} process(es), {options.precision}")
    seed_defaults(options.manual_seed)
    sets = _check_data(options, paths, resume, world, findings)
    if sets is None:
        _check_weights_files(options.path, findings)
        findings.line("time and memory were not measured, since not all data can be read")
    else:
        if world.main:
            for name, data in {"train": sets.train, **sets.val}.items():
                _examine_images(name, data, findings)
        with findings.collecting():
            _check_training(options, sets, paths, resume, device, world, findings)
    findings.problems = world.largest(findings.problems)
    return _verdict(options.name, findings)


def _check_data(
    options: Options, paths: RunPaths, resume: bool, world: World, findings: Findings
) -> train_data.Sets | None:
    """Report data sets and mask stores that cannot be read; return the sets, None where a process has not all."""
    sets, earlier_problems = None, findings.problems
    built: dict[str, Dataset] = {}
    with findings.collecting():
        builders = train_data.set_builders(options)
        for key, block in options.datasets.items():
            if key in builders or not block.placeholder:
                _build_set(key, block, options, builders.get(key), built, findings)
    if world.main:
        _check_folder(paths, options.path, resume, findings)
    if findings.problems == earlier_problems:
        sets = train_data.sets_of(options, built)
    if world.largest(int(sets is None)) or sets is None:
        return None
    agree(world, *train_data.data_facts(options, sets))
    return sets


def _build_set(
    key: str,
    block: DatasetOptions,
    options: Options,
    builder: Callable[[], Dataset] | None,
    built: dict[str, Dataset],
    findings: Findings,
) -> None:
    """Build a data set, with its masks where it takes part in the training, and report what is wrong with either."""
    before = findings.problems
    with findings.collecting():
        build.build_dataset(key, block, options.scale)
    images_are_there = findings.problems == before
    with findings.collecting():
        if builder is not None and images_are_there:
            built[key] = builder()
        elif block.masks is not None and train_data.views_of(options):
            train_data.mask_store(key, block)


def _check_training(
    options: Options,
    sets: train_data.Sets,
    paths: RunPaths,
    resume: bool,
    device: torch.device,
    world: World,
    findings: Findings,
) -> None:
    """Build the parts of the run and measure them."""
    train = build_train.train_options(options)
    stages = build_train.stages_of(train, sets.loader, world)
    parts = build_train.build_parts(options, device, world, sets.channels)
    _report_networks(parts, options.path, findings)
    _check_disk(options, train, parts, findings)
    _check_checkpoint(paths, options.path.resume_state, resume, parts, findings)
    step = build_train.build_step(options, parts, device, world)
    batches = StageBatches(sets, world, options.manual_seed, train.mixing_augs, cuda=device.type == "cuda")
    phases: list[Stage] = []
    for stage in stages:
        phases += _phases(train, options.distills, stage)
    findings.seconds["training"] = _measure_steps(phases, step, batches, findings)
    val = options.val
    if val is not None and val.val_freq is not None:
        metrics = prepare_metrics(build_metrics(val, options.basicsr), device)
        outputs = validation_outputs(restore_recipe(options), parts, device)
        runs = -(-train.total_iter // val.val_freq)
        seconds = _measure_validation(outputs, sets.val, metrics, options.manual_seed, runs, world, findings)
        findings.seconds["validation"] = seconds


@dataclass(frozen=True)
class RunEstimate:
    """The seconds of a run that was not started.

    training, validation: of all steps, and of all validations. step: of one. image: of scoring one image of the
    validation sets, which hold `images` in all. multiply_adds: of all steps, forward and backward, with teacher and
    VGG.
    """

    training: float
    validation: float
    step: float
    image: float
    images: int
    multiply_adds: float = 0.0


def estimate_run(options: Options, patience: float = PATIENCE) -> RunEstimate:
    """Take real steps of a training whose masks need not be there yet; return what the run takes. Nothing is written.

    patience: seconds of steps, in each phase of the training, after which one is enough. Masks are left empty, and VGG
    has random weights, which changes no duration by much. Raises what building the run raises.
    """
    findings = Findings(show=False)
    device = choose_device(options.device)
    options = _without_masks(settle_training(options, device).options)
    seed_defaults(options.manual_seed)
    sets = train_data.data_sets(options)
    train = build_train.train_options(options)
    parts = build_train.build_parts(options, device, channels=sets.channels)
    step = build_train.build_step(options, parts, device)
    batches = StageBatches(sets, ALONE, options.manual_seed, train.mixing_augs, cuda=device.type == "cuda")
    phases: list[Stage] = []
    for stage in build_train.stages_of(train, sets.loader, ALONE):
        phases += _phases(train, options.distills, stage)
    training = _measure_steps(phases, step, batches, findings, patience)
    validation, images = 0.0, sum(map(len, sets.val.values()))
    runs = 0
    val = options.val
    if val is not None and val.val_freq is not None:
        runs = -(-train.total_iter // val.val_freq)
        metrics = prepare_metrics(build_metrics(val, options.basicsr), device)
        outputs = validation_outputs(restore_recipe(options), parts, device)
        validation = _measure_validation(outputs, sets.val, metrics, options.manual_seed, runs, ALONE, findings)
    image = validation / max(1, runs * images)
    return RunEstimate(training, validation, training / train.total_iter, image, images, findings.multiply_adds)


def _without_masks(options: Options) -> Options:
    """Return the options with empty masks, and with a VGG that needs no weights."""
    if not options.distills or options.train is None:
        return options
    datasets = {}
    for key, block in options.datasets.items():
        datasets[key] = block.model_copy(update={"masks": None})
    changed: dict[str, object] = {"distill": options.train.distill.model_copy(update={"masks": "empty"})}
    if options.train.sgr_opt is not None:
        changed["sgr_opt"] = options.train.sgr_opt.model_copy(update={"weights": "random"})
    return options.model_copy(update={"datasets": datasets, "train": options.train.model_copy(update=changed)})


def _check_folder(paths: RunPaths, path: PathOptions, resume: bool, findings: Findings) -> None:
    """Report where the run may not begin in its folder."""
    with findings.collecting():
        if not resume:
            resuming.refuse_overwrite(paths, path.resume_state)
        parent = _existing(paths.run)
        if not parent.is_dir():
            raise UserError(
                f"{parent}: is a file, where a folder is needed; rename it, or set path.root to another folder"
            )
        if not os.access(parent, os.W_OK):
            raise UserError(f"{parent}: cannot be written; set path.root to a folder of yours")


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _check_weights_files(path: PathOptions, findings: Findings) -> None:
    """Report weights files that are not there, where no network is built that would load them."""
    for key, source in {"g": path.pretrain_network_g, "c": path.pretrain_network_c}.items():
        with findings.collecting(), build.naming(f"path.pretrain_network_{key}"):
            if source and not locate(source).is_file():
                raise UserError(f"{source}: no such weights file")


def _check_checkpoint(
    paths: RunPaths, resume_state: str | None, resume: bool, parts: TrainingParts, findings: Findings
) -> None:
    """Load the checkpoint that the run would go on from."""
    with findings.collecting():
        newest = None
        if resume:
            newest = resuming.load_newest(paths, parts, logging.getLogger("sam4ir"))
        if newest is not None:
            findings.line(f"resume   from iteration {newest.progress.iteration}")
        elif resume_state:
            progress = load_checkpoint(Path(resume_state), parts).progress
            findings.line(f"resume   {resume_state}, iteration {progress.iteration}")


def _phases(train: TrainOptions, distills: bool, stage: Stage) -> list[Stage]:
    """Cut a stage where other networks or terms begin to train, so that the cost of each part is measured."""
    schedule = build_train.schedule_of(train.distill, train.total_iter)
    begins = schedule.refine_iter or schedule.start_iter
    if not distills or not stage.start < begins < stage.end:
        return [stage]
    return [dataclasses.replace(stage, end=begins), dataclasses.replace(stage, start=begins)]


def _examine_images(name: str, data: Dataset, findings: Findings) -> None:
    """Examine every image by its header, with its partner and its masks, and read some of them whole."""
    begun, wrong, small = time.perf_counter(), 0, 0
    examinable = data if isinstance(data, Examinable) else None
    whole = set(range(0, len(data), max(len(data) // DECODED, 1)))
    hidden = None if findings.show else True
    for index in tqdm(range(len(data)), desc=f"look at {name}", unit="image", disable=hidden, leave=False):
        try:
            if examinable is not None:
                small += not examinable.examine(index)
            if index in whole:
                data.get(index, generator(0, "check", index))
        except (UserError, OSError) as error:
            wrong += 1
            if wrong <= LISTED:
                findings.problem(f"{name}: {error}")
    if wrong > LISTED:
        findings.problem(f"{name}: {wrong - LISTED} more images are wrong")
    if small:
        findings.line(f"notice   {name}: {small} images are smaller than the patch; they are mirrored at their borders")
    depth = f"{len(whole)} read"
    if examinable is not None:
        depth += " whole, the others by their headers"
    findings.line(f"data     {name}: {len(data)} images ({depth}) in {time.perf_counter() - begun:.1f} s")


def _report_networks(parts: TrainingParts, path: PathOptions, findings: Findings) -> None:
    """Report the size of each network, and the weights that fit."""
    for label, network in parts.model.networks.items():
        findings.line(f"network  net_{label}: {parameter_count(network) / 1e6:.3f} M parameters")
    if path.pretrain_network_g:
        findings.line(f"weights  {path.pretrain_network_g} fits network_g")


def _check_disk(options: Options, train: TrainOptions, parts: TrainingParts, findings: Findings) -> None:
    """Compare what the whole run leaves on the disk with its free space."""
    parameters = sum(parameter_count(network) for network in parts.model.networks.values())
    state = 4 * 2 * parameters  # two moments in float32
    weights = 4 * parameters * (2 if train.ema_decay else 1)  # with their average
    logger = options.logger
    keeping = Keeping(logger.keep_last, logger.keep_last_weights)
    number = -(-train.total_iter // logger.save_checkpoint_freq)
    weights_kept, states_kept = keeping.kept(number)
    size = weights_kept * weights + states_kept * state
    if options.val is not None and options.val.save_best is not None:
        size += 4 * parameter_count(parts.model.networks["g"]) * (2 if train.ema_decay else 1)
    what = f"{number} checkpoints"
    if (weights_kept, states_kept) != (number, number):
        what += f", of which {weights_kept} weights and {states_kept} training states stay,"
    folder = _existing(Path(options.path.root))
    free = shutil.disk_usage(folder).free
    needed = f"{what} take {in_words(size)}, {in_words(free)} are free in {folder}"
    if size > free:
        findings.problem(
            f"disk: {needed}. Set logger.keep_last, raise logger.save_checkpoint_freq, or set path.root to another disk"
        )
    else:
        findings.line(f"disk     {needed}")


def _measure_steps(
    phases: Sequence[Stage], step: Step, batches: StageBatches, findings: Findings, patience: float = PATIENCE
) -> float:
    """Take steps at the end of each phase; return the estimated seconds of all iterations."""
    total = 0.0
    for number, phase in enumerate(phases, 1):
        reset_peak(step.device)
        computing, loading, counted = _timed_steps(number, phase, step, batches, findings, patience)
        findings.multiply_adds += counted * (phase.end - phase.start)
        workers = batches.sets.loader.num_worker_per_gpu
        processes = build_train.worker_count(batches.sets.loader)
        load = loading / max(processes, 1)
        seconds = max(computing, load)
        if processes == 0:  # the training loads between its steps
            seconds = computing + load
        total += seconds * (phase.end - phase.start)
        slow = ""
        if load > computing:
            slow = "; LOADING IS SLOWER than computing: raise num_worker_per_gpu, or use an LMDB"
        findings.line(
            f"stage {number}  {phase}: {computing:.3g} s a step, {load:.3g} s to load its images with "
            f"{workers} workers{slow}; peak memory {in_words(peak_memory(step.device))}"
        )
    return total


def _timed_steps(
    number: int, phase: Stage, step: Step, batches: StageBatches, findings: Findings, patience: float
) -> tuple[float, float, int]:
    """Return the seconds of a step of this phase, those of loading its images in one process, and its multiply-adds."""
    from torch.utils.flop_counter import FlopCounterMode  # half a second

    counter = FlopCounterMode(display=False)
    stream = batches.of(phase, sample=0, iterations=MOST_STEPS, workers=0)
    computing: list[float] = []
    loading: list[float] = []
    for iteration in range(max(phase.end - MOST_STEPS, phase.start) + 1, phase.end + 1):
        begun = time.perf_counter()
        micro = list(itertools.islice(stream, phase.rounds))
        loaded = time.perf_counter()
        with counter if not computing else contextlib.nullcontext():
            outcome = step(micro, iteration, measure=False)
        computing.append(time.perf_counter() - loaded)
        loading.append(loaded - begun)
        if not outcome.finite and not outcome.overflow:
            images = [batch.keys for batch in micro]
            findings.problem(f"stage {number}: loss or gradient is not finite; images {images}")
        spent = sum(computing)
        if step.world.largest(int(spent > patience or (len(computing) >= STEPS and spent > ENOUGH))):
            break
    warm = computing[1:] or computing  # the first step warms up
    return statistics.median(warm), min(loading), int(counter.get_total_flops()) // 2


def _measure_validation(
    outputs: Outputs,
    sets: Mapping[str, Dataset],
    metrics: Mapping[str, Metric],
    seed: int,
    runs: int,
    world: World,
    findings: Findings,
) -> float:
    """Score one image of each validation set; return the estimated seconds of `runs` validations."""
    total = 0.0
    for name, data in sets.items():
        reset_peak(outputs.device)
        seconds, faults = _timed_image(name, data, outputs, metrics, seed)
        if not faults and seconds < ENOUGH:  # the first pass warms up
            seconds = min(seconds, _timed_image(name, data, outputs, metrics, seed)[0])
        for key, reason in faults:
            findings.problem(f"val      {name}: {key}: {reason}")
        total += seconds * -(-len(data) // world.size) * runs
        memory = in_words(peak_memory(outputs.device))
        findings.line(
            f"val      {name}: {seconds:.3g} s an image, {len(data)} images, {runs} times; peak memory {memory}"
        )
    return total


def _timed_image(
    name: str, data: Dataset, outputs: Outputs, metrics: Mapping[str, Metric], seed: int
) -> tuple[float, Sequence[tuple[str, str]]]:
    """Score the first image of a set; return the seconds, and the image at fault if it is."""
    begun = time.perf_counter()
    faults = evaluate(name, _First(data), outputs, metrics, seed=seed).faults
    return time.perf_counter() - begun, faults


class _First:
    """The first image of a data set, as a data set."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return min(len(self.data), 1)

    def key(self, index: int) -> str:
        return self.data.key(index)

    def get(self, index: int, rng: np.random.Generator) -> Sample:
        return self.data.get(index, rng)


def _verdict(name: str, findings: Findings) -> int:
    """Print the estimate and the verdict; return the exit status."""
    if findings.seconds:
        parts = ", ".join(f"{part} {_time(seconds)}" for part, seconds in findings.seconds.items())
        whole = _time(sum(findings.seconds.values()))
        findings.line(f"estimate {whole} in all ({parts}), if this machine stays as it was")
    if findings.problems:
        findings.line(f"{name}: {findings.problems} problem(s); nothing was changed")
        return USER_ERROR
    findings.line(f"{name}: ready to train")
    return 0


def _time(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
