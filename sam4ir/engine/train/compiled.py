"""torch.compile, kept only where it is measured to be faster: on CPU it often is not."""

from __future__ import annotations

import copy
import logging
import statistics
import time

import torch
from torch import Tensor, nn

ROUNDS = 5
WORTH_IT = 0.97  # of the eager time; less gain than that is noise


def compile_if_faster(
    network: nn.Module,
    label: str,
    image: Tensor,
    autocast: torch.autocast,
    layout: torch.memory_format,
    log: logging.Logger,
) -> bool:
    """Time forward and backward of `network` on `image` (b, c, h, w), eager and compiled, and say which one stays.

    The network itself is not touched: whoever asked calls network.compile(). A compiler that fails is a warning.
    """
    image = image.contiguous(memory_format=layout)
    eager, trial = copy.deepcopy(network), copy.deepcopy(network)
    trial.compile()
    try:
        begun = time.perf_counter()
        for _ in range(2):
            _step(trial, image, autocast)
        taken = time.perf_counter() - begun
        _step(eager, image, autocast)
        pairs = [(_timed(eager, image, autocast), _timed(trial, image, autocast)) for _ in range(ROUNDS)]
    except Exception as error:  # the compiler may fail in any way, and training goes on without it
        log.warning("compile: net_%s stays as it is, since compiling fails: %s", label, _first_line(error))
        return False
    ratio = statistics.median(compiled / plain for plain, compiled in pairs)
    plain, compiled = (1000 * statistics.median(times) for times in zip(*pairs, strict=True))
    kept = ratio < WORTH_IT
    log.info(
        "compile: net_%s takes %.1f ms compiled and %.1f ms as it is (ratio %.2f, %.0f s to compile); %s.",
        label,
        compiled,
        plain,
        ratio,
        taken,
        "compiled it is" if kept else "it stays as it is",
    )
    return kept


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]


def _step(network: nn.Module, image: Tensor, autocast: torch.autocast) -> None:
    with autocast:
        output = network(image)
    outputs = output if isinstance(output, (list, tuple)) else [output]
    torch.stack([o.float().mean() for o in outputs]).sum().backward()
    network.zero_grad(set_to_none=True)
    if image.is_cuda:
        torch.cuda.synchronize(image.device)


def _timed(network: nn.Module, image: Tensor, autocast: torch.autocast) -> float:
    begun = time.perf_counter()
    _step(network, image, autocast)
    return time.perf_counter() - begun
