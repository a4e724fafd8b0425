"""Distillation terms by option file: short names, terms of one's own, their weights and their errors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import World
from engine.train.test_training import assert_same_run, interrupt_after, records, run
from torch import nn

from sam4ir.config.load import OptionsError, load_options
from sam4ir.distill.balance import TermWeight
from sam4ir.engine.train import terms as building
from sam4ir.engine.train.check import check
from sam4ir.engine.train.loop import Trainer
from sam4ir.engine.train.terms import build_terms
from sam4ir.models.sam_distill import Term

PLUGIN = '''
"""A term that compares low frequencies, outside of all regions alone."""

import torch.nn.functional as F
from torch import Tensor, nn

from sam4ir.distill.lesson import Lesson
from sam4ir.registry import TERMS


@TERMS.register()
class LowFrequencies(nn.Module):
    """L1 distance of the images shrunk by a factor.

    Args:
        factor: Pixels along a side that are averaged.
    """

    def __init__(self, factor: int = 4) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, target: Tensor, lesson: Lesson) -> Tensor:
        assert lesson.lq.shape == target.shape
        assert lesson.maps["regions"].shape == lesson.labels.shape
        outside = (lesson.labels == 0).unsqueeze(1)
        difference = F.avg_pool2d((lesson.student - target) * outside, self.factor)
        return difference.abs().mean()
'''


@pytest.fixture
def plugin(world: World) -> World:
    """The small world with a plugin that adds a term."""
    (world.root / "low_frequencies.py").write_text(PLUGIN, encoding="utf-8")
    return world


def values_with_terms(world: World, **terms: dict) -> dict:
    """Options of a SAM4IR run with SPD, SGR and further terms."""
    values = world.values(sam=True, plugins=["low_frequencies"])
    values["train"]["distill"]["terms"] = terms
    return values


def test_a_term_of_a_plugin_trains_is_logged_and_resumes(plugin: World) -> None:
    low = {"type": "LowFrequencies", "balance": 0.2, "factor": 2, "every": 2, "target": "gt"}
    trainers = {}
    for name in ("whole", "stopped"):
        path = plugin.write({**values_with_terms(plugin, low=low), "name": name}, f"{name}.yml")
        trainers[name] = Trainer(load_options(path), resume=False)
    trainers["whole"].run()
    interrupt_after(trainers["stopped"], 5)
    Trainer(load_options(plugin.root / "stopped.yml"), resume=True).run()
    whole, stopped = (trainers[name].paths.run for name in ("whole", "stopped"))
    assert_same_run(whole, stopped, 8)
    lines = records(whole)
    assert all(line["l_low"] > 0 for line in lines if "l_pix" in line and line["iter"] in (6, 8))
    assert not any("l_low" in line for line in lines if line["iter"] % 2 or line["iter"] <= 2)
    state = torch.load(whole / "training_states" / "8.state", weights_only=True)
    assert list(state["model"]) == ["spd", "sgr", "low"]
    assert state["model"]["low"]["batches"] > 0


def test_short_names_are_terms_like_others(world: World) -> None:
    """spd_opt and a term of type SPD called spd train the same network, bit for bit."""
    one = "train:distill:terms={spd: {type: SPD, balance: 0.3}}"
    short = run(world, True, "name=short", "train:sgr_opt=null")
    term = run(world, True, "name=term", "train:sgr_opt=null", "train:spd_opt=null", one)
    assert_same_run(short, term, 8)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"low": {"type": "LowFrequencies"}}, r"distill\.terms\.low: LowFrequencies has no usual weight"),
        ({"low": {"type": "LowFrequencies", "balance": 0.1, "factr": 2}}, r"low\.factr: .*did you mean 'factor'"),
        ({"low": {"type": "LowFrequency", "balance": 0.1}}, r"low\.type: no distillation term .*'LowFrequencies'"),
        ({"low": {"balance": 0.1}}, r"low\.type: is required"),
        ({"low": {"type": "SPD", "balance": 1, "loss_weight": 1}}, r"terms\.low: has loss_weight and balance"),
        ({"low": {"type": "SPD", "gate": "pixel"}}, r"terms\.low: has gate pixel with criterion l1"),
        ({"low": {"type": "SGR", "build_analyser": 1}}, r"build_analyser: is handed over by the program"),
        ({"spd": {"type": "SPD"}}, r"terms\.spd: and train\.spd_opt are the same term"),
        ({"refine": {"type": "SPD"}}, r"terms\.refine: is a name that the log gives to a loss"),
        ({"refine_low": {"type": "SPD"}}, r"terms\.refine_low: is a name that the log gives to a loss"),
        ({"low": {"type": "SPD", "every": 0}}, r"low\.every"),
        ({"low": {"type": ["SPD"]}}, r"low\.type: \['SPD'\]: expected text"),
        ({"low": {"type": {"SPD": 1}}}, r"low\.type: .*: expected text"),
    ],
)
def test_what_cannot_be_a_term_is_named(plugin: World, terms: dict, message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        load_options(plugin.write(values_with_terms(plugin, **terms)))


def test_a_term_of_an_unknown_type_is_one_problem(plugin: World) -> None:
    with pytest.raises(OptionsError) as caught:
        load_options(plugin.write(values_with_terms(plugin, low={"type": "LowFrequency"})))
    assert [problem.path for problem in caught.value.problems] == [("train", "distill", "terms", "low", "type")]


@pytest.mark.parametrize("key", ["spd", "sgr"])
def test_a_short_name_is_of_its_own_type(world: World, key: str) -> None:
    other = {"spd": "SGR", "sgr": "SPD"}[key]
    message = rf"{key}_opt\.type: is {other}, but {key}_opt is the term {key.upper()}"
    with pytest.raises(OptionsError, match=message):
        world.options(True, (f"train:{key}_opt={{type: {other}}}",))


@pytest.mark.parametrize("key", ["sgr_opt", "distill:terms:low"])
def test_an_unknown_type_is_one_problem(world: World, key: str) -> None:
    with pytest.raises(OptionsError, match="no distillation term is called 'L1Loss'") as caught:
        world.options(True, (f"train:{key}={{type: L1Loss}}",))
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("name", ["tone", "tone_style"])
def test_a_term_and_a_reconstruction_loss_have_different_names(plugin: World, name: str) -> None:
    values = values_with_terms(plugin, **{name: {"type": "SPD"}})
    values["train"]["losses"] = {"tone": {"type": "L1Loss"}}
    with pytest.raises(OptionsError, match=rf"terms\.{name}: is a name that the log gives to a loss"):
        load_options(plugin.write(values))


def test_a_plain_network_has_no_terms(plugin: World) -> None:
    values = plugin.values(plugins=["low_frequencies"])
    values["train"]["distill"] = {"terms": {"low": {"type": "LowFrequencies", "balance": 0.1}}}
    with pytest.raises(OptionsError, match=r"train\.distill: belongs to model_type SAM4IRModel"):
        load_options(plugin.write(values))


def test_a_saved_option_file_shows_the_defaults_of_a_term(world: World) -> None:
    term = load_options(world.write(world.values(sam=True))).train.terms["spd"][1]
    assert term.block == {"type": "SPD", "criterion": "l1", "gate": "region"}


def test_a_term_that_is_switched_off_is_not_built(world: World) -> None:
    options = world.options(True, ("train:sgr_opt={balance: 0, weights: no_such_file.pth}",))
    assert list(build_terms(options.train, torch.device("cpu"))) == ["spd"]


def one_term(monkeypatch: pytest.MonkeyPatch, loss: object, **keys: object) -> Term:
    """The term `x` of a training whose part is `loss`, built for the meta device."""
    values = {"off": False, "type": "SGR", "target": "gt", "every": 3, "loss_weight": None, "balance": None, "fade": 0}
    values |= keys
    terms = {"x": (("train", "distill", "terms", "x"), SimpleNamespace(**values))}
    train = SimpleNamespace(terms=terms, total_iter=90)
    monkeypatch.setattr(building, "build_part", lambda *arguments, **handed: loss)
    return build_terms(train, torch.device("meta"))["x"]  # type: ignore[arg-type]


def test_a_term_with_parameters_moves_to_the_device_and_a_function_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = one_term(monkeypatch, nn.Linear(2, 2))
    assert moved.loss.weight.device.type == "meta"  # type: ignore[attr-defined]
    assert (moved.target, moved.every) == ("gt", 3)
    function = object()
    assert one_term(monkeypatch, function).loss is function


def test_the_weight_falls_to_nothing_in_the_share_that_fades(monkeypatch: pytest.MonkeyPatch) -> None:
    term = one_term(monkeypatch, object(), loss_weight=0.5, fade=1 / 3)
    assert [term.weight_at(iteration) for iteration in (1, 60, 75, 90)] == [0.5, 0.5, 0.25, 0.0]
    whole = one_term(monkeypatch, object(), loss_weight=0.5, fade=1)
    assert [whole.weight_at(iteration) for iteration in (0, 45, 90)] == [0.5, 0.25, 0.0]
    assert one_term(monkeypatch, object(), loss_weight=0.5).weight_at(90) == 0.5


@pytest.mark.parametrize(
    ("keys", "weight"),
    [
        ({"loss_weight": 2.0}, TermWeight(fixed=2.0)),
        ({"loss_weight": 0.0}, TermWeight(fixed=0.0)),
        ({"loss_weight": 2.0, "balance": 0.1}, TermWeight(fixed=2.0)),
        ({"balance": 0.1}, TermWeight(share=0.1)),
        ({"balance": 0.0}, TermWeight(share=0.0)),
        ({"type": "SGR"}, TermWeight(share=0.05)),
        ({"type": "SPD"}, TermWeight(share=0.3)),
    ],
)
def test_the_weight_is_fixed_or_a_share_and_else_the_terms_own(
    monkeypatch: pytest.MonkeyPatch, keys: dict, weight: TermWeight
) -> None:
    assert one_term(monkeypatch, object(), **keys).weight == weight


def test_an_error_names_the_key_of_the_term(world: World) -> None:
    with pytest.raises(ValueError, match=r"^train\.sgr_opt: .*no_such_file"):
        run(world, True, "train:sgr_opt={balance: 0.1, weights: no_such_file.pth}")
    with pytest.raises(ValueError, match=r"^train\.distill\.terms\.more: .*relu9_9"):
        run(world, True, "train:distill:terms={more: {type: SGR, weights: random, layers: [relu9_9]}}", "name=other")


def test_a_term_whose_view_is_missing_is_named_with_it(plugin: World, capsys: pytest.CaptureFixture[str]) -> None:
    source = PLUGIN.replace('maps["regions"]', 'maps["BorderDistance"]').replace("LowFrequencies", "BorderFrequencies")
    (plugin.root / "border_frequencies.py").write_text(source, encoding="utf-8")
    values = values_with_terms(plugin, low={"type": "BorderFrequencies", "balance": 0.2})
    values["plugins"] = ["border_frequencies"]
    assert check(load_options(plugin.write(values))) == 2
    shown = capsys.readouterr().out
    assert "term 'low' reads the view 'BorderDistance', but the samples have regions; name it under" in shown
