"""The files by which a network is published: weights, an option file that describes it, and a model card."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sam4ir import __version__
from sam4ir.config.load import dump_options
from sam4ir.config.schema import LoggerOptions, Options, PathOptions, ValOptions
from sam4ir.engine.cost import cost_of, in_giga, parameter_count
from sam4ir.engine.describe import metric_in_words
from sam4ir.engine.restore.images import LoadedNetwork, load_network
from sam4ir.engine.run_record import REFINER, RunRecord, ValidationMeans, block_line, record_of, training_of
from sam4ir.priors.zoo.hub import OPTIONS_FILE, WEIGHTS_FILE
from sam4ir.utils.files import write_bytes, write_text
from sam4ir.utils.weights import safetensors_bytes

CARD_FILE = "README.md"
_LOCAL = ("run", "started from")  # rows on a training that name files of this machine
_KEPT_OF_VAL = ("grids", "crop_size", "overlap", "max_minibatch", "window_size", "self_ensemble", "sampling")


class ModelFiles(NamedTuple):
    """The files of a model, and lines on what they hold."""

    files: list[Path]
    lines: list[str]


def write_model(options: Options, weights: str, model: str, licence: str | None, folder: Path) -> ModelFiles:
    """Write model.safetensors, options.yml and README.md into a folder.

    options: of the network. weights: a file. model: owner/name. licence: its identifier; None where none was stated.
    The option file holds what restoring needs: no paths, data sets or losses. Raises UserError where weights do not
    fit.
    """
    loaded = load_network(options, weights)
    record = record_of(weights)
    _write_weights(loaded, options, folder / WEIGHTS_FILE)
    write_text(folder / OPTIONS_FILE, dump_options(published_options(options, loaded.scale)))
    write_text(folder / CARD_FILE, card(options, loaded, record, model, licence))
    files = [folder / WEIGHTS_FILE, folder / OPTIONS_FILE, folder / CARD_FILE]
    lines = [f"{file.name:18} {file.stat().st_size:>12,} bytes" for file in files]
    return ModelFiles(files, lines)


def _write_weights(loaded: LoadedNetwork, options: Options, path: Path) -> None:
    """Write the deployed weights, and in words which network they belong to."""
    description = {
        "network": {"type": options.network_g.type, **options.network_g.arguments},
        "scale": loaded.scale,
        "sam4ir": __version__,
    }
    write_bytes(path, safetensors_bytes(loaded.network.state_dict(), description))


def published_options(options: Options, scale: int) -> Options:
    """Return the options of a network that others restore with: nothing of data, training and this machine."""
    val = options.val or ValOptions()
    restoring = val.model_dump(include=set(_KEPT_OF_VAL))
    changes: dict[str, Any] = {
        "scale": scale,
        "device": "auto",
        "path": PathOptions(),
        "logger": LoggerOptions(),
        "datasets": {},
        "train": None,
        "val": ValOptions.model_validate(restoring),
        "network_r": None,
        "spf": None,
        "compile": False,
    }
    if not options.diffuses:
        changes["model_type"] = "ImageRestorationModel"
    return options.model_copy(update=changes)


def card(options: Options, loaded: LoadedNetwork, record: RunRecord | None, model: str, licence: str | None) -> str:
    """Return the model card: a head that hubs read, usage, cost, training and scores."""
    cost = cost_of(options.model_copy(update={"scale": loaded.scale}), loaded.channels)
    scores = record.scores if record is not None else None
    name = model.rpartition("/")[2]
    lines = [
        "---",
        yaml.safe_dump(card_head(name, loaded.scale, scores, licence), sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {name}",
        "",
        f"A network for image restoration, of type {options.network_g.type}, trained with sam4ir. {_kind(loaded)}",
        "",
        "## Use",
        "",
        "```python",
        "import sam4ir",
        "",
        f'network = sam4ir.load("hf:{model}")',
        "restored = network(image)  # (h, w, 3) uint8 RGB, a tensor or a PIL image",
        "```",
        "",
        "```",
        f"sam4ir restore --weights hf:{model} --input FOLDER --output FOLDER",
        f"sam4ir info hf:{model}",
        "```",
        "",
        "## Network",
        "",
        *_table({"architecture": block_line(options.network_g), "parameters": f"{parameter_count(loaded.network):,}"}),
    ]
    if cost.macs is not None:
        lines += _rows({"multiply-adds": f"{in_giga(cost.macs)} at {cost.height} x {cost.width}"})
    lines += _rows({"images": f"{loaded.channels} channels, scale {loaded.scale}"})
    base = base_size(options, record)
    if base:
        lines += _rows({"base size": base})
    lines += _training_lines(record)
    lines += _score_lines(scores)
    lines += ["## Licence", "", licence or "Not stated; ask the authors before you use the weights.", ""]
    return "\n".join(lines)


def card_head(name: str, scale: int, scores: ValidationMeans | None, licence: str | None) -> dict[str, Any]:
    """Return the values of the card's head, as hubs define them."""
    head: dict[str, Any] = {
        "license": licence or "other",
        "library_name": "sam4ir",
        "pipeline_tag": "image-to-image",
        "tags": ["image-restoration", "sam4ir"],
    }
    if scale > 1:
        head["tags"].append("super-resolution")
    if licence is None:
        head["license_name"] = "not-stated"
    if scores is None:
        return head
    results, metrics = [], list[str]()
    for dataset, values in scores.sets.items():
        listed = []
        for metric, value in values.items():
            if not metric.endswith(REFINER) and math.isfinite(value):
                listed.append({"type": metric, "value": round(value, 4)})
                metrics.append(metric)
        results.append(
            {
                "task": {"type": "image-to-image", "name": "Image restoration"},
                "dataset": {"type": dataset, "name": dataset},
                "metrics": listed,
            }
        )
    head["metrics"] = list(dict.fromkeys(metrics))
    head["model-index"] = [{"name": name, "results": results}]
    return head


def base_size(options: Options, record: RunRecord | None) -> str:
    """Return the side of the images that the network was trained on; '' where nothing says it."""
    train_size = options.network_g.arguments.get("train_size")
    if train_size:
        return f"{train_size} (test-time local converter)"
    if record is None or record.options is None:
        return ""
    for data in record.options.phase("train").values():
        sizes = data.gt_sizes or data.arguments.get("gt_size")
        if sizes:
            return f"crops of {_listed(sizes)} pixels"
    return ""


def _listed(sizes: Any) -> str:
    if isinstance(sizes, (list, tuple)):
        return ", ".join(map(str, sizes))
    return str(sizes)


def _kind(loaded: LoadedNetwork) -> str:
    """Return what its images are, in a sentence."""
    colours = "RGB"
    if loaded.channels == 1:
        colours = "grey"
    if loaded.scale == 1:
        return f"It restores {colours} images at their size."
    return f"It enlarges {colours} images by {loaded.scale}."


def _training_lines(record: RunRecord | None) -> list[str]:
    """Return the section on the training: data sets, losses, iterations, seed."""
    if record is None or record.options is None:
        return [""]
    rows = {}
    for name, text in training_of(record.options).items():
        if name not in _LOCAL:
            rows[name] = text
    if record.iteration is not None:
        rows["weights of iteration"] = f"{record.iteration:,}"
    return ["", "## Training", "", *_table(rows), ""]


def _score_lines(scores: ValidationMeans | None) -> list[str]:
    """Return the section on the scores of the validation."""
    if scores is None:
        return []
    lines = [
        f"Means of the validation at iteration {scores.iteration:,}.",
        "",
        "| data set | metric | value |",
        "|---|---|---|",
    ]
    for dataset, values in scores.sets.items():
        for metric, value in values.items():
            lines.append(f"| {_cell(dataset)} | {_cell(metric_in_words(metric))} | {value:.4f} |")
    return ["## Scores", "", *lines, ""]


def _table(rows: Mapping[str, str]) -> list[str]:
    return ["| | |", "|---|---|", *_rows(rows)]


def _rows(rows: Mapping[str, str]) -> list[str]:
    return [f"| {_cell(name)} | {_cell(text)} |" for name, text in rows.items()]


def _cell(text: str) -> str:
    """Return a text as a cell of a table in Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
