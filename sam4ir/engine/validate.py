"""Scores of networks on a data set, for validation during training and for test.py."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sam4ir.data.loader import eval_samples
from sam4ir.data.sample import Sample
from sam4ir.engine.inference import Inference
from sam4ir.engine.report import Score
from sam4ir.models.restoration import final, frozen, restore
from sam4ir.registry import METRICS
from sam4ir.utils.dist import World
from sam4ir.utils.image import to_uint8, write_image


class Pixels:
    """One image in the two forms that metrics read, each made once for all of them.

    image: (c, h, w) float in [0, 1]; grey or RGB.
    """

    def __init__(self, image: Tensor) -> None:
        self.image = image

    @functools.cached_property
    def finite(self) -> bool:
        """Whether every value is finite."""
        return bool(self.image.isfinite().all())

    @functools.cached_property
    def rounded(self) -> Tensor:
        """(c, h, w) uint8; the image must be finite."""
        return torch.from_numpy(to_uint8(self.image)).permute(2, 0, 1).contiguous()


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

    def __call__(self, image: Pixels, reference: Pixels) -> float:
        """Value for an image and its ground truth; NaN where the image has values that are not finite."""
        if not image.finite:
            return math.nan
        if self.uint8:
            return self.function(image.rounded, reference.rounded, data_range=255.0, **self.arguments)
        return self.function(image.image, reference.image, data_range=1.0, **self.arguments)

    @property
    def protocol(self) -> str:
        """What the number is, for reports: every argument is named, so that equal texts are equal definitions."""
        known = inspect.signature(self.function).parameters.values()
        defaults = {p.name: p.default for p in known if p.default is not p.empty and p.name not in METRICS.handed}
        arguments = "".join(f", {k} {v}" for k, v in {**defaults, **self.arguments}.items())
        return f"{self.type_name} on {'8-bit images' if self.uint8 else 'float images in [0, 1]'}{arguments}"


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
    world: World | None = None,
    save_folder: Path | None = None,
    save_suffix: str = "",
    stopped: Callable[[], int] = lambda: 0,
) -> Evaluation:
    """Scores of every image of a data set, in key order, one row a stage; the same in each process of `world`.

    Each process takes every world.size-th image. The degraded image itself is scored as stage 'input' where it has
    the size of the ground truth. save_folder: restored images are written there as 8-bit PNG, each by the process
    that restored it. stopped: asked between images; what is not 0 ends the work in all processes.
    """
    world = world or World()
    samples = eval_samples(dataset, seed, world.rank, world.size)
    share = len(range(world.rank, len(dataset), world.size))
    own: list[list[Score]] = []
    show = tqdm(samples, total=share, desc=name, unit="image", disable=None if world.main else True, leave=False)
    for sample in show:
        if stopped():
            break
        images = stages(sample)
        for stage, image in images.items():
            if save_folder is not None and image.isfinite().all():
                write_image(_save_path(save_folder, sample.key, save_suffix, stage), to_uint8(image))
        own.append(list(_scores(name, sample, images, metrics)))
    shares = world.gather(own)
    turns = itertools.zip_longest(*shares, fillvalue=())  # image i lies with process i mod size
    scores = [score for turn in turns for image_scores in turn for score in image_scores]
    return Evaluation(scores, stopped=world.largest(stopped()))


class Evaluation(NamedTuple):
    """scores of the images; stopped: 0, or what `stopped` said in some process, and then images are missing."""

    scores: list[Score]
    stopped: int


def _scores(name: str, sample: Sample, images: Mapping[str, Tensor], metrics: Mapping[str, Metric]) -> Iterator[Score]:
    if sample.gt is None or not metrics:
        return
    if sample.lq.shape == sample.gt.shape:
        images = {"input": sample.lq.clamp(0, 1), **images}
    reference = Pixels(sample.gt)
    for stage, image in images.items():
        pixels = Pixels(image)
        yield Score(name, sample.key, stage, {m: metric(pixels, reference) for m, metric in metrics.items()})


def _save_path(folder: Path, key: str, suffix: str, stage: str) -> Path:
    tail = "_refined" if stage == "refined" else ""
    return folder / f"{key}{'_' + suffix if suffix else ''}{tail}.png"
