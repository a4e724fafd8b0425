"""What a run folder records of its weights: how they were trained, and the scores that they had in validation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam4ir.config.load import OptionsError, load_options
from sam4ir.config.schema import Block, DatasetOptions, Options
from sam4ir.engine.evaluate.candidates import iteration_in
from sam4ir.engine.weights import flow, metadata_of
from sam4ir.utils.files import read_text
from sam4ir.utils.tables import text_lines
from sam4ir.utils.weights import RUN_ENTRY

_SCORE = re.compile(r"metrics/(.+)/([^/]+)")
REFINER = "_refiner"  # after the name of a metric: the score of the refiner


@dataclass(frozen=True)
class ValidationMeans:
    """Means of a validation. sets: {name of the set: {metric: value}}; a metric of the refiner ends with _refiner."""

    iteration: int
    sets: dict[str, dict[str, float]]


@dataclass(frozen=True)
class RunRecord:
    """What the folder of a run says of weights.

    folder: experiments/<name>. iteration: of the weights; None where their name does not say it and the log neither.
    options: of the run; None where the file cannot be read, `problem` then says why. scores: of the last validation up
    to that iteration; None without one.
    """

    folder: Path
    iteration: int | None
    options: Options | None
    problem: str = ""
    scores: ValidationMeans | None = None


def record_of(weights: str | Path) -> RunRecord | None:
    """Return what the run of a weights file records; None where the file lies in no folder of a run."""
    path = Path(weights)
    if not path.is_file():
        return None
    folder = path.resolve().parent.parent
    if not (folder / "options.yml").is_file():
        return None
    options, problem = None, ""
    try:
        options = load_options(folder / "options.yml", named_by_user=False)
    except OptionsError as error:
        problem = " ".join(str(error).split())
    scores = validations(folder / "log.jsonl")
    iteration = iteration_of(path)
    if iteration is None and options is not None and options.train is not None and path.stem.endswith("_latest"):
        iteration = options.train.total_iter  # a file of an earlier version
    last = None
    for score in scores:
        if iteration is None or score.iteration <= iteration:
            last = score
    return RunRecord(folder, iteration, options, problem, last)


def iteration_of(weights: Path) -> int | None:
    """Return the iteration of a weights file, from its name or from what it says; None where neither does."""
    iteration = iteration_in(weights.stem)
    if iteration is not None:
        return iteration
    stated = metadata_of(weights, RUN_ENTRY).get("iteration")
    if isinstance(stated, int):
        return stated
    return None


def validations(log: Path) -> list[ValidationMeans]:
    """Return the means of all validations of a log.jsonl, in the order of the file; [] without the file."""
    if not log.is_file():
        return []
    scores = []
    for line in text_lines(read_text(log)):
        values = _means(line)
        if values is not None and values.sets:
            scores.append(values)
    return scores


def _means(line: str) -> ValidationMeans | None:
    """Return the means of one line; None for a line that a killed writer did not end, and for one that is no record."""
    if '"metrics/' not in line:
        return None
    try:
        record = json.loads(line)
        iteration = int(record["iter"])
        sets: dict[str, dict[str, float]] = {}
        for tag, value in record.items():
            match = _SCORE.fullmatch(tag)
            if match is not None:
                sets.setdefault(match[1], {})[match[2]] = float(value)  # infinity stands there as a text
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return ValidationMeans(iteration, sets)


def training_of(options: Options) -> dict[str, str]:
    """Return how a run trains: data sets, losses, iterations, batch, optimiser and seed, each as one line."""
    lines = {"run": options.name, "model": options.model_type}
    for key, data in options.datasets.items():
        lines[f"data {key}"] = _data_line(data)
    train = options.train
    if train is not None:
        lines["losses"] = "; ".join(_losses(options))
        lines["iterations"] = f"{train.total_iter:,}"
        if train.total_batch is not None:
            lines["batch"] = str(train.total_batch)
        else:
            lines["batch"] = f"{_micro_batch(options)} for each process"
        rate = "constant rate"
        if train.scheduler is not None:
            rate = train.scheduler.type
        lines["optimiser"] = f"{train.optim_g.type}, rate {train.optim_g.lr:g}, {rate}"
        if train.ema_decay:
            lines["average"] = f"of the weights, decay {train.ema_decay:g}"
    if options.path.pretrain_network_g:
        lines["started from"] = options.path.pretrain_network_g
    lines["seed"] = str(options.manual_seed)
    lines["precision"] = options.precision
    return lines


def _data_line(data: DatasetOptions) -> str:
    """Return a data set in words: its name, type, crops and masks, but no path of a disk."""
    words = [data.type]
    if data.name:
        words.insert(0, data.name)
    sizes = data.gt_sizes or data.arguments.get("gt_size")
    if sizes:
        words.append(f"crops of {sizes}".replace("(", "").replace(")", ""))
    for degradation in data.degradations or ():
        words.append(block_line(degradation))
    if data.masks is not None:
        words.append("with masks")
    return ", ".join(words)


def _losses(options: Options) -> list[str]:
    """Return the losses and distillation terms, each as its name and its block."""
    train = options.train
    assert train is not None
    blocks: dict[str, Block | None] = {"pixel": train.pixel_opt, "perceptual": train.perceptual_opt}
    blocks |= train.losses
    blocks["refiner"] = train.refine_opt
    lines = []
    for name, block in blocks.items():
        if block is not None:
            lines.append(f"{name} {block_line(block)}")
    for name, (_, term) in train.terms.items():
        if not term.off:
            lines.append(f"{name} {term.type} (distillation from the refiner)")
    return lines


def block_line(block: Block) -> str:
    """Return a block as its type with arguments: 'NAFNet {width: 32, middle_blk_num: 12}'."""
    arguments: Mapping[str, Any] = block.arguments
    if not arguments:
        return block.type
    return f"{block.type} {flow(arguments)}"


def _micro_batch(options: Options) -> str:
    """Return the samples of a micro-batch: a number, or one for each stage."""
    for data in options.phase("train").values():
        return str(data.mini_batch_sizes or data.batch_size_per_gpu)
    return "?"
