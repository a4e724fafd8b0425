"""Weights & Biases, MLflow and trackio as trackers; each is an optional extra of the package.

A run that is resumed goes on with the same run of the service, whose id stands in experiments/NAME/trackers. What the
service has already is not sent again, so that curves have no point twice.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sam4ir.config.schema import MlflowOptions, TrackioOptions, WandbOptions
from sam4ir.errors import UserError
from sam4ir.utils.files import read_text, write_text

ITERATION = "iteration"


class Taken:
    """What a service has taken of a run: its id there, and the last iteration of each tag. It lies in a small file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.id: str | None = None
        self.last: dict[str, int] = {}
        if file.is_file():
            try:
                held = json.loads(read_text(file))
                self.id = str(held["id"])
                self.last = {str(tag): int(iteration) for tag, iteration in held.get("last", {}).items()}
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise UserError(f"{file}: is damaged; remove it to begin a new run of the service") from None

    def new(self, iteration: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that the service has not got yet."""
        return {tag: value for tag, value in values.items() if self.last.get(tag, -1) < iteration}

    def add(self, iteration: int, tags: Mapping[str, Any]) -> None:
        """Note that the service has these tags up to an iteration."""
        for tag in tags:
            self.last[tag] = iteration

    def write(self) -> None:
        """Write the file."""
        write_text(self._file, json.dumps({"id": self.id, "last": self.last}))


class WandbTracker:
    """Weights & Biases. name: of the run; config: its options; folder: of the run, where offline files go."""

    def __init__(self, options: WandbOptions, name: str, config: Mapping[str, Any], folder: Path) -> None:
        wandb = _package("wandb")
        self._wandb = wandb
        self._taken = Taken(folder / "trackers" / "wandb.json")
        mode = options.mode or os.environ.get("WANDB_MODE")
        self._run = wandb.init(
            project=options.project,
            entity=options.entity,
            name=name,
            id=self._taken.id or options.resume_id,
            resume="allow",
            mode=mode,
            dir=str(folder),
            config=dict(config),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric=ITERATION)
        self._taken.id = self._run.id
        self._taken.write()

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Log the scalars that it does not have, over the iteration."""
        self._log(iteration, self._taken.new(iteration, values))

    def pictures(self, iteration: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Log pictures."""
        new = self._taken.new(iteration, pictures)
        self._log(iteration, {tag: self._wandb.Image(picture) for tag, picture in new.items()})

    def _log(self, iteration: int, values: Mapping[str, Any]) -> None:
        if values:
            self._run.log({**values, ITERATION: iteration})
            self._taken.add(iteration, values)
            self._taken.write()

    def flush(self) -> None:
        """Do nothing: a process of wandb's own has what was logged."""

    def close(self) -> None:
        """End the run, so that it is shown as finished."""
        self._run.finish()


class MlflowTracker:
    """MLflow, which keeps each point before a call returns; what it has is asked of it."""

    def __init__(self, options: MlflowOptions, name: str, config: Mapping[str, Any], folder: Path, root: Path) -> None:
        mlflow = _package("mlflow")
        uri = options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve()}/mlflow.db"
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        self._client = mlflow.tracking.MlflowClient(tracking_uri=uri)
        self._metric = mlflow.entities.Metric
        self._taken = Taken(folder / "trackers" / "mlflow.json")
        if self._taken.id is None:
            self._taken.id = self._client.create_run(
                self._experiment(options.experiment, root), run_name=name
            ).info.run_id
            self._taken.write()
            for key, value in _flat(config).items():
                self._client.log_param(self._taken.id, key, value)
        else:
            self._client.set_terminated(self._taken.id, "RUNNING")
        self._asked: set[str] = set()

    def _experiment(self, name: str, root: Path) -> str:
        """Return the id of the experiment, which is made where it is not there."""
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        artifacts = None
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            artifacts = (root.resolve() / "mlartifacts").as_uri()
        return str(self._client.create_experiment(name, artifact_location=artifacts))

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Log the scalars that it does not have."""
        for tag in values:
            self._ask(tag)
        now = int(time.time() * 1000)
        metrics = []
        new = self._taken.new(iteration, values)
        for tag, value in new.items():
            metrics.append(self._metric(tag, value, now, iteration))
        if metrics:
            self._client.log_batch(self._taken.id, metrics=metrics)
            self._taken.add(iteration, new)

    def _ask(self, tag: str) -> None:
        """Learn how far the service has a tag, once."""
        if tag in self._asked:
            return
        self._asked.add(tag)
        history = self._client.get_metric_history(self._taken.id, tag)
        self._taken.last[tag] = max((metric.step for metric in history), default=-1)

    def pictures(self, iteration: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Log pictures as files panel/NAME/ITERATION.png, which a repeated iteration replaces."""
        for tag, picture in pictures.items():
            self._client.log_image(self._taken.id, picture, artifact_file=f"{tag}/{iteration:08d}.png")

    def flush(self) -> None:
        """Do nothing: each call waits for the service."""

    def close(self) -> None:
        """End the run, so that it is shown as finished."""
        self._client.set_terminated(self._taken.id)


class TrackioTracker:
    """trackio, which keeps its runs in a local database (or in a Space of Hugging Face); it is asked what it has."""

    def __init__(self, options: TrackioOptions, name: str, config: Mapping[str, Any], folder: Path) -> None:
        trackio = _package("trackio")
        self._trackio = trackio
        self._project, self._name = options.project, name
        self._taken = Taken(folder / "trackers" / "trackio.json")
        self._run = trackio.init(
            project=options.project,
            name=name,
            space_id=options.space_id,
            config=dict(config),
            resume="allow" if self._taken.id is not None else "never",
            embed=False,
        )
        if self._taken.id is not None and options.space_id is None:
            self._learn()
        self._taken.id = str(self._run.id)
        self._taken.write()
        self._local = options.space_id is None
        self._sent = 0

    def _learn(self) -> None:
        """Read which points the database has; a killed run may have noted others."""
        self._taken.last = {}
        for row in self._rows():
            self._taken.add(int(row["step"]), row)

    def _rows(self) -> list[dict[str, Any]]:
        storage = importlib.import_module("trackio.sqlite_storage")
        return list(storage.SQLiteStorage.get_logs(self._project, self._name))

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Log the scalars that it does not have."""
        self._log(iteration, self._taken.new(iteration, values))

    def pictures(self, iteration: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Log pictures."""
        new = self._taken.new(iteration, pictures)
        self._log(iteration, {tag: self._trackio.Image(picture) for tag, picture in new.items()})

    def _log(self, iteration: int, values: Mapping[str, Any]) -> None:
        if values:
            self._run.log(dict(values), step=iteration)
            self._taken.add(iteration, values)
            self._sent = iteration

    def flush(self) -> None:
        """Wait until the database has what a thread of trackio writes."""
        self._taken.write()
        deadline = time.monotonic() + 10
        while self._local and self._sent and time.monotonic() < deadline:
            if any(int(row["step"]) >= self._sent for row in self._rows()[-5:]):
                return
            time.sleep(0.2)

    def close(self) -> None:
        """End the run."""
        self._run.finish()
        self._taken.write()


def _package(name: str) -> Any:
    """Import the package of a service; raise UserError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"logger.{name}: {name} is not installed; run: pip install 'sam4ir[{name}]'") from None


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Return {key.key: text} of nested options, cut to what MLflow takes."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{above}{key}."))
        elif value is not None:
            flat[f"{above}{key}"[:250]] = str(value)[:500]
    return flat
