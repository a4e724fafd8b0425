"""Build the parts that training and inference share: networks, data sets, pretrained weights.

This module knows no SAM, no VGG and no masks; engine/train/build.py adds those.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from sam4ir.archs.infer import infer, shapes_of
from sam4ir.config.paths import RunPaths
from sam4ir.config.schema import DIFFUSION_MODEL, Block, DatasetOptions, PathOptions
from sam4ir.config.signature import accepts, block_arguments
from sam4ir.data.sample import Dataset, Multichannel
from sam4ir.engine.foreign.network import ForeignNetwork
from sam4ir.engine.weights import WeightsFileError, load_weights, locate
from sam4ir.errors import UserError, first_line
from sam4ir.models.restoration import eval_mode, restore
from sam4ir.registry import ARCHS, DATASETS, DEGRADATIONS, Registry
from sam4ir.utils.files import takes_no_more
from sam4ir.utils.memory import out_of_memory
from sam4ir.utils.rng import torch_stream
from sam4ir.utils.weights import read_weights

M = TypeVar("M", bound=nn.Module)
DIFFUSION_ENTRY = "diffusion"  # of weights files: the diffusion that the network was trained with

_TRIAL_SIDES = (16, 64, 256)  # of images with which a network is tried

# arguments of an RRDB by the names that code bases give them: features, blocks, growth
_FEATURES, _BLOCKS, _GROWTH = ("num_feat", "nf"), ("num_block", "nb"), ("num_grow_ch", "gc")


class BuildError(UserError):
    """A part that cannot be built; the message names its key in the option file."""


class PartFaultError(RuntimeError):
    """A bug in the code of a part, ours or a plugin's; the message names its key, the cause has the traceback."""


@contextlib.contextmanager
def naming(place: str) -> Iterator[None]:
    """Put the key of the option file, `place`, before the message of any error inside the block.

    A ValueError, OSError, or a RuntimeError of torch (which refuses sizes so) means the options: BuildError. A full
    disk is no fault of them and keeps its error. Any other exception is a bug in the part's code: PartFaultError, which
    keeps the traceback.
    """
    try:
        yield
    except (BuildError, PartFaultError):
        raise
    except (NotImplementedError, RecursionError) as error:
        raise PartFaultError(f"{place}: {type(error).__name__}: {error}") from error
    except (ValueError, OSError) as error:
        if takes_no_more(error):  # no fault of the option: what is full may be the disk of the log
            raise
        raise BuildError(f"{place}: {error}") from error
    except RuntimeError as error:  # torch's are long
        raise BuildError(f"{place}: {first_line(error)}") from error
    except Exception as error:
        raise PartFaultError(f"{place}: {type(error).__name__}: {error}") from error


def build_part(registry: Registry, block: Block, place: str, **handed: Any) -> Any:
    """Build the part that a `type:` block names, from the block's arguments.

    handed: further arguments; those that the part's signature does not have are left out.
    """
    target = registry.get(block.type)
    accepted = {name: value for name, value in handed.items() if accepts(target, name)}
    with naming(place):
        return target(**{**accepted, **block_arguments(registry, block.type, block.arguments)})


def check_images(
    net: nn.Module, scale: int, device: torch.device, channels: int = 3, *, diffusion: bool = False, multiple: int = 1
) -> None:
    """Raise BuildError unless the network turns an image of `channels` into one `scale` times as large.

    A pair of dual-pixel views (6 channels) becomes one RGB image; a diffusion network takes one step.
    multiple: images are padded to a multiple of it (val.window_size).
    """
    with naming("network_g"):
        measured = measured_scale(net, device, channels, diffusion=diffusion, multiple=multiple)
    if measured != scale:
        raise BuildError(other_scale(net, measured, scale))


def other_scale(net: nn.Module, measured: int, scale: int) -> str:
    """Return the sentence on a scale that is not the network's."""
    size = f"images {measured} times as large as its input"
    if measured == 1:
        size = "images of the size of its input"
    return f"scale: is {scale}, but {type(net).__name__} of network_g makes {size}; set scale: {measured}"


def measured_scale(
    net: nn.Module, device: torch.device, channels: int = 3, *, diffusion: bool = False, multiple: int = 1
) -> int:
    """Return how many times a network's images are larger than its input, by restoring a small image.

    Networks that refuse it are tried with larger ones. Raises UserError for images of other channels than the input
    has (three for two views), and for a size that is no multiple of the input's; a RuntimeError of the network where
    it takes no image.
    """
    refusal: Exception | None = None
    for least in _TRIAL_SIDES:
        image = torch.zeros(1, channels, *[-(-least // multiple) * multiple] * 2, dtype=torch.float32, device=device)
        try:
            with eval_mode(net):
                output = _one_step(net, image) if diffusion else restore(net, image)
        except (NotImplementedError, RecursionError):
            raise
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            refusal = refusal or error
            continue
        return _ratio(net, image, output)
    assert refusal is not None
    raise refusal


def _ratio(net: nn.Module, image: torch.Tensor, output: torch.Tensor) -> int:
    """Return side of output over side of image; raise UserError where that is no restored image."""
    side = image.shape[-1]
    ratio = output.shape[-1] // side
    wanted = (1, min(image.shape[1], 3), side * ratio, side * ratio)
    if ratio < 1 or tuple(output.shape) != wanted:
        raise UserError(
            f"{type(net).__name__} turns {tuple(image.shape)} into {tuple(output.shape)}, which is no image of so many "
            "channels whose size is a whole number (the scale) times that of its input"
        )
    return ratio


def _one_step(net: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Return a diffusion network's estimate for LR images (1, c, h, w)."""
    if not callable(getattr(net, "condition", None)):
        raise UserError(f"{type(net).__name__} is no diffusion network, which {DIFFUSION_MODEL} needs; take DiffSR")
    side = net.condition(image).shape[-1]  # type: ignore[operator]
    x_t = torch.zeros(1, 3, side, side, dtype=image.dtype, device=image.device)
    estimate: torch.Tensor = net(x_t, torch.zeros(1, dtype=torch.int64, device=image.device), image, x_t)
    return estimate


def channels_of(data: Dataset) -> int:
    """Return the channels of a data set's degraded images: 3 where the data set does not name them."""
    if isinstance(data, Multichannel):
        return data.channels
    return 3


def to_device(module: M, device: torch.device, channels_last: bool = True) -> M:
    """Move a module to the device, its weights in channels_last, the layout in which all of ours run fastest."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return module.to(device).to(memory_format=layout)


def build_network(
    block: Block, label: str, device: torch.device, *, seed: int, channels_last: bool = True
) -> nn.Module:
    """Build network_<label> in float32; its initial weights are a function of (seed, label) alone.

    channels_last: the layout of its weights; networks of other libraries keep the usual one, as many of them make
    views that no other layout allows.
    """
    with torch_stream(seed, "init", label):
        net: nn.Module = build_part(ARCHS, block, f"network_{label}")
    net.float()  # a program may have given torch another default type
    return to_device(net, device, channels_last and not isinstance(net, ForeignNetwork))


def load_pretrained(net: nn.Module, path: PathOptions, average: bool = True) -> bool:
    """Load path.pretrain_network_g, a file or a name of the zoo, into a network; return False where none is named.

    average: whether the average of the weights is read where a file holds both; path.param_key_g goes before it.
    path.pretrain_network_c goes into the RRDB of a diffusion network, unless pretrain_network_g fills all of it.
    """
    if path.pretrain_network_c and not (path.pretrain_network_g and path.strict_load_g):
        with naming("path.pretrain_network_c"):
            rrdb = getattr(net, "rrdb", None)
            if not isinstance(rrdb, nn.Module):
                raise UserError(f"{type(net).__name__} has no RRDB (an attribute `rrdb`) that it could go into")
            _load_rrdb(rrdb, path.pretrain_network_c)
    if not path.pretrain_network_g:
        return False
    with naming("path.pretrain_network_g"):
        load_weights(net, path.pretrain_network_g, path.param_key_g or path.param_key, path.strict_load_g, average)
    return True


def _load_rrdb(rrdb: nn.Module, source: str) -> None:
    """Load an RRDB's weights into the RRDB of a diffusion network; where they do not fit, name arguments that would."""
    try:
        load_weights(rrdb, source)
    except WeightsFileError as error:
        fit = infer(shapes_of(read_weights(locate(source)).state))
        if fit is None:
            raise
        features = _first(fit.arguments, _FEATURES)
        blocks = _first(fit.arguments, _BLOCKS)
        growth = _first(fit.arguments, _GROWTH)
        if features is None:
            raise
        advice = f"set network_g.rrdb_num_feat: {features} and rrdb_num_block: {blocks}"
        if 2 * (growth or 0) != features:
            half = features // 2
            advice = f"its growth {growth} must be half of its {features} features; train one with num_grow_ch: {half}"
        raise WeightsFileError(f"{source}: does not fit the RRDB of network_g; {advice}") from error


def _first(arguments: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Return the argument that has the first of these names; None where there is none."""
    for name in names:
        if name in arguments:
            return arguments[name]
    return None


def build_dataset(key: str, block: DatasetOptions, scale: int, **handed: Any) -> Dataset:
    """Build a data set. handed: arguments beside those of the option file (masks and their views)."""
    if block.degradations is not None:
        degradations = []
        for number, degradation in enumerate(block.degradations):
            degradations.append(build_part(DEGRADATIONS, degradation, f"datasets.{key}.degradations[{number}]"))
        handed["degradations"] = degradations
    data: Dataset = build_part(DATASETS, block, f"datasets.{key}", scale=scale, **handed)
    return data


def run_paths(path: PathOptions, name: str) -> RunPaths:
    """Return where the files of a run lie."""
    return RunPaths(Path(path.root), name)
