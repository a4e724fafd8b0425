"""scripts/compare.py: pairing, statistics and refusals."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from sam4ir.cli import compare as script
from sam4ir.engine.evaluate.compare import CompareChoice, CompareError, compare, compare_seeds, extremes
from sam4ir.engine.evaluate.metric import Metric
from sam4ir.engine.evaluate.report import Score
from sam4ir.engine.evaluate.result_folder import write_results
from sam4ir.engine.evaluate.results import Result, ResultError, read_result, read_results
from sam4ir.engine.evaluate.statistics import bootstrap_interval, paired, t_interval
from sam4ir.engine.evaluate.testbed import Scores
from sam4ir.metrics.psnr import psnr

ROOT = Path(__file__).parents[3]
INF, NAN = math.inf, math.nan
PSNR = {"psnr": "psnr on 8-bit images, crop_border 0"}


def result(name: str, values: dict[str, float], *, dataset: str = "set", protocols=PSNR, inputs=None) -> Result:
    stages = {"restored": {image: {"psnr": value} for image, value in values.items()}}
    if inputs:
        stages["input"] = {image: {"psnr": value} for image, value in inputs.items()}
    return Result(name, protocols, {dataset: stages})


def numbered(*values: float) -> dict[str, float]:
    return {f"i{n}": value for n, value in enumerate(values)}


def folder(path: Path, images: dict, protocols: dict | None = None) -> Path:
    path.mkdir(parents=True)
    summary = {"protocols": protocols or PSNR, "mean": {}, "images": images}
    (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return path


def scored(**values: float | str) -> dict:
    return {"set": {image: {"restored": {"psnr": value}} for image, value in values.items()}}


# statistics


def test_statistics_of_four_pairs_by_hand():
    """d = 1, 2, 3, -2: mean 1, variance 14/3, standard error sqrt(14/12), t(3) quantile 3.182446."""
    s = paired([10, 20, 30, 40], [11, 22, 33, 38])
    assert (s.pairs, s.finite, s.mean_a, s.mean_b, s.difference) == (4, 4, 25, 26, 1)
    half = 3.1824463052842624 * math.sqrt(14 / 12)
    assert s.t == pytest.approx((1 - half, 1 + half), abs=1e-9)
    assert (s.better, s.worse, s.equal) == (3, 1, 0)
    assert s.sign_p == pytest.approx(2 * (1 + 4) / 16)  # two-sided: 3 or more, 1 or fewer of 4 coins
    assert -2 <= s.bootstrap[0] < 1 < s.bootstrap[1] <= 3


def test_wilcoxon_p_of_five_gains_by_hand():
    """All five ranks positive: two of the 32 sign patterns are as extreme."""
    s = paired([0, 0, 0, 0, 0], [1, 2, 3, 4, 5])
    assert s.wilcoxon_p == pytest.approx(2 / 32)
    assert s.sign_p == pytest.approx(2 / 32)


def test_statistics_turn_round_with_the_sides():
    random = np.random.default_rng(0)
    a, b = random.normal(30, 2, 40), random.normal(30.1, 2, 40)
    forth, back = paired(a, b), paired(b, a)
    assert back.difference == pytest.approx(-forth.difference)
    assert back.t == pytest.approx((-forth.t[1], -forth.t[0]))
    assert (back.better, back.worse) == (forth.worse, forth.better)
    assert back.wilcoxon_p == pytest.approx(forth.wilcoxon_p)
    assert back.sign_p == pytest.approx(forth.sign_p)


def test_less_is_better_turns_the_counts_and_nothing_else():
    up, down = paired([1, 2, 3], [2, 3, 1]), paired([1, 2, 3], [2, 3, 1], lower_is_better=True)
    assert (up.better, up.worse) == (2, 1) == (down.worse, down.better)
    assert (up.difference, up.t, up.wilcoxon_p, up.sign_p) == (down.difference, down.t, down.wilcoxon_p, down.sign_p)


def test_the_same_result_twice_is_no_difference():
    s = paired([30, 31, 29.5], [30, 31, 29.5])
    assert (s.difference, s.t, s.bootstrap) == (0, (0, 0), (0, 0))
    assert (s.better, s.worse, s.equal, s.wilcoxon_p, s.sign_p) == (0, 0, 3, 1, 1)


def test_what_rounding_of_sums_moves_is_equal():
    s = paired([30, 31], [30 + 1e-12, 31 - 1e-12])
    assert (s.better, s.worse, s.equal, s.wilcoxon_p, s.sign_p) == (0, 0, 2, 1, 1)


def test_infinite_values_count_as_better_or_worse_and_enter_no_mean():
    s = paired([30, INF, INF, 32, INF], [31, INF, 40, INF, 35])
    assert (s.pairs, s.finite, s.difference, s.mean_a, s.mean_b) == (5, 1, 1, 30, 31)
    assert (s.better, s.worse, s.equal) == (2, 2, 1)
    assert (s.infinite_a, s.infinite_b, s.nan) == (3, 2, 0)


def test_nan_counts_nowhere_but_as_nan():
    s = paired([30, NAN, 32, NAN], [31, 35, NAN, NAN])
    assert (s.pairs, s.finite, s.difference, s.nan) == (4, 1, 1, 3)
    assert (s.better, s.worse, s.equal) == (1, 0, 0)


@pytest.mark.parametrize(("a", "b"), [([30.0], [31.0]), ([INF, 30], [INF, 31])])
def test_one_pair_has_a_difference_and_no_interval(a, b):
    s = paired(a, b)
    assert s.difference == 1
    assert all(math.isnan(x) for x in (*s.t, *s.bootstrap))


def test_no_finite_pair_has_no_difference():
    s = paired([INF, NAN], [INF, 3])
    assert math.isnan(s.difference)
    assert math.isnan(s.wilcoxon_p)
    assert s.sign_p == 1


def test_bootstrap_follows_its_definition_and_is_the_same_each_time():
    """Means of four draws from 0, 0, 0, 1 are binomial: P(0) = 0.316, P(<= 2/4) = 0.949, P(<= 3/4) = 0.996."""
    d = np.array([0.0, 0.0, 0.0, 1.0])
    assert bootstrap_interval(d) == (0.0, 0.75)
    d = np.random.default_rng(1).normal(0.1, 1, 37)
    assert bootstrap_interval(d) == bootstrap_interval(d)
    assert bootstrap_interval(d, seed=1) != bootstrap_interval(d)


def test_bootstrap_of_many_images_is_drawn_in_parts_with_all_resamples():
    d = np.random.default_rng(2).normal(0, 1, 3000)
    low, high = bootstrap_interval(d)
    assert (low, high) == pytest.approx(t_interval(d), abs=0.004)


@pytest.mark.parametrize(
    ("draw", "interval", "pairs", "least", "most"),
    [
        ("normal", t_interval, 5, 0.93, 0.97),
        ("normal", t_interval, 60, 0.93, 0.97),
        ("exponential", t_interval, 60, 0.91, 0.97),
        ("normal", lambda d: bootstrap_interval(d, resamples=400), 60, 0.91, 0.97),
        ("exponential", lambda d: bootstrap_interval(d, resamples=400), 60, 0.89, 0.97),
        ("normal", lambda d: bootstrap_interval(d, resamples=400), 5, 0.70, 0.90),  # too narrow, as documented
    ],
)
def test_intervals_hold_the_true_difference_as_often_as_they_say(draw, interval, pairs, least, most):
    random = np.random.default_rng(3)
    sample = {"normal": lambda: random.normal(0.1, 1, pairs), "exponential": lambda: random.exponential(0.1, pairs)}
    bounds = [interval(sample[draw]()) for _ in range(1000)]
    assert least <= np.mean([low <= 0.1 <= high for low, high in bounds]) <= most


# pairing and refusals


def test_images_are_paired_by_name_not_by_order():
    a = result("a", {"x": 30, "y": 20})
    b = result("b", {"y": 21, "x": 31})
    (c,), notes = compare([a, b], CompareChoice())
    assert (c.units, c.a, c.b) == (("x", "y"), (30, 20), (31, 21))
    assert (c.dataset, c.output, c.metric, c.protocol) == ("set", "restored", "psnr", PSNR["psnr"])
    assert notes == []


def test_data_sets_are_compared_apart_and_every_result_with_the_first():
    def two(name: str, x: float, y: float) -> Result:
        return Result(name, PSNR, {d: {"restored": {"i": {"psnr": v}}} for d, v in (("one", x), ("two", y))})

    found, _ = compare([two("a", 30, 20), two("b", 31, 22), two("c", 33, 23)], CompareChoice())
    differences = {(c.dataset, c.baseline, c.result): c.statistics.difference for c in found}
    assert differences == {("one", "a", "b"): 1, ("one", "a", "c"): 3, ("two", "a", "b"): 2, ("two", "a", "c"): 3}


def test_different_definitions_of_a_metric_are_refused_with_both_printed():
    a = result("a", numbered(30), protocols={"psnr": "psnr on 8-bit images, crop_border 0"})
    b = result("b", numbered(31), protocols={"psnr": "psnr_y on 8-bit images, crop_border 0"})
    with pytest.raises(CompareError) as error:
        compare([a, b], CompareChoice())
    assert "a: psnr on 8-bit images, crop_border 0" in str(error.value)
    assert "b: psnr_y on 8-bit images, crop_border 0" in str(error.value)


def test_another_metric_of_one_definition_can_be_chosen():
    def both(name: str, ssim: str) -> Result:
        row = {"psnr": 30.0, "ssim": 0.8}
        return Result(name, {**PSNR, "ssim": ssim}, {"set": {"restored": {"i": row}}})

    with pytest.raises(CompareError, match="metric ssim"):
        compare([both("a", "ssim"), both("b", "ssim3d")], CompareChoice())
    (c,), _ = compare([both("a", "ssim"), both("b", "ssim3d")], CompareChoice(metrics=["psnr"]))
    assert c.metric == "psnr"


def test_missing_images_are_listed_and_an_error():
    a, b = result("a", numbered(30, 31, 32)), result("b", {"i1": 31, "i9": 3})
    with pytest.raises(CompareError) as error:
        compare([a, b], CompareChoice())
    assert "a: lacks 1 of 4: set/i9" in str(error.value)
    assert "b: lacks 2 of 4: set/i0, set/i2" in str(error.value)
    assert "--common" in str(error.value)


def test_common_compares_what_all_have_and_says_so():
    results = [result("a", numbered(30, 31, 32)), result("b", numbered(31, 32)), result("c", {"i1": 35, "i2": 36})]
    found, notes = compare(results, CompareChoice(common=True))
    assert [c.units for c in found] == [("i1",), ("i1",)]
    assert [c.statistics.difference for c in found] == [1, 4]
    assert notes == ["b: lacks 1 of 3: set/i2", "c: lacks 1 of 3: set/i0"]


def test_a_data_set_that_only_one_has_is_missing_images():
    a, b = result("a", numbered(30)), result("b", numbered(30), dataset="other")
    with pytest.raises(CompareError, match=r"a: lacks 1 of 2: other/i0\nb: lacks 1 of 2: set/i0"):
        compare([a, b], CompareChoice())
    with pytest.raises(CompareError, match="no image in common"):
        compare([a, b], CompareChoice(common=True))


def test_unknown_stages_and_metrics_are_named_with_the_known():
    a, b = result("a", numbered(30)), result("b", numbered(30))
    with pytest.raises(CompareError, match="a: has no stage 'refined'; it has restored"):
        compare([a, b], CompareChoice(output="refined"))
    with pytest.raises(CompareError, match="a: has no metric 'ssim'; it has psnr"):
        compare([a, b], CompareChoice(metrics=["ssim"]))
    with pytest.raises(CompareError, match="has no metric 'lpips'"):
        compare([a, b], CompareChoice(lower_is_better=["lpips"]))


def test_a_metric_of_one_result_is_left_out_with_a_note():
    a = result("a", numbered(30))
    b = Result("b", {**PSNR, "ssim": "ssim"}, {"set": {"restored": {"i0": {"psnr": 31.0, "ssim": 0.9}}}})
    found, notes = compare([a, b], CompareChoice())
    assert [c.metric for c in found] == ["psnr"]
    assert notes == ["metric ssim is not in all results and left out"]
    with pytest.raises(CompareError, match="no metric is in all"):
        compare([a, Result("c", {}, {"set": {"restored": {"i0": {"ssim": 0.9}}}})], CompareChoice())


def test_other_degraded_images_are_noticed():
    a = result("a", numbered(30, 31), inputs=numbered(20, 21))
    b = result("b", numbered(31, 32), inputs=numbered(20, 20.5))
    _, notes = compare([a, b], CompareChoice())
    assert notes == [
        "b: 1 of 2 degraded images are not those of a (stage input differs), so the two were not given the same task"
    ]
    assert compare([a, a], CompareChoice())[1] == []


def test_infinite_and_nan_images_are_told():
    a = result("a", numbered(30, INF, 31, 32))
    b = result("b", numbered(31, 40, NAN, 33))
    (c,), notes = compare([a, b], CompareChoice())
    assert c.statistics.difference == 1
    assert notes == [
        "set, psnr: a: 1 of 4 images infinite, left out of means and intervals",
        "set, psnr: b: NaN for i2, left out of everything",
    ]


def test_largest_differences_come_both_ways_and_in_order():
    a = result("a", numbered(30, 30, 30, 30, 30, INF))
    b = result("b", numbered(31, 29, 30, 33, 28, INF))
    (c,), _ = compare([a, b], CompareChoice())
    assert [unit for unit, _, _ in extremes(c, 9)] == ["i3", "i0", "i4", "i1"]
    assert [unit for unit, _, _ in extremes(c, 1)] == ["i3", "i4"]


def test_seeds_are_paired_run_by_run():
    """Per-run mean differences 1, 2 and 3: mean 2, half width 4.302653 / sqrt(3)."""
    a = [result(f"a{i}", numbered(30 + i, 20 + i)) for i in range(3)]
    b = [result(f"b{i}", numbered(30 + i + 1 + i, 20 + i + 1 + i)) for i in range(3)]
    (c,), _ = compare_seeds(a, b, CompareChoice())
    s = c.statistics
    assert c.units == ("a0 -> b0", "a1 -> b1", "a2 -> b2")
    assert (c.a, c.b) == ((25, 26, 27), (26, 28, 30))
    half = 4.302652729911275 / math.sqrt(3)
    assert (s.pairs, s.difference, s.better) == (3, 2, 3)
    assert s.t == pytest.approx((2 - half, 2 + half), abs=1e-9)


def test_seeds_need_as_many_runs_on_both_sides():
    runs = [result("a", numbered(30))]
    with pytest.raises(CompareError, match=r"--a names 1 results and --b 2"):
        compare_seeds(runs, runs * 2, CompareChoice())


# reading


def test_a_results_folder_of_test_py_is_read_back(tmp_path: Path):
    metric = Metric("psnr", "psnr", psnr, {})
    scores = [Score("set", "a/b", "restored", {"psnr": 0.1 + 0.2}), Score("set", "c", "restored", {"psnr": INF})]
    write_results(tmp_path / "run", Scores(scores, (), ()), {"psnr": metric})
    read = read_result(tmp_path / "run", "run")
    assert read.protocols == {"psnr": metric.protocol}
    assert read.values == {"set": {"restored": {"a/b": {"psnr": 0.1 + 0.2}, "c": {"psnr": INF}}}}
    assert read_result(tmp_path / "run" / "metrics.csv", "run") == read
    (tmp_path / "run" / "summary.json").unlink()
    alone = read_result(tmp_path / "run", "run")
    assert (alone.values, alone.protocols) == (read.values, {})


def test_a_csv_does_not_tell_definitions_and_that_is_said(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    path.write_text("dataset,stage,image,psnr\nset,restored,i0,31\n", encoding="utf-8")
    (c,), notes = compare([result("a", numbered(30)), read_result(path, "b")], CompareChoice())
    assert c.statistics.difference == 1
    assert notes == ["the definition of psnr is not known of b (a CSV does not hold it)"]


def test_a_validation_table_gives_its_last_iteration(tmp_path: Path):
    path = tmp_path / "validation.csv"
    path.write_text("iter,dataset,stage,image,psnr\n8,s,refined,i,30\n16,s,refined,i,31\n", encoding="utf-8")
    assert read_result(path, "run").values == {"s": {"refined": {"i": {"psnr": 31.0}}}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", '{"protocols": {}', "is no whole summary.json"),
        ("summary.json", "[]", "is no whole summary.json"),
        ("summary.json", '{"protocols": {}, "images": {"s": 3}}', "is no whole summary.json"),
        (
            "summary.json",
            '{"protocols": {}, "images": {"s": {"i": {"o": {"m": 1' + "0" * 400 + "}}}}}",
            "is no whole summ",
        ),
        ("summary.json", '{"protocols": {}, "images": {}, "lower_is_better": 3}', "is no whole summary.json"),
        ("summary.json", '{"protocols": {}, "images": {}}', "holds no scores"),
        ("metrics.csv", "dataset,image,psnr\n", "has no column stage"),
        ("metrics.csv", "", "has no column dataset, stage, image"),
        ("metrics.csv", "dataset,stage,image,psnr\ns,restored,i,high\n", "line 2: psnr: 'high' is no number"),
        ("metrics.csv", "dataset,stage,image,psnr\ns,restored,i,1_000\n", "line 2: psnr: '1_000' is no number"),
        ("metrics.csv", "dataset,stage,image,psnr\ns,restored,i,1e308\n", "line 2: psnr: '1e308' is no number"),
        ("metrics.csv", "dataset,stage,image,psnr\ns,restored,i\n", "line 2: psnr: None is no number"),
        ("metrics.csv", "dataset,stage,image,psnr\ns,r,i,1\ns,r,i,2\n", "line 3: s/i, r is there twice"),
        ("other.txt", "psnr", "expected a results/<name> folder"),
    ],
)
def test_files_that_are_no_results_are_named(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ResultError) as error:
        read_result(tmp_path / name, "run")
    assert message in str(error.value)
    assert name in str(error.value)


def test_samples_with_infinite_values_have_a_mean(tmp_path: Path):
    rows = ["a,0,inf", "a,1,30", "b,0,inf", "b,1,-inf", "c,0,29", "c,1,30"]
    path = tmp_path / "metrics.csv"
    path.write_text("\n".join(["dataset,stage,image,sample,psnr", *(f"s,restored,{row}" for row in rows)]), "utf-8")
    images = read_result(path, "run").values["s"]["restored"]
    assert images["a"]["psnr"] == math.inf
    assert math.isnan(images["b"]["psnr"])
    assert images["c"]["psnr"] == 29.5


def test_folders_without_results_are_named(tmp_path: Path):
    with pytest.raises(ResultError, match=r"neither summary.json nor metrics.csv"):
        read_result(tmp_path, "run")
    with pytest.raises(ResultError, match="no such file or folder"):
        read_result(tmp_path / "missing", "run")
    for name in ("net_g_20", "net_g_10"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ResultError, match="several weights; name one of its folders: net_g_10, net_g_20"):
        read_result(tmp_path, "run")


def test_results_of_one_name_are_told_apart_by_their_paths(tmp_path: Path):
    first, second = (folder(tmp_path / d / "same", scored(i=30)) for d in "ab")
    assert [r.name for r in read_results([first, second])] == [str(first), str(second)]
    assert [r.name for r in read_results([first, first])] == [str(first), f"{first} (2)"]
    other = folder(tmp_path / "other", scored(i=30))
    assert [r.name for r in read_results([first, other / "summary.json"])] == ["same", "other"]


# the command


def test_the_command_prints_and_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plain = folder(tmp_path / "plain", scored(x=30.0, y=20.0, z="inf"))
    sam = folder(tmp_path / "sam", scored(x=31.0, y=20.5, z=50.0))
    table, document = tmp_path / "out" / "t.csv", tmp_path / "out" / "t.json"
    assert script.main([str(plain), str(sam), "--csv", str(table), "--json", str(document)]) == 0
    out = capsys.readouterr().out
    assert "set, stage restored, baseline plain" in out
    assert "+0.75000" in out
    assert "psnr: psnr on 8-bit images, crop_border 0" in out
    assert "note: set, psnr: plain: 1 of 3 images infinite" in out
    assert "another seed" in out
    (row,) = csv.DictReader(table.open(encoding="utf-8", newline=""))
    assert (row["baseline"], row["result"], row["metric"]) == ("plain", "sam", "psnr")
    assert (float(row["difference"]), row["pairs"], row["averaged"]) == (0.75, "3", "2")
    half = 12.706204736432095 * 0.25  # t(1) quantile times the standard error of 0.5 and 1
    assert float(row["t_low"]) == pytest.approx(0.75 - half)
    (entry,) = json.loads(document.read_text(encoding="utf-8"))["comparisons"]
    assert entry["values"] == {"x": [30.0, 31.0], "y": [20.0, 20.5], "z": ["inf", 50.0]}
    assert entry["difference"] == 0.75


def test_the_command_compares_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a = [str(folder(tmp_path / f"a{i}", scored(x=30.0 + i))) for i in range(2)]
    b = [str(folder(tmp_path / f"b{i}", scored(x=31.0 + 2 * i))) for i in range(2)]
    assert script.main(["--a", *a, "--b", *b]) == 0
    out = capsys.readouterr().out
    assert "a1 -> b1" in out
    assert "intervals are over runs" in out


@pytest.mark.parametrize("arguments", [[], ["x"], ["x", "y", "--a", "z"], ["--a", "x"], ["x", "y", "--extremes", "-1"]])
def test_the_command_needs_two_sides(arguments: list[str]):
    with pytest.raises(SystemExit):
        script.main(arguments)
