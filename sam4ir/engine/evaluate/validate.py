"""Scores of networks on a data set, for validation during training and for test.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sam4ir.data.loader import eval_samples
from sam4ir.data.sample import Sample
from sam4ir.engine.evaluate.metric import Metric, Pixels
from sam4ir.engine.evaluate.report import Score, SetScore
from sam4ir.engine.restore.one_pass import Restorer
from sam4ir.models.restoration import eval_mode, last_output
from sam4ir.utils.dist import World
from sam4ir.utils.image import to_uint8, write_image
from sam4ir.utils.resize import imresize


@dataclass(frozen=True)
class Outputs:
    """The images that are scored for a sample: restored by a way, refined by a refiner where there is one."""

    restorer: Restorer
    device: torch.device
    refiner: nn.Module | None = None

    def __call__(self, sample: Sample, number: int = 0) -> dict[str, Tensor]:
        """{'restored': (c, h, w), 'refined': ...} on the CPU, float32 clamped to [0, 1]; networks run in eval mode.

        number: which of several samples of the image, for ways that draw noise.
        """
        lq = sample.lq.unsqueeze(0).to(self.device)
        with eval_mode(self.restorer.network):
            restored = self.restorer(lq, sample.key, number)
        stages = {"restored": restored}
        if self.refiner is not None:
            with eval_mode(self.refiner):
                stages["refined"] = self._refine(self.refiner, restored, lq, sample)
        return {name: image[0].clamp(0, 1).cpu() for name, image in stages.items()}

    def _refine(self, refiner: nn.Module, restored: Tensor, lq: Tensor, sample: Sample) -> Tensor:
        labels = sample.maps.get("regions", torch.zeros(lq.shape[-2:], dtype=torch.int64))
        labels = labels.unsqueeze(0).to(self.device)
        return last_output(refiner(restored, labels, int(labels.max()), lq)).float()


class Evaluation(NamedTuple):
    """What a data set gave.

    scores: of the images. stopped: 0, or what `stopped` said in some process, and then images are missing.
    sets: of the whole set; none where images are missing. notes: what to know of these, for the user.
    """

    scores: list[Score]
    stopped: int
    sets: Sequence[SetScore] = ()
    notes: Sequence[str] = ()


@dataclass
class _Seen:
    """What is kept of one image: its scores, and features for metrics of the whole set by what they are of."""

    scores: list[Score] = field(default_factory=list)
    features: dict[tuple[str, str, int], Tensor] = field(default_factory=dict)  # (metric, stage or _GT, sample)


_GT = ""  # the stage of ground truth


class _Judge:
    """Scores what is made of one image; the ground truth and the degraded image are prepared once for all of it."""

    def __init__(self, dataset: str, sample: Sample, metrics: Mapping[str, Metric]) -> None:
        self.seen = _Seen()
        self._dataset = dataset
        self._key = sample.key
        self._metrics = metrics if sample.gt is not None else {}
        self._reference = Pixels(sample.lq if sample.gt is None else sample.gt)
        self._lq = Pixels(sample.lq)
        for m, metric in _of_set(self._metrics):
            self.seen.features[m, _GT, 0] = metric.features(self._reference)

    def add(self, images: Mapping[str, Tensor], number: int) -> None:
        """Scores images by stage. number: which sample they are."""
        of_image = {m: metric for m, metric in self._metrics.items() if not metric.of_set}
        for stage, image in images.items() if self._metrics else ():
            pixels = Pixels(image)
            values = {m: metric(pixels, self._reference, self._lq) for m, metric in of_image.items()}
            self.seen.scores.append(Score(self._dataset, self._key, stage, values, number))
            for m, metric in _of_set(self._metrics):
                self.seen.features[m, stage, number] = metric.features(pixels)


def evaluate(
    name: str,
    dataset: Any,
    outputs: Outputs,
    metrics: Mapping[str, Metric],
    *,
    seed: int,
    world: World | None = None,
    save_folder: Path | None = None,
    save_suffix: str = "",
    stopped: Callable[[], int] = lambda: 0,
    samples: int = 1,
) -> Evaluation:
    """Scores of every image of a data set, in key order, one row a stage; the same in each process of `world`.

    Each process takes every world.size-th image. The degraded image itself is scored as stage 'input' where it has
    the size of the ground truth, and as 'bicubic', up-scaled, where it is smaller by a whole factor.
    samples: how often each image is restored, with other noise each time. save_folder: restored images are written
    there as 8-bit PNG, each by the process that restored it. stopped: asked between images; what is not 0 ends the
    work in all processes.
    """
    world = world or World()
    images = eval_samples(dataset, seed, world.rank, world.size)
    share = len(range(world.rank, len(dataset), world.size))
    own: list[_Seen] = []
    show = tqdm(images, total=share, desc=name, unit="image", disable=None if world.main else True, leave=False)
    for sample in show:
        if stopped():
            break
        judge = _Judge(name, sample, metrics)
        judge.add(_baselines(sample), 0)
        for number in range(samples):
            restored = outputs(sample, number)
            if save_folder is not None:
                _save(save_folder, sample.key, save_suffix, restored, number if samples > 1 else None)
            judge.add(restored, number)
        own.append(judge.seen)
    shares = world.gather(own)
    turns = itertools.zip_longest(*shares)  # image i lies with process i mod size
    whole = [seen for turn in turns for seen in turn if seen is not None]
    scores = [score for seen in whole for score in seen.scores]
    end = world.largest(stopped())
    if end or not any(metric.of_set for metric in metrics.values()):
        return Evaluation(scores, end)
    sets = world.from_main(_set_scores(name, whole, metrics) if world.main else [])
    return Evaluation(scores, end, sets, _notes(sets, metrics))


def _baselines(sample: Sample) -> dict[str, Tensor]:
    """The degraded image itself, as far as it can stand beside the ground truth."""
    gt, lq = sample.gt, sample.lq.clamp(0, 1)
    if gt is None or lq.shape[0] != gt.shape[0]:
        return {}
    if lq.shape == gt.shape:
        return {"input": lq}
    scale = gt.shape[-1] // lq.shape[-1]
    if scale > 1 and gt.shape[-2:] == (lq.shape[-2] * scale, lq.shape[-1] * scale):
        return {"bicubic": imresize(lq, scale).clamp(0, 1)}
    return {}


def _of_set(metrics: Mapping[str, Metric]) -> Iterator[tuple[str, Metric]]:
    return ((name, metric) for name, metric in metrics.items() if metric.of_set)


def _set_scores(name: str, whole: Sequence[_Seen], metrics: Mapping[str, Metric]) -> list[SetScore]:
    """Metrics of the whole set by stage and sample number, in order of appearance."""
    known = [seen for seen in whole if seen.features]
    places = dict.fromkeys((stage, number) for seen in known for _, stage, number in seen.features if stage != _GT)
    references = {m: torch.stack([seen.features[m, _GT, 0] for seen in known]) for m, _ in _of_set(metrics) if known}
    found = []
    for stage, number in places:
        here = [i for i, seen in enumerate(known) if all((m, stage, number) in seen.features for m in references)]
        values = {}
        for m, gt in references.items():
            features = torch.stack([known[i].features[m, stage, number] for i in here])
            values[m] = metrics[m].measure.distance(features, gt[here])
        found.append(SetScore(name, stage, values, len(here), number))
    return found


def _notes(sets: Sequence[SetScore], metrics: Mapping[str, Metric]) -> list[str]:
    """A warning for each data set with fewer images than a metric has dimensions."""
    images = {score.dataset: score.images for score in sets}
    return [
        f"{m} of {dataset}: {count} images for {metric.measure.dimensions} features. The distance is far from that of "
        "many images: compare it only with that of the same number of images, better of the same images"
        for dataset, count in images.items()
        for m, metric in _of_set(metrics)
        if count <= metric.measure.dimensions
    ]


def _save(folder: Path, key: str, suffix: str, images: Mapping[str, Tensor], number: int | None) -> None:
    """Writes the images of the stages that can be shown; number: of the sample, where there are several."""
    for stage, image in images.items():
        if image.isfinite().all():
            parts = [key, *([suffix] if suffix else []), *(["refined"] if stage == "refined" else [])]
            parts += [f"s{number}"] if number is not None else []
            write_image(folder / f"{'_'.join(parts)}.png", to_uint8(image))
