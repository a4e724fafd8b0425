"""Compare an exported graph with the network as it restores images, at sizes that exports get wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sam4ir.archs.diffusion_sr import DiffSR
from sam4ir.engine.restore.one_pass import Inference, padded
from sam4ir.export.formats import Run
from sam4ir.export.graph import ConditionGraph, ExportError, StepGraph
from sam4ir.models.restoration import restore

TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2}  # largest absolute difference, where images are in [0, 1]


class Difference(NamedTuple):
    """The largest absolute difference of an export and its network on images (b, c, h, w)."""

    shape: tuple[int, ...]
    largest: float

    def __str__(self) -> str:
        return f"{' x '.join(map(str, self.shape)):18} largest difference {self.largest:.1e}"


def image_shapes(channels: int, multiple: int) -> list[tuple[int, int, int, int]]:
    """Return five shapes: odd sides, one pixel, sides below the network's multiple, a batch of two, a long row."""
    below = max(1, multiple - 1)
    return [
        (1, channels, 101, 77),
        (1, channels, 1, 1),
        (1, channels, below, max(1, multiple // 2)),
        (2, channels, 48, 64),
        (1, channels, 3, 130),
    ]


def step_shapes(multiple: int) -> list[tuple[int, int, int, int]]:
    """Return five shapes of x_t, whose sides are multiples of the U-Net's and twice as long at least."""
    sides = [(2, 2), (2, 5), (7, 3), (4, 4), (9, 2)]
    return [(1 + number % 2, 3, multiple * h, multiple * w) for number, (h, w) in enumerate(sides)]


def differences(
    run: Run, inputs: Sequence[tuple[Tensor, ...]], expected: Callable[..., Tensor]
) -> Iterator[Difference]:
    """Yield how an export differs from `expected` on each tuple of inputs; infinity where the shapes differ."""
    for tensors in inputs:
        wanted, got = expected(*tensors), run(*tensors)
        largest = float("inf")
        if got.shape == wanted.shape:
            largest = float((got.float() - wanted).abs().max())
        yield Difference(tuple(tensors[0].shape), largest)


def refuse_differing(measured: Sequence[Difference], tolerance: float) -> None:
    """Raise ExportError where a difference is beyond the tolerance, or no number."""
    for difference in measured:
        if not difference.largest <= tolerance:
            raise ExportError(
                f"the export differs from the network by {difference.largest:.2e} on an image of "
                f"{' x '.join(map(str, difference.shape))}, more than the tolerance of {tolerance:g}; no file was "
                "written. --tolerance allows more; in fp16 a network may need it, in fp32 this is a fault to report"
            )


def inputs_for(graph: nn.Module, network: nn.Module, channels: int) -> list[tuple[Tensor, ...]]:
    """Return the inputs with which a graph is compared, the same in each run."""
    random = torch.Generator().manual_seed(7)
    multiple = int(graph.multiple)  # type: ignore[arg-type]
    if not isinstance(graph, StepGraph):
        return [(torch.rand(shape, generator=random),) for shape in image_shapes(channels, multiple)]
    assert isinstance(network, DiffSR)
    inputs: list[tuple[Tensor, ...]] = []
    for shape in step_shapes(multiple):
        batch, _, height, width = shape
        condition = torch.randn(batch, network.denoise_fn.dim, height, width, generator=random)
        tensors = [torch.randn(shape, generator=random), torch.randint(0, 100, (batch,), generator=random), condition]
        if graph.up_input:
            tensors.append(2 * torch.rand(shape, generator=random) - 1)
        inputs.append(tuple(tensors))
    return inputs


def expected_of(
    graph: nn.Module, network: nn.Module, scale: int, window: int = 1, clamp: bool = False
) -> Callable[..., Tensor]:
    """Return the function of a network in float32 that its graph must have: the restore path of a whole image."""
    if isinstance(graph, (StepGraph, ConditionGraph)):
        assert isinstance(network, DiffSR)
        if isinstance(graph, StepGraph):
            return _without_gradients(network.denoise)
        multiple, smallest, condition = network.multiple, network.smallest, network.condition
        return _without_gradients(lambda image: condition(padded(image, multiple, smallest)))
    inference = Inference(multiple=window, scale=scale)

    def restored(image: Tensor) -> Tensor:
        out = inference(lambda x: restore(network, x), image)
        if clamp:
            out = out.clamp(0, 1)
        return out

    return restored


def _without_gradients(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return function(*inputs)

    return run
