"""Export a trained network for programs that do not have sam4ir.

sam4ir export experiments/NAME --to onnx
sam4ir export NAFNet-SIDD-width32 --to safetensors --output nafnet.safetensors
sam4ir export net_g_latest.pth -opt options.yml --to torch-export --precision fp16

The graphs of onnx and torch-export take RGB images (b, c, h, w) float32 in [0, 1] of every size: padding and crop are
inside. Each file is compared with the network at five sizes before it gets its name, and describes its network.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from sam4ir.utils import cli

FORMATS = ("onnx", "torch-export", "safetensors")


def parser() -> cli.Parser:
    """Return the parser of the command."""
    command = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument(
        "weights",
        metavar="FILE|RUN|NAME",
        help="weights, a run or a name of the zoo",
    )
    command.add_argument("--to", choices=FORMATS, required=True, help="the format to write")
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="the file to write (default: the weights' name with its suffix)"
    )
    command.add_argument(
        "-opt", "--opt", type=Path, metavar="FILE", help="option file with network_g (default: as restore finds it)"
    )
    command.add_argument(
        "--precision", choices=("fp32", "fp16"), default="fp32", help="of weights and activations (default: fp32)"
    )
    command.add_argument("--opset", type=cli.positive, default=18, metavar="N", help="onnx: its version (default: 18)")
    command.add_argument("--clamp", action="store_true", help="limit the output to [0, 1] inside the graph")
    command.add_argument("--no-check", action="store_true", help="do not compare the file with the network")
    command.add_argument(
        "--tolerance",
        type=tolerance,
        metavar="X",
        help="largest difference that the comparison allows (default: 1e-4 in fp32, 2e-2 in fp16)",
    )
    return command


def tolerance(text: str) -> float:
    """Return a flag's difference, a number from 0 on."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no difference; give a number such as 1e-3")
    return number


def main(words: Sequence[str] | None = None) -> int:
    """Export a network; return the exit status 0. Raises UserError where nothing was written."""
    flags = parser().parse_args(words)
    from sam4ir.engine.evaluate.candidates import weights_of
    from sam4ir.export.formats import SUFFIXES
    from sam4ir.export.source import export_source
    from sam4ir.export.write import ExportSettings, export

    cli.show_log()
    weights = weights_of(flags.weights)
    output = flags.output or Path(f"{Path(weights).stem}{SUFFIXES[flags.to]}")
    if not flags.output and Path(weights).is_file():
        output = Path(weights).with_suffix(SUFFIXES[flags.to])
    _check_output(output, weights, SUFFIXES[flags.to])
    source = export_source(weights, flags.opt)
    settings = ExportSettings(flags.to, flags.precision, flags.opset, flags.clamp, not flags.no_check, flags.tolerance)
    export(source, output, settings)
    return 0


def _check_output(output: Path, weights: str, suffix: str) -> None:
    """Raise ExportError before the work begins where the output is no file, or the weights, or has another suffix."""
    from sam4ir.export.graph import ExportError

    if output.is_dir():
        example = output / f"{Path(weights).stem}{suffix}"
        raise ExportError(f"--output: {output} is a folder; name the file, such as {example}")
    if output.exists() and Path(weights).exists() and output.samefile(weights):
        raise ExportError(f"--output: {output} is the weights file itself; name another file")
    if output.suffix != suffix:
        raise ExportError(f"--output: {output} must end with {suffix}, by which programs know the format; rename it")
