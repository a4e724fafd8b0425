"""Score networks on a data set, for validation during training and for sam4ir test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sam4ir.data.loader import eval_sample
from sam4ir.data.sample import Dataset, Sample
from sam4ir.engine.evaluate.metric import Metric, Pixels
from sam4ir.engine.evaluate.panel import Panel
from sam4ir.engine.evaluate.progress import SetProgress
from sam4ir.engine.evaluate.report import Score, SetScore
from sam4ir.engine.evaluate.saved_images import SavedImages
from sam4ir.engine.restore.one_pass import Restorer
from sam4ir.engine.restore.within_memory import WithinMemory
from sam4ir.models.restoration import eval_mode, last_output
from sam4ir.utils.dist import ALONE, World
from sam4ir.utils.faults import fault_of_item
from sam4ir.utils.files import is_utf8
from sam4ir.utils.resize import imresize

SHOWN_FAULTS = 5  # images at fault that a message lists


@dataclass(frozen=True)
class Outputs:
    """The networks whose outputs are scored: a Restorer, and the refiner of a SAM4IR run or None.

    within_memory: takes smaller tiles where memory runs out. own_masks: whether the refiner sees segments of the
    restored image in place of the sample's regions.
    """

    restorer: Restorer
    device: torch.device
    refiner: nn.Module | None = None
    within_memory: WithinMemory = field(default_factory=WithinMemory)
    own_masks: bool = False

    def __call__(self, sample: Sample, number: int = 0) -> dict[str, Tensor]:
        """Return {'restored': (c, h, w), 'refined': ...} on the CPU, float32 clamped to [0, 1].

        The networks run in eval mode. number: the sample number, by which a diffusion network draws its noise.
        """
        lq = sample.lq.unsqueeze(0).to(self.device)
        with eval_mode(self.restorer.network):
            restored = self.within_memory(self.restorer, lq, sample.key, number)
        outputs = {"restored": restored}
        if self.refiner is not None:
            with eval_mode(self.refiner):
                outputs["refined"] = self._refine(self.refiner, restored, lq, sample)
        for name, image in outputs.items():
            outputs[name] = image[0].clamp(0, 1).cpu()
        return outputs

    def _refine(self, refiner: nn.Module, restored: Tensor, lq: Tensor, sample: Sample) -> Tensor:
        labels = sample.maps.get("regions", torch.zeros(lq.shape[-2:], dtype=torch.int64))
        labels = labels.unsqueeze(0).to(self.device)
        if self.own_masks:
            from sam4ir.distill.segments import own_segments  # a test of a plain network knows no masks

            labels, _ = own_segments(restored)
        return last_output(refiner(restored, labels, int(labels.max()), lq)).float()


class Evaluation(NamedTuple):
    """The scores of a data set.

    scores: of its images. stopped: 0, or the number that `stopped` returned in some process; then images are missing.
    sets: of the whole set; empty where images are missing. notes: warnings about these.
    faults: images that could not be read, restored or scored, as (key, reason); the scores are those of the others.
    """

    scores: list[Score]
    stopped: int
    sets: Sequence[SetScore] = ()
    notes: Sequence[str] = ()
    faults: Sequence[tuple[str, str]] = ()


_GT = ""  # in place of an output: the ground truth


@dataclass
class _ImageScores:
    """The scores of one image, and its features for metrics of the whole set.

    features: by (metric, output or _GT, sample number). fault: (key, reason) where the image has no scores.
    """

    scores: list[Score] = field(default_factory=list)
    fault: tuple[str, str] | None = None
    features: dict[tuple[str, str, int], Tensor] = field(default_factory=dict)


class _Scorer:
    """The scorer of one image's outputs, which prepares ground truth and degraded image once for all of them."""

    def __init__(self, dataset: str, sample: Sample, metrics: Mapping[str, Metric]) -> None:
        self.result = _ImageScores()
        self._dataset = dataset
        self._key = sample.key
        self._lq = Pixels(sample.lq)
        self._metrics: Mapping[str, Metric] = {}
        self._reference = self._lq
        if sample.gt is not None:
            self._metrics = metrics
            self._reference = Pixels(sample.gt)
        for name, metric in _of_set(self._metrics):
            self.result.features[name, _GT, 0] = metric.features(self._reference)

    def add(self, images: Mapping[str, Tensor], number: int) -> None:
        """Score images by output. number: their sample number."""
        if not self._metrics:
            return
        for output, image in images.items():
            pixels = Pixels(image)
            values = {}
            for name, metric in self._metrics.items():
                if metric.of_set:
                    self.result.features[name, output, number] = metric.features(pixels)
                else:
                    values[name] = metric(pixels, self._reference, self._lq)
            self.result.scores.append(Score(self._dataset, self._key, output, values, number))


@dataclass(frozen=True)
class _SetScorer:
    """The scoring of the images of one data set; the fields are those of `evaluate`."""

    name: str
    dataset: Dataset
    outputs: Outputs
    metrics: Mapping[str, Metric]
    seed: int
    saved: SavedImages | None
    samples: int
    panel: Panel | None

    def __call__(self, index: int) -> _ImageScores:
        """Return the scores of an image, or its fault."""
        key = self.dataset.key(index)
        if not is_utf8(key):
            return _ImageScores(fault=(ascii(key), "its name is no UTF-8 text, which tables cannot hold; rename it"))
        try:
            return self._score(eval_sample(self.dataset, self.seed, index), index)
        except Exception as error:
            fault = fault_of_item(error)
            if fault is None:
                raise
            return _ImageScores(fault=(key, fault))

    def _score(self, sample: Sample, index: int) -> _ImageScores:
        """Restore an image as often as asked for, score, save and show the results."""
        scorer = _Scorer(self.name, sample, self.metrics)
        scorer.add(_baselines(sample), 0)
        if self.saved is not None:  # a key that is no name of a file is a fault before the network runs
            self.saved.file(sample.key, "restored")
        for number in range(self.samples):
            restored = self.outputs(sample, number)
            scorer.add(restored, number)
            if self.saved is not None:
                self.saved.write(sample, restored, number, scorer.result.scores)
            if self.panel is not None and number == 0:
                self.panel.add(self.name, index, sample, restored)
        return scorer.result


def evaluate(
    name: str,
    dataset: Dataset,
    outputs: Outputs,
    metrics: Mapping[str, Metric],
    *,
    seed: int,
    world: World = ALONE,
    saved: SavedImages | None = None,
    stopped: Callable[[], int] = lambda: 0,
    samples: int = 1,
    panel: Panel | None = None,
    progress: SetProgress | None = None,
) -> Evaluation:
    """Score every image of a data set, in key order, one row an output; the result is the same in each process.

    An image at fault is listed, and the others are scored.

    Each process takes every world.size-th image. The degraded image itself is scored as the output 'input' where it has
    the size of the ground truth, and as 'bicubic', up-scaled, where it is smaller by a whole factor.
    samples: how often each image is restored, with other noise each time. saved: the files that restored images are
    written to, each by the process that restored it; an image whose key is no name of a file is at fault, and two that
    would have one file are a UserError. stopped: asked between images; a number other than 0 ends the work in
    all processes. panel: gets the images that it shows. progress: shows how far the work is.
    """
    if saved is not None:
        saved.refuse_names(dataset, shared_alone=True)
    score = _SetScorer(name, dataset, outputs, metrics, seed, saved, samples, panel)
    indices = range(world.rank, len(dataset), world.size)
    own: list[_ImageScores] = []
    progress = progress or SetProgress(world.main)
    progress.begin(name, len(indices))
    try:
        for index in indices:
            if stopped():
                break
            own.append(score(index))
            progress.add()
    finally:
        progress.end()
    results = _in_order(world.gather(own))
    scores: list[Score] = []
    faults = []
    for result in results:
        scores += result.scores
        if result.fault is not None:
            faults.append(result.fault)
    signal = world.largest(stopped())
    if signal or not _of_set(metrics) or not scores:
        return Evaluation(scores, signal, faults=faults)
    sets: list[SetScore] = []
    if world.main:
        sets = _set_scores(name, results, metrics)
    sets = world.from_main(sets)
    return Evaluation(scores, signal, sets, _notes(sets, metrics), faults)


def _in_order(shares: Sequence[Sequence[_ImageScores]]) -> list[_ImageScores]:
    """Return the images of all processes in key order: image i lies with process i mod size."""
    results = []
    for turn in itertools.zip_longest(*shares):
        for result in turn:
            if result is not None:
                results.append(result)
    return results


def _baselines(sample: Sample) -> dict[str, Tensor]:
    """Return the degraded image itself as an output, where it can be compared with the ground truth."""
    gt, lq = sample.gt, sample.lq.clamp(0, 1)
    if gt is None or lq.shape[0] != gt.shape[0]:
        return {}
    if lq.shape == gt.shape:
        return {"input": lq}
    scale = gt.shape[-1] // lq.shape[-1]
    if scale > 1 and gt.shape[-2:] == (lq.shape[-2] * scale, lq.shape[-1] * scale):
        return {"bicubic": imresize(lq, scale).clamp(0, 1)}
    return {}


def _of_set(metrics: Mapping[str, Metric]) -> list[tuple[str, Metric]]:
    """Return (name, metric) of the metrics of whole sets."""
    return [(name, metric) for name, metric in metrics.items() if metric.of_set]


def _set_scores(dataset: str, results: Sequence[_ImageScores], metrics: Mapping[str, Metric]) -> list[SetScore]:
    """Return the metrics of the whole set by output and sample number, in order of appearance."""
    by_output: dict[tuple[str, int], dict[str, tuple[list[Tensor], list[Tensor]]]] = {}
    for result in results:
        for (name, output, number), restored in result.features.items():
            if output != _GT:
                row = by_output.setdefault((output, number), {})
                outputs, references = row.setdefault(name, ([], []))
                outputs.append(restored)
                references.append(result.features[name, _GT, 0])
    scores = []
    for (output, number), row in by_output.items():
        values, count = {}, 0
        for name, (outputs, references) in row.items():
            count = len(outputs)
            values[name] = metrics[name].measure.distance(torch.stack(outputs), torch.stack(references))
        scores.append(SetScore(dataset, output, values, count, number))
    return scores


def _notes(sets: Sequence[SetScore], metrics: Mapping[str, Metric]) -> list[str]:
    """Return a warning for each data set with fewer images than a metric has dimensions."""
    images = {score.dataset: score.images for score in sets}
    notes = []
    for dataset, count in images.items():
        for name, metric in _of_set(metrics):
            dimensions = metric.measure.dimensions
            if count <= dimensions:
                notes.append(
                    f"{name} of {dataset}: {count} images for {dimensions} features. The distance is far from that of "
                    "many images: compare it only with that of the same number of images, better of the same images"
                )
    return notes
