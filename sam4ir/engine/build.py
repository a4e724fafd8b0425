"""Options -> parts: what training and inference share. Knows no SAM, no VGG and no masks; train/build.py adds those."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from sam4ir.archs.infer import infer, shapes_of
from sam4ir.config.paths import RunPaths
from sam4ir.config.schema import Block, DatasetOptions, Options
from sam4ir.config.signature import accepts, block_arguments
from sam4ir.data.sample import Dataset, Multichannel
from sam4ir.engine.weights import WeightsFileError, load_weights, locate
from sam4ir.errors import UserError
from sam4ir.models.restoration import eval_mode, restore
from sam4ir.registry import ARCHS, DATASETS, DEGRADATIONS, Registry
from sam4ir.utils.dist import World
from sam4ir.utils.rng import torch_stream
from sam4ir.utils.weights import read_weights

M = TypeVar("M", bound=nn.Module)
ALONE = World()
DIFFUSION_ENTRY = "diffusion"  # of weights files: what sampling must know beside the network


class BuildError(UserError):
    """A part that cannot be built; the message names its key in the option file."""


class PartFaultError(RuntimeError):
    """A bug in the code of a part, ours or a plug-in's; the message names its key, the cause has the traceback."""


@contextlib.contextmanager
def naming(place: str) -> Iterator[None]:
    """Inside the block, an error names the key of the option file that it comes from.

    A ValueError, OSError, or a RuntimeError of torch (which refuses sizes so) means the options: BuildError. Any
    other exception is a bug in the part's code: PartFaultError, which keeps the traceback.
    """
    try:
        yield
    except (BuildError, PartFaultError):
        raise
    except (NotImplementedError, RecursionError) as error:
        raise PartFaultError(f"{place}: {type(error).__name__}: {error}") from error
    except (ValueError, OSError) as error:
        raise BuildError(f"{place}: {error}") from error
    except RuntimeError as error:  # torch's are long
        raise BuildError(f"{place}: {(str(error) or type(error).__name__).splitlines()[0]}") from error
    except Exception as error:
        raise PartFaultError(f"{place}: {type(error).__name__}: {error}") from error


def make(registry: Registry, block: Block, place: str, **handed: Any) -> Any:
    """What a `type:` block names, built from its arguments; `handed` adds what the signature asks for."""
    target = registry.get(block.type)
    taken = {k: v for k, v in handed.items() if accepts(target, k)}
    with naming(place):
        return target(**{**taken, **block_arguments(registry, block.type, block.arguments)})


def wants_cuda(options: Options) -> bool:
    """Whether a run goes on CUDA devices; `auto` does where there is one."""
    return torch.cuda.is_available() if options.device == "auto" else options.device.startswith("cuda")


def device_of(options: Options, world: World = ALONE) -> torch.device:
    """The device of this process; the local rank numbers CUDA's.

    Raises BuildError for a device that is not there, and for a numbered one with many processes.
    """
    if world.size > 1 and ":" in options.device:
        raise BuildError(f"device: {options.device} is one device, asked for by {world.size} processes; set cuda")
    if wants_cuda(options) and ":" not in options.device:
        device = torch.device("cuda", world.cuda_index) if world.size > 1 else torch.device("cuda")
    else:
        device = torch.device("cpu" if options.device == "auto" else options.device)
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


def check_images(net: nn.Module, options: Options, device: torch.device, channels: int = 3) -> None:
    """Raise BuildError unless the network turns an image of so many channels into one `scale` times as large.

    A pair of dual-pixel views (6 channels) becomes one RGB image; a diffusion network takes one step.
    """
    image = torch.zeros(1, channels, 16, 16, device=device)
    with naming("network_g"), eval_mode(net):
        shape = tuple(_one_step(net, image, options) if options.diffuses else restore(net, image).shape)
        if shape != (1, min(channels, 3), 16 * options.scale, 16 * options.scale):
            raise UserError(
                f"{options.network_g.type} turns {tuple(image.shape)} into {shape}; scale is {options.scale}"
            )


def _one_step(net: nn.Module, image: torch.Tensor, options: Options) -> torch.Size:
    """The shape that a diffusion network gives its estimate for these LR images."""
    side = image.shape[-1] * options.scale
    x_t = torch.zeros(1, 3, side, side, device=image.device)
    if not callable(getattr(net, "condition", None)):
        raise UserError(f"{type(net).__name__} is no diffusion network, which {options.model_type} needs; take DiffSR")
    estimate: torch.Tensor = net(x_t, torch.zeros(1, dtype=torch.int64, device=image.device), image, x_t)
    return estimate.shape


def channels_of(data: Dataset) -> int:
    """Return the channels of a data set's degraded images: 3 where the data set does not name them."""
    return data.channels if isinstance(data, Multichannel) else 3


def to_device(module: M, device: torch.device, channels_last: bool = True) -> M:
    """The module on the device, its weights in channels_last, the layout that all of ours run fastest in."""
    return module.to(device).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def network(block: Block, label: str, options: Options, device: torch.device) -> nn.Module:
    """A network whose initial weights are a function of (manual_seed, label) alone."""
    with torch_stream(options.manual_seed, "init", label):
        built: nn.Module = make(ARCHS, block, f"network_{label}")
    return to_device(built, device, options.channels_last)


def pretrained(net: nn.Module, options: Options) -> bool:
    """Load path.pretrain_network_g, a file or a name of the zoo, into a network; False where none is named.

    path.pretrain_network_c goes into the RRDB of a diffusion network, unless that one's weights are named as a whole.
    """
    path = options.path
    if path.pretrain_network_c and not (path.pretrain_network_g and path.strict_load_g):
        with naming("path.pretrain_network_c"):
            rrdb = getattr(net, "rrdb", None)
            if not isinstance(rrdb, nn.Module):
                raise UserError(f"{type(net).__name__} has no RRDB (an attribute `rrdb`) that it could go into")
            _load_rrdb(rrdb, path.pretrain_network_c)
    if not path.pretrain_network_g:
        return False
    with naming("path.pretrain_network_g"):
        load_weights(net, path.pretrain_network_g, path.param_key_g or path.param_key, path.strict_load_g)
    return True


def _load_rrdb(rrdb: nn.Module, source: str) -> None:
    """The weights of an RRDB into that of a diffusion network; where they do not fit, the arguments that would."""
    try:
        load_weights(rrdb, source)
    except WeightsFileError as error:
        fit = infer(shapes_of(read_weights(locate(source)).state))
        given = {} if fit is None else fit.arguments
        feat, blocks, growth = (
            next((given[name] for name in names if name in given), None)
            for names in (("num_feat", "nf"), ("num_block", "nb"), ("num_grow_ch", "gc"))
        )
        if feat is None:
            raise
        advice = f"set network_g.rrdb_num_feat: {feat} and rrdb_num_block: {blocks}"
        if 2 * (growth or 0) != feat:
            advice = f"its growth {growth} must be half of its {feat} features; train one with num_grow_ch: {feat // 2}"
        raise WeightsFileError(f"{source}: does not fit the RRDB of network_g; {advice}") from error


def dataset(key: str, block: DatasetOptions, options: Options, **handed: Any) -> Dataset:
    """A data set; `handed` goes to its constructor beside what the option file says (masks and their views)."""
    if block.degradations is not None:
        handed["degradations"] = [
            make(DEGRADATIONS, degradation, f"datasets.{key}.degradations[{i}]")
            for i, degradation in enumerate(block.degradations)
        ]
    data: Dataset = make(DATASETS, block, f"datasets.{key}", scale=options.scale, **handed)
    return data


def run_paths(options: Options) -> RunPaths:
    """Where this run's files lie."""
    return RunPaths(Path(options.path.root), options.name)
