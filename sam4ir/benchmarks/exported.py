"""Contest between the ways to run a trained NAFNet on a CPU: eager, compiled, and as an ONNX file."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from sam4ir.benchmarks.networks import RECIPES, Setting, awake, inference_form, network_of, noisy_batch
from sam4ir.benchmarks.timing import Agreement, Aim, Contest, Form, relative_error
from sam4ir.engine.restore.compiled import CompiledNetwork
from sam4ir.export import formats
from sam4ir.export.graph import RestoringGraph
from sam4ir.export.runtime import OnnxNetwork, OpenVinoNetwork
from sam4ir.models.restoration import restore
from sam4ir.utils.files import write_bytes

NETWORK = "NAFNet"
AIMS = {"fp32": 2.5, "bf16": 4.5}


def contest(setting: Setting, folder: Path) -> Contest:
    """Return the contest of one image; the first form is the network in contiguous memory, eager, in float32.

    folder: for the ONNX file. A program that is not installed is left out.
    """
    recipe = RECIPES[NETWORK]
    side = setting.side(NETWORK, recipe.size)
    options = setting.options(NETWORK, recipe.file, "fp32")
    network = network_of(options, setting.device).eval()
    awake(network)
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    image = noisy_batch(setting.batch, side, setting.device).lq
    expected = restore(plain, image)
    forms = [Form("contiguous, eager fp32", lambda: restore(plain, image))]
    forms.append(inference_form("contiguous, eager bf16", plain, image, "bf16", expected))
    for precision in ("fp32", "bf16"):
        forms.append(inference_form(f"channels_last, eager {precision}", network, image, precision, expected))
    control = forms[-1].name
    for precision in ("fp32", "bf16"):
        compiled = CompiledNetwork(copy.deepcopy(network), in_tiles=True)
        form = inference_form(f"compiled, frozen {precision}", compiled, image, precision, expected)
        forms.append(_with_aim(form, precision, setting.quick))
    for name, precision, module in _exported(network, folder):
        forms.append(_exported_form(name, precision, module, image, expected, setting.quick))
    arguments = {"size": f"{side}x{side}", "batch": setting.batch, "width": options.network_g.arguments["width"]}
    return Contest(f"{NETWORK}, ways to run it", arguments, forms, control)


def _exported(network: nn.Module, folder: Path) -> Iterator[tuple[str, str, nn.Module]]:
    """Yield (name, precision, module) of the programs that run the ONNX file and are installed."""
    programs = [name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)]
    if not programs or importlib.util.find_spec("onnxscript") is None:
        return
    graph = RestoringGraph(network)
    program = formats.recorded(graph, formats.example_inputs(graph, channels=3))
    file = folder / "network.onnx"
    write_bytes(file, formats.onnx_bytes(graph, program, {}, formats.LEAST_OPSET))
    threads = torch.get_num_threads()
    if "onnxruntime" in programs:
        yield "ONNX Runtime fp32", "fp32", OnnxNetwork(file, threads)
    if "openvino" in programs:
        yield "OpenVINO fp32", "fp32", OpenVinoNetwork(file, "fp32", threads)
        yield "OpenVINO, hint bf16", "bf16", OpenVinoNetwork(file, "bf16", threads)


def _exported_form(name: str, precision: str, module: nn.Module, image: Tensor, expected: Tensor, quick: bool) -> Form:
    """Return the form that restores an image with an exported network."""
    limit = {"fp32": 1e-4, "bf16": 0.03}[precision]
    agreement = {"outputs": Agreement(relative_error([restore(module, image)], [expected]), limit)}
    return _with_aim(Form(name, lambda: restore(module, image), agreement=agreement), precision, quick)


def _with_aim(form: Form, precision: str, quick: bool) -> Form:
    """Return the form with the speed-up that is hoped for."""
    if quick:
        return form
    return Form(form.name, form.run, aim=Aim(AIMS[precision]), agreement=form.agreement)
