"""The description that an exported file holds of its network, in the same words in every format."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

from sam4ir import __version__
from sam4ir.engine.run_record import REFINER, ValidationMeans, record_of
from sam4ir.errors import first_line
from sam4ir.export.graph import ExportError
from sam4ir.utils.files import sha256_of
from sam4ir.utils.weights import DESCRIPTION, LARGEST_DESCRIPTION, parsed_description, safetensors_description

TORCH_EXPORT_ENTRY = "description"  # the name of the description among the extra files of a .pt2 file


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

    The scores are those that a run's validation gave the weights, where the file lies in the folder of a run.
    source: the weights as the user names them, a file or a name of the zoo. Without a known value a key is left out.
    """
    known: dict[str, Any] = {
        "sam4ir": __version__,
        "weights": {"source": Path(source).name, "sha256": sha256_of(weights)},
    }
    if options_file is not None:
        known["options_sha256"] = sha256_of(options_file)
    record = record_of(weights)
    if record is not None and record.scores is not None:
        known["validation"] = _scores(record.scores)
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


def _scores(means: ValidationMeans) -> dict[str, Any]:
    """Return {iteration, scores: {data set/stage/metric: mean}}; a mean that JSON has no number for is left out."""
    scores = {}
    for dataset, values in means.sets.items():
        for metric, value in values.items():
            stage = "refined" if metric.endswith(REFINER) else "restored"
            if math.isfinite(value):
                scores[f"{dataset}/{stage}/{metric.removesuffix(REFINER)}"] = value
    return {"iteration": means.iteration, "scores": scores}
