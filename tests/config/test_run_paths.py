"""Where the files of a run lie."""

from __future__ import annotations

from pathlib import Path

from sam4ir.config.paths import RunPaths


def test_a_run_lies_where_basicsr_puts_it() -> None:
    paths = RunPaths(Path("root"), "run")
    assert paths.network("g", "latest") == Path("root/experiments/run/models/net_g_latest.pth")
    assert paths.state(500) == Path("root/experiments/run/training_states/500.state")
    assert paths.visualization == Path("root/experiments/run/visualization")
    assert paths.tensorboard == Path("root/tb_logger/run")
    assert paths.results == Path("root/results/run")


def test_saved_iterations_are_sorted_as_numbers_newest_first(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path, "run")
    assert paths.saved_iterations() == []
    paths.states.mkdir(parents=True)
    for name in ("500.state", "1000.state", "90.state", "1500.state.part", "latest.state", "x500.state"):
        (paths.states / name).touch()
    assert paths.saved_iterations() == [1000, 500, 90]
