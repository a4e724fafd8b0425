"""What mask generation needs beside images: the generator with its weights, the restoring network, the store's meta."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sam4ir.config.load import load_options
from sam4ir.engine.restore.images import image_restorer
from sam4ir.engine.weights import locate
from sam4ir.errors import UserError
from sam4ir.priors.zoo.download import sha256_of
from sam4ir.utils.dist import World

GENERATOR = "sam4ir AutomaticMaskGenerator"
PACKAGES = ("torch", "segment-anything", "sam4ir")

# Settings of priors/automatic_masks.AutomaticMaskSettings, kept here so that --help loads no SAM.
SETTINGS: dict[str, tuple[type, str]] = {
    "points_per_side": (int, "of the grid (default: 32)"),
    "points_per_batch": (int, "that the decoder takes at once (default: what suits the device)"),
    "pred_iou_thresh": (float, "least predicted IoU of a mask (default: 0.88)"),
    "stability_score_thresh": (float, "least stability of a mask (default: 0.95)"),
    "stability_score_offset": (float, "of the logits, for the stability (default: 1.0)"),
    "box_nms_thresh": (float, "largest IoU of two masks' boxes (default: 0.7)"),
    "crop_n_layers": (int, "layers of crops that are looked at too (default: 0)"),
    "crop_nms_thresh": (float, "largest IoU of boxes between crops (default: 0.7)"),
    "crop_overlap_ratio": (float, "overlap of crops (default: 0.341)"),
    "crop_n_points_downscale_factor": (int, "fewer points a side by this factor a layer (default: 1)"),
    "point_grids": (list, "own points [x, y] in 0..1, a list of grids, one a layer"),
    "min_mask_region_area": (int, "pixels of the smallest hole and island that stay (default: 0)"),
}


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator and what is to be told of it. settings: all but points_per_batch; changed: those not default."""

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


@dataclass(frozen=True)
class Restored:
    """A restoring network and what is to be told of it."""

    restore: Callable[[np.ndarray], np.ndarray]
    option_file: str
    checkpoint: str
    sha256: str


def device_of(name: str, world: World) -> torch.device:
    """The device of this process. Raises ValueError for one that is not there, or one for many processes."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device: {name!r} is none; give auto, cpu, cuda, cuda:1 ... or mps") from None
    if device.type == "cuda":
        if device.index is not None and world.size > 1:
            raise UserError(f"--device: {name} is one device, asked for by {world.size} processes; give cuda")
        device = torch.device("cuda", world.cuda_index if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise UserError(f"--device: {device} is asked for but torch finds {torch.cuda.device_count()}; give cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device: mps is asked for but torch finds none; give cpu")
    return device


def load_generator(
    weights: str, given: Mapping[str, Any], precision: str, device: torch.device, world: World
) -> LoadedGenerator:
    """The generator of a SAM. weights: a name of the zoo or a file. given: settings that are not left at default.

    The main process goes first, so that weights are fetched once. Raises ValueError for unknown weights or settings.
    """
    from sam4ir.priors.sam.automatic_masks import AutomaticMaskGenerator, AutomaticMaskSettings
    from sam4ir.priors.sam.load import LoadedSam, load_sam

    settings = AutomaticMaskSettings(**given)
    found: list[LoadedSam] = []
    world.main_first(lambda: found.append(load_sam(weights, device)))
    loaded = found[0] if found else load_sam(weights, device)
    generator = AutomaticMaskGenerator(loaded.sam, settings, precision)  # type: ignore[arg-type]
    default = AutomaticMaskSettings()
    changed = {name: getattr(settings, name) for name in SETTINGS if getattr(settings, name) != getattr(default, name)}
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
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.processor() or platform.machine()})"


def load_restorer(option_file: Path, weights: str | None, device: torch.device) -> Restored:
    """The option file's network. weights: a file or a name of the zoo; None as path.pretrain_network_g says."""
    options = load_options(option_file, [f"device={device}"])
    source = weights or options.path.pretrain_network_g
    if not source:
        raise UserError(f"{option_file}: path.pretrain_network_g names no weights; give --restore-weights")
    path = locate(source)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; give --restore-weights")
    return Restored(image_restorer(options, str(path)), option_file.name, path.name, sha256_of(path))


def meta_of(
    made: LoadedGenerator, source: str, max_side: int | None, restored: Restored | None, scale: int = 1
) -> dict[str, Any]:
    """What meta.json says; `versions`, `made_on` and `told` may differ between the runs of one store."""
    meta: dict[str, Any] = {
        "generator": GENERATOR,
        "sam": made.kind,
        "checkpoint": made.file,
        "checkpoint_sha256": made.sha256,
        "settings": dict(made.settings),
        "precision": made.precision,
        "source": source,
        "max_side": max_side,
        "versions": {name: _version(name) for name in PACKAGES},
        "made_on": made.made_on,
        "told": dict(made.metadata),
    }
    if scale > 1:
        meta["scale"] = scale
    if restored is not None:
        meta["restored_by"] = {
            "option_file": restored.option_file,
            "checkpoint": restored.checkpoint,
            "checkpoint_sha256": restored.sha256,
        }
    return meta


def _version(package: str) -> str:
    """sam4ir may run from a checkout that nobody installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
