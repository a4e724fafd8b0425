"""Run an exported .onnx file as if it were a network: in ONNX Runtime, or in OpenVINO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sam4ir.errors import first_line
from sam4ir.export.graph import ExportError
from sam4ir.export.metadata import description_in, missing_package, read_metadata
from sam4ir.utils.weights import DESCRIPTION


class _Exported(nn.Module):
    """A module without parameters that another program runs.

    Attributes: path; description, what the file says of its network (export.metadata.read_metadata); scale, output
    pixels per input pixel; channels of its images.
    """

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        super().__init__()
        self.path = path
        self.description = description
        self.scale = int(self.description.get("scale", 1))
        self.channels = int(self.description.get("channels", 3))
        self.input_names: list[str] = []

    def _arrays(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        """Return the inputs by name, as contiguous arrays; whole numbers stay such, all others become float32."""
        if len(inputs) != len(self.input_names):
            names = ", ".join(self.input_names)
            raise ExportError(f"{self.path}: takes {len(self.input_names)} inputs ({names}), got {len(inputs)}")
        arrays = {}
        for name, tensor in zip(self.input_names, inputs, strict=True):
            if tensor.is_floating_point():
                tensor = tensor.float()
            arrays[name] = tensor.detach().cpu().contiguous().numpy()
        return arrays


class OnnxNetwork(_Exported):
    """A .onnx file in ONNX Runtime: (b, c, h, w) float tensor -> (b, c, h scale, w scale) float32, on its device.

    threads: of an operation; None takes all cores. providers: those of ONNX Runtime, such as CUDAExecutionProvider;
    None is the CPU. Several threads may call one object at the same time.
    Raises ExportError where onnxruntime is not installed or the file is no model that it can run.
    """

    def __init__(self, path: str | Path, threads: int | None = None, providers: Sequence[str] | None = None) -> None:
        path = Path(path)
        if not path.is_file():
            raise ExportError(f"{path}: no such file")
        try:
            import onnxruntime
        except ImportError:
            raise missing_package("onnxruntime") from None
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads or 0
        try:
            session = onnxruntime.InferenceSession(
                str(path), settings, providers=list(providers or ["CPUExecutionProvider"])
            )
        except Exception as error:  # of its binding, in many classes
            raise ExportError(f"{path}: ONNX Runtime cannot load it ({first_line(error)[:200]})") from error
        super().__init__(path, description_in(session.get_modelmeta().custom_metadata_map.get(DESCRIPTION, ""), path))
        self.session = session
        self.input_names = [value.name for value in self.session.get_inputs()]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the graph's output, on the device of the first input."""
        output = self.session.run(None, self._arrays(inputs))[0]
        return torch.from_numpy(output).to(inputs[0].device)


class OpenVinoNetwork(_Exported):
    """A .onnx file in OpenVINO: (b, c, h, w) float tensor -> (b, c, h scale, w scale) float32, on its device.

    precision: fp32, or bf16, a hint that OpenVINO follows where the processor has it. threads: None takes all cores.
    device: of OpenVINO, such as CPU or GPU. Several threads may call one object at the same time.
    Raises ExportError where openvino is not installed or the file is no model that it can run.
    """

    def __init__(
        self,
        path: str | Path,
        precision: Literal["fp32", "bf16"] = "fp32",
        threads: int | None = None,
        device: str = "CPU",
    ) -> None:
        super().__init__(Path(path), read_metadata(path))
        try:
            import openvino
        except ImportError:
            raise missing_package("openvino", "openvino") from None
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        settings["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[precision]
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            core = openvino.Core()
            self.compiled = core.compile_model(core.read_model(str(self.path)), device, settings)
        except Exception as error:  # of its binding
            raise ExportError(f"{self.path}: OpenVINO cannot load it ({first_line(error)[:200]})") from error
        self.input_names = [value.get_any_name() for value in self.compiled.inputs]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the graph's output, on the device of the first input."""
        request = self.compiled.create_infer_request()  # one a call, so that threads do not meet
        output = request.infer(self._arrays(inputs))[self.compiled.outputs[0]]
        return torch.from_numpy(output.copy()).to(inputs[0].device)
