"""Curves of runs in a terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sam4ir.cli.watch import main
from sam4ir.engine.watch import RunCurves, charts, chosen_tags, digits_of, drawing, smoothed
from sam4ir.errors import UserError


def written(folder: Path, first: int, last: int, mode: str = "a") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.jsonl").open(mode) as file:
        for iteration in range(first, last + 1):
            file.write(json.dumps({"iter": iteration, "l_pix": 1 / iteration, "psnr": "nan"}) + "\n")
            if iteration % 10 == 0:
                file.write(json.dumps({"iter": iteration, "metrics/set5/psnr": 20 + iteration / 10}) + "\n")
    return folder


def test_curves_grow_with_the_file(tmp_path: Path) -> None:
    run = RunCurves(written(tmp_path / "run", 1, 10))
    run.read()
    assert run.curves["metrics/set5/psnr"] == [(10, 21.0)]
    assert "psnr" not in run.curves  # NaN is a text
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"iter": 11, "l_pix": 0.5')
    run.read()
    assert run.last == 10  # half a line
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write("}\n")
    run.read()
    assert run.curves["l_pix"][-1] == (11, 0.5)


def test_a_resumed_run_has_each_point_once(tmp_path: Path) -> None:
    run = RunCurves(written(tmp_path / "run", 1, 20))
    run.read()
    written(tmp_path / "run", 1, 15, mode="w")  # a resume cuts the file
    run.read()
    written(tmp_path / "run", 16, 30)
    run.read()
    assert [point[0] for point in run.curves["l_pix"]] == list(range(1, 31))
    appended = RunCurves(written(tmp_path / "other", 1, 20))
    appended.read()
    written(tmp_path / "other", 15, 25)  # longer at once, so that it does not look cut
    appended.read()
    assert [point[0] for point in appended.curves["l_pix"]] == list(range(1, 26))


def test_the_loss_and_the_first_score_are_drawn_unless_others_are_asked_for(tmp_path: Path) -> None:
    run = RunCurves(written(tmp_path / "run", 1, 20))
    run.read()
    run.curves["metrics/set5/psnr_refiner"] = [(10, 1.0)]
    assert chosen_tags([run], []) == ["l_pix", "metrics/set5/psnr"]
    assert chosen_tags([run], ["psnr"]) == ["metrics/set5/psnr", "metrics/set5/psnr_refiner"]
    with pytest.raises(UserError, match=r"--show ssim: no curve .* l_pix"):
        chosen_tags([run], ["ssim"])


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_chart_fits_its_terminal_and_rises_where_the_curve_does(width: int) -> None:
    lines = drawing("psnr", {"run": [(i, float(i)) for i in range(100)]}, width, 20, colours=False)
    assert len(lines) <= 20
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if re.search("[\u2801-\u28ff]", line) and "run:" not in line]
    columns = [re.search("[\u2801-\u28ff]", row).start() for row in rows]
    assert columns == sorted(columns, reverse=True)
    assert columns[0] > columns[-1] + width // 3
    assert "run: 99 at 99" in lines[-1]


def test_charts_of_odd_curves_are_drawn() -> None:
    for points in ([(1, 5.0)], [(1, 5.0), (2, 5.0)], [(1, -1e30), (2, 1e30)], [(7, 1e-9), (7, 2e-9)]):
        assert len(drawing("x", {"run": points, "empty": []}, 60, 12, colours=True)) > 5
    assert drawing("x", {"run": []}, 60, 12, colours=False) == ["x: nothing yet"]


def test_numbers_that_no_chart_can_show_are_left_out(tmp_path: Path) -> None:
    values = ["1e400", "1" + 400 * "0", "NaN", "1e308", "-1e308", "2"]
    lines = [f'{{"iter": {number}, "l_pix": {value}}}' for number, value in enumerate(values)]
    lines += [f'{{"iter": {iteration}, "l_pix": 7}}' for iteration in ("1e400", "1" + 400 * "0")]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    run = RunCurves(tmp_path)
    run.read()
    assert run.curves == {"l_pix": [(5, 2.0)]}
    assert drawing("x", {"a": [(1, 0.0), (2, 5e-324)]}, 60, 12, colours=False)


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = [RunCurves(written(tmp_path / disk / "rain", 1, 20)) for disk in ("a", "b")]
    for run in runs:
        run.read()
    text = charts(runs, ["l_pix"], 200, 40, False)
    assert f"{tmp_path}/a/rain: 0.05" in text
    assert f"{tmp_path}/b/rain: 0.05" in text


def test_a_name_in_a_log_commands_no_terminal(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"iter": 1, "l_\\u001b[2J": 1}\n')
    run = RunCurves(tmp_path)
    run.read()
    assert "l_?[2J" in charts([run], [], 80, 20, False)


@pytest.mark.parametrize("every", ["nan", "inf", "0", "x"])
def test_a_time_that_nobody_can_wait_is_refused(every: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main([str(written(tmp_path, 1, 2)), "--every", every])


def test_many_points_are_means() -> None:
    points = smoothed([(i, float(i % 2)) for i in range(10_000)], 50)
    assert len(points) == 50
    assert all(abs(value - 0.5) < 0.01 for _, value in points)


def test_two_runs_share_their_charts(tmp_path: Path) -> None:
    runs = [RunCurves(written(tmp_path / name, 1, 20)) for name in ("plain", "sam4ir")]
    for run in runs:
        run.read()
    text = charts(runs, [], 100, 40, False)
    assert text.count("plain:") == text.count("sam4ir:") == 2
    assert "no point yet" in charts([RunCurves(tmp_path / "plain")], [], 100, 40, False)


def test_the_command_draws_once_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(tmp_path / "run", 1, 20)
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "metrics/set5/psnr" in out
    assert "\x1b" not in out
    with pytest.raises(UserError, match=r"none: is no folder of a run"):
        main([str(tmp_path / "none")])


def test_the_numbers_of_an_axis_differ() -> None:
    assert digits_of([26.702, 26.704, 26.706]) == 5
    assert digits_of([0.1, 0.2]) == 4
    assert digits_of([1e6 + 1e-3, 1e6]) == 7
    text = "\n".join(drawing("x", {"a": [(0, 26.7042), (1, 26.7115)]}, 60, 14, colours=False))
    numbers = [line.split()[0] for line in text.splitlines()[1:10] if line[:9].strip()]
    assert len(numbers) == len(set(numbers)) > 2
