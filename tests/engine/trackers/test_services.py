"""Weights & Biases, MLflow and trackio, offline: a run, its resume, and what a kill leaves. Each needs its package."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import World

from sam4ir.config.load import load_options
from sam4ir.config.schema import MlflowOptions, TrackioOptions, WandbOptions
from sam4ir.engine.trackers import services
from sam4ir.engine.trackers.services import MlflowTracker, Taken, TrackioTracker, WandbTracker
from sam4ir.engine.trackers.tracker import Tracker
from sam4ir.engine.train.loop import Trainer
from sam4ir.errors import UserError

CONFIG = {"name": "run", "train": {"total_iter": 8, "nothing": None}}
PICTURE = np.full((20, 30, 3), 200, np.uint8)

Points = dict[str, list[tuple[int, float]]]


def tracked(tracker: Tracker, first: int, last: int) -> None:
    """Take the points of iterations first to last, with a validation at each fifth."""
    for iteration in range(first, last + 1):
        tracker.scalars(iteration, {"losses/l_pix": 1 / iteration})
        if iteration % 5 == 0:
            tracker.scalars(iteration, {"metrics/set/psnr": float(iteration)})
            tracker.pictures(iteration, {"panel/set/0": PICTURE})


EXPECTED: Points = {
    "losses/l_pix": [(i, 1 / i) for i in range(1, 16)],
    "metrics/set/psnr": [(5, 5.0), (10, 10.0), (15, 15.0)],
}


def records(data: bytes) -> Iterator[bytes]:
    """Yield the records of an offline file of wandb: a head of 7 bytes, then LevelDB's log in blocks of 32 KiB."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def in_wandb(root: Path) -> Points:
    """Read the points of the offline files, which `wandb sync` sends."""
    from wandb.proto import wandb_internal_pb2

    points: Points = {}
    for file in sorted(root.glob("experiments/run/wandb/offline-run-*/*.wandb")):
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            row = {}
            for item in record.history.item:
                row[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
            for tag, value in row.items():
                if tag.startswith(("losses", "metrics")):
                    points.setdefault(tag, []).append((row["iteration"], value))
    return points


def in_mlflow(root: Path) -> Points:
    import mlflow

    client = mlflow.tracking.MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("sam4ir").experiment_id])
    assert run.data.params["train.total_iter"] == "8"
    assert run.info.status == "FINISHED"
    points = {}
    for tag in run.data.metrics:
        points[tag] = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, tag)]
    return points


def in_trackio(root: Path) -> Points:
    from trackio.sqlite_storage import SQLiteStorage

    points: Points = {}
    for row in SQLiteStorage.get_logs("sam4ir", "run"):
        for tag, value in row.items():
            if tag.startswith(("losses", "metrics")):
                points.setdefault(tag, []).append((row["step"], value))
    return points


def wandb_tracker(root: Path) -> Tracker:
    return WandbTracker(WandbOptions(project="p", mode="offline"), "run", CONFIG, root / "experiments" / "run")


def mlflow_tracker(root: Path) -> Tracker:
    return MlflowTracker(MlflowOptions(), "run", CONFIG, root / "experiments" / "run", root)


def trackio_tracker(root: Path) -> Tracker:
    return TrackioTracker(TrackioOptions(), "run", CONFIG, root / "experiments" / "run")


SERVICES: dict[str, tuple[Callable[[Path], Tracker], Callable[[Path], Points]]] = {
    "wandb": (wandb_tracker, in_wandb),
    "mlflow": (mlflow_tracker, in_mlflow),
    "trackio": (trackio_tracker, in_trackio),
}


@pytest.fixture(params=list(SERVICES))
def service(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip(request.param, reason=f"pip install 'sam4ir[{request.param}]'")
    (tmp_path / "experiments" / "run").mkdir(parents=True)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    if request.param == "trackio":
        import trackio.sqlite_storage as storage
        import trackio.utils as utils

        for module in (storage, utils):
            for name in ("TRACKIO_DIR", "MEDIA_DIR"):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, tmp_path / "trackio")
    return request.param


@pytest.mark.slow
def test_a_resumed_run_has_every_point_once(service: str, tmp_path: Path) -> None:
    make, points = SERVICES[service]
    first = make(tmp_path)
    tracked(first, 1, 12)
    first.flush()
    first.close()
    second = make(tmp_path)  # goes on from a checkpoint of iteration 8
    tracked(second, 9, 15)
    second.flush()
    second.close()
    held = points(tmp_path)
    for tag, expected in EXPECTED.items():
        assert held[tag] == expected
    assert (tmp_path / "experiments/run/trackers" / f"{service}.json").is_file()


@pytest.mark.slow
def test_a_training_is_followed(service: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    values = world.values(name="run")
    values["logger"][service] = {"project": "sam4ir", "mode": "offline"} if service == "wandb" else {}
    trainer = Trainer(load_options(world.write(values)), False)
    trainer.run()
    log = (trainer.paths.run / "train_run.log").read_text()
    assert "fails" not in log
    _, points = SERVICES[service]
    held = points(world.root)
    assert [iteration for iteration, _ in held["losses/l_pix"]] == [2, 4, 6, 8]
    assert [iteration for iteration, _ in held["metrics/small_val/psnr"]] == [4, 8]


def test_a_service_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "_package", services._package)
    with pytest.raises(UserError, match=r"logger\.nothing_like_it: .* pip install 'sam4ir\[nothing_like_it\]'"):
        services._package("nothing_like_it")


def test_a_damaged_note_of_a_service_is_named(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"id": 3, "last": [1]}', '{"id": "a", "last": {"x": "y"}}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UserError, match=r"x\.json: is damaged"):
            Taken(tmp_path / "x.json")


def test_points_that_a_service_has_are_not_new(tmp_path: Path) -> None:
    taken = Taken(tmp_path / "trackers" / "x.json")
    taken.id = "abc"
    assert taken.new(3, {"a": 1.0, "b": 2.0}) == {"a": 1.0, "b": 2.0}
    taken.add(3, {"a": 1.0})
    taken.write()
    again = Taken(tmp_path / "trackers" / "x.json")
    assert (again.id, again.last) == ("abc", {"a": 3})
    assert again.new(3, {"a": 1.0, "b": 2.0}) == {"b": 2.0}
    assert again.new(4, {"a": 1.0}) == {"a": 1.0}


def test_a_project_of_null_sends_nothing_as_in_basicsr(world: World) -> None:
    values = world.values()
    values["logger"]["wandb"] = {"project": None, "resume_id": None}
    trainer = Trainer(load_options(world.write(values)), False)
    trainer.run()
    assert not (trainer.paths.run / "trackers").exists()
