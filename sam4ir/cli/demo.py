"""Serve a web page that restores images: drop one, choose weights, compare before and after.

sam4ir demo
sam4ir demo --weights experiments/<name> net_g_latest.pth --tile 512

The page answers this machine alone, at http://127.0.0.1:7860; --host 0.0.0.0 answers others too, and then whoever
reaches the port can restore images here. It needs gradio: pip install "sam4ir[demo]". No request leaves the machine,
but for weights of the zoo that are not fetched yet.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence

from sam4ir.errors import UserError
from sam4ir.utils import cli

HOST = "127.0.0.1"
TILE = 512
MOST_PIXELS = 12_000_000
PORTS = 65535


def parser() -> cli.Parser:
    """Return the parser of the command."""
    command = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="FILE|RUN|NAME",
        help="first in the list of weights; names of the zoo follow",
    )
    command.add_argument("--host", default=HOST, help=f"address to answer at (default {HOST}: this machine alone)")
    command.add_argument("--port", type=port, help="port (default: the first that is free from 7860 on)")
    command.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: CUDA where there is one)")
    command.add_argument(
        "--tile",
        type=cli.count,
        default=TILE,
        metavar="PIXELS",
        help=f"tiles that the page begins with (default {TILE}; 0: whole images)",
    )
    command.add_argument(
        "--most-pixels",
        type=cli.positive,
        default=MOST_PIXELS,
        metavar="N",
        help=f"largest height times width of an image (default {MOST_PIXELS:,})",
    )
    return command


def port(text: str) -> int:
    """Return a flag's port."""
    number = cli.positive(text)
    if number > PORTS:
        raise argparse.ArgumentTypeError(f"{number} is above {PORTS}")
    return number


def main(words: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C; return the exit status."""
    flags = parser().parse_args(words)
    if importlib.util.find_spec("gradio") is None:
        raise UserError('the page needs gradio, which is not installed: pip install "sam4ir[demo]"')
    from sam4ir.api.network import load
    from sam4ir.demo.networks import Networks, zoo_networks
    from sam4ir.demo.page import build_page, serve

    for name in flags.weights:
        load(name, device=flags.device)  # what cannot be loaded is an error now, not after a visitor's click
    names = list(dict.fromkeys([*flags.weights, *zoo_networks()]))
    serve(build_page(Networks(names, flags.device, flags.most_pixels), flags.tile), flags.host, flags.port)
    return 0
