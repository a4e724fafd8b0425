"""The trackers of a run, as its option file asks for them."""

from __future__ import annotations

from sam4ir.config.paths import RunPaths
from sam4ir.config.schema import LoggerOptions
from sam4ir.engine.trackers.tensorboard import TensorBoardTracker, tensorboard_is_installed
from sam4ir.engine.trackers.tracker import Tracker


def build_trackers(logger: LoggerOptions, paths: RunPaths, iteration: int) -> list[Tracker]:
    """Return the trackers of a run that goes on from an iteration, 0 for a fresh start."""
    trackers: list[Tracker] = []
    wanted = logger.use_tb_logger
    if wanted is None:
        wanted = tensorboard_is_installed()
    if wanted:
        trackers.append(TensorBoardTracker(paths.tensorboard, iteration))
    return trackers
