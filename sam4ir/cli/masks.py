"""Mask stores: inspect, verify, view, import, export and cut them, and make control stores.

sam4ir masks info masks.lmdb
sam4ir masks verify masks.lmdb --images GT_FOLDER --missing missing.txt
sam4ir masks view masks.lmdb --images GT_FOLDER --output PICTURES --number 12 --contact-sheet all.png
sam4ir masks import --input JSON_FOLDER --store masks.lmdb --images GT_FOLDER --source gt \
    --generator segment_anything --checkpoint sam_vit_h_4b8939.pth --setting points_per_side=32
sam4ir masks export masks.lmdb --format sam --output JSON_FOLDER
sam4ir masks crop --store masks.lmdb --windows datasets/GoPro/train/windows.jsonl --output cut.lmdb
sam4ir masks crop --store masks.lmdb --images GT_FOLDER --crop-size 512 --step 256 \
    --output cut.lmdb --output-images gt_crops.lmdb
sam4ir masks upgrade masks.lmdb
sam4ir masks control --kind superpixels --like masks.lmdb --images GT_FOLDER --output slic.lmdb

Images are a folder or an image LMDB. Masks are made with sam4ir make-masks.
Exit status: 0; 1 where files, images or records are bad, after all others are done; 2 with one message where the
command cannot begin; 130 when stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam4ir.errors import UserError
from sam4ir.utils import cli

STOPPED = 130
GOES_ON = "the same command goes on from here"
# Choices of sam4ir.data.masks, repeated so that --help loads no torch.
FORMATS = ("sam", "samdiffsr", "spe", "labels", "binary")
EXPORT_FORMATS = ("sam", "labels", "samdiffsr")
SOURCES = ("gt", "lq", "restored")
CONTROL_KINDS = ("superpixels", "grid", "shuffled")


def main(words: Sequence[str] | None = None) -> int:
    """Return the exit status, see above."""
    options = parser().parse_args(words)
    if getattr(options, "workers", 1) < 1:
        raise UserError(f"--workers: {options.workers} must be at least 1")
    try:
        from sam4ir.engine import mask_commands

        return int(getattr(mask_commands, options.run)(options))
    except KeyboardInterrupt:
        print(f"stopped; {options.when_stopped}", file=sys.stderr)
        return STOPPED


def parser() -> cli.Parser:
    """Return the parser of the command, with one for each of its commands."""
    whole = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_info, _add_verify, _add_view, _add_import, _add_export, _add_crop, _add_control, _add_upgrade):
        add(commands)
    return whole


def _command(commands: Any, name: str, run: str, text: str, when_stopped: str = GOES_ON) -> argparse.ArgumentParser:
    """Add a command to the parser.

    run: its function in sam4ir.engine.mask_commands. when_stopped: what a user reads after Ctrl-C.
    """
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run, when_stopped=when_stopped)
    return parser


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: all cores)"
    )


def _add_images(parser: argparse.ArgumentParser, required: bool, text: str = "the images") -> None:
    parser.add_argument(
        "--images", type=Path, required=required, metavar="PATH", help=f"{text}, a folder or an image LMDB"
    )


def _add_new(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--new", action="store_true", help="begin anew; an existing store is moved aside, not deleted")


def _add_info(commands: Any) -> None:
    parser = _command(
        commands, "info", "describe_store", "how a store was made and what it holds", "nothing was changed"
    )
    parser.add_argument("store", type=Path)
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument(
        "--sample", type=int, default=1000, metavar="N", help="records to look at, evenly spread (default 1000)"
    )
    extent.add_argument("--all", action="store_true", help="look at every record")
    parser.add_argument("--json", action="store_true", help="print JSON instead of words")
    _add_workers(parser)


def _add_verify(commands: Any) -> None:
    text = "check that every image has a whole record of its size"
    parser = _command(commands, "verify", "verify_store", text, "nothing was changed; verify begins anew")
    parser.add_argument("store", type=Path)
    _add_images(parser, required=True)
    parser.add_argument(
        "--missing", type=Path, metavar="FILE", help="write the keys whose masks are to be made there, one a line"
    )
    parser.add_argument(
        "--sizes-only", action="store_true", help="do not compare pixels with those that the generator saw"
    )
    _add_workers(parser)


def _add_view(commands: Any) -> None:
    text = "pictures: image, coloured regions, boundaries and SPE side by side"
    parser = _command(commands, "view", "view_masks", text, "the pictures so far are whole; the same command makes all")
    parser.add_argument("store", type=Path)
    _add_images(parser, required=False)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="a PNG a key goes there")
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE", help="all of them in one picture, e.g. all.png")
    selection = parser.add_mutually_exclusive_group()
    selection.add_argument("--keys", nargs="+", metavar="KEY", help="default: every key that has an image")
    selection.add_argument("--number", type=int, metavar="N", help="so many of them, evenly spread")
    parser.add_argument(
        "--mean",
        choices=("image", "region"),
        default="image",
        help="what the SPE divides by: h w (default) or the area",
    )


def _add_import(commands: Any) -> None:
    parser = _command(commands, "import", "import_store", "make a store from masks that other programs wrote")
    parser.add_argument("--input", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--store", type=Path, required=True, metavar="OUT.lmdb")
    parser.add_argument(
        "--format",
        choices=("auto", *FORMATS),
        default="auto",
        help="sam: JSON of segment-anything or SA-1B; samdiffsr: RLE JSON of SAM-DiffSR; spe: its SPE maps, .npy, of "
        "which only what is in sight of a mask comes back; labels: a label map an image; "
        "binary: a folder of binary PNGs an image (segment-anything's amg.py); auto (default): by what is there",
    )
    _add_images(parser, required=False)
    parser.add_argument("--source", choices=SOURCES, help="the image that the generator read")
    parser.add_argument("--ignore-exif", action="store_true", help="the masks do not follow EXIF orientation")
    parser.add_argument("--generator", metavar="NAME", help="the program that made the masks, with its version")
    parser.add_argument("--checkpoint", metavar="NAME", help="its weights")
    parser.add_argument("--sha256", metavar="HEX", help="checksum of the weights")
    parser.add_argument(
        "--setting", action="append", default=[], metavar="KEY=VALUE", type=_setting, help="may be repeated"
    )
    parser.add_argument(
        "--background",
        nargs="+",
        default=["0"],
        metavar="LABEL",
        help="labels that are no region, of --format labels (default 0; 'none': every label is a region)",
    )
    parser.add_argument("--suffix", default="", help="label maps are <image><suffix>.png, e.g. _mask")
    parser.add_argument("--rgb", action="store_true", help="in label maps each colour is a label (65536 R + 256 G + B)")
    _add_new(parser)
    _add_workers(parser)


def _add_export(commands: Any) -> None:
    parser = _command(commands, "export", "export_store", "write masks in the formats of others")
    parser.add_argument("store", type=Path)
    parser.add_argument(
        "--format",
        choices=EXPORT_FORMATS,
        required=True,
        help="sam: segment-anything's JSON; labels: region map PNG, 8 or 16 bits; samdiffsr: float32 SPE map, .npy",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--keys", nargs="+", metavar="KEY", help="default: every key")
    parser.add_argument("--overwrite", action="store_true", help="write files that are there again")
    _add_workers(parser)


def _add_crop(commands: Any) -> None:
    parser = _command(commands, "crop", "crop_store", "a store of sub-images, their masks cut as they are")
    parser.add_argument("--store", type=Path, required=True, metavar="IN.lmdb", help="masks of the whole images")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT.lmdb")
    parser.add_argument(
        "--windows",
        type=Path,
        metavar="FILE",
        help="windows.jsonl beside an LMDB of sam4ir prepare: cut as that set was",
    )
    _add_images(
        parser, False, "with --windows the GT sub-images of the set (for checksums), else the whole images to cut"
    )
    parser.add_argument("--crop-size", type=int, metavar="PIXELS")
    parser.add_argument("--step", type=int, metavar="PIXELS", help="distance of sub-images")
    parser.add_argument("--thresh", type=int, metavar="PIXELS", help="remainder at the border that is left out (0)")
    parser.add_argument(
        "--output-images", type=Path, metavar="PATH", help="the sub-images, an LMDB (*.lmdb) or a folder of PNGs"
    )
    parser.add_argument("--encoding", choices=("raw", "png"), help="of that LMDB (default raw)")
    _add_new(parser)
    _add_workers(parser)


def _add_control(commands: Any) -> None:
    text = "a store of regions made without SAM, as a control"
    parser = _command(commands, "control", "make_control_store", text)
    parser.add_argument(
        "--kind",
        choices=CONTROL_KINDS,
        required=True,
        help="superpixels (SLIC) or a grid, as many as the store has regions in sight, image by image; "
        "shuffled: another image's masks, resized",
    )
    parser.add_argument("--like", type=Path, required=True, metavar="STORE")
    _add_images(parser, False, "for superpixels: the images of the store")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT.lmdb")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle (default 0)")
    _add_new(parser)
    _add_workers(parser)


def _add_upgrade(commands: Any) -> None:
    text = "write records of earlier formats again, with checksums; their masks stay the same"
    parser = _command(commands, "upgrade", "upgrade_store", text)
    parser.add_argument("store", type=Path)
    _add_workers(parser)


def _setting(text: str) -> tuple[str, Any]:
    """Return (key, value) of 'key=value'; the value is JSON (numbers, true, lists) if it reads so, else text."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be KEY=VALUE")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value
