"""Export a network: record its graph, write it, compare it with the network, and only then give it its name."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sam4ir.archs.diffusion_sr import DiffSR
from sam4ir.config.schema import Block
from sam4ir.engine.build import build_network
from sam4ir.export import formats, verify
from sam4ir.export.graph import (
    ConditionGraph,
    ExportError,
    Precision,
    RestoringGraph,
    StepGraph,
    input_names,
    output_name,
)
from sam4ir.export.source import ExportSource
from sam4ir.utils.files import write_bytes
from sam4ir.utils.weights import safetensors_bytes

Format = Literal["onnx", "torch-export", "safetensors"]


@dataclass(frozen=True)
class ExportSettings:
    """What a user asks of an export.

    precision: of weights and activations; inputs and outputs stay float32. opset: of ONNX. clamp: limit the output to
    [0, 1]. check: compare the file with the network. tolerance: the largest difference that the comparison allows, None
    for the usual one of the precision (verify.TOLERANCES).
    """

    format: Format
    precision: Precision = "fp32"
    opset: int = formats.LEAST_OPSET
    clamp: bool = False
    check: bool = True
    tolerance: float | None = None


def export(
    source: ExportSource, output: Path, settings: ExportSettings, report: Callable[[str], None] = print
) -> list[Path]:
    """Write the files of a network and return them; report gets a line for each file and for each comparison.

    A diffusion network becomes two graphs, its step in `output` and its condition beside it (NAME.condition.SUFFIX).
    Raises ExportError where the network cannot be exported or the file differs from it; then no file is written.
    """
    if settings.opset < formats.LEAST_OPSET:
        raise ExportError(f"--opset {settings.opset}: the exporter of PyTorch writes {formats.LEAST_OPSET} and later")
    if settings.format == "safetensors":
        data = _weights(source, settings)
        _write(output, data, report)
        return [output]
    contents: dict[Path, bytes] = {}
    for path, graph in _graphs(source, output, settings).items():
        report(f"{path}:")
        contents[path] = _graph(source, graph, settings, report)
    for path, data in contents.items():  # after all comparisons, so that both files of a network belong together
        _write(path, data, report)
    return list(contents)


def _graphs(source: ExportSource, output: Path, settings: ExportSettings) -> dict[Path, nn.Module]:
    """Return the graphs of a network by the files that they are written to."""
    network = source.network
    if isinstance(network, DiffSR):
        condition = output.with_name(f"{output.stem}.condition{output.suffix}")
        return {
            output: StepGraph(network, settings.precision),
            condition: ConditionGraph(network, settings.precision),
        }
    return {output: RestoringGraph(network, source.scale, source.window, settings.precision, settings.clamp)}


def _graph(source: ExportSource, graph: nn.Module, settings: ExportSettings, report: Callable[[str], None]) -> bytes:
    """Return the content of the file of a graph, after it was compared with the network."""
    begun = time.perf_counter()
    hidden = 0
    if isinstance(source.network, DiffSR):
        hidden = source.network.denoise_fn.dim
    program = formats.recorded(graph, formats.example_inputs(graph, source.channels, hidden))
    description = _description(source, settings, graph)
    if settings.format == "onnx":
        data = formats.onnx_bytes(graph, program, description, settings.opset)
    else:
        data = formats.torch_export_bytes(program, description)
    report(f"  recorded in {time.perf_counter() - begun:.0f} s")
    if settings.check:
        run = formats.onnx_run(data) if settings.format == "onnx" else formats.torch_export_run(data)
        _check(run, source, graph, settings, report)
    return data


def _check(
    run: formats.Run,
    source: ExportSource,
    graph: nn.Module,
    settings: ExportSettings,
    report: Callable[[str], None],
) -> None:
    """Compare a graph with its network and report each comparison; raise ExportError where they differ."""
    inputs = verify.inputs_for(graph, source.network, source.channels)
    expected = verify.expected_of(graph, source.network, source.scale, source.window, settings.clamp)
    measured = []
    for difference in verify.differences(run, inputs, expected):
        report(f"  {difference}")
        measured.append(difference)
    tolerance = settings.tolerance
    if tolerance is None:
        tolerance = verify.TOLERANCES[settings.precision]
    verify.refuse_differing(measured, tolerance)


def _weights(source: ExportSource, settings: ExportSettings) -> bytes:
    """Return the content of a .safetensors file, after it was read back into a network of its own."""
    state = source.network.state_dict()
    if settings.precision == "fp16":
        for name, tensor in state.items():
            if tensor.is_floating_point():
                state[name] = tensor.half()
    data = safetensors_bytes(state, _description(source, settings))
    if settings.check:
        block = Block(**source.network_g)
        again = build_network(block, "g", torch.device("cpu"), seed=0)
        if settings.precision == "fp16":
            again.half()
        if not formats.same_bits(data, state, again):
            raise ExportError("the weights that were read back have other bits; this is a fault to report")
    return data


def _description(source: ExportSource, settings: ExportSettings, graph: nn.Module | None = None) -> Mapping[str, Any]:
    """Return the description that the file holds; see export.metadata.read_metadata."""
    known = {
        "network": dict(source.network_g),
        "scale": source.scale,
        "channels": source.channels,
        "precision": settings.precision,
        **source.facts,
    }
    if graph is None:
        return known
    kinds = {RestoringGraph: "restoring", ConditionGraph: "condition", StepGraph: "step"}
    known |= {
        "graph": kinds[type(graph)],
        "inputs": list(input_names(graph)),
        "output": output_name(graph),
        "multiple": graph.multiple,
        "clamped": settings.clamp,
    }
    return known


def _write(path: Path, data: bytes, report: Callable[[str], None]) -> None:
    write_bytes(path, data)
    report(f"{path}: {len(data) / 1e6:.1f} MB")
