"""Names that option files use, and where each of them lives.

A table maps a name to 'module:attribute'; the module is imported when the name is looked up, so
importing sam4ir stays cheap and a plain network never pulls in SAM or VGG. A user's own parts join
with ``@ARCHS.register()`` in a module listed under ``plugins:`` of the option file.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from sam4ir.errors import UserError

T = TypeVar("T", bound=Callable[..., Any])


class UnknownNameError(UserError):
    """A name that no table holds; the message tells the near miss and the known names."""


def near_miss(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the closest known name, '' where none is close."""
    by_fold = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), by_fold, n=1, cutoff=0.6)
    if not close:  # 'my_psnr' may mean psnr
        close = sorted((k for k in by_fold if len(k) >= 4 and k in name.lower()), key=len, reverse=True)
    return f"; did you mean {by_fold[close[0]]!r}?" if close else ""


class Registry:
    """One table of names.

    kind: the word that error messages use ('arch', 'loss', ...).
    entries: name -> 'module:attribute'.
    handed: constructor arguments that the engine hands over and an option file may not give.
    """

    def __init__(self, kind: str, entries: Mapping[str, str], handed: Iterable[str] = ()) -> None:
        self.kind = kind
        self.handed = frozenset(handed)
        self._entries: dict[str, str | Callable[..., Any]] = dict(entries)

    def names(self) -> list[str]:
        """All known names, sorted."""
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def get(self, name: str) -> Callable[..., Any]:
        """The class or function called `name`. Raises UnknownNameError with the near miss."""
        if name not in self._entries:
            miss = near_miss(name, self._entries)
            raise UnknownNameError(f"no {self.kind} is called {name!r}{miss or ';'} known: {', '.join(self.names())}")
        entry = self._entries[name]
        if isinstance(entry, str):
            module, attribute = entry.split(":")
            entry = getattr(importlib.import_module(module), attribute)
        return entry

    def register(self, name: str | None = None) -> Callable[[T], T]:
        """Decorator that adds a class or function under its own name, or under `name`.

        Registering another object under a taken name is a ValueError; the same object again (a
        module imported twice) is not.
        """

        def add(obj: T) -> T:
            key = name or obj.__name__
            taken = self._entries.get(key)
            origin = f"{obj.__module__}:{obj.__qualname__}"
            if taken is not None and origin != (
                taken if isinstance(taken, str) else f"{taken.__module__}:{taken.__qualname__}"
            ):
                raise UserError(f"{self.kind} {key!r} is registered already; give yours another name")
            self._entries[key] = obj
            return obj

        return add


ARCHS = Registry(
    "arch",
    {
        "NAFNet": "sam4ir.archs.nafnet:NAFNet",
        "NAFNetLocal": "sam4ir.archs.nafnet:NAFNetLocal",
        "HINet": "sam4ir.archs.hinet:HINet",
        "Restormer": "sam4ir.archs.restormer:Restormer",
        "RRDBNet": "sam4ir.archs.rrdb:RRDBNet",
        "DiffSRRRDBNet": "sam4ir.archs.rrdb:DiffSRRRDBNet",
        "DiffSRUnet": "sam4ir.archs.diffusion_unet:DiffSRUnet",
        "DiffSR": "sam4ir.archs.diffusion_sr:DiffSR",
    },
)
LOSSES = Registry(
    "loss",
    {
        "L1Loss": "sam4ir.losses.pixel:L1Loss",
        "MSELoss": "sam4ir.losses.pixel:MSELoss",
        "CharbonnierLoss": "sam4ir.losses.pixel:CharbonnierLoss",
        "PSNRLoss": "sam4ir.losses.pixel:PSNRLoss",
    },
)
DATASETS = Registry(
    "dataset",
    {
        "PairedImageDataset": "sam4ir.data.paired:PairedImageDataset",
        "GaussianDenoisingDataset": "sam4ir.data.noisy:GaussianDenoisingDataset",
        "DegradedImageDataset": "sam4ir.data.degrade.dataset:DegradedImageDataset",
        "DualPixelDataset": "sam4ir.data.dual_pixel:DualPixelDataset",
        "SuperResolutionDataset": "sam4ir.data.super_resolution:SuperResolutionDataset",
        # the names of these in the option files of Restormer, HINet and NAFNet
        "Dataset_PairedImage": "sam4ir.data.paired:PairedImageDataset",
        "PairedImageDataset_SIDD": "sam4ir.data.paired:PairedImageDataset",
        "Dataset_GaussianDenoising": "sam4ir.data.noisy:GaussianDenoisingDataset",
        "Dataset_DefocusDeblur_DualPixel_16bit": "sam4ir.data.dual_pixel:DualPixelDataset",
    },
    handed=("masks", "mask_views", "scale", "degradations"),
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
FUSIONS = Registry("fusion", {"SPF": "sam4ir.distill.spf:SemanticPriorsFusion"})
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
