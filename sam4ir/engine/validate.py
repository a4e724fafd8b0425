"""Scores of networks on a data set, for validation during training and for test.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sam4ir.data.loader import eval_samples
from sam4ir.data.sample import Sample
from sam4ir.engine.inference import Inference
from sam4ir.engine.report import Score
from sam4ir.models.restoration import final, frozen, restore
from sam4ir.utils.image import to_uint8, write_image


@dataclass(frozen=True)
class Metric:
    """A metric protocol with its arguments.

    uint8: images are rounded to 8 bit first and the range is 255; otherwise they are float with range 1.
    """

    name: str
    type_name: str
    function: Callable[..., float]
    arguments: Mapping[str, Any]
    uint8: bool = True

    def __call__(self, image: Tensor, reference: Tensor) -> float:
        """Value for (c, h, w) images in [0, 1]; NaN where the image has values that are not finite."""
        if not image.isfinite().all():
            return math.nan
        if self.uint8:
            image, reference = _rounded(image), _rounded(reference)
        return self.function(image, reference, data_range=255.0 if self.uint8 else 1.0, **self.arguments)

    @property
    def protocol(self) -> str:
        """What the number is, for reports."""
        arguments = "".join(f", {k} {v}" for k, v in self.arguments.items())
        return f"{self.type_name} on {'8-bit images' if self.uint8 else 'float images in [0, 1]'}{arguments}"


def _rounded(image: Tensor) -> Tensor:
    return torch.from_numpy(to_uint8(image)).permute(2, 0, 1)


@dataclass(frozen=True)
class Stages:
    """The images that are scored for a sample: restored by the network, refined by a refiner where there is one."""

    network: nn.Module
    inference: Inference
    device: torch.device
    refiner: nn.Module | None = None

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        """{'restored': (c, h, w), 'refined': ...} on the CPU, float32 clamped to [0, 1]; networks run in eval mode."""
        lq = sample.lq.unsqueeze(0).to(self.device)
        with frozen(self.network):
            restored = self.inference(lambda x: restore(self.network, x), lq)
        stages = {"restored": restored}
        if self.refiner is not None:
            with frozen(self.refiner):
                stages["refined"] = self._refine(self.refiner, restored, lq, sample)
        return {name: image[0].clamp(0, 1).cpu() for name, image in stages.items()}

    def _refine(self, refiner: nn.Module, restored: Tensor, lq: Tensor, sample: Sample) -> Tensor:
        labels = torch.zeros(lq.shape[-2:], dtype=torch.int64) if sample.regions is None else sample.regions
        labels = labels.unsqueeze(0).to(self.device)
        return final(refiner(restored, labels, int(labels.max()), lq)).float()


def evaluate(
    name: str,
    dataset: Any,
    stages: Stages,
    metrics: Mapping[str, Metric],
    *,
    seed: int,
    save_folder: Path | None = None,
    save_suffix: str = "",
    check: Callable[[], None] = lambda: None,
) -> Iterator[Score]:
    """Scores of every image of a data set, in key order, one row a stage.

    The degraded image itself is scored as stage 'input' where it has the size of the ground truth.
    save_folder: restored images are written there as 8-bit PNG. check: called between images; may raise to stop.
    """
    samples = tqdm(eval_samples(dataset, seed), total=len(dataset), desc=name, unit="image", disable=None, leave=False)
    for sample in samples:
        check()
        images = stages(sample)
        for stage, image in images.items():
            if save_folder is not None and image.isfinite().all():
                write_image(_save_path(save_folder, sample.key, save_suffix, stage), to_uint8(image))
        yield from _scores(name, sample, images, metrics)


def _scores(name: str, sample: Sample, images: Mapping[str, Tensor], metrics: Mapping[str, Metric]) -> Iterator[Score]:
    if sample.gt is None or not metrics:
        return
    if sample.lq.shape == sample.gt.shape:
        images = {"input": sample.lq.clamp(0, 1), **images}
    for stage, image in images.items():
        yield Score(name, sample.key, stage, {m: metric(image, sample.gt) for m, metric in metrics.items()})


def _save_path(folder: Path, key: str, suffix: str, stage: str) -> Path:
    tail = "_refined" if stage == "refined" else ""
    return folder / f"{key}{'_' + suffix if suffix else ''}{tail}.png"
