"""Whole runs of option files from Python: `sam4ir.train` and `sam4ir.score`."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sam4ir.config.load import Override, load_options
from sam4ir.engine import build
from sam4ir.engine.devices import wants_cuda
from sam4ir.engine.evaluate.candidates import weights_of
from sam4ir.engine.evaluate.report import BASELINES
from sam4ir.engine.evaluate.results import numbers_of, read_summary
from sam4ir.engine.evaluate.score import score_network, with_weights
from sam4ir.engine.interrupt import Interrupted
from sam4ir.engine.log import ProgramLog
from sam4ir.engine.train.loop import Trainer
from sam4ir.errors import UserError
from sam4ir.utils import dist
from sam4ir.utils.files import is_utf8

# what engine.devices.make_deterministic and engine.log.TensorBoardScalars set
_ENVIRONMENT = ("CUBLAS_WORKSPACE_CONFIG", "TF_CPP_MIN_LOG_LEVEL")


@dataclass(frozen=True)
class TrainingResult:
    """What a training gave.

    run: the folder experiments/<name>. weights: its net_g_latest.pth or .safetensors. iteration: the last one.
    scores: {data set: {output: {metric: value}}} of the last validation of this call, {} without one; the outputs are
    restored and, with val.refiner, refined. best: {data set/metric: (value, iteration)} over the whole run.
    """

    run: Path
    weights: Path
    iteration: int
    scores: dict[str, dict[str, dict[str, float]]]
    best: dict[str, tuple[float, int]]


@dataclass(frozen=True)
class TestScores:
    """The scores of a test.

    folder: results/<name>, which holds them as files. text: the table that `sam4ir test` prints.
    mean: {data set: {output: {metric: value}}}. images: {data set: {image: {output: {metric: value}}}}.
    protocols: {metric: its definition}. faults: a sentence for each image that could not be scored.
    """

    folder: Path
    text: str
    mean: dict[str, dict[str, dict[str, float]]]
    images: dict[str, dict[str, dict[str, dict[str, float]]]]
    protocols: dict[str, str]
    faults: tuple[str, ...]


def train(options: str | os.PathLike[str], *, resume: bool = False, **overrides: Any) -> TrainingResult:
    """Train as sam4ir train does, to the end.

    options: an option file. resume: go on from the newest checkpoint of the run, if there is one. overrides: options in
    place of the file's, as nested names (train={"total_iter": 10}) or as paths (**{"train:total_iter": 10}). A mapping
    changes the keys that it names; one with `type` replaces the whole block.

    The log goes to the logger `sam4ir`, as the program has set it up, and to the run's log file. Afterwards the random
    states of random, NumPy and torch, torch's switches for deterministic results and its threads, and the logger are as
    before. Ctrl-C and SIGTERM save a checkpoint and then do what they did before the call; they are seen in the main
    thread alone.
    Raises UserError for what the user can mend. A program may train several runs, one after the other.
    """
    loaded = load_options(options, _overrides(overrides), named_by_user=True)
    with _as_before(), _program_log() as shown, dist.world("none", wants_cuda(loaded.device)) as world:
        trainer = Trainer(loaded, resume, world, shown)
        try:
            trainer.run()
        except Interrupted as stop:
            signal.raise_signal(stop.number)
            raise  # where the program's own handler returns
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for (dataset, output), values in trainer.milestones.means.items():
        if output not in BASELINES:
            scores.setdefault(dataset, {})[output] = {metric: mean.value for metric, mean in values.items()}
    best = {name: (record["value"], int(record["iter"])) for name, record in trainer.progress.best.items()}
    paths = trainer.paths
    latest = paths.network("g", "latest", trainer.parts.save_format)
    return TrainingResult(paths.run, latest, trainer.progress.iteration, scores, best)


def score(
    options: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    **overrides: Any,
) -> TestScores:
    """Score a network as sam4ir test does; the files of its results are written too.

    options: an option file with test sets. weights: a file, the folder of a run or a name of the zoo, in place of
    path.pretrain_network_g.
    overwrite: replace results of the same name that come from other options or weights. overrides: as in `train`.
    Raises UserError for what the user can mend; an image that cannot be scored is listed in `faults`, and the others
    are scored. In a world of several processes all of them return the scores.
    """
    loaded = load_options(options, _overrides(overrides), named_by_user=True)
    if weights is not None:
        loaded = with_weights(loaded, weights_of(os.fspath(weights)))
    faults: list[str] = []
    with _as_before(), dist.world("none", wants_cuda(loaded.device)) as world:
        text = score_network(loaded, overwrite, world, faults)
        world.wait()  # the main process has written the summary
    folder = build.run_paths(loaded.path, loaded.name).results
    summary = read_summary(folder / "summary.json")
    mean = {dataset: _numbers(outputs) for dataset, outputs in summary["mean"].items()}
    images: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for dataset, by_image in summary["images"].items():
        images[dataset] = {image: _numbers(outputs) for image, outputs in by_image.items()}
    return TestScores(folder, text, mean, images, summary["protocols"], tuple(faults))


def _numbers(outputs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return {output: {metric: value}} with infinity and NaN as numbers."""
    return {output: numbers_of(row) for output, row in outputs.items()}


def _overrides(given: Mapping[str, Any]) -> list[Override]:
    """Return the overrides of keyword arguments; see `train`."""
    overrides: list[Override] = []
    for name, value in given.items():
        _add(overrides, tuple(name.split(":")), value)
    return overrides


def _add(overrides: list[Override], keys: tuple[str, ...], value: Any) -> None:
    """Add a value, or the values of a mapping that names no `type`."""
    if isinstance(value, Mapping) and "type" not in value and value:
        for key, inner in value.items():
            _add(overrides, (*keys, *str(key).split(":")), inner)
    elif all(keys):
        overrides.append(Override(keys, _plain(value, ":".join(keys))))
    else:
        raise UserError(f"{':'.join(keys)!r} is no path of a key; give key, or key:key, such as train:total_iter")


def _plain(value: Any, place: str) -> Any:
    """Return a value as YAML would give it: lists for tuples, texts for paths, Python's numbers for NumPy's.

    Raises UserError naming the place for a value that no option file can hold.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, f"{place}:{key}") for key, inner in value.items()}
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(inner, place) for inner in value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, torch.device):
        value = str(value)
    if value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and is_utf8(value)):
        return value
    raise UserError(
        f"{place}: {type(value).__name__} {value!r:.80} is nothing that an option file can hold; give a number, a "
        "text, a list or a mapping"
    )


@contextlib.contextmanager
def _program_log() -> Iterator[ProgramLog]:
    """Let the run set up the logger for its log file, and give it back to the program."""
    shown = ProgramLog()
    try:
        yield shown
    finally:
        shown.give_back()


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Give the states of the process that a run changes back after the block; see `train`."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  (the legacy stream is seeded by runs)
    devices: list[int] = []
    if torch.cuda.is_initialized():
        devices = list(range(torch.cuda.device_count()))
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, threads = torch.backends.cudnn.benchmark, torch.get_num_threads()
    environment, hook = {name: os.environ.get(name) for name in _ENVIRONMENT}, threading.excepthook
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
        torch.backends.cudnn.benchmark = benchmark
        torch.set_num_threads(threads)
        threading.excepthook = hook
        for name, text in environment.items():
            if text is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = text
