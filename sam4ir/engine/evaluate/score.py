"""What test.py does: restore test sets with the plain network, score them, write images and tables."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sam4ir.config.load import dump_options, notices
from sam4ir.config.schema import Options, ValOptions
from sam4ir.engine import build
from sam4ir.engine.evaluate import published
from sam4ir.engine.evaluate.build import build_metrics
from sam4ir.engine.evaluate.metric import Metric, lower_is_better, prepared
from sam4ir.engine.evaluate.report import Score, SetScore, means, plain, text_table
from sam4ir.engine.evaluate.validate import Outputs, evaluate
from sam4ir.engine.log import console
from sam4ir.engine.restore import build as restore_build
from sam4ir.errors import UserError
from sam4ir.utils.dist import World
from sam4ir.utils.files import atomic, read_text, write_text

log = logging.getLogger(__name__)


class ResultsExistError(UserError):
    """Results of the same name, made with other options."""


@dataclass(frozen=True)
class Scored:
    """What weights gave on all test sets. notes: what to know of metrics of whole sets."""

    scores: Sequence[Score]
    sets: Sequence[SetScore]
    notes: Sequence[str]


@dataclass(frozen=True)
class TestBed:
    """What weights are scored on: test sets by name, metrics, device; built once for any number of weights."""

    options: Options
    world: World
    device: torch.device
    data: Mapping[str, Any]
    metrics: Mapping[str, Metric]

    def score(self, options: Options, folder: Path, suffix: str) -> Scored:
        """Scores of the weights that path.pretrain_network_g of these options names.

        With val.save_img images go to folder/visualization/<data set>/<image>_<suffix>.png.
        """
        outputs = self._outputs(options)
        val = options.val or ValOptions()
        scores: list[Score] = []
        sets: list[SetScore] = []
        notes: list[str] = []
        for name, dataset in self.data.items():
            found = evaluate(
                name,
                dataset,
                outputs,
                self.metrics,
                seed=options.manual_seed,
                world=self.world,
                save_folder=folder / "visualization" / name if val.save_img else None,
                save_suffix=suffix,
                samples=val.samples,
            )
            scores += found.scores
            sets += found.sets
            notes += found.notes
        return Scored(scores, sets, notes)

    def published(self, found: Scored) -> list[str]:
        """Lines of published figures beside ours, where the options ask for them."""
        table = published_table(self.options)
        if table is None:
            return []
        protocols = {name: metric.protocol for name, metric in self.metrics.items()}
        return published.beside(table, means(found.scores, found.sets), protocols, self.options.scale)

    def _outputs(self, options: Options) -> Outputs:
        network = build.network(options.network_g, "g", options, self.device)
        if not build.pretrained(network, options):
            raise build.BuildError(
                "path.pretrain_network_g: is required for a test; name the .pth file of the network, here or by "
                "test.py --weights"
            )
        restore_build.check_diffusion(options, options.path.pretrain_network_g or "")
        for dataset in self.data.values():
            build.check_images(network, options, self.device, build.channels_of(dataset))
        return Outputs(restore_build.build_restorer(options, network), self.device)


def build_test_bed(options: Options, world: World) -> TestBed:
    """Test sets and metrics of an option file, its networks for metrics included."""
    sets = options.scored
    if not sets:
        raise build.BuildError(
            "datasets: has no test set; name one `test`, or test_1, test_2 ... (validation "
            "sets are scored where the file does not train: --force_yml train=~)"
        )
    device = build.device_of(options, world)
    metrics = prepared(build_metrics(options.val, options.basicsr), device)
    data = {block.name or key: build.dataset(key, block, options) for key, block in sets.items()}
    return TestBed(options, world, device, data, metrics)


def score(options: Options, overwrite: bool = False, world: World = build.ALONE) -> str:
    """Score the test sets of an option file (Options.scored); returns the table that is also written.

    world: the processes that share the images; the main one writes, the others return ''.
    Writes results/<name>/{metrics.csv, summary.json, summary.txt, options.yml} and, with val.save_img,
    visualization/<data set>/<image>_<name>.png. Results made with other options are not touched
    without `overwrite`.
    """
    folder, text = build.run_paths(options).results, saved_text(options)
    begin(options, folder, text, overwrite, world)
    on = build_test_bed(options, world)
    found = on.score(options, folder, options.name)
    if not world.main:
        return ""
    write_text(folder / "options.yml", text)
    return write(folder, found, on.metrics, on.published(found)) + f"results: {folder}\n"


def begin(options: Options, folder: Path, text: str, overwrite: bool, world: World) -> None:
    """Refuse results of other options, look up the published table, and tell what of the options has no effect."""
    world.main_first(lambda: _refuse(folder, text, overwrite))
    published_table(options)
    if world.main:
        told = console()
        for notice in notices(options):
            told.warning(notice)


def with_published(options: Options, name: str) -> Options:
    """The options with a table of published figures (val.published)."""
    val = (options.val or ValOptions()).model_copy(update={"published": name})
    return options.model_copy(update={"val": val})


def published_table(options: Options) -> published.Published | None:
    """The table that val.published names. Raises PublishedError for an unknown one."""
    name = options.val.published if options.val is not None else None
    return published.find(name) if name is not None else None


def saved_text(options: Options) -> str:
    """The options as they are kept beside results, to tell other options by; what is only printed is left out."""
    val = options.val.model_copy(update={"published": None}) if options.val is not None else None
    return dump_options(options.model_copy(update={"val": val}))


def _refuse(folder: Path, text: str, overwrite: bool) -> None:
    known = folder / "options.yml"
    if not overwrite and known.is_file() and read_text(known) != text:
        raise ResultsExistError(
            f"{folder}: holds results made with other options. Nothing was changed. Add --overwrite to replace them, "
            f"or give another name, such as --force_yml name={folder.name}_2"
        )


def write(
    folder: Path,
    found: Scored,
    metrics: Mapping[str, Metric],
    closing: Sequence[str] = (),
    origin: Mapping[str, str] | None = None,
) -> str:
    """Write metrics.csv, summary.json and summary.txt; returns what the last holds.

    closing: its last lines. origin: what summary.json shall say of the weights.
    """
    for note in found.notes:
        log.warning("%s", note)
    several = len({s.sample for s in found.scores}) > 1
    of_images = [name for name, metric in metrics.items() if not metric.of_set]
    with atomic(folder / "metrics.csv") as part, part.open("w", encoding="utf-8", newline="") as file:
        head = ["dataset", "stage", "image", *(["sample"] if several else []), *of_images]
        writer = csv.DictWriter(file, head, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**_place(s), "sample": s.sample, **s.values} for s in found.scores)
    protocols = {name: metric.protocol for name, metric in metrics.items()}
    table = text_table(found.scores, protocols, found.sets, lower_is_better(metrics))
    lines = [*(f"note: {note}" for note in found.notes), *closing]
    table += "".join(f"{line}\n" for line in (["", *lines] if lines else []))
    write_text(folder / "summary.txt", table)
    summary = {**({"weights": dict(origin)} if origin else {}), **_summary(found, metrics)}
    write_text(folder / "summary.json", json.dumps(summary, indent=1))
    return table


def _place(score: Score) -> dict[str, str]:
    return {"dataset": score.dataset, "stage": score.stage, "image": score.image}


def _summary(found: Scored, metrics: Mapping[str, Metric]) -> dict[str, object]:
    """What summary.json holds.

    protocols: {metric: definition}; lower_is_better, of_sets: names of such metrics; mean: {dataset: {stage: {metric:
    value}}}; images: {dataset: {image: {stage: {metric: value}}}}, of several samples their mean. Where there are
    several, spread: {dataset: {stage: {metric: {samples, image, mean}}}}, see report.Spread.
    """
    mean: dict[str, dict[str, dict[str, float | str]]] = {}
    spread: dict[str, dict[str, dict[str, dict[str, float | str]]]] = {}
    for (dataset, stage), values in means(found.scores, found.sets).items():
        mean.setdefault(dataset, {})[stage] = {m: plain(v.value) for m, v in values.items()}
        known = {m: v.spread for m, v in values.items() if v.spread is not None}
        if known:
            told = {m: {"samples": s.samples, "image": plain(s.image), "mean": plain(s.mean)} for m, s in known.items()}
            spread.setdefault(dataset, {})[stage] = told
    return {
        "protocols": {name: metric.protocol for name, metric in metrics.items()},
        "lower_is_better": lower_is_better(metrics),
        "of_sets": [name for name, metric in metrics.items() if metric.of_set],
        "mean": mean,
        **({"spread": spread} if spread else {}),
        **({"notes": list(found.notes)} if found.notes else {}),
        "images": _images(found.scores),
    }


def _images(scores: Sequence[Score]) -> dict[str, dict[str, dict[str, dict[str, float | str]]]]:
    """{dataset: {image: {stage: {metric: value}}}}; of several samples the mean."""
    samples: dict[tuple[str, str, str], list[Score]] = {}
    for s in scores:
        samples.setdefault((s.dataset, s.image, s.stage), []).append(s)
    images: dict[str, dict[str, dict[str, dict[str, float | str]]]] = {}
    for (dataset, image, stage), of_image in samples.items():
        row = next(iter(means(of_image).values()))
        values = {m: plain(v.value) for m, v in row.items()}
        images.setdefault(dataset, {}).setdefault(image, {})[stage] = values
    return images
