"""The trackers of a run, as its option file asks for them."""

from __future__ import annotations

from sam4ir.config.paths import RunPaths
from sam4ir.config.schema import LoggerOptions
from sam4ir.config.yaml_text import parse
from sam4ir.engine.trackers.services import MlflowTracker, TrackioTracker, WandbTracker
from sam4ir.engine.trackers.tensorboard import TensorBoardTracker, tensorboard_is_installed
from sam4ir.engine.trackers.tracker import Guarded, Tracker


def wants_tensorboard(logger: LoggerOptions) -> bool:
    """Return whether a run writes for TensorBoard: as its options say, else where it is installed."""
    if logger.use_tb_logger is None:
        return tensorboard_is_installed()
    return logger.use_tb_logger


def build_trackers(logger: LoggerOptions, paths: RunPaths, iteration: int, options_text: str) -> list[Tracker]:
    """Return the trackers of a run that goes on from an iteration, 0 for a fresh start.

    options_text: the options as YAML, which services show.
    """
    trackers: list[Tracker] = []
    if wants_tensorboard(logger):
        trackers.append(TensorBoardTracker(paths.tensorboard, iteration))
    config, name, folder = dict(parse(options_text)[0] or {}), paths.name, paths.run
    wandb, mlflow, trackio = logger.wandb, logger.mlflow, logger.trackio
    if wandb is not None and wandb.project is not None:
        trackers.append(Guarded("Weights & Biases", lambda: WandbTracker(wandb, name, config, folder)))
    if mlflow is not None:
        trackers.append(Guarded("MLflow", lambda: MlflowTracker(mlflow, name, config, folder, paths.root)))
    if trackio is not None:
        trackers.append(Guarded("trackio", lambda: TrackioTracker(trackio, name, config, folder)))
    return trackers
