"""The names that option files use, and the module where each of them lives.

A table maps a name to 'module:attribute'. The module is imported when the name is looked up, so importing sam4ir stays
cheap and a plain network never imports SAM or VGG. A user adds parts with ``@ARCHS.register()`` in a module that the
option file lists under ``plugins:``. A name with a prefix, such as spandrel:SCUNet, is one of another library's parts.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from sam4ir.errors import UserError

T = TypeVar("T", bound=Callable[..., Any])


class UnknownNameError(UserError):
    """A name that a table does not hold; the message gives the nearest name and all names of the table."""


def near_miss(name: str, known: Iterable[str]) -> str:
    """Return '; did you mean X?' for the closest known name, or '' if none is close."""
    spellings = {word.lower(): word for word in known}
    close = difflib.get_close_matches(name.lower(), spellings, n=1, cutoff=0.6)
    if not close:  # 'my_psnr' may mean psnr
        parts = [word for word in spellings if len(word) >= 4 and word in name.lower()]
        close = sorted(parts, key=len, reverse=True)
    if not close:
        return ""
    return f"; did you mean {spellings[close[0]]!r}?"


class Registry:
    """One table of names.

    kind: the word for a part in error messages ('arch', 'loss', ...).
    entries: name -> 'module:attribute'.
    handed: constructor arguments that the engine hands over; an option file may not give them.
    refused: names of other code bases that sam4ir does not offer -> the reason.
    families: prefix -> 'module:function' that returns the part of another library called PREFIX:NAME, for a NAME, and
    raises UnknownNameError for one that the library does not have.
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, str],
        handed: Iterable[str] = (),
        refused: Mapping[str, str] | None = None,
        families: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.refused = dict(refused or {})
        self.families = dict(families or {})
        self.handed = frozenset(handed)
        self._entries: dict[str, str | Callable[..., Any]] = dict(entries)

    def names(self) -> list[str]:
        """Return all names of the table, sorted."""
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):  # an option file may give a list or a block
            return False
        return name in self._entries or _prefix(name) in self.families

    def get(self, name: str) -> Callable[..., Any]:
        """Return the class or function called `name`. Raises UnknownNameError with the nearest name."""
        prefix = _prefix(name)
        if prefix in self.families:
            part: Callable[..., Any] = _imported(self.families[prefix])(name.removeprefix(f"{prefix}:"))
            return part
        if name not in self._entries and name in self.refused:
            raise UnknownNameError(f"{self.kind} {name!r} is not offered: {self.refused[name]}")
        if name not in self._entries:
            hint = near_miss(name, self._entries) or ";"
            known = self.names() + [f"{prefix}:NAME" for prefix in sorted(self.families)]
            raise UnknownNameError(f"no {self.kind} is called {name!r}{hint} known: {', '.join(known)}")
        entry = self._entries[name]
        if isinstance(entry, str):
            return _imported(entry)
        return entry

    def register(self, name: str | None = None) -> Callable[[T], T]:
        """Return a decorator that adds a class or function under its own name, or under `name`.

        Raises UserError for another object under a name of the table; the same object may come again, as when a module
        is imported twice.
        """

        def add(part: T) -> T:
            key = name or part.__name__
            if key in self._entries and _origin(self._entries[key]) != _origin(part):
                raise UserError(f"{self.kind} {key!r} is registered already; give yours another name")
            self._entries[key] = part
            return part

        return add


def _prefix(name: str) -> str:
    """Return what stands before the first colon of a name; '' for a name without one."""
    prefix, colon, _ = name.partition(":")
    return prefix if colon else ""


def _imported(row: str) -> Callable[..., Any]:
    """Return the class or function of a row 'module:attribute'."""
    module, attribute = row.split(":")
    part: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return part


def _origin(part: str | Callable[..., Any]) -> str:
    """Return the 'module:attribute' of a table's row or of a part."""
    if isinstance(part, str):
        return part
    return f"{part.__module__}:{part.__qualname__}"


STEREO = "it is for stereo super-resolution, two views at once, and sam4ir restores single images"
ARCHS = Registry(
    "arch",
    {
        "NAFNet": "sam4ir.archs.nafnet:NAFNet",
        "NAFNetLocal": "sam4ir.archs.nafnet:NAFNetLocal",
        "Baseline": "sam4ir.archs.nafnet:Baseline",
        "BaselineLocal": "sam4ir.archs.nafnet:BaselineLocal",
        "HINet": "sam4ir.archs.hinet:HINet",
        "Restormer": "sam4ir.archs.restormer:Restormer",
        "RRDBNet": "sam4ir.archs.rrdb:RRDBNet",
        "DiffSRRRDBNet": "sam4ir.archs.rrdb:DiffSRRRDBNet",
        "DiffSRUnet": "sam4ir.archs.diffusion_unet:DiffSRUnet",
        "DiffSR": "sam4ir.archs.diffusion_sr:DiffSR",
    },
    refused={"NAFSSR": STEREO},
    families={"spandrel": "sam4ir.engine.foreign.network:network"},
)
LOSSES = Registry(
    "loss",
    {
        "L1Loss": "sam4ir.losses.pixel:L1Loss",
        "MSELoss": "sam4ir.losses.pixel:MSELoss",
        "CharbonnierLoss": "sam4ir.losses.pixel:CharbonnierLoss",
        "PSNRLoss": "sam4ir.losses.pixel:PSNRLoss",
        "PerceptualLoss": "sam4ir.losses.perceptual:PerceptualLoss",
    },
    handed=("build_features",),
)
DATASETS = Registry(
    "dataset",
    {
        "PairedImageDataset": "sam4ir.data.paired:PairedImageDataset",
        "GaussianDenoisingDataset": "sam4ir.data.noisy:GaussianDenoisingDataset",
        "DegradedImageDataset": "sam4ir.data.degrade.dataset:DegradedImageDataset",
        "DualPixelDataset": "sam4ir.data.dual_pixel:DualPixelDataset",
        "SingleImageDataset": "sam4ir.data.single:SingleImageDataset",
        "SuperResolutionDataset": "sam4ir.data.super_resolution:SuperResolutionDataset",
        # the names of these in the option files of Restormer, HINet and NAFNet
        "Dataset_PairedImage": "sam4ir.data.paired:PairedImageDataset",
        "PairedImageDataset_SIDD": "sam4ir.data.paired:PairedImageDataset",
        "Dataset_GaussianDenoising": "sam4ir.data.noisy:RestormerDenoisingDataset",
        "Dataset_DefocusDeblur_DualPixel_16bit": "sam4ir.data.dual_pixel:DualPixelDataset",
    },
    handed=("masks", "mask_views", "scale", "degradations"),
    refused={"PairedStereoImageDataset": STEREO},
)
# the maps that masks bring to a sample; `mean` is diffusion.mean
VIEWS = Registry(
    "view",
    {"regions": "sam4ir.engine.train.views:RegionView", "spe": "sam4ir.engine.train.views:SpeView"},
    handed=("mean",),
)
DEGRADATIONS = Registry(
    "degradation",
    {
        "GaussianNoise": "sam4ir.data.degrade.noise:GaussianNoise",
        "PoissonGaussianNoise": "sam4ir.data.degrade.noise:PoissonGaussianNoise",
        "Jpeg": "sam4ir.data.degrade.noise:Jpeg",
        "Quantize": "sam4ir.data.degrade.noise:Quantize",
        "MotionBlur": "sam4ir.data.degrade.blur:MotionBlur",
        "GaussianBlur": "sam4ir.data.degrade.blur:GaussianBlur",
        "ObjectMotionBlur": "sam4ir.data.degrade.objects:ObjectMotionBlur",
        "RainStreaks": "sam4ir.data.degrade.rain:RainStreaks",
    },
)
METRICS = Registry(
    "metric",
    {
        "psnr": "sam4ir.metrics.psnr:psnr",
        "psnr_y": "sam4ir.metrics.psnr:psnr_y",
        "ssim": "sam4ir.metrics.ssim:ssim",
        "ssim_y": "sam4ir.metrics.ssim:ssim_y",
        "ssim3d": "sam4ir.metrics.ssim:ssim3d",
        "psnr_y_rounded": "sam4ir.metrics.psnr:psnr_y_rounded",
        "ssim_y_rounded": "sam4ir.metrics.ssim:ssim_y_rounded",
        "ssim_y_replicate": "sam4ir.metrics.ssim:ssim_y_replicate",
        "ssim_uniform": "sam4ir.metrics.ssim:ssim_uniform",
        "lr_psnr": "sam4ir.metrics.psnr:lr_psnr",
        "lpips_alex": "sam4ir.metrics.lpips:LpipsAlex",
        "fid": "sam4ir.metrics.fid:Fid",
        "calculate_psnr": "sam4ir.metrics.official:calculate_psnr",
        "calculate_ssim": "sam4ir.metrics.official:calculate_ssim",
    },
    handed=("image", "reference", "data_range", "lq", "state"),
)
# A row and not an import: the zoo then depends on none of the networks that it fetches weights for.
WEIGHT_CHECKS = Registry("weights check", {"sam": "sam4ir.priors.sam.kinds:require_kind"}, handed=("path", "kind"))
FUSIONS = Registry(
    "fusion",
    {
        "SPF": "sam4ir.distill.spf:SemanticPriorsFusion",
        "RegionModulation": "sam4ir.distill.modulation:RegionModulation",
        "SignedDistance": "sam4ir.distill.distance:SignedDistanceFusion",
        "RegionAttention": "sam4ir.distill.attention:RegionAttention",
    },
)
TERMS = Registry(
    "distillation term",
    {
        "SPD": "sam4ir.distill.spd:SemanticPriorsDistillation",
        "SGR": "sam4ir.distill.sgr:SemanticGuidedRelation",
        "Teachers": "sam4ir.distill.teachers:Teachers",
    },
    handed=("build_analyser", "build_teacher"),
)
SCHEDULES = Registry(
    "scheduler",
    {
        "TrueCosineAnnealingLR": "sam4ir.engine.train.schedule:true_cosine",
        "CosineAnnealingRestartLR": "sam4ir.engine.train.schedule:cosine_restart",
        "CosineAnnealingRestartCyclicLR": "sam4ir.engine.train.schedule:cosine_restart_cyclic",
        "MultiStepLR": "sam4ir.engine.train.schedule:multi_step_restart",
        "MultiStepRestartLR": "sam4ir.engine.train.schedule:multi_step_restart",
        "LinearLR": "sam4ir.engine.train.schedule:linear",
        "VibrateLR": "sam4ir.engine.train.schedule:vibrate",
        "ConstantLR": "sam4ir.engine.train.schedule:constant",
    },
    handed=("iteration", "base_lr"),
)
