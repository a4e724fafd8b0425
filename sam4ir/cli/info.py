"""Describe a network: architecture, parameters, multiply-adds, time and memory here, training and scores.

sam4ir info experiments/<name>                    the latest weights of a run
sam4ir info net_g_latest.pth --size 1280x720      a weights file, for images of 1280 x 720 pixels
sam4ir info NAFNet-SIDD-width32                   weights by a name of the zoo, or of a hub: hf:owner/name
sam4ir info my.yml                                the network of an option file

Multiply-adds (MACs) are half of the FLOPs of torch.utils.flop_counter; published figures mean 256 x 256. Time is the
median of some passes, with as many threads as the device row says.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence

from sam4ir.utils import cli

SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.IGNORECASE)


def parser() -> cli.Parser:
    """Return the parser of the command."""
    command = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("network", metavar="FILE|RUN|OPTION_FILE|NAME", help="what to describe; see above")
    command.add_argument(
        "-opt", "--opt", metavar="FILE", help="option file with network_g, for weights that do not show their network"
    )
    command.add_argument(
        "--size",
        type=size,
        metavar="WIDTHxHEIGHT",
        help="of the input in pixels (default: what gives an output of 256x256)",
    )
    command.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: CUDA where there is one)")
    command.add_argument("--json", action="store_true", help="print JSON in place of lines")
    return command


def size(text: str) -> tuple[int, int]:
    """Return (height, width) of a flag such as 1280x720, which is width by height as for screens."""
    match = SIZE.fullmatch(text)
    if match is None or 0 in (int(match[1]), int(match[2])):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it as 1280x720")
    return int(match[2]), int(match[1])


def main(words: Sequence[str] | None = None) -> int:
    """Print what is known of a network; return the exit status."""
    flags = parser().parse_args(words)
    from sam4ir.api.network import weights_and_options
    from sam4ir.engine.describe import describe, fact_rows, fact_values
    from sam4ir.engine.restore.settings import network_options

    source, weights = flags.network, None
    if flags.opt is not None:
        source, weights = flags.opt, flags.network
    file, option_file = weights_and_options(source, weights)
    described = network_options(file, option_file, flags.device)
    options = described.options
    facts = describe(options, file or options.path.pretrain_network_g, flags.size, tuple(described.notes))
    if flags.json:
        print(json.dumps(fact_values(facts), indent=2))
        return 0
    rows = fact_rows(facts)
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:{width}}  {text}")
    return 0
