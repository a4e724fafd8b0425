"""The description that an exported file holds of its network, in the same words in every format."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam4ir import __version__
from sam4ir.engine.evaluate.candidates import iteration_in
from sam4ir.errors import UserError, first_line
from sam4ir.export.graph import ExportError
from sam4ir.utils.files import sha256_of
from sam4ir.utils.tables import read_csv
from sam4ir.utils.weights import DESCRIPTION, LARGEST_DESCRIPTION, parsed_description, safetensors_description

TORCH_EXPORT_ENTRY = "description"  # the name of the description among the extra files of a .pt2 file
_NO_METRICS = ("dataset", "stage", "image", "sample", "iter")


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Return the description that a .onnx, .pt2 or .safetensors file holds of its network; {} where it holds none.

    Its keys: network (type and arguments), scale, graph (restoring, step or condition), inputs, output, precision,
    clamped, multiple, weights, options_sha256, licence, validation, sam4ir. Keys whose value is not known are left out.
    Raises ExportError for a missing file, and for one of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise ExportError(f"{path}: no such file")
    if path.suffix == ".onnx":
        return description_in(_of_onnx(path), path)
    if path.suffix == ".pt2":
        return description_in(_of_torch_export(path), path)
    if path.suffix == ".safetensors":
        return dict(safetensors_description(path))
    raise ExportError(f"{path}: holds no description of sam4ir; .onnx, .pt2 and .safetensors files do")


def _of_onnx(path: Path) -> str:
    try:
        import onnx
    except ImportError:
        raise missing_package("onnx") from None
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # of protobuf, in many classes
        raise ExportError(f"{path}: is no ONNX model ({first_line(error)[:100]})") from None
    for entry in model.metadata_props:
        if entry.key == DESCRIPTION:
            return str(entry.value)
    return ""


def _of_torch_export(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(f"extra/{TORCH_EXPORT_ENTRY}") and entry.file_size <= LARGEST_DESCRIPTION:
                    return archive.read(entry).decode("utf-8", "replace")
    except Exception:  # of zipfile and zlib, in many classes
        raise ExportError(f"{path}: is no file of torch.export.save") from None
    return ""


def description_in(text: str, path: Path) -> dict[str, Any]:
    """Return the description that the entry of a file holds; {} for no entry. Raises ExportError naming the file."""
    if not text:
        return {}
    description = parsed_description(text)
    if description is None:
        raise ExportError(f"{path}: its entry {DESCRIPTION} is no description of a network; export it again")
    return description


def missing_package(package: str, extra: str = "onnx") -> ExportError:
    """Return the error of a package that is not installed, with the command that installs it."""
    return ExportError(f"{package} is not installed; run: pip install 'sam4ir[{extra}]'")


def facts_of(weights: Path, source: str, options_file: Path | None) -> dict[str, Any]:
    """Return where weights come from: their file and hash, that of the option file, the licence, and their scores.

    source: the weights as the user names them, a file or a name of the zoo. Without a known value a key is left out.
    """
    known: dict[str, Any] = {
        "sam4ir": __version__,
        "weights": {"source": Path(source).name, "sha256": sha256_of(weights)},
    }
    if options_file is not None:
        known["options_sha256"] = sha256_of(options_file)
        scores = validation_of(options_file.parent / "validation.csv", iteration_in(weights.stem))
        if scores:
            known["validation"] = scores
    licence = _licence(source)
    if licence is not None:
        known["licence"] = licence
    return known


def _licence(source: str) -> str | None:
    """Return the licence of weights of the zoo; None for other weights."""
    from sam4ir.engine.weights import zoo_name
    from sam4ir.priors.zoo.weights import ENTRIES

    name = zoo_name(source)
    if name is None or name not in ENTRIES:
        return None
    return ENTRIES[name].licence


def validation_of(table: Path, iteration: int | None) -> dict[str, Any]:
    """Return {iteration, scores: {data set/stage/metric: mean over its images}} of a run's validation.csv.

    iteration: that of the weights; None, or one that was not validated, takes the last one of the table. {} where there
    is no table, or none that can be read: an export does not need it.
    """
    if not table.is_file():
        return {}
    try:
        rows = read_csv(table).rows
        by_iteration = _by_iteration(rows)
    except (UserError, ValueError, KeyError, OSError):
        return {}
    if not by_iteration:
        return {}
    chosen = max(by_iteration)
    if iteration in by_iteration:
        chosen = iteration
    scores: dict[str, list[float]] = {}
    for cells in by_iteration[chosen]:
        for metric, text in cells.items():
            if metric not in _NO_METRICS and text:
                scores.setdefault(f"{cells['dataset']}/{cells['stage']}/{metric}", []).append(float(text))
    means = {}
    for name, values in scores.items():
        means[name] = sum(values) / len(values)
    return {"iteration": chosen, "scores": means}


def _by_iteration(rows: Any) -> dict[int, list[Mapping[str, str]]]:
    """Return the rows of a table of validations, by their iteration."""
    by_iteration: dict[int, list[Mapping[str, str]]] = {}
    for row in rows:
        by_iteration.setdefault(int(row.cells["iter"]), []).append(row.cells)
    return by_iteration
