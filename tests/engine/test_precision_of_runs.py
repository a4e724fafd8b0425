"""`precision: auto` in whole runs: what is computed, what is saved, and what is logged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from conftest import World

from sam4ir.config.load import load_options
from sam4ir.engine import precision as formats
from sam4ir.engine.precision import settle_format, settle_restoring, settle_training
from sam4ir.engine.train.check import check
from sam4ir.engine.train.loop import Trainer
from sam4ir.utils import precision
from sam4ir.utils.dist import World as Processes
from sam4ir.utils.precision import Support

CPU = torch.device("cpu")


@pytest.fixture(params=[True, False], ids=["fast", "slow"])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    return pretend(monkeypatch, request.param)


def pretend(monkeypatch: pytest.MonkeyPatch, fast: bool) -> bool:
    """Let this machine be fast or slow in bf16."""
    for module in (precision, formats):
        monkeypatch.setattr(module, "bf16_support", lambda device: Support(fast, "this CPU is one of a test"))
    return fast


def trained(world: World, name: str, *overrides: str, resume: bool = False) -> dict[str, torch.Tensor]:
    """Train the small SAM4IR run; return the student's weights."""
    trainer = Trainer(world.options(True, (f"name={name}", "train:total_iter=4", *overrides)), resume)
    trainer.run()
    file = trainer.paths.models / "net_g_latest.pth"
    weights: dict[str, torch.Tensor] = torch.load(file, weights_only=True)["params"]
    return weights


def test_auto_computes_what_the_format_computes_and_saves_its_name(
    world: World, fast: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    auto = trained(world, "auto", "precision=auto", "train:sgr_opt:bf16=auto")
    output = capsys.readouterr().out
    name, switch = ("bf16", "true") if fast else ("fp32", "false")
    assert f"INFO: precision: auto is {name} here; this CPU is one of a test." in output
    assert f"INFO: train.sgr_opt.bf16: auto is {switch} here; " in output
    asked = trained(world, "asked", f"precision={name}", f"train:sgr_opt:bf16={switch}")
    assert auto.keys() == asked.keys()
    assert all(torch.equal(auto[key], asked[key]) for key in auto)
    saved = yaml.safe_load((world.root / "experiments/auto/options.yml").read_text(encoding="utf-8"))
    assert saved["precision"] == name
    assert saved["train"]["sgr_opt"]["bf16"] is fast


def test_a_format_that_is_slow_here_is_a_warning_with_its_cost(
    world: World, fast: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(world, "asked", "precision=bf16", "train:sgr_opt:bf16=true")
    warnings = [line for line in capsys.readouterr().out.splitlines() if "slow here" in line]
    keys = [line.split("WARNING: ")[1].split(": ")[0] for line in warnings]
    assert keys == ([] if fast else ["precision", "train.sgr_opt.bf16"])
    assert all("1.5 to 2 times as long as in fp32" in line for line in warnings)


def test_a_resume_on_a_machine_that_chooses_otherwise_names_the_change(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, True)
    trained(world, "moved", "precision=auto", "train:sgr_opt:bf16=auto")
    pretend(monkeypatch, False)
    capsys.readouterr()
    trained(world, "moved", "precision=auto", "train:sgr_opt:bf16=auto", "train:total_iter=6", resume=True)
    output = capsys.readouterr().out
    assert "Changed since the checkpoint: precision: bf16, now fp32" in output
    assert "Changed since the checkpoint: train.sgr_opt.bf16: True, now False" in output


def test_the_check_names_the_choice(world: World, fast: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(world.options(False, ("precision=auto",))) == 0
    output = capsys.readouterr().out
    name = "bf16" if fast else "fp32"
    assert f"notice   precision: auto is {name} here" in output
    assert f"1 process(es), {name}" in output


def test_sampling_and_flags_have_the_choice_too(tmp_path: Path, fast: bool) -> None:
    file = tmp_path / "o.yml"
    file.write_text(
        "name: x\nmodel_type: SAMDiffSRModel\nscale: 4\nnetwork_g: {type: DiffSR}\n"
        "val: {sampling: {precision: auto}}\n",
        encoding="utf-8",
    )
    settled = settle_restoring(load_options(file), CPU)
    name = "bf16" if fast else "fp32"
    assert settled.options.val is not None
    assert settled.options.val.sampling.precision == name
    assert settled.chosen == [f"val.sampling.precision: auto is {name} here; this CPU is one of a test."]
    assert settle_format("--precision", "auto", CPU)[0] == name
    assert settle_format("--precision", "fast", CPU) == ("fast", ())
    asked, lines = settle_format("--precision", "bf16", CPU)
    assert (asked, len(tuple(lines))) == ("bf16", 0 if fast else 1)


def test_files_without_the_word_mean_what_they_did(world: World, fast: bool) -> None:
    options = world.options(True)
    settled = settle_training(options, CPU)
    assert settled.options == options
    assert (settled.chosen, settled.warnings) == ([], [])


def test_processes_take_the_format_that_suits_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, True)

    class Mixed(Processes):
        """A world in which another process is slow."""

        def largest(self, value: int) -> int:
            return 1

    settled = settle_training(world.options(False, ("precision=auto",)), CPU, Mixed(rank=0, size=2))
    assert settled.options.precision == "fp32"
    assert "another process" in settled.chosen[0]
