"""Several weights of one network: what is scored, what is not scored again, tables and pictures."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import World
from engine.evaluate.test_compare import script
from engine.evaluate.test_evaluation import SmallFid, own_parts, sr_values  # noqa: F401

from sam4ir.config.load import load_options
from sam4ir.config.schema import Options
from sam4ir.engine.evaluate import score as scoring
from sam4ir.engine.evaluate.candidates import WeightsListError, candidates, checkpoints
from sam4ir.engine.evaluate.chart import COLOURS, PAPER, Line, chart, ticks
from sam4ir.engine.evaluate.compare import CompareChoice, compare, compare_seeds
from sam4ir.engine.evaluate.curves import picture_of, read_points
from sam4ir.engine.evaluate.published import PublishedError, dataset_of
from sam4ir.engine.evaluate.report import columns
from sam4ir.engine.evaluate.result_folder import ResultsExistError
from sam4ir.engine.evaluate.results import Result, read_result, read_results
from sam4ir.engine.evaluate.score import score_all, score_network, with_published, with_weights
from sam4ir.registry import METRICS
from sam4ir.utils.image import read_image

SETS = ["Set5", "Set14", "Urban100", "BSDS100", "Manga109", "General100", "DIV2K"]


def run_folder(world: World, shifts: dict[int, float]) -> Path:
    """A run whose checkpoints add something to each pixel: the more, the worse."""
    models = world.root / "experiments" / "run" / "models"
    models.mkdir(parents=True, exist_ok=True)
    for iteration, shift in shifts.items():
        torch.save({"params": {"shift": torch.tensor([shift])}}, models / f"net_g_{iteration}.pth")
    torch.save({"params": {"shift": torch.zeros(1)}}, models / "net_g_latest.pth")
    torch.save({"params": {"shift": torch.zeros(1)}}, models / "net_r_10.pth")
    return models.parent


@pytest.fixture
def options(world: World) -> Options:
    return load_options(world.write(sr_values(world)))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the weights that are scored, as they are."""
    names: list[str] = []
    score_one = scoring._score_one

    def noting(bed, candidate, folder, table) -> None:
        names.append(candidate.name)
        score_one(bed, candidate, folder, table)

    monkeypatch.setattr(scoring, "_score_one", noting)
    return names


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "curve.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_checkpoints_of_a_run_become_a_table_a_picture_each_and_results_that_can_be_compared(
    world: World, options: Options
) -> None:
    run = run_folder(world, {100: 0.0, 20: 0.1, 5: 0.2})
    text = score_all(options, checkpoints(run))
    folder = world.root / "results" / "sr"
    table = rows(folder)
    assert list(table[0]) == ["iter", "weights", "dataset", "stage", "metric", "value"]
    restored = [r for r in table if (r["stage"], r["metric"]) == ("restored", "psnr_y")]
    assert [(r["iter"], r["weights"]) for r in restored] == [(f"{i}", f"net_g_{i}") for i in (5, 20, 100)]
    values = [float(r["value"]) for r in restored]
    assert values == sorted(values)
    one = read_result(folder / "net_g_20", "x")
    mean = sum(row["psnr_y"] for row in one.values["Set5"]["restored"].values()) / 5
    assert values[1] == pytest.approx(mean)
    lines = [line.split() for line in text.splitlines()]
    assert next(line[:2] for line in lines if line[-1:] == ["*"]) == ["net_g_100", "restored"]
    assert sum(line[:1] == ["-"] for line in lines) == 1  # what is no network's stands there once
    assert (folder / "curve.txt").read_text(encoding="utf-8") in text
    for metric in ("psnr_y", "lr_psnr"):
        assert read_image(folder / f"curve_{metric}.png").shape[2] == 3


def test_a_run_that_was_stopped_goes_on_and_new_checkpoints_join(
    world: World, options: Options, scored: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_folder(world, {1: 0.2, 2: 0.1})
    score_all(options, checkpoints(run)[:1])
    assert scored == ["net_g_1"]
    run_folder(world, {3: 0.05})
    score_all(with_published(options, "SAM-DiffSR"), checkpoints(run))
    assert scored == ["net_g_1", "net_g_2", "net_g_3"]
    assert {r["iter"] for r in rows(world.root / "results" / "sr")} == {"1", "2", "3"}
    table = (world.root / "results" / "sr" / "curve.txt").read_text(encoding="utf-8").splitlines()
    assert ["SAM-DiffSR", "published", "-", "30.9900"] in [line.split() for line in table]
    assert any("another task" in line for line in table)
    before = (world.root / "results" / "sr" / "curve.csv").read_bytes()
    score_all(options, checkpoints(run))
    assert len(scored) == 3
    assert (world.root / "results" / "sr" / "curve.csv").read_bytes() == before
    score_all(options, checkpoints(run), overwrite=True)
    assert scored[3:] == ["net_g_1", "net_g_2", "net_g_3"]


def test_scores_of_another_file_or_other_options_are_not_mixed(
    world: World, options: Options, scored: list[str]
) -> None:
    run = run_folder(world, {1: 0.2, 2: 0.1})
    score_all(options, checkpoints(run))
    run_folder(world, {2: 0.3})
    with pytest.raises(ResultsExistError, match=r"net_g_2: holds scores of another file.*Add --overwrite"):
        score_all(options, checkpoints(run))
    other = load_options(world.write(sr_values(world)), ["val:metrics:lr_psnr:crop_border=1"])
    with pytest.raises(ResultsExistError, match="other options"):
        score_all(other, checkpoints(run))
    with pytest.raises(ResultsExistError, match="other options"):
        score_network(options)
    score_all(other, checkpoints(run)[:1], overwrite=True)
    assert {r["iter"] for r in rows(world.root / "results" / "sr")} == {"1"}  # the others were of other options


def test_weights_of_two_runs_are_told_apart_and_drawn_by_name(world: World, options: Options) -> None:
    first = run_folder(world, {7: 0.0}) / "models" / "net_g_7.pth"
    second = world.root / "other" / "net_g_7.pth"
    second.parent.mkdir()
    torch.save({"params": {"shift": torch.ones(1)}}, second)
    named = candidates([str(first), str(second)])
    assert [(c.name, c.iteration) for c in named] == [("models_net_g_7", 7), ("other_net_g_7", 7)]
    text = score_all(options, [str(first), str(second)])
    assert "models_net_g_7" in text
    assert [c.name for c in candidates([str(first)])] == ["net_g_7"]
    points = read_points(world.root / "results" / "sr")
    assert picture_of(points, "psnr_y", False).names == ["models_net_g_7", "other_net_g_7"]


def test_weights_whose_names_differ_by_their_suffix_keep_it(tmp_path: Path) -> None:
    for name in ("a.pth", "a.pt", "b.pth"):
        (tmp_path / name).write_bytes(b"weights")
    named = candidates([str(tmp_path / name) for name in ("a.pth", "a.pt", "b.pth")])
    assert [c.name for c in named] == ["a.pth", "a.pt", "b"]


def test_weights_that_are_not_there_are_named_before_anything_is_made(world: World, options: Options) -> None:
    (world.root / "empty").mkdir()
    with pytest.raises(WeightsListError, match=r"empty: holds no net_g_<iteration>\.pth"):
        checkpoints(world.root / "empty")
    good = str(world.root / "net.pth")
    with pytest.raises(WeightsListError, match=r"--weights .*gone\.pth: no such file"):
        score_all(options, [good, str(world.root / "gone.pth")])
    with pytest.raises(WeightsListError, match="names a file twice"):
        score_all(options, [good, good])
    assert not (world.root / "results").exists()


def test_one_of_weights_takes_the_place_of_the_files(world: World, options: Options) -> None:
    other = world.root / "other.pth"
    torch.save({"params": {"shift": torch.full((1,), 0.3)}}, other)
    plain, worse = score_network(options), score_network(with_weights(options, str(other)), overwrite=True)
    means = [float(next(line for line in t.splitlines() if " restored" in line).split()[-1]) for t in (plain, worse)]
    assert means[0] > means[1] + 5


def test_two_of_them_are_compared_with_what_is_better_and_the_value_of_the_whole_set(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS._entries, "small_fid", SmallFid)
    values = sr_values(world)
    values["val"]["metrics"]["fid"] = {"type": "small_fid"}
    score_all(load_options(world.write(values)), checkpoints(run_folder(world, {1: 0.2, 2: 0.0})))
    folders = [world.root / "results" / "sr" / f"net_g_{i}" for i in (1, 2)]
    comparisons, notes = compare(read_results(folders), CompareChoice())
    found = {c.metric: c for c in comparisons}
    assert not notes
    assert found["fid"].units == ("the whole set",)
    assert found["fid"].statistics.better == 1  # lower
    assert found["psnr_y"].statistics.better == 5
    assert found["fid"].a == (read_results(folders)[0].sets["Set5"]["restored"]["fid"],)
    first, second = read_results(folders)
    seeds = {c.metric: c for c in compare_seeds([first, first], [second, second], CompareChoice())[0]}
    assert seeds["fid"].a == found["fid"].a * 2
    assert script.main([str(f) for f in folders]) == 0
    out = capsys.readouterr().out
    assert "fid ↓" in out
    assert "psnr_y ↑" in out
    assert "fid, net_g_2: largest differences" not in out


def test_sets_of_other_images_are_no_pair(world: World) -> None:
    fid = {"s": {"restored": {"fid": 1.0}}}
    rows = [{"s": {"restored": {i: {"psnr": 30.0} for i in images}}} for images in ("ab", "abc")]
    results = [
        Result(n, {"psnr": "p", "fid": "f"}, v, fid, frozenset({"fid"})) for n, v in zip("xy", rows, strict=True)
    ]
    comparisons, notes = compare(results, CompareChoice(common=True))
    assert [c.metric for c in comparisons] == ["psnr"]
    assert any("fid: left out" in note for note in notes)


# published figures


def test_published_figures_stand_beside_ours_of_the_same_data_set_and_protocol(world: World) -> None:
    values = sr_values(world)
    values["val"] = {
        "published": "samdiffsr",
        "metrics": {"mine": {"type": "psnr_y"}, "border": {"type": "ssim_y", "crop_border": 4}},
    }
    text = score_network(load_options(world.write(values)))
    lines = text.splitlines()
    (row,) = [line.split() for line in lines if line.startswith("Set5") and "PSNR" in line]
    ours = next(line for line in lines if " restored" in line).split()
    assert row == ["Set5", "PSNR", ours[-1], "mine", "30.99", "-"]
    (row,) = [line.split() for line in lines if "SSIM" in line and line.startswith("Set5")]
    assert row == ["Set5", "SSIM", "-", "-", "0.8731", "-"]
    assert "without a metric of that protocol here: SSIM (ssim_y_rounded or ssim_y), FID (fid)" in text
    assert "scale is 2 here" in text
    assert "without border crop" in text
    assert (world.root / "results" / "sr" / "summary.txt").read_text(encoding="utf-8") in text


def test_other_data_sets_are_told_and_an_unknown_table_is_refused(world: World) -> None:
    values = sr_values(world)
    values["datasets"]["test_1"]["name"] = "mine"
    options = load_options(world.write(values))
    assert "no data set here has the name of one of Set5, Set14" in score_network(with_published(options, "SAM-DiffSR"))
    with pytest.raises(PublishedError, match="no table is called 'sam-difsr'; did you mean 'SAM-DiffSR'"):
        score_network(with_published(options, "sam-difsr"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *((name, name) for name in SETS),
        *((name.lower(), name) for name in SETS),
        ("set_5", "Set5"),
        ("Set5_x4", "Set5"),
        ("test_Set14", "Set14"),
        ("B100", "BSDS100"),
        ("BSD100", "BSDS100"),
        ("DIV2K_valid", "DIV2K"),
        ("div2k-val", "DIV2K"),
        ("Set50", None),
        ("small_val", None),
        ("test", None),
    ],
)
def test_data_sets_are_known_by_their_names_in_any_spelling(name: str, meant: str | None) -> None:
    assert dataset_of(name, SETS) == meant


# charts


@pytest.mark.parametrize(("low", "high"), [(0, 1), (24.31, 27.9), (0.0213, 0.0267), (5, 5), (0, 0), (-3, 400000)])
def test_ticks_are_round_and_enclose_the_values(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low + 1e-12
    assert found[-1] >= high - 1e-12
    assert 2 <= len(found) <= 9
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])
    digits = steps[0] / 10.0 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(digits - d) for d in (1, 2, 5, 10)) < 1e-6


def test_a_better_curve_lies_higher_and_each_has_its_colour() -> None:
    low = Line("low", [(0, 1.0), (100, 1.0)])
    high = Line("high", [(0, 2.0), (100, 2.0)])
    picture = chart("m", "iteration", [low, high])
    places = [np.argwhere((picture[:560] == colour).all(axis=-1)) for colour in COLOURS[:2]]
    assert all(len(p) > 500 for p in places)
    assert np.median(places[1][:, 0]) < np.median(places[0][:, 0])
    assert (picture[0, 0] == PAPER).all()


@pytest.mark.parametrize("points", [[(5.0, 3.0)], [(0.0, 1.0), (1.0, 1.0)]])
def test_one_point_and_equal_values_can_be_drawn(points: list[tuple[float, float]]) -> None:
    assert chart("m", "", [Line("a", points), Line("b", points, dashed=True)], ["one", "two"]).std() > 0


def test_columns_stay_aligned() -> None:
    assert len({line.index("b") for line in columns([["a", "b"], ["ccc", "b"]])[::2]}) == 1
