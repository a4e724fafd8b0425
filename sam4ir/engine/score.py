"""What test.py does: restore test sets with the plain network, score them, write images and tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from sam4ir.config.load import dump_options, notices
from sam4ir.config.schema import Options
from sam4ir.engine import build
from sam4ir.engine.log import console
from sam4ir.engine.report import Score, means, plain, text_table
from sam4ir.engine.validate import Metric, Stages, evaluate
from sam4ir.utils.dist import World
from sam4ir.utils.files import atomic, write_text


class ResultsExistError(ValueError):
    """Results of the same name, made with other options."""


def score(options: Options, overwrite: bool = False, world: World = build.ALONE) -> str:
    """Score the test sets of an option file (Options.scored); returns the table that is also written.

    world: the processes that share the images; the main one writes, the others return ''.
    Writes results/<name>/{metrics.csv, summary.json, summary.txt, options.yml} and, with val.save_img,
    visualization/<data set>/<image>_<name>.png. Results made with other options are not touched
    without `overwrite`.
    """
    sets = options.scored
    if not sets:
        raise build.BuildError(
            "datasets: has no test set; name one `test`, or test_1, test_2 ... (validation "
            "sets are scored where the file does not train: --force_yml train=~)"
        )
    folder, text = build.run_paths(options).results, dump_options(options)
    if world.main:
        _refuse(folder, text, overwrite)
        log = console()
        for notice in notices(options):
            log.warning(notice)
    device = build.device_of(options, world)
    network = build.network(options.network_g, "g", options, device)
    if not build.pretrained(network, options):
        raise build.BuildError("path.pretrain_network_g: is required for a test; name the .pth file of the network")
    data = {block.name or key: build.dataset(key, block, options) for key, block in sets.items()}
    for dataset in data.values():
        build.check_images(network, options, device, build.channels_of(dataset))
    stages, metrics = Stages(network, build.inference(options), device), build.metrics(options)
    save = options.val is not None and options.val.save_img
    scores: list[Score] = []
    for name, dataset in data.items():
        images = folder / "visualization" / name if save else None
        scores += evaluate(
            name,
            dataset,
            stages,
            metrics,
            seed=options.manual_seed,
            world=world,
            save_folder=images,
            save_suffix=options.name,
        ).scores
    if not world.main:
        return ""
    write_text(folder / "options.yml", text)
    return _write(folder, scores, metrics)


def _refuse(folder: Path, text: str, overwrite: bool) -> None:
    known = folder / "options.yml"
    if not overwrite and known.is_file() and known.read_text(encoding="utf-8") != text:
        raise ResultsExistError(
            f"{folder}: holds results made with other options. Nothing was changed. Add --overwrite to replace them, "
            f"or give another name, such as --force_yml name={folder.name}_2"
        )


def _write(folder: Path, scores: Sequence[Score], metrics: dict[str, Metric]) -> str:
    with atomic(folder / "metrics.csv") as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["dataset", "stage", "image", *metrics])
        writer.writeheader()
        writer.writerows({"dataset": s.dataset, "stage": s.stage, "image": s.image, **s.values} for s in scores)
    protocols = {name: metric.protocol for name, metric in metrics.items()}
    write_text(folder / "summary.json", json.dumps(_summary(scores, protocols), indent=1))
    table = text_table(scores, protocols)
    write_text(folder / "summary.txt", table)
    return f"{table}results: {folder}\n"


def _summary(scores: Sequence[Score], protocols: dict[str, str]) -> dict[str, object]:
    """{protocols, mean: {dataset: {stage: {metric}}}, images: {dataset: {image: {stage: {metric}}}}}"""
    mean: dict[str, dict[str, dict[str, float | str]]] = {}
    for (dataset, stage), values in means(scores).items():
        mean.setdefault(dataset, {})[stage] = {m: plain(v.value) for m, v in values.items()}
    images: dict[str, dict[str, dict[str, dict[str, float | str]]]] = {}
    for s in scores:
        row = images.setdefault(s.dataset, {}).setdefault(s.image, {})
        row[s.stage] = {m: plain(v) for m, v in s.values.items()}
    return {"protocols": protocols, "mean": mean, "images": images}
