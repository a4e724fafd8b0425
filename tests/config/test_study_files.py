"""Study files: what they may say, and the message and line of what they may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sam4ir.config.load import OptionsError
from sam4ir.config.study import StudyOptions, filled, load_study, placeholders

VALUES: dict[str, Any] = {"name": "small", "base": "own/clean", "seeds": 3, "arms": {"plain": {}, "other": {}}}

TEXT = """\
name: small
base: own/clean
seeds: 3
shared:
  student: {set: {}}
  store:
    command: [masks, control, "{student}"]
    output: "{folder}/x.lmdb"
arms:
  plain: {}
  other:
    datasets:train:masks:store: "{store}"
comparisons:
  - {better: other, than: plain, matters: 0.1}
stop: {better: other, than: plain, least: 0.1, then: "nothing follows"}
"""


def problem_of(path: Path, text: str) -> tuple[str, int, str]:
    """The place, line and message of the one problem of a study file."""
    path.write_text(text, encoding="utf-8")
    with pytest.raises(OptionsError) as error:
        load_study(path)
    (problem,) = error.value.problems
    return ".".join(map(str, problem.path)), problem.line, problem.message


@pytest.mark.parametrize(
    ("before", "after", "place", "line", "message"),
    [
        ("better: other, than: plain, m", "better: othr, than: plain, m", "comparisons.0.better", 14, "'other'"),
        ("{better: other, than: plain, m", "{better: plain, than: plain, m", "comparisons.0", 14, "with itself"),
        ("stop: {better: other, than: plain", "stop: {better: plain, than: other", "stop", 15, "none of the"),
        ("matters: 0.1", "matters: 0", "comparisons.0.matters", 14, "more than 0"),
        ("matters: 0.1", "matter: 0.1", "comparisons.0.matters", 14, "missing"),
        ('"{store}"', '"{stor}"', "arms.other", 11, "{stor} is neither a"),
        ("{set: {}}", '{set: {a: "{store}"}}', "shared.student", 5, "student needs store needs student"),
        ("{set: {}}", '{set: {a: "{student}"}}', "shared.student", 5, "student needs student, which is a circle"),
        ("{set: {}}", "{base: own/clean}", "shared.student", 5, "give `set` for a training or `command`"),
        ('    output: "{folder}/x.lmdb"\n', "", "shared.store", 6, "`output` says what a command makes"),
        ('[masks, control, "{student}"]', "[study, run, a.yml]", "shared.store", 6, "may not be another study"),
        ("seeds: 3", "seeds: [3, 1, 3]", "seeds", 3, "3 is given twice"),
        ("seeds: 3", "seeds: []", "seeds", 3, "is empty"),
        ("seeds: 3", "seeds: 0", "seeds", 3, "at least 1"),
        ("seeds: 3", "control: nobody\nseeds: 3", "control", 3, "'nobody' is no arm; arms are plain, other"),
        ("seeds: 3", "seeds: 3\nalpha: 0.7", "alpha", 4, "less than 0.5"),
        ("seeds: 3", "seeds: 3\nbudget: equal", "budget", 4, "'equal_steps'"),
        ("seeds: 3", "seed: 3", "seeds", 1, "missing"),
        ("name: small", "name: a/b", "name", 1, "may not hold /"),
        ("  plain: {}", "  student: {}\n  plain: {}", "shared.student", 5, "is the name of an arm too"),
        ("  plain: {}", "  Plain: {}", "arms.Plain", 10, "small letters"),
        ("  plain: {}", "  seed: {}\n  plain: {}", "arms.seed", 10, "a placeholder of every study"),
        ("  plain: {}", "  a_s0: {}\n  plain: {}", "arms.a_s0", 10, "ends like the name of a run"),
        ("  plain: {}", "  nul: {}\n  plain: {}", "arms.nul", 10, "device"),
    ],
)  # fmt: skip
def test_a_message_names_the_key_and_its_line(
    before: str, after: str, place: str, line: int, message: str, tmp_path: Path
) -> None:
    text = TEXT.replace(before, after, 1)
    assert text != TEXT
    path = tmp_path / "study.yml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(OptionsError) as error:
        load_study(path)
    found = {".".join(map(str, problem.path)): problem for problem in error.value.problems}
    assert place in found, str(error.value)
    assert (found[place].line, message in found[place].message) == (line, True), str(error.value)


def test_the_text_itself_loads(tmp_path: Path) -> None:
    path = tmp_path / "study.yml"
    path.write_text(TEXT, encoding="utf-8")
    study = load_study(path)
    assert study.all_seeds == (0, 1, 2)
    assert study.control_arm == "plain"
    assert study.needs("other") == ("student", "store")
    assert study.needs("plain") == ()


def test_a_comparison_declared_in_both_directions_is_one_too_many(tmp_path: Path) -> None:
    more = "  - {better: plain, than: other, matters: 0.1}\nstop:"
    place, line, message = problem_of(tmp_path / "study.yml", TEXT.replace("stop:", more))
    assert (place, line) == ("comparisons.1", 15)
    assert "the other way round" in message


def test_what_is_no_file_or_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match=r"missing\.yml: 1 problem\n.*cannot be read"):
        load_study(tmp_path / "missing.yml")
    assert problem_of(tmp_path / "list.yml", "- 1\n")[2] == "does not hold `key: value` lines"
    assert problem_of(tmp_path / "twice.yml", f"{TEXT}name: small\n")[1] == 16


def test_seeds_may_be_a_list() -> None:
    assert StudyOptions.model_validate({**VALUES, "seeds": [5, 2]}).all_seeds == (5, 2)


def test_steps_that_need_each_other_twice_take_no_longer() -> None:
    """Each step names the one before twice: 2^40 ways lead to the first."""
    shared: dict[str, Any] = {"a0": {"command": ["masks"], "output": "x"}}
    for number in range(1, 40):
        before = f"{{a{number - 1}}}"
        shared[f"a{number}"] = {"command": ["masks", before, before], "output": f"{before}x"}
    study = StudyOptions.model_validate({**VALUES, "shared": shared, "arms": {"plain": {"name": "{a39}"}}})
    assert study.needs("plain") == tuple(f"a{number}" for number in range(40))


def test_placeholders_are_replaced_in_texts_alone() -> None:
    value = {"a": ["{x}/{y}", {"b": "{x}"}, 3, "{}_{Z}"], "{x}": None}
    assert placeholders(value) == ["x", "y", "x"]
    assert filled(value, {"x": "1"}) == {"a": ["1/{y}", {"b": "1"}, 3, "{}_{Z}"], "{x}": None}


def test_a_study_reads_back_from_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "study.yml"
    path.write_text(TEXT, encoding="utf-8")
    study = load_study(path)
    again = tmp_path / "again.yml"
    again.write_text(yaml.safe_dump(study.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    assert load_study(again) == study
