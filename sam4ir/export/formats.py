"""Write a graph or weights as ONNX, torch.export or safetensors, and read them back as functions."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sam4ir.errors import first_line
from sam4ir.export.graph import ExportError, StepGraph, input_names, output_name
from sam4ir.export.metadata import TORCH_EXPORT_ENTRY, missing_package
from sam4ir.utils.weights import DESCRIPTION, description_text

LEAST_OPSET = 18  # of torch.onnx.export
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors"}
_LARGEST_ONNX = (1 << 31) - (1 << 20)  # bytes: protobuf's limit for a model in one file, with some room

Run = Callable[..., Tensor]  # the inputs of a graph -> its output


def example_inputs(graph: nn.Module, channels: int, hidden: int = 0) -> tuple[Tensor, ...]:
    """Return inputs with which a graph is recorded. Sizes differ from each other and from 1, so that none is fixed.

    channels: of images. hidden: of the condition of a diffusion network.
    """
    multiple = int(graph.multiple)  # type: ignore[arg-type]
    height, width = 5 * multiple, 7 * multiple
    if not isinstance(graph, StepGraph):
        return (torch.rand(2, channels, height + 1, width + 1),)
    inputs = [torch.rand(2, 3, height, width), torch.tensor([1, 3]), torch.rand(2, hidden, height, width)]
    if graph.up_input:
        inputs.append(torch.rand(2, 3, height, width))
    return tuple(inputs)


def _dynamic(graph: nn.Module) -> tuple[dict[int, Any], ...]:
    """Return which dimensions of each input may have any length."""
    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    if not isinstance(graph, StepGraph):
        return ({0: batch, 2: height, 3: width},)
    multiple = graph.multiple
    sides = {0: batch, 2: multiple * height, 3: multiple * width}
    shapes = [sides, {0: batch}, sides]
    if graph.up_input:
        shapes.append(sides)
    return tuple(shapes)


@torch.no_grad()
def recorded(graph: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """Return the graph of a module of export.graph as torch.export records it, for any batch, height and width.

    Raises ExportError where the network cannot be recorded.
    """
    from torch.utils._sympy.value_ranges import ValueRanges

    with _quiet():
        try:
            program = torch.export.export(graph, inputs, dynamic_shapes=_open_shapes(graph), strict=False)
        except Exception as error:  # torch.export fails in any class; the text names the operation
            raise ExportError(f"the network cannot be recorded as a graph: {first_line(error)[:300]}") from error
    # The recorder notes how the memory of its example images lies, such as height > 4. No result depends on it, and
    # every format is compared with the network at such sizes (export.verify), so the notes are taken out.
    program._guards_code = []
    for symbol, limits in list(program.range_constraints.items()):
        program.range_constraints[symbol] = ValueRanges(1, limits.upper)
    return program


def _open_shapes(graph: nn.Module) -> tuple[dict[int, Any], ...]:
    """Return the dimensions as the recorder takes them: free ones, and for a step multiples of a free one."""
    if isinstance(graph, StepGraph):
        return _dynamic(graph)
    free = torch.export.Dim.DYNAMIC
    return ({0: free, 2: free, 3: free},)


def torch_export_bytes(program: torch.export.ExportedProgram, description: Mapping[str, Any]) -> bytes:
    """Return the content of a .pt2 file with the description of its network."""
    data = io.BytesIO()
    with _quiet():
        torch.export.save(program, data, extra_files={TORCH_EXPORT_ENTRY: description_text(description)})
    return data.getvalue()


def torch_export_run(data: bytes) -> Run:
    """Return the function of a .pt2 file."""
    module = torch.export.load(io.BytesIO(data)).module()

    @torch.no_grad()
    def run(*inputs: Tensor) -> Tensor:
        restored: Tensor = module(*inputs)
        return restored

    return run


@torch.no_grad()
def onnx_bytes(
    graph: nn.Module, program: torch.export.ExportedProgram, description: Mapping[str, Any], opset: int
) -> bytes:
    """Return the content of a .onnx file with the description of its network.

    Raises ExportError where a package is missing, where ONNX lacks an operation, and beyond 2 GB.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise missing_package(str(error.name)) from None
    with _quiet():
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=list(input_names(graph)),
                output_names=[output_name(graph)],
                opset_version=opset,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(f"the network cannot be written as ONNX: {first_line(error)[:300]}") from error
    assert exported is not None
    model = exported.model_proto
    _name_dimensions(model, graph)
    entry = model.metadata_props.add()
    entry.key, entry.value = DESCRIPTION, description_text(description)
    model.producer_name = "sam4ir"
    model.doc_string = inspect.cleandoc(str(graph.__doc__)).partition("\n\n")[0]  # not its arguments
    if model.ByteSize() > _LARGEST_ONNX:
        raise ExportError(
            "the network has more than 2 GB, which no .onnx file of one piece holds; take --precision fp16"
        )
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def _name_dimensions(model: Any, graph: nn.Module) -> None:
    """Give the dimensions of inputs that may have any length their names."""
    for value, names in zip(model.graph.input, _dynamic(graph), strict=True):
        for index, dim in names.items():
            value.type.tensor_type.shape.dim[index].dim_param = str(dim.__name__).replace("*", "_x_")


def onnx_run(data: bytes) -> Run:
    """Return the function of a .onnx file in ONNX Runtime on the CPU."""
    try:
        import onnxruntime
    except ImportError:
        raise missing_package("onnxruntime") from None
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        arrays = [tensor.numpy() for tensor in inputs]
        return torch.from_numpy(session.run(None, dict(zip(names, arrays, strict=True)))[0])

    return run


def same_bits(data: bytes, state: Mapping[str, Tensor], network: nn.Module) -> bool:
    """Return whether a .safetensors file holds exactly this state, and loads strictly into its network."""
    from safetensors.torch import load

    read = load(data)
    network.load_state_dict(read, strict=True)
    return read.keys() == state.keys() and all(torch.equal(read[name], state[name].cpu()) for name in state)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the remarks of torch's exporters off the screen: they speak of their own code."""
    levels = {}
    for name in ("torch.onnx", "torch.export", "onnxscript"):
        logger = logging.getLogger(name)
        levels[logger] = logger.level
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
