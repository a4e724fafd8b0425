"""What stays of the checkpoints of a run: the newest training states and weights, and the weights of the best score."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sam4ir.config.paths import RunPaths
from sam4ir.engine.train.checkpoint import SAVE_FORMATS, save_weights
from sam4ir.engine.train.parts import TrainingParts
from sam4ir.engine.weights import metadata_of
from sam4ir.errors import UserError
from sam4ir.utils.weights import RUN_ENTRY

log = logging.getLogger(__name__)

BEST = "best"  # in place of the iteration: net_g_best.pth
_WEIGHTS = re.compile(r"net_[a-z_]+_(\d+)(?:_params)?\.(?:pth|safetensors)")  # and no net_g_9_average_of_3


@dataclass(frozen=True)
class Keeping:
    """How many checkpoints stay, the newest ones; None keeps all. A state is never kept without its weights."""

    states: int | None = None
    weights: int | None = None

    def remove_older(self, paths: RunPaths, iteration: int) -> None:
        """Remove what is older than the newest checkpoints up to `iteration`, which is saved whole already."""
        if self.states is not None:
            for old in self._beyond(paths.saved_iterations(), iteration, self.states):
                paths.state(old).unlink(missing_ok=True)
        if self.weights is not None:
            with_state = set(paths.saved_iterations())
            files = _weights_files(paths)
            for old in self._beyond(files, iteration, self.weights):
                if old not in with_state:
                    for name in files[old]:
                        (paths.models / name).unlink(missing_ok=True)

    @staticmethod
    def _beyond(iterations: Iterable[int], newest: int, count: int) -> list[int]:
        """Return the iterations up to `newest` but for the last `count` ones."""
        past = sorted((number for number in iterations if number <= newest), reverse=True)
        return past[count:]

    def kept(self, checkpoints: int) -> tuple[int, int]:
        """Return how many of a run's checkpoints lie on the disk at its end: weights, and training states."""
        weights, states = checkpoints, checkpoints
        if self.states is not None:
            states = min(self.states, checkpoints)
        if self.weights is not None:
            weights = min(self.weights, checkpoints)
        return weights, states


def _weights_files(paths: RunPaths) -> dict[int, list[str]]:
    """Return the names of the weights files of each iteration, of all networks and formats."""
    files: dict[int, list[str]] = {}
    for path in paths.models.glob("net_*"):
        match = _WEIGHTS.fullmatch(path.name)
        if match:
            files.setdefault(int(match[1]), []).append(path.name)
    return files


class BestWeights:
    """models/net_g_best: the deployed network of the best validation score of a run.

    metric: the name of the score, as in val.save_best. The file holds the score and its iteration too. A run that was
    killed goes on before the iteration of that file, perhaps: it is replaced by the repeated validation, or by a better
    one.
    """

    def __init__(self, paths: RunPaths, parts: TrainingParts, metric: str, *, lower_is_better: bool) -> None:
        self.metric = metric
        self._paths = paths
        self._parts = parts
        self._lower_is_better = lower_is_better
        self._record = self._read()

    def _read(self) -> tuple[float, int] | None:
        """Return the score and the iteration of the file; None without one of this score that can be read."""
        path = self._paths.network("g", BEST, self._parts.save_format)
        if not path.is_file():
            return None
        try:
            run: Mapping[str, Any] = metadata_of(path, RUN_ENTRY)
            best = run["best"]
            if best["metric"] != self.metric:
                return None
            return float(best["value"]), int(run["iteration"])
        except (UserError, KeyError, TypeError, ValueError) as error:
            log.warning("%s: its score cannot be read (%s); the next validation replaces it", path, error)
            return None

    def offer(self, value: float, iteration: int, options_text: str) -> bool:
        """Keep the present weights, whose score is a record of the run; return whether they were kept."""
        if self._record is not None and iteration != self._record[1] and not self._better(value, self._record[0]):
            return False
        facts = {"best": {"metric": self.metric, "value": value}}
        save_weights(self._paths, self._parts, "g", BEST, iteration, options_text, facts)
        for save_format in SAVE_FORMATS:
            if save_format != self._parts.save_format:
                self._paths.network("g", BEST, save_format).unlink(missing_ok=True)
        self._record = value, iteration
        return True

    def _better(self, value: float, other: float) -> bool:
        if other != other:  # NaN
            return True
        if self._lower_is_better:
            return value < other
        return value > other
