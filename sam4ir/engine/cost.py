"""What a network costs: its parameters, and the multiply-adds, time and memory of one image."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sam4ir.config.schema import Block, Options
from sam4ir.engine.build import build_part
from sam4ir.engine.devices import synchronize
from sam4ir.engine.restore.build import build_inference, restore_recipe
from sam4ir.errors import first_line
from sam4ir.models.restoration import eval_mode, restore
from sam4ir.registry import ARCHS
from sam4ir.utils.memory import peak_memory, reset_peak

USUAL_SIDE = 256  # pixels of both sides of the input; papers state multiply-adds at this size

_RUNS = 5  # timed passes, at most
_SECONDS = 20.0  # after which no further pass begins


class MultiplyAdds(NamedTuple):
    """The multiply-adds of one image, as torch.utils.flop_counter counts them: half of its FLOPs.

    height, width: of the input. macs: None where the network does not run without values; `reason` says why.
    condition: for a diffusion network, those of its condition, which comes before the steps; `macs` are of one step.
    """

    height: int
    width: int
    macs: int | None
    condition: int | None = None
    reason: str = ""

    def __str__(self) -> str:
        size = f"at {self.height} x {self.width}"
        if self.macs is None:
            return f"unknown multiply-adds ({self.reason})"
        if self.condition is None:
            return f"{in_giga(self.macs)} multiply-adds {size}"
        return f"{in_giga(self.macs)} multiply-adds a step and {in_giga(self.condition)} before them {size}"


class Pass(NamedTuple):
    """What one image costs on a device.

    seconds: the median of `runs` passes. memory: bytes at the peak; 0 where it is unknown. threads: of the CPU.
    """

    seconds: float
    runs: int
    memory: int
    threads: int


def parameter_count(network: nn.Module) -> int:
    """Return the number of a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def in_giga(count: int) -> str:
    """Return a count as text with four digits: '16.05 G', '0.0490 G'."""
    return f"{count / 1e9:#.4g} G"


def network_line(block: Block, parameters: int, cost: MultiplyAdds) -> str:
    """Return the line of a log: architecture, parameters and multiply-adds."""
    return f"Network {block.type}: {parameters:,} parameters, {cost}."


def cost_of(options: Options, channels: int = 3, size: tuple[int, int] | None = None) -> MultiplyAdds:
    """Count the multiply-adds of the deployed network of an option file.

    channels: of its degraded images. size: height and width of the input; None means an output of 256 x 256.
    """
    height, width = size or (USUAL_SIDE // options.scale, USUAL_SIDE // options.scale)
    multiple = build_inference(restore_recipe(options)).multiple
    return multiply_adds(options.network_g, height, width, channels, diffusion=options.diffuses, multiple=multiple)


def multiply_adds(
    block: Block, height: int, width: int, channels: int = 3, *, diffusion: bool = False, multiple: int = 1
) -> MultiplyAdds:
    """Count the multiply-adds of the network that `block` describes for one image; nothing is computed.

    height, width: of the input, rounded up to what the network needs. diffusion: whether it is a diffusion network, for
    which one step and the condition are counted. multiple: val.window_size, to which images are padded.
    """
    try:
        with torch.device("meta"):
            network = build_part(ARCHS, block, "network_g").eval()
        multiple = max(multiple, getattr(network, "unshuffle", 1), getattr(network, "multiple", 1))
        height, width = -(-height // multiple) * multiple, -(-width // multiple) * multiple
        if diffusion:
            return _of_a_step(network, height, width)
        image = torch.zeros(1, channels, height, width, device="meta")
        return MultiplyAdds(height, width, _counted(lambda: restore(network, image)))
    except Exception as error:  # whatever a plugin's network raises without values is no fault of the run
        return MultiplyAdds(height, width, None, reason=f"it does not run without values: {first_line(error)[:100]}")


def _of_a_step(network: nn.Module, height: int, width: int) -> MultiplyAdds:
    """Count one step of a diffusion network on the meta device, and its condition, for an LR image."""
    lq = torch.zeros(1, 3, height, width, device="meta")
    condition: Tensor = network.condition(lq)  # type: ignore[operator]
    x_t = torch.zeros(1, 3, *condition.shape[-2:], device="meta")
    step = torch.zeros(1, dtype=torch.int64, device="meta")
    before = _counted(lambda: network.condition(lq))  # type: ignore[operator]
    count = _counted(lambda: network.denoise(x_t, step, condition, x_t))  # type: ignore[operator]
    return MultiplyAdds(height, width, count, before)


def _counted(forward: Callable[[], object]) -> int:
    """Return the multiply-adds of a call."""
    from torch.utils.flop_counter import FlopCounterMode  # half a second

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward()
    return int(counter.get_total_flops()) // 2


def measured_pass(network: nn.Module, image: Tensor, forward: Callable[[Tensor], object] | None = None) -> Pass:
    """Time a network on an image (1, c, h, w) that lies on the network's device, after one pass that is not timed.

    forward: what is timed, in place of one pass of the network.
    """
    forward = forward or (lambda lq: restore(network, lq))
    seconds: list[float] = []
    reset_peak(image.device)
    with torch.inference_mode(), eval_mode(network):
        begun = time.perf_counter()
        forward(image)
        while not seconds or (len(seconds) < _RUNS and time.perf_counter() - begun < _SECONDS):
            synchronize(image.device)
            start = time.perf_counter()
            forward(image)
            synchronize(image.device)
            seconds.append(time.perf_counter() - start)
    memory = peak_memory(image.device)
    return Pass(statistics.median(seconds), len(seconds), memory, torch.get_num_threads())
