"""Paths of the files of a run, as in BasicSR."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunPaths:
    """The folders of a run below `root`: experiments/NAME with three subfolders, tb_logger/NAME and results/NAME."""

    root: Path
    name: str

    @property
    def run(self) -> Path:
        """Folder of the run, with its option file, log and weights."""
        return self.root / "experiments" / self.name

    @property
    def models(self) -> Path:
        """Folder of the weights files."""
        return self.run / "models"

    @property
    def states(self) -> Path:
        """Folder of the training states, from which a run resumes."""
        return self.run / "training_states"

    @property
    def visualization(self) -> Path:
        """Folder of the images that validation saves."""
        return self.run / "visualization"

    @property
    def tensorboard(self) -> Path:
        """Folder of the TensorBoard files."""
        return self.root / "tb_logger" / self.name

    @property
    def results(self) -> Path:
        """Folder of the results of sam4ir test."""
        return self.root / "results" / self.name

    def network(self, label: str, iteration: int | str, save_format: str = "pth") -> Path:
        """Return the path of net_<label>_<iteration>.<save_format>, with the weights of one network."""
        return self.models / f"net_{label}_{iteration}.{save_format}"

    def state(self, iteration: int) -> Path:
        """Return the path of training_states/<iteration>.state."""
        return self.states / f"{iteration}.state"

    def saved_iterations(self) -> list[int]:
        """Return the iterations with a training state, newest first."""
        iterations = []
        for path in self.states.glob("*.state"):
            if match := re.fullmatch(r"(\d+)\.state", path.name):
                iterations.append(int(match[1]))
        return sorted(iterations, reverse=True)
