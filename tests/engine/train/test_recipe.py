"""Parts of a recipe in whole runs: progressive stages, mixup, precision, compile, checkpointed activations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import World
from engine.train.test_training import assert_same_run, records, run, same, stop_after
from torch import Tensor, nn

from sam4ir.config.debug import debugged
from sam4ir.engine.build import BuildError
from sam4ir.engine.train.loop import Trainer
from sam4ir.engine.train.step import UnusedParametersError
from sam4ir.registry import ARCHS

PROGRESSIVE = (
    "datasets:train:gt_sizes=[16, 24]",
    "datasets:train:mini_batch_sizes=[2, 1]",
    "datasets:train:iters=[3, 5]",
)


def weights(folder: Path, iteration: int = 8) -> dict[str, Tensor]:
    return torch.load(folder / "models" / f"net_g_{iteration}.pth", weights_only=True)["params"]


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=1e-3, atol=1e-5)


def seen_shapes(trainer: Trainer) -> list[tuple[int, ...]]:
    """The shape of every micro-batch that the model gets."""
    shapes: list[tuple[int, ...]] = []
    losses = trainer.parts.model.losses

    def noting(batch, iteration, measure):
        shapes.append((iteration, *batch.lq.shape))
        return losses(batch, iteration, measure)

    trainer.parts.model.losses = noting  # type: ignore[method-assign]
    return shapes


@pytest.mark.parametrize("sam", [False, True])
def test_patches_grow_and_batches_shrink_in_stages(world: World, sam: bool) -> None:
    trainer = Trainer(world.options(sam, (*PROGRESSIVE, "train:total_batch=[4, 2]")), resume=False)
    shapes = seen_shapes(trainer)
    trainer.run()
    first = [(i, 2, 3, 16, 16) for i in (1, 2, 3) for _ in range(2)]
    second = [(i, 1, 3, 24, 24) for i in (4, 5, 6, 7, 8) for _ in range(2)]
    assert shapes == first + second
    assert trainer.progress.sample == 3 * 4 + 5 * 2


@pytest.mark.parametrize("mixing", ["{mixup: false}", "{mixup: true, mixup_beta: 1.2, use_identity: false}"])
def test_a_stop_at_the_border_of_stages_changes_nothing(world: World, mixing: str) -> None:
    overrides = (*PROGRESSIVE, "train:total_batch=[4, 2]", f"train:mixing_augs={mixing}")
    straight = run(world, False, "name=straight", *overrides)
    original = world.options
    world_options = lambda sam, more=(): original(sam, (*overrides, *more))  # noqa: E731
    object.__setattr__(world, "options", world_options)
    stopped = Trainer(world.options(False, ("name=stopped",)), resume=False)
    stopped.close()
    for at in (2, 3, 5):
        stop_after(world, False, at)
    assert_same_run(straight, run(world, False, "name=stopped", resume=True), 8)


def test_mixup_does_not_depend_on_micro_batches(world: World) -> None:
    mixing = "train:mixing_augs={mixup: true, use_identity: false}"
    large = run(world, False, "name=large", mixing, "datasets:train:batch_size_per_gpu=4")
    small = run(
        world, False, "name=small_batches", mixing, "train:total_batch=4", "datasets:train:batch_size_per_gpu=1"
    )
    without = run(world, False, "name=without", "datasets:train:batch_size_per_gpu=4")
    assert_close(weights(large), weights(small))
    assert not same(weights(large), weights(without))


@pytest.mark.parametrize("sam", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_fp16_training_stays_finite_and_close_to_fp32(world: World, sam: bool) -> None:
    losses = {}
    for precision in ("fp32", "fp16"):
        trainer = Trainer(world.options(sam, (f"name={precision}", f"precision={precision}")), resume=False)
        trainer.parts.scaler._init_scale = 64.0  # a scale that overflows skips steps, and then the runs differ
        trainer.run()
        losses[precision] = [r["l_pix"] for r in records(trainer.paths.run) if "l_pix" in r]
        assert trainer.progress.skipped == 0
    assert losses["fp16"] == pytest.approx(losses["fp32"], abs=0.5)
    assert all(p.dtype == torch.float32 for p in trainer.parts.model.networks["g"].parameters())


def test_a_scale_that_overflows_is_lowered_and_the_run_goes_on_with_it(world: World) -> None:
    overrides = ("precision=fp16", "train:max_nonfinite=2", "name=scaled")
    trainer = Trainer(world.options(False, overrides), resume=False)
    trainer.parts.scaler._init_scale = 2.0**30
    trainer.run()
    skipped = [r["iter"] for r in records(trainer.paths.run) if r.get("skipped")]
    assert len(skipped) >= 3  # more than max_nonfinite in a row, and no error
    assert trainer.progress.skipped == len(skipped)
    again = Trainer(world.options(False, (*overrides, "train:total_iter=9")), resume=True)
    assert again.parts.scaler.get_scale() == trainer.parts.scaler.get_scale() < 2.0**30
    again.close()


@pytest.mark.slow
def test_the_layout_of_memory_does_not_change_what_is_learnt(world: World) -> None:
    last, first = (run(world, True, f"name=layout_{v}", f"channels_last={v}") for v in ("true", "false"))
    assert_close(weights(last), weights(first))


@pytest.mark.slow
def test_computing_activations_again_changes_no_bit(world: World) -> None:
    kept, again = (run(world, True, f"name=again_{v}", f"checkpoint_activations={v}") for v in ("false", "true"))
    assert_same_run(kept, again, 8)


class Wasteful(nn.Module):
    """A network with a layer that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Conv2d(3, 3, 1)
        self.idle = nn.Conv2d(3, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        return image + self.used(image)


@pytest.fixture
def wasteful() -> Iterator[None]:
    ARCHS.register("Wasteful")(Wasteful)
    yield
    ARCHS._entries.pop("Wasteful")


@pytest.mark.usefixtures("wasteful")
def test_parameters_without_a_gradient_are_named(world: World) -> None:
    with pytest.raises(UnusedParametersError, match=r"2 parameters.*net_g.idle.weight.*find_unused_parameters"):
        run(world, False, "network_g={type: Wasteful}")
    run(world, False, "name=allowed", "network_g={type: Wasteful}", "find_unused_parameters=true")


@pytest.mark.usefixtures("wasteful")
def test_a_network_without_blocks_cannot_compute_them_again(world: World) -> None:
    with pytest.raises(BuildError, match=r"checkpoint_activations: network_g"):
        run(world, False, "network_g={type: Wasteful}", "checkpoint_activations=true")


@pytest.mark.slow
def test_compile_says_what_it_measured_and_keeps_to_it_after_a_resume(world: World, capsys) -> None:
    folder = run(world, False, "compile=true", "train:total_iter=4")
    out = capsys.readouterr().out
    assert "compile: net_g" in out
    state = torch.load(folder / "training_states" / "4.state", weights_only=True)
    assert state["progress"]["compiled"] in (["g"], [])
    run(world, False, "compile=true", resume=True)
    assert "compile: net_g" not in capsys.readouterr().out
    assert all(math.isfinite(r["l_pix"]) for r in records(folder) if "l_pix" in r)


def test_debug_does_everything_within_eight_iterations(world: World) -> None:
    trainer = Trainer(debugged(world.options(False, ("val:val_freq=1000", "logger:save_checkpoint_freq=500"))), False)
    trainer.run()
    assert trainer.paths.run.name == "debug_small"
    assert trainer.progress.validated == 8
    assert [r["iter"] for r in records(trainer.paths.run) if "psnr" in r] == list(range(1, 9))


@pytest.mark.parametrize(("kind", "given", "holds"), [("AdamW", "", 0.01), ("Adam", "", 0.0), ("AdamW", "0", 0.0)])
def test_weight_decay_left_out_is_torchs_own(world: World, kind: str, given: str, holds: float) -> None:
    decay = f", weight_decay: {given}" if given else ""
    trainer = Trainer(world.options(False, (f"train:optim_g={{type: {kind}, lr: 1e-3{decay}}}",)), resume=False)
    assert trainer.parts.optimisers["g"].inner.param_groups[0]["weight_decay"] == holds
    trainer.close()
