"""Average the weights of several checkpoints into one file, which is used like any other.

sam4ir average experiments/NAME --last 5                    the mean of the last five checkpoints
sam4ir average a.pth b.pth c.pth --output mean.pth          the mean of these files
sam4ir average experiments/NAME --ema 0.9 --param-key params     an exponential average after the fact

The mean of the last checkpoints often restores a little better than each of them; score both with sam4ir test before
you choose. --ema moves through the files in order: average = D * average + (1 - D) * weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sam4ir.utils import cli


def parser() -> cli.Parser:
    """Return the parser of the command."""
    command = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("weights", nargs="+", metavar="RUN|FILE", help="a run's folder, or weights files in order")
    command.add_argument("--last", type=cli.positive, metavar="N", help="only the last N of them (default: all)")
    command.add_argument("--ema", type=share, metavar="D", help="exponential average with this decay, such as 0.9")
    command.add_argument("--param-key", metavar="KEY", help="entry of the files, such as params (default: the average)")
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="file to write, .pth or .safetensors (default: beside the last one)"
    )
    command.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    return command


def share(text: str) -> float:
    """Return a number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number between 0 and 1, such as 0.9")
    return value


def main(words: Sequence[str] | None = None) -> int:
    """Write the average; return the exit status."""
    flags = parser().parse_args(words)
    from sam4ir.engine.averaging import averaged, sources_of, write_average
    from sam4ir.errors import UserError

    files = sources_of(flags.weights, flags.last)
    output = flags.output
    if output is None:
        output = files[-1].with_name(f"{files[-1].stem}_average_of_{len(files)}{files[-1].suffix}")
    if output.suffix not in (".pth", ".safetensors"):
        raise UserError(f"--output {output}: its name must end with .pth or .safetensors")
    if output.exists() and not flags.overwrite:
        raise UserError(f"{output}: exists; give --overwrite to replace it, or another --output")
    if output.resolve() in [file.resolve() for file in files]:
        raise UserError(f"--output {output}: is one of the files to average")
    write_average(files, averaged(files, flags.ema, flags.param_key), flags.ema, output)
    print(f"{output}: the average of {len(files)} files, {files[0].name} to {files[-1].name}")
    return 0
