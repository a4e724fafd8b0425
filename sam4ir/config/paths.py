"""Where the files of a run lie, as in BasicSR."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunPaths:
    """experiments/<name>/{models,training_states,visualization} and tb_logger/<name> below `root`."""

    root: Path
    name: str

    @property
    def run(self) -> Path:
        return self.root / "experiments" / self.name

    @property
    def models(self) -> Path:
        return self.run / "models"

    @property
    def states(self) -> Path:
        return self.run / "training_states"

    @property
    def visualization(self) -> Path:
        return self.run / "visualization"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tb_logger" / self.name

    @property
    def results(self) -> Path:
        return self.root / "results" / self.name

    def network(self, label: str, iteration: int | str) -> Path:
        """net_<label>_<iteration>.pth"""
        return self.models / f"net_{label}_{iteration}.pth"

    def state(self, iteration: int) -> Path:
        """training_states/<iteration>.state"""
        return self.states / f"{iteration}.state"

    def saved_iterations(self) -> list[int]:
        """Iterations with a training state, newest first."""
        found = (re.fullmatch(r"(\d+)\.state", p.name) for p in self.states.glob("*.state"))
        return sorted((int(m.group(1)) for m in found if m), reverse=True)
