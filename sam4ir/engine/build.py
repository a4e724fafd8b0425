"""Options -> parts: what training and inference share. Knows no SAM, no VGG and no masks; build_train.py adds those."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from sam4ir.config.paths import RunPaths
from sam4ir.config.schema import Block, DatasetOptions, Options, ValOptions
from sam4ir.config.signature import accepts, block_arguments
from sam4ir.engine.inference import Inference
from sam4ir.engine.validate import Metric
from sam4ir.engine.weights import load_weights
from sam4ir.models.restoration import frozen, restore
from sam4ir.registry import ARCHS, DATASETS, METRICS, Registry
from sam4ir.utils.rng import torch_stream

M = TypeVar("M", bound=nn.Module)


class BuildError(ValueError):
    """A part that cannot be built; the message names its key in the option file."""


@contextlib.contextmanager
def naming(place: str) -> Iterator[None]:
    """Errors inside the block name the key of the option file that they come from."""
    try:
        yield
    except BuildError:
        raise
    except (ValueError, TypeError, OSError) as error:
        raise BuildError(f"{place}: {error}") from error
    except (ArithmeticError, LookupError, RuntimeError) as error:
        # a period of 0 divides by it, an empty list has no element; torch refuses sizes at great length
        raise BuildError(f"{place}: {(str(error) or type(error).__name__).splitlines()[0]}") from error


def make(registry: Registry, block: Block, place: str, **handed: Any) -> Any:
    """What a `type:` block names, built from its arguments; `handed` adds what the signature asks for."""
    target = registry.get(block.type)
    taken = {k: v for k, v in handed.items() if accepts(target, k)}
    with naming(place):
        return target(**{**taken, **block_arguments(registry, block.type, block.arguments)})


def device_of(options: Options) -> torch.device:
    """The device an option file asks for; `auto` is CUDA where there is one."""
    if options.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(options.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BuildError(f"device: {device} is asked for but torch finds {torch.cuda.device_count()}; set cpu or auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BuildError("device: mps is asked for but torch finds none; set device: cpu or auto")
    return device


def make_deterministic() -> None:
    """Bit-exact repetition on CUDA too, at some cost in speed (options: deterministic)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def check_images(net: nn.Module, options: Options, device: torch.device) -> None:
    """Raise BuildError unless the network turns an RGB image into one `scale` times as large."""
    image = torch.zeros(1, 3, 16, 16, device=device)
    with naming("network_g"), frozen(net):
        shape = tuple(restore(net, image).shape)
        if shape != (1, 3, 16 * options.scale, 16 * options.scale):
            raise ValueError(
                f"{options.network_g.type} turns {tuple(image.shape)} into {shape}; scale is {options.scale}"
            )


def placed(module: M, device: torch.device) -> M:
    """The module on the device, its weights in channels_last, the layout that all of ours run fastest in."""
    return module.to(device).to(memory_format=torch.channels_last)


def network(block: Block, label: str, seed: int, device: torch.device) -> nn.Module:
    """A network in channels_last whose initial weights are a function of (seed, label) alone."""
    with torch_stream(seed, "init", label):
        built: nn.Module = make(ARCHS, block, f"network_{label}")
    return placed(built, device)


def pretrained(net: nn.Module, options: Options) -> bool:
    """Load path.pretrain_network_g into a network; False where none is named."""
    path = options.path
    if not path.pretrain_network_g:
        return False
    with naming("path.pretrain_network_g"):
        load_weights(net, Path(path.pretrain_network_g), path.param_key_g or path.param_key, path.strict_load_g)
    return True


def dataset(key: str, block: DatasetOptions, options: Options, **handed: Any) -> Any:
    """A data set; `handed` goes to its constructor beside what the option file says (masks and their views)."""
    return make(DATASETS, block, f"datasets.{key}", scale=options.scale, **handed)


def metrics(val: ValOptions | None) -> dict[str, Metric]:
    """Metric protocols by the names that the option file gives them."""
    if val is None:
        return {}
    return {
        name: Metric(name, b.type, METRICS.get(b.type), block_arguments(METRICS, b.type, b.arguments), val.use_image)
        for name, b in val.metrics.items()
    }


def inference(options: Options) -> Inference:
    """How images go through the network, as `val` says."""
    val = options.val or ValOptions()
    tile = val.crop_size if val.grids else None
    overlap = val.overlap if val.overlap is not None else (tile or 0) // 8
    return Inference(tile, overlap, val.max_minibatch, val.window_size or 1, val.self_ensemble, options.scale)


def run_paths(options: Options) -> RunPaths:
    """Where this run's files lie."""
    return RunPaths(Path(options.path.root), options.name)
