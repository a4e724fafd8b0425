"""torch.compile, used only where a measurement shows that it is faster: on CPU it often is not."""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sam4ir.engine.devices import synchronize
from sam4ir.engine.train.checkpoint import Progress
from sam4ir.engine.train.step import Step
from sam4ir.errors import first_line
from sam4ir.utils.dist import World
from sam4ir.utils.rng import torch_stream

_ROUNDS = 5
_WORTH_IT = 0.97  # of the eager time; less gain than that is noise


def compile_networks(
    networks: Mapping[str, nn.Module],
    progress: Progress,
    step: Step,
    images: Callable[[str], Tensor],
    *,
    seed: int,
    world: World,
    log: logging.Logger,
) -> None:
    """Compile the networks that run faster so, and write their labels into progress.compiled.

    networks: by label. images: label -> random images (b, c, h, w) of the first stage. A run that goes on compiles the
    networks that were compiled when it began. The main process chooses for all.
    """
    if progress.compiled is None:
        with torch_stream(seed, "compile"):
            faster = []
            for label, network in networks.items():
                if compiling_is_faster(network, label, images(label), step.autocast, step.layout, log):
                    faster.append(label)
        progress.compiled = world.from_main(faster)
    for label in progress.compiled:
        networks[label].compile()


def compiling_is_faster(
    network: nn.Module,
    label: str,
    image: Tensor,
    autocast: torch.autocast,
    layout: torch.memory_format,
    log: logging.Logger,
) -> bool:
    """Time forward and backward of `network` on `image` (b, c, h, w), eager and compiled, and log both times.

    Copies are timed, and the network stays as it is. A compiler that fails is a warning.
    """
    image = image.contiguous(memory_format=layout)
    eager, trial = copy.deepcopy(network), copy.deepcopy(network)
    trial.compile()
    try:
        begun = time.perf_counter()
        for _ in range(2):
            _step(trial, image, autocast)
        compile_seconds = time.perf_counter() - begun
        _step(eager, image, autocast)
        eager_times, trial_times, ratios = [], [], []
        for _ in range(_ROUNDS):
            eager_times.append(_timed(eager, image, autocast))
            trial_times.append(_timed(trial, image, autocast))
            ratios.append(trial_times[-1] / eager_times[-1])
    except Exception as error:  # the compiler may fail in any way, and training goes on without it
        log.warning("compile: net_%s stays as it is, since compiling fails: %s", label, first_line(error)[:200])
        return False
    ratio = statistics.median(ratios)
    faster = ratio < _WORTH_IT
    log.info(
        "compile: net_%s takes %.1f ms compiled and %.1f ms as it is (ratio %.2f, %.0f s to compile); %s.",
        label,
        1000 * statistics.median(trial_times),
        1000 * statistics.median(eager_times),
        ratio,
        compile_seconds,
        "it runs compiled" if faster else "it stays as it is",
    )
    return faster


def _step(network: nn.Module, image: Tensor, autocast: torch.autocast) -> None:
    """Run forward and backward once; wait for the device."""
    with autocast:
        output = network(image)
    outputs = output if isinstance(output, (list, tuple)) else [output]
    torch.stack([restored.float().mean() for restored in outputs]).sum().backward()
    network.zero_grad(set_to_none=True)
    synchronize(image.device)


def _timed(network: nn.Module, image: Tensor, autocast: torch.autocast) -> float:
    """Return the seconds of one _step."""
    begun = time.perf_counter()
    _step(network, image, autocast)
    return time.perf_counter() - begun
