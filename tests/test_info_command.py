"""`sam4ir info`: what it prints of runs, files, option files and names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import NETWORK, World

from sam4ir.cli import info
from sam4ir.engine.evaluate.candidates import iteration_in
from sam4ir.engine.run_record import record_of, training_of, validations
from sam4ir.engine.train.loop import Trainer
from sam4ir.errors import UserError
from sam4ir.registry import ARCHS
from sam4ir.utils.tables import read_csv


def weights(path: Path, **entries: object) -> Path:
    """Write weights of the small NAFNet."""
    arguments = {name: value for name, value in NETWORK.items() if name != "type"}
    torch.save({"params": ARCHS.get("NAFNet")(**arguments).state_dict(), **entries}, path)
    return path


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    """The rows that the command prints, by name."""
    assert info.main([*words, "--device", "cpu"]) == 0
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        name, _, text = line.partition("  ")
        rows[name] = text.strip()
    return rows


def test_a_file_shows_its_network_cost_and_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = weights(tmp_path / "some.pth")
    rows = printed(capsys, str(file), "--size", "40x24")
    assert rows["architecture"].startswith("NAFNet {img_channel: 3, width: 4")
    assert rows["parameters"] == "1,687"
    assert "at 24 x 40" in rows["multiply-adds"]
    assert rows["entry"] == "params"
    assert rows["file"] == f"{file}, {file.stat().st_size:,} bytes"
    assert "for 24 x 40, median of 5" in rows["time"]
    assert rows["images"] == "3 channels, scale 1"
    assert "threads" in rows["device"]


def test_a_run_shows_its_training_and_last_scores(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    Trainer(world.options(sam=True), resume=False).run()
    capsys.readouterr()
    run = world.root / "experiments" / "small"
    rows = printed(capsys, str(run))
    assert rows["iterations"] == "8"
    assert rows["weights of"] == "iteration 8"
    assert rows["seed"] == "0"
    assert rows["entry"] == "params_ema"
    assert "PSNRLoss" in rows["losses"]
    assert "spd SPD (distillation from the refiner)" in rows["losses"]
    assert (
        rows["data train"].startswith("GaussianDenoisingDataset, crops of 24, gaussian")
        or "crops of 24" in (rows["data train"])
    )
    table = read_csv(run / "validation.csv")
    values = []
    for row in table.rows:
        if row.cells["iter"] == "8" and row.cells["stage"] == "restored":
            values.append(float(row.cells["psnr"] or "nan"))
    assert f"psnr {sum(values) / len(values):.4f}" in rows["scores small_val"]
    assert "psnr of the refiner" in rows["scores small_val"]


def test_the_log_of_a_training_begins_with_the_same_figures(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    Trainer(world.options(), resume=False).run()
    log = capsys.readouterr().out
    run = world.root / "experiments" / "small"
    values = json_of(capsys, str(run))
    line = f"Network NAFNet: {values['parameters']:,} parameters, {values['multiply_adds'] / 1e9:#.4g} G multiply-adds"
    assert line in log


def json_of(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert info.main([*words, "--device", "cpu", "--json"]) == 0
    out = capsys.readouterr().out
    return json.loads(out[out.index("{\n") :])


def test_an_earlier_checkpoint_has_the_scores_of_its_iteration(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    Trainer(world.options(), resume=False).run()
    models = world.root / "experiments" / "small" / "models"
    capsys.readouterr()
    early, late = json_of(capsys, str(models / "net_g_4.pth")), json_of(capsys, str(models / "net_g_8.pth"))
    assert early["validation"]["iteration"] == 4
    assert late["validation"]["iteration"] == 8
    assert early["iteration"] == 4
    assert early["training"]["iterations"] == "8"


def test_an_option_file_without_weights_describes_the_initial_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "options.yml"
    file.write_text(yaml.safe_dump({"name": "plain", "network_g": NETWORK}), encoding="utf-8")
    values = json_of(capsys, str(file))
    assert values["parameters"] == 1687
    assert values["file"] is None
    assert values["notes"] == ["no weights: the network has its initial ones"]


@pytest.mark.parametrize("text", ["40", "0x3", "1280*720", "x", "-1x2"])
def test_a_size_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        info.parser().parse_args(["some.pth", f"--size={text}"])
    assert "1280x720" in capsys.readouterr().err


def test_what_is_no_network_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder of a run"):
        info.main([str(tmp_path)])
    with pytest.raises(UserError, match="NAFNet-SIDD-width32"):
        info.main(["NAFNet-SIDD-width33"])


def test_a_log_with_a_torn_line_and_infinite_values_is_read(tmp_path: Path) -> None:
    lines = [
        '{"iter": 4, "metrics/a/b/psnr": 30.5}',
        '{"iter": 8, "metrics/a/b/psnr": "inf"}',
        '{"iter": 9, "metrics/a',
        '["metrics/"]',
        '{"iter": 10, "metrics/a/psnr": null}',
        '{"iter": Infinity, "metrics/a/psnr": 1}',
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    scores = validations(tmp_path / "log.jsonl")
    assert [score.iteration for score in scores] == [4, 8]
    assert scores[0].sets == {"a/b": {"psnr": 30.5}}
    assert scores[1].sets["a/b"]["psnr"] == float("inf")


def test_weights_outside_a_run_have_no_record(tmp_path: Path) -> None:
    assert record_of(weights(tmp_path / "net_g_7.pth")) is None
    assert iteration_in(Path("net_g_7.pth").stem) == 7
    assert iteration_in(Path("net_g_latest.pth").stem) is None
    assert iteration_in("net_g_ema_7") == 7
    assert iteration_in("net_g_40000_average_of_5") is None  # of five iterations


def test_an_option_file_of_a_run_that_cannot_be_read_is_named(world: World) -> None:
    folder = world.root / "experiments" / "broken" / "models"
    folder.mkdir(parents=True)
    file = weights(folder / "net_g_2.pth")
    (folder.parent / "options.yml").write_text("name: [", encoding="utf-8")
    record = record_of(file)
    assert record is not None
    assert record.options is None
    assert "options.yml" in record.problem


def test_the_lines_on_a_training_name_no_folder_of_this_machine(world: World) -> None:
    assert str(world.root) not in " ".join(training_of(world.options(sam=True)).values())
