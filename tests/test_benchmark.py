"""scripts/benchmark.py and the protocol behind it: what counts, what may be claimed, and a quick run of everything."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sam4ir.benchmarks import reference_forms
from sam4ir.benchmarks.timing import (
    Agreement,
    Aim,
    Contest,
    Form,
    Plan,
    Result,
    Times,
    measure,
    quartiles,
    relative_error,
)
from sam4ir.cli import benchmark as script
from sam4ir.registry import ARCHS

ROOT = Path(__file__).resolve().parents[1]

CPU = torch.device("cpu")


def nothing() -> None:
    """Does no work."""


def result(
    slow: list[float], fast: list[float], again: list[float], cost: bool = False, device: str = "cpu", **form: Any
) -> Result:
    """The result of two forms from their CPU seconds a round; seconds of the clock are those of the slow form."""
    contest = Contest("work", {}, [Form("slow", nothing), Form("fast", nothing, **form)], "fast", cost)
    times = {name: Times(cpu, slow) for name, cpu in (("slow", slow), ("fast", fast), ("fast (again)", again))}
    return Result(contest, Plan(len(slow)), times, torch.device(device), 0.0)


def test_ratios_are_paired_so_that_a_slow_minute_of_the_machine_cancels():
    steady = result([2.0] * 5, [1.0] * 5, [1.0] * 5)
    restless = result([2.0, 20.0, 3.0, 2.0, 8.0], [1.0, 10.0, 1.5, 1.0, 4.0], [1.0, 10.0, 1.5, 1.0, 4.0])
    assert steady.ratio("fast") == restless.ratio("fast") == (2, 2, 2)


@pytest.mark.parametrize(("again", "counts"), [(1.0, True), (1.04, True), (0.94, False), (1.06, False)])
def test_nothing_counts_where_the_control_leaves_its_limits(again, counts):
    outcome = result([2.0] * 3, [1.0] * 3, [1 / again] * 3, aim=Aim(1.5))
    assert outcome.calm is counts
    assert outcome.counts(outcome.contest.forms[1]) is counts
    assert outcome.met(outcome.contest.forms[1]) is (True if counts else None)
    assert ("DOES NOT COUNT" in outcome.table()) is not counts


def test_a_form_that_does_not_agree_does_not_count():
    outcome = result([2.0] * 3, [1.0] * 3, [1.0] * 3, agreement={"outputs": Agreement(2e-3, 1e-3)}, aim=Aim(1.5))
    assert outcome.calm
    assert outcome.met(outcome.contest.forms[1]) is None
    assert "TOO FAR" in outcome.table()


def test_the_quartile_on_the_unfavourable_side_is_claimed():
    slow, fast = [1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5  # quartiles 2, 3, 4
    for aim, met in ((2.0, True), (2.1, False)):
        speed = result(slow, fast, fast, aim=Aim(aim))
        assert speed.met(speed.contest.forms[1]) is met
    for aim, met in ((4.0, True), (3.9, False)):
        price = result(fast, slow, slow, cost=True, aim=Aim(aim, cost=True))
        assert price.met(price.contest.forms[1]) is met


def test_the_clock_decides_where_an_accelerator_does_the_work():
    assert result([2.0] * 3, [1.0] * 3, [1.0] * 3, device="cuda").ratio("fast").median == 1.0  # clock: all alike


def test_quartiles_of_nine_are_the_third_fifth_and_seventh():
    assert quartiles([9, 1, 8, 2, 7, 3, 6, 4, 5]) == (3, 5, 7)


def test_every_form_runs_once_a_round_in_turning_order():
    ran: list[str] = []
    forms = [Form(name, lambda name=name: ran.append(name)) for name in ("a", "b", "c")]
    outcome = measure(Contest("work", {}, forms, "a"), Plan(rounds=3, warmup=1), CPU)
    assert "".join(ran) == "acba" + "abca" + "acba" + "abca"
    assert {name: len(times.cpu) for name, times in outcome.times.items()} == {"a": 3, "b": 3, "c": 3, "a (again)": 3}


def test_times_are_those_of_one_repetition():
    def work() -> None:
        sum(range(100_000))

    forms = [Form("one", work), Form("ten", lambda: [work() for _ in range(10)], repeat=10)]
    outcome = measure(Contest("work", {}, forms, "one"), Plan(rounds=5, warmup=1), CPU)
    assert 0.3 < outcome.ratio("ten").median < 3


@pytest.mark.parametrize(("rounds", "warmup"), [(1, 2), (9, -1)])
def test_too_few_rounds_are_refused(rounds, warmup):
    with pytest.raises(ValueError, match=f"rounds {rounds}"):
        Plan(rounds, warmup)


def test_two_forms_of_one_name_are_refused():
    with pytest.raises(ValueError, match="one name"):
        measure(Contest("work", {}, [Form("a", nothing), Form("a", nothing)], "a"), Plan(2, 0), CPU)


def test_relative_error_is_over_all_tensors_together():
    actual, expected = [torch.tensor([1.0, 2.5]), torch.tensor([4.0])], [torch.tensor([1.0, 2.0]), torch.tensor([4.0])]
    assert relative_error(actual, expected) == pytest.approx(0.5 / 4)
    assert relative_error(actual, expected, euclidean=True) == pytest.approx(0.5 / 21**0.5)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a quick run of everything wrote."""
    file = tmp_path_factory.mktemp("benchmark") / "report.json"
    assert script.main(["all", "--quick", "--reference_bf16", "--json", str(file)]) == 0
    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return report


@pytest.mark.slow
def test_a_quick_run_covers_every_contest_and_all_forms_agree(report):
    names = [contest["contest"] for contest in report["contests"]]
    assert names == [
        "NAFNet training step",
        "HINet training step",
        "Restormer training step",
        "SAM4IR step of NAFNet",
        "NAFNet inference",
        "HINet inference",
        "Restormer inference",
        "loading one sample of a pair",
        "masks of one patch",
        "SPE of an image",
        "SPE of an image",
        "SPE of one patch",
    ]
    for contest in report["contests"]:
        for form in contest["forms"]:
            for measured in form["agreement"].values():
                assert measured["value"] <= measured["limit"], (contest["contest"], form["form"])
    steps = report["contests"][0]["forms"]
    assert [form["form"] for form in steps] == ["reference fp32", "ours fp32", "ours bf16", "reference bf16"]
    assert all(set(form["agreement"]) == {"outputs", "gradients"} for form in steps[1:])


def test_bookkeeping_is_told_by_step(tmp_path, capsys):
    file = tmp_path / "report.json"
    assert script.main(["bookkeeping", "--quick", "--json", str(file)]) == 0
    report = json.loads(file.read_text(encoding="utf-8"))["bookkeeping"]
    assert report["keys"] == 300
    assert 0 < report["asking whether a key is there"] < report["whole run, put and fsync included"]
    assert "asking whether a key is there" in capsys.readouterr().out


@pytest.mark.slow
def test_the_report_holds_raw_times_and_what_they_depend_on(report):
    assert {"packages", "cpu", "cpu_flags", "threads", "load", "device"} <= set(report["environment"])
    assert report["environment"]["packages"]["torch"] == torch.__version__.split("+")[0]
    for contest in report["contests"]:
        assert {"median", "counts"} <= set(contest["control"])
        for times in contest["seconds"].values():
            assert len(times["cpu"]) == len(times["wall"]) == contest["rounds"] == 2
            assert min(times["wall"]) > 0


def test_a_claim_needs_nine_rounds_and_a_mistake_is_one_message(capsys):
    assert script.parser().parse_args(["train"]).rounds == 9
    with pytest.raises(SystemExit):
        script.parser().parse_args(["train", "--network", "NafNet"])
    assert "invalid choice" in capsys.readouterr().err


def test_reference_forms_are_no_networks_of_the_product():
    assert not {cls.__name__ for cls in reference_forms.NETWORKS.values()} & set(ARCHS.names())
    for file in (ROOT / "sam4ir").rglob("*.py"):
        if "benchmarks" not in file.parts:
            assert not re.search(r"import.*reference_forms", file.read_text(encoding="utf-8")), file
