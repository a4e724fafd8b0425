"""One step: what the gradients of micro-batches add up to, and what a value that is not finite changes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sam4ir.data.sample import Batch
from sam4ir.engine.train.ema import Ema
from sam4ir.engine.train.optim import Optimiser
from sam4ir.engine.train.parts import TrainingParts
from sam4ir.engine.train.step import Outcome, Step, UnusedParametersError
from sam4ir.losses.pixel import MSELoss
from sam4ir.models.restoration import Reconstruction, Restoration

CPU = torch.device("cpu")
RATE = 0.01


class Descent(Optimiser):
    """Plain gradient descent, whose step shows the gradient's size; Adam's hides it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network.parameters(), type_name="Adam", rate=lambda iteration: RATE)
        self.inner = torch.optim.SGD(self.parameters, lr=RATE)


class Factor(nn.Module):
    """lq -> w lq, with w = 1 at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.w * image


def parts(network: nn.Module, wrapped: nn.Module | None = None, **arguments: object) -> TrainingParts:
    """The parts of a training by the mean squared error; wrapped: the network as the model calls it."""
    model = Restoration(wrapped or network, Reconstruction({"pix": MSELoss()}))
    shared = (wrapped or network,)
    ema = Ema(network, 0.5)
    return TrainingParts(model, {"g": Descent(network)}, {"g": ema}, shared=shared, **arguments)  # type: ignore[arg-type]


def pair(lq: float, gt: float = 0.0, number: int = 0) -> Batch:
    """One even image and its ground truth."""
    return Batch(torch.full((1, 1, 2, 2), lq), torch.full((1, 1, 2, 2), gt), ["a"], [number])


def step(network: nn.Module, batches: Sequence[Batch], measure: bool = False, **arguments: object) -> Outcome:
    return Step(parts(network), CPU, **arguments)(batches, 1, measure)  # type: ignore[arg-type]


def test_the_gradient_is_the_mean_over_micro_batches() -> None:
    network = Factor()
    outcome = step(network, [pair(1), pair(3), pair(2, gt=2)], measure=True)
    # d (w x - y)^2 / d w = 2 x (w x - y): 2, 18 and 0
    assert network.w.item() == pytest.approx(1 - RATE * 20 / 3)
    assert outcome.finite
    assert outcome.norms == {"g": pytest.approx(20 / 3)}
    assert outcome.values["l_pix"] == pytest.approx((1 + 9 + 0) / 3, rel=1e-12)  # summed in float64
    assert outcome.values["psnr"] == pytest.approx((0 - 10 * math.log10(9) + 120) / 3, abs=1e-4)


def test_a_step_begins_without_the_gradient_of_the_one_before() -> None:
    network = Factor()
    take = Step(parts(network), CPU)
    take([pair(1)], 1, False)
    assert network.w.item() == pytest.approx(1 - RATE * 2)
    take([pair(1)], 2, False)
    assert network.w.item() == pytest.approx((1 - RATE * 2) * (1 - RATE * 2))


def test_a_step_moves_the_average_and_drops_the_gradient() -> None:
    network = Factor()
    take = Step(parts(network), CPU)
    take([pair(1)], 1, False)
    average = take.parts.emas["g"]
    assert average.updates == 1
    assert 1 - RATE * 2 <= average.module.w.item() < 1
    assert network.w.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_micro_batch_that_is_not_finite_leaves_weights_and_average(bad: float) -> None:
    network = Factor()
    take = Step(parts(network), CPU)
    outcome = take([pair(1), pair(bad), pair(1)], 1, False)
    assert (outcome.finite, outcome.overflow) == (False, False)
    assert not math.isfinite(outcome.values["l_pix"])
    assert network.w.item() == 1
    assert take.parts.emas["g"].updates == 0
    assert take([pair(1)], 2, False).finite
    assert network.w.item() == pytest.approx(1 - RATE * 2)


def test_a_measure_that_is_not_finite_stops_no_step() -> None:
    network = Factor()
    given = parts(network)
    losses = given.model.losses
    given.model.losses = lambda *arguments: losses(*arguments)._replace(measures={"share": math.nan})  # type: ignore[method-assign]
    assert Step(given, CPU)([pair(1)], 1, True).finite
    assert network.w.item() == pytest.approx(1 - RATE * 2)


@pytest.mark.parametrize(("scale", "overflows"), [(2.0**10, False), (2.0**127, True)])
def test_a_scaled_loss_gives_the_same_step_or_says_that_it_overflowed(scale: float, overflows: bool) -> None:
    network = Factor()
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    outcome = Step(parts(network, scaler=scaler), CPU)([pair(3), pair(3)], 1, False)
    assert (outcome.finite, outcome.overflow) == (not overflows, overflows)
    assert outcome.values["l_pix"] == 9
    assert network.w.item() == pytest.approx(1 if overflows else 1 - RATE * 18)
    assert scaler.get_scale() == (scale / 2 if overflows else scale)


def test_a_bad_loss_under_a_scaler_is_no_overflow() -> None:
    outcome = Step(parts(Factor(), scaler=torch.amp.GradScaler("cpu")), CPU)([pair(math.nan)], 1, False)
    assert (outcome.finite, outcome.overflow) == (False, False)


class Watching(nn.Module):
    """A convolution that notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 3, 1)
        self.types: list[torch.dtype] = []
        self.channels_last: list[bool] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out = self.body(image)
        self.types.append(out.dtype)
        self.channels_last.append(image.is_contiguous(memory_format=torch.channels_last))
        return out


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_the_forward_pass_has_the_precision_and_the_layout_asked_for(precision: str, channels_last: bool) -> None:
    network = Watching()
    batch = Batch(torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5), ["a", "b"], [0, 1])
    step(network, [batch], precision=precision, channels_last=channels_last)
    types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert network.types == [types[precision]]
    assert network.channels_last == [channels_last]
    assert network.body.weight.dtype == torch.float32


# parameters without a gradient


def idle(count: int) -> nn.Module:
    """A network with `count` parameters that its output does not depend on."""
    network = Factor()
    network.spare = nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in range(count)])
    return network


@pytest.mark.parametrize("count", [1, 5, 6])
def test_parameters_without_a_gradient_are_named_up_to_five(count: int) -> None:
    with pytest.raises(UnusedParametersError) as caught:
        step(idle(count), [pair(1)])
    names = [f"net_g.spare.{i}" for i in range(min(count, 5))]
    more = ", ..." if count > 5 else ""
    assert str(caught.value).startswith(f"{count} parameters take no part in the loss: {', '.join(names)}{more}. ")


def test_frozen_parameters_and_a_run_that_allows_it_may_lack_a_gradient() -> None:
    network = idle(1)
    assert step(network, [pair(1)], find_unused_parameters=True).finite
    network.spare[0].requires_grad_(False)
    assert step(network, [pair(1)]).finite


def test_gradients_are_looked_for_in_the_first_step_of_a_network_only() -> None:
    class Shifted(Factor):
        """w lq, and in the first pass alone also a shift."""

        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(()))
            self.passes = 0

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            self.passes += 1
            return super().forward(image) + (self.shift if self.passes == 1 else 0)

    take = Step(parts(Shifted()), CPU)
    for i in (1, 2):
        assert take([pair(1)], i, False).finite


# several processes: one gloo process is enough to go through the wrapper


@pytest.fixture
def gloo() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Normalised(nn.Module):
    """A network with a buffer that every pass in training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.body(image)
        return out


def varied(number: int) -> Batch:
    g = torch.Generator().manual_seed(number)
    lq, gt = torch.rand(2, 2, 1, 4, 4, generator=g)
    return Batch(lq, gt, ["a", "b"], [2 * number, 2 * number + 1])


def normalised() -> nn.Module:
    torch.manual_seed(3)
    return Normalised()


@pytest.mark.usefixtures("gloo")
def test_the_pass_that_settles_a_wrapped_network_leaves_no_trace() -> None:
    alone, inner = normalised(), normalised()
    wrapped = DistributedDataParallel(inner)
    passes: list[int] = []
    inner.register_forward_hook(lambda *_: passes.append(1))
    plain, shared = Step(parts(alone), CPU), Step(parts(inner, wrapped), CPU)
    measured = []
    shared.parts.model.end_step = lambda average: measured.append(average(torch.ones(1)).isnan().item())  # type: ignore[method-assign]
    for i in (1, 2):
        batches = [varied(2 * i), varied(2 * i + 1)]
        one, other = plain(batches, i, False), shared(batches, i, False)
        assert one == other
        for name, value in alone.state_dict().items():
            assert torch.equal(value, inner.state_dict()[name]), name
    assert len(passes) == 1 + 2 * 2  # the first step has one pass more
    assert measured == [True, False, False]


@pytest.mark.usefixtures("gloo")
def test_processes_exchange_gradients_in_the_last_micro_batch_only() -> None:
    network = normalised()
    wrapped = DistributedDataParallel(network)
    syncs: list[bool] = []
    network.register_forward_hook(lambda *_: syncs.append(wrapped.require_backward_grad_sync))
    take = Step(parts(network, wrapped), CPU)
    take.checked = {"g"}  # no pass to settle
    take([varied(0), varied(1), varied(2)], 1, False)
    assert syncs == [False, False, True]


@pytest.mark.usefixtures("gloo")
def test_a_wrapped_network_whose_parameters_may_be_unused_is_not_settled() -> None:
    network = normalised()
    passes: list[int] = []
    network.register_forward_hook(lambda *_: passes.append(1))
    wrapped = DistributedDataParallel(network, find_unused_parameters=True)
    Step(parts(network, wrapped), CPU, find_unused_parameters=True)([varied(0)], 1, False)
    assert len(passes) == 1
