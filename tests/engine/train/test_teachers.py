"""The term Teachers: trained networks as teachers from the first step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import World

from sam4ir.config.schema import TrainOptions
from sam4ir.distill.lesson import Lesson
from sam4ir.distill.teachers import Teachers
from sam4ir.engine.build import BuildError
from sam4ir.engine.train.loop import Trainer
from sam4ir.engine.train.terms import FrozenNetwork, build_terms
from sam4ir.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def weights(world: World) -> list[str]:
    """Two small networks that were trained a little, with different seeds."""
    files = []
    for seed in range(2):
        trainer = Trainer(world.options(False, (f"name=teacher_{seed}", f"manual_seed={seed}")), False)
        trainer.run()
        files.append(str(trainer.paths.network("g", "latest")))
    return files


def lesson() -> Lesson:
    torch.manual_seed(0)
    student, refined, gt, lq = torch.rand(4, 2, 3, 24, 24)
    return Lesson(student.requires_grad_(), refined, gt, lq, torch.zeros(2, 24, 24, dtype=torch.int64), 0, {})


def term(world: World, files: list[str], **keys: object) -> Teachers:
    block = {"type": "Teachers", "weights": files, "loss_weight": 1, **keys}
    options = world.options(
        True, ("train:spd_opt=null", "train:sgr_opt=null", f"train:distill:terms:t={json.dumps(block)}")
    )
    assert isinstance(options.train, TrainOptions)
    loss = build_terms(options.train, CPU)["t"].loss
    assert isinstance(loss, Teachers)
    return loss


def test_the_target_is_the_mean_of_what_the_networks_make_of_the_degraded_image(
    world: World, weights: list[str]
) -> None:
    shown = lesson()
    teachers = term(world, weights)
    means = [term(world, [file]).lesson_of(shown.lq) for file in weights]
    assert not torch.equal(means[0], means[1])
    loss = teachers(shown.gt * 7, shown)  # the training's own target does not matter
    expected = (shown.student - (means[0] + means[1]) / 2).abs().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert shown.student.grad is not None
    assert all(parameter.grad is None for parameter in teachers.parameters())


def test_the_gate_asks_whether_the_teachers_are_better(world: World, weights: list[str]) -> None:
    shown = lesson()
    worse = shown._replace(gt=shown.student.detach())
    assert term(world, weights, gate="region")(shown.gt, worse).item() == 0
    mean = term(world, weights).lesson_of(shown.lq)
    better = shown._replace(gt=mean)
    assert term(world, weights, gate="region")(shown.gt, better).item() > 0


def test_teachers_stay_as_they_are_in_a_training_which_they_change(world: World, weights: list[str]) -> None:
    block = json.dumps({"type": "Teachers", "weights": weights, "balance": 0.5})
    base = ("train:spd_opt=null", "train:sgr_opt=null", "train:distill:start_iter=0")
    plain = Trainer(world.options(True, ("name=plain", *base)), False)
    plain.run()
    taught = Trainer(world.options(True, ("name=taught", *base, f"train:distill:terms:t={block}")), False)
    loss = taught.parts.model.terms["t"].loss
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    taught.run()
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())
    assert not any(module.training for module in loss.networks[0].network.modules())
    files = [torch.load(run.paths.network("g", "latest"), weights_only=True)["params"] for run in (plain, taught)]
    assert any(not torch.equal(files[0][name], files[1][name]) for name in files[0])
    records = [json.loads(line) for line in (taught.paths.run / "log.jsonl").read_text().splitlines()]
    assert "l_t" in records[1]


def test_a_frozen_network_gives_its_last_output_and_no_gradient() -> None:
    class Stages(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
            return [image, image * self.scale * 2]

    frozen = FrozenNetwork(Stages()).train()
    assert torch.equal(frozen(torch.ones(1)), torch.full((1,), 2.0))
    assert not frozen.network.training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_wrong_weights_name_the_term(world: World, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"train\.distill\.terms\.t: .*nothing\.pth"):
        term(world, [str(tmp_path / "nothing.pth")])
    with pytest.raises(BuildError, match=r"train\.distill\.terms\.t: weights: name one weights file or more"):
        term(world, [])
    with pytest.raises(UserError, match="criterion is 'l3'"):
        Teachers(lambda source: torch.nn.Identity(), ["x"], criterion="l3")  # type: ignore[arg-type]
