"""The journal of a run: log.jsonl, validation.csv, and its trackers. Only the main process writes one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from sam4ir.config.paths import RunPaths
from sam4ir.engine.evaluate.report import Score
from sam4ir.engine.log import GrowingTable, JsonLines
from sam4ir.engine.trackers.tracker import Tracker
from sam4ir.engine.train.checkpoint import Progress


class Journal(Protocol):
    """The record of a run."""

    def write(self, iteration: int, record: Mapping[str, Any]) -> None:
        """Write one JSON line; numbers that are not finite become texts."""

    def scores(self, iteration: int, scores: Iterable[Score]) -> None:
        """Write rows of the validation table."""

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Give scalars to the trackers, by tag."""

    def pictures(self, iteration: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Give pictures (h, w, 3) uint8 RGB to the trackers, by tag."""

    def flush(self) -> None:
        """Make lasting what the trackers have taken, before a checkpoint."""

    def close(self) -> None:
        """Close the files."""


class NoJournal:
    """The journal of the other processes, which write nothing."""

    def write(self, iteration: int, record: Mapping[str, Any]) -> None:
        """Write nothing."""

    def scores(self, iteration: int, scores: Iterable[Score]) -> None:
        """Write nothing."""

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Write nothing."""

    def pictures(self, iteration: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Write nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Close nothing."""


class FileJournal:
    """log.jsonl and validation.csv of a run; lines past the checkpoint are cut off.

    metrics: columns of the table. trackers: get scalars and pictures.
    """

    def __init__(
        self, paths: RunPaths, metrics: Sequence[str], progress: Progress, trackers: Sequence[Tracker] = ()
    ) -> None:
        self._json = JsonLines(paths.run / "log.jsonl", progress.iteration, progress.validated)
        columns = ["dataset", "stage", "image", *metrics]
        self._csv = GrowingTable(paths.run / "validation.csv", columns, progress.validated)
        self._trackers = trackers

    def write(self, iteration: int, record: Mapping[str, Any]) -> None:
        """Write one JSON line; numbers that are not finite become texts."""
        self._json.write({"iter": iteration, **{name: _plain(value) for name, value in record.items()}})

    def scores(self, iteration: int, scores: Iterable[Score]) -> None:
        """Write a row of the table for each score."""
        rows = []
        for score in scores:
            head = {"iter": iteration, "dataset": score.dataset, "stage": score.output, "image": score.image}
            rows.append({**head, **score.values})
        self._csv.write(rows)

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Give scalars to the trackers, by tag."""
        for tracker in self._trackers:
            tracker.scalars(iteration, values)

    def pictures(self, iteration: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Give pictures (h, w, 3) uint8 RGB to the trackers, by tag."""
        for tracker in self._trackers:
            tracker.pictures(iteration, pictures)

    def flush(self) -> None:
        """Make lasting what the trackers have taken, before a checkpoint."""
        for tracker in self._trackers:
            tracker.flush()

    def close(self) -> None:
        """Close the files."""
        self._json.close()
        self._csv.close()
        for tracker in self._trackers:
            tracker.close()  # TensorBoard may raise what its thread could not write


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: infinity and NaN as texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
