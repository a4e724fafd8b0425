"""Mask stores: inspect, verify, view, import, export and cut them, and make control stores.

python scripts/masks.py info masks.lmdb
python scripts/masks.py verify masks.lmdb --images GT_FOLDER --missing missing.txt
python scripts/masks.py view masks.lmdb --images GT_FOLDER --output PICTURES --number 12 --contact-sheet all.png
python scripts/masks.py import --input JSON_FOLDER --store masks.lmdb --images GT_FOLDER --source gt \
    --generator segment_anything --checkpoint sam_vit_h_4b8939.pth --setting points_per_side=32
python scripts/masks.py export masks.lmdb --format sam --output JSON_FOLDER
python scripts/masks.py crop --store masks.lmdb --windows datasets/GoPro/train/windows.jsonl --output cut.lmdb
python scripts/masks.py crop --store masks.lmdb --images GT_FOLDER --crop-size 512 --step 256 \
    --output cut.lmdb --output-images gt_crops.lmdb
python scripts/masks.py upgrade masks.lmdb
python scripts/masks.py control --kind superpixels --like masks.lmdb --images GT_FOLDER --output slic.lmdb

Images are a folder or an image LMDB. Masks are made with scripts/make_masks.py.
Exit status: 0; 1 where files, images or records are bad, after all others are done; 2 with one message where the
command cannot begin; 130 when stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sam4ir.data.masks.control import CONTROL_KINDS, make_control
from sam4ir.data.masks.crop import crop_by_table, crop_images
from sam4ir.data.masks.exporter import EXPORT_SUFFIXES, export_masks
from sam4ir.data.masks.fill import FillResult, refuse_same
from sam4ir.data.masks.formats import FORMATS, find_masks
from sam4ir.data.masks.importer import import_masks
from sam4ir.data.masks.info import inspect_store
from sam4ir.data.masks.labels import LabelRules
from sam4ir.data.masks.meta import reading_orientation
from sam4ir.data.masks.pictures import (
    SHEET_IMAGES,
    SHEET_PANEL,
    choose_keys,
    contact_sheet,
    draw_panels,
    refuse_to_draw,
    side_by_side,
)
from sam4ir.data.masks.store import SOURCES, MaskStore
from sam4ir.data.masks.upgrade import upgrade
from sam4ir.data.masks.verify import verify
from sam4ir.data.sources import ImageSource, open_source, read
from sam4ir.data.windows import Crop
from sam4ir.errors import UserError
from sam4ir.priors.spe import spe_map
from sam4ir.utils import cli
from sam4ir.utils.faults import fault_of_item
from sam4ir.utils.files import output_path, write_text
from sam4ir.utils.folders import refuse_folder_of_images
from sam4ir.utils.image import write_image
from sam4ir.utils.shell import command_words
from sam4ir.utils.tables import listing_text

STOPPED = 130
GOES_ON = "the same command goes on from here"


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status, see above."""
    options = _parser().parse_args(arguments)
    try:
        if getattr(options, "workers", 1) < 1:
            raise UserError(f"--workers: {options.workers} must be at least 1")
        return int(options.run(options))
    except KeyboardInterrupt:
        print(f"stopped; {options.when_stopped}", file=sys.stderr)
        return STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_info, _add_verify, _add_view, _add_import, _add_export, _add_crop, _add_control, _add_upgrade):
        add(commands)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, when_stopped: str = GOES_ON
) -> argparse.ArgumentParser:
    """Add a command to the parser. when_stopped: what a user reads after Ctrl-C."""
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
    parser = _command(commands, "info", run_info, "how a store was made and what it holds", "nothing was changed")
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
    parser = _command(commands, "verify", run_verify, text, "nothing was changed; verify begins anew")
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
    parser = _command(commands, "view", run_view, text, "the pictures so far are whole; the same command makes all")
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
    parser = _command(commands, "import", run_import, "make a store from masks that other programs wrote")
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
    parser = _command(commands, "export", run_export, "write masks in the formats of others")
    parser.add_argument("store", type=Path)
    parser.add_argument(
        "--format",
        choices=tuple(EXPORT_SUFFIXES),
        required=True,
        help="sam: segment-anything's JSON; labels: region map PNG, 8 or 16 bits; samdiffsr: float32 SPE map, .npy",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--keys", nargs="+", metavar="KEY", help="default: every key")
    parser.add_argument("--overwrite", action="store_true", help="write files that are there again")
    _add_workers(parser)


def _add_crop(commands: Any) -> None:
    parser = _command(commands, "crop", run_crop, "a store of sub-images, their masks cut as they are")
    parser.add_argument("--store", type=Path, required=True, metavar="IN.lmdb", help="masks of the whole images")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT.lmdb")
    parser.add_argument(
        "--windows",
        type=Path,
        metavar="FILE",
        help="windows.jsonl beside an LMDB of scripts/prepare_data.py: cut as that set was",
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
    parser = _command(commands, "control", run_control, text)
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
    parser = _command(commands, "upgrade", run_upgrade, text)
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


def run_info(options: argparse.Namespace) -> int:
    """Print provenance and figures."""
    if options.sample < 1:
        raise UserError(f"--sample: {options.sample} must be at least 1 (--all looks at every record)")
    sample = options.sample
    if options.all:
        sample = None
    report = inspect_store(MaskStore(options.store), sample, options.workers)
    if options.json:
        print(json.dumps(report.values(), indent=2, ensure_ascii=False))
    else:
        print(report.text())
    return _list_problems(report.bad)


def run_verify(options: argparse.Namespace) -> int:
    """List the records that are missing, damaged or of another size."""
    store, images = MaskStore(options.store), _images(options, options.store)
    assert images is not None  # --images is required
    report = verify(store, images, options.workers, pixels=not options.sizes_only)
    status = _list_problems(report.problems)
    for note in report.notes(store.meta.get("source")):
        print(note)
    good = report.images - len(report.keys_to_make)
    print(f"{options.store}: {good} of {report.images} images have their masks{report.hint}")
    if options.missing is not None:
        write_text(options.missing, listing_text(report.keys_to_make))
        flags = command_words("--keys", options.missing)
        if report.wrong:
            flags += " --overwrite"
        print(f"{options.missing}: {len(report.keys_to_make)} keys; scripts/make_masks.py {flags} makes them")
    return status


def run_view(options: argparse.Namespace) -> int:
    """Write one PNG for each key, or all in one; list the images that cannot be read."""
    _check_view(options)
    store = MaskStore(options.store)
    outputs = [options.output] if options.output is not None else []
    images = _images(options, options.store, outputs)
    keys = choose_keys(store, images, options.keys, options.number)
    if options.contact_sheet is not None and len(keys) > SHEET_IMAGES:
        raise UserError(
            f"--contact-sheet: holds up to {SHEET_IMAGES} images, not {len(keys)}; choose with --number or --keys"
        )
    thumbnails: list[np.ndarray] = []
    problems = []
    for key in tqdm(keys, desc="view", unit="image", disable=None):
        try:
            thumbnails += _view_one(store, images, key, options)
        except Exception as error:
            fault = fault_of_item(error)
            if fault is None:
                raise
            problems.append(f"{key}: {fault}")
    if thumbnails:
        write_image(options.contact_sheet, contact_sheet(thumbnails))
    places = filter(None, (options.output, options.contact_sheet))
    print(f"{' and '.join(map(str, places))}: {len(keys) - len(problems)} images")
    return _list_problems(problems)


def _check_view(options: argparse.Namespace) -> None:
    """Raise UserError where --output and --contact-sheet are no places for pictures."""
    if options.output is None and options.contact_sheet is None:
        raise UserError("--output FOLDER or --contact-sheet FILE says where the pictures go; give one or both")
    if options.output is not None and options.output.is_file():
        raise UserError(f"--output: {options.output} is a file; give a folder for the pictures")
    if options.output is not None and options.images is not None:
        refuse_folder_of_images(options.output, options.images, "--output")


def _view_one(store: MaskStore, images: ImageSource | None, key: str, options: argparse.Namespace) -> list[np.ndarray]:
    """Write the picture of a key; return it small for the contact sheet, where there is one."""
    record, image = store.read(key), None
    if images is not None:
        image = read(images, key)
    refuse_to_draw(record, image)
    spe = spe_map(record, 0, 0, *record.size, mean=options.mean)
    drawn, title = draw_panels(record, image, spe), f"{key}: {record.count} masks"
    if options.output is not None:
        write_image(output_path(options.output, key, ".png", store.path), side_by_side(drawn, title))
    if options.contact_sheet is None:
        return []
    return [side_by_side(drawn, title, SHEET_PANEL)]


def run_import(options: argparse.Namespace) -> int:
    """Store the readable masks, then list the others."""
    folder = find_masks(options.input, options.format, options.suffix)
    exif = reading_orientation(options.store, options.ignore_exif, options.new)
    images = _images(options, options.store, ignore_exif=options.ignore_exif, new=options.new)
    meta = {
        "exif_orientation": exif,
        "generator": options.generator,
        "checkpoint": options.checkpoint,
        "checkpoint_sha256": options.sha256,
        "settings": dict(options.setting),
        "source": options.source,
    }
    rules = LabelRules(_background(options.background), options.rgb)
    print(f"{options.input}: masks of {len(folder.files)} images, read as --format {folder.format}", flush=True)
    if folder.format == "labels":
        print(f"labels that are no region: {', '.join(map(str, rules.background)) or 'none'} (--background)")
    return _filled(
        options.store, import_masks(folder, options.store, meta, rules, images, options.new, options.workers)
    )


def _background(texts: Sequence[str]) -> tuple[int, ...]:
    """Return the labels that are no region; raise UserError where a text is no whole number."""
    if list(texts) == ["none"]:
        return ()
    try:
        return tuple(int(text, 0) for text in texts)
    except ValueError:
        raise UserError(f"--background: {' '.join(texts)} must be labels (whole numbers), or none") from None


def run_export(options: argparse.Namespace) -> int:
    """Write one file for each image."""
    store = MaskStore(options.store)
    done = export_masks(
        store, options.format, options.output, spe_map, options.keys, options.overwrite, options.workers
    )
    print(f"{options.output}: {done.written} files written, {done.present} were there, {len(done.bad)} bad")
    return _list_problems(done.bad)


def run_crop(options: argparse.Namespace) -> int:
    """Cut masks by a prepared set's table, or images and masks together."""
    refuse_same(options.store, options.output)
    store = MaskStore(options.store)
    if options.windows is not None:
        _refuse_beside_windows(options)
        parts = _images(options, options.store)
        done = crop_by_table(store, options.output, options.windows, parts, options.new, options.workers)
        return _filled(options.output, done)
    if options.images is None or options.crop_size is None or options.step is None:
        raise UserError("give --windows FILE of a prepared set, or --images PATH --crop-size N --step N")
    outputs = []
    if options.output_images is not None:
        refuse_folder_of_images(options.output_images, options.images, "--output-images")
        outputs.append(options.output_images)
    images = _images(options, options.store, outputs)
    assert images is not None  # --images was checked above
    crop = Crop(options.crop_size, options.step, options.thresh or 0)
    done = crop_images(
        store,
        options.output,
        images,
        crop,
        options.output_images,
        options.encoding or "raw",
        options.new,
        options.workers,
    )
    if done.bad and options.output_images is not None and options.output_images.suffix == ".lmdb":
        path = options.output_images
        print(f"{path}: gets its name when no image is bad; until then it is {path}.part")
    return _filled(options.output, done)


def _refuse_beside_windows(options: argparse.Namespace) -> None:
    """Raise UserError for options that --windows makes meaningless."""
    extra = []
    for name in ("crop_size", "step", "thresh", "output_images", "encoding"):
        if getattr(options, name):
            extra.append(f"--{name.replace('_', '-')}")
    if extra:
        raise UserError(f"{' and '.join(extra)}: --windows says how the images were cut; leave one of them out")


def run_control(options: argparse.Namespace) -> int:
    """Make a control store."""
    refuse_same(options.like, options.output)
    images = _images(options, options.like)
    if images is not None and options.kind != "superpixels":
        print(f"note: --kind {options.kind} looks at no images; --images is not used")
    done = make_control(
        options.kind, MaskStore(options.like), options.output, images, options.seed, options.new, options.workers
    )
    return _filled(options.output, done)


def run_upgrade(options: argparse.Namespace) -> int:
    """Give every record checksums."""
    done = upgrade(options.store, options.workers)
    before = done.images - done.written - len(done.bad)
    print(f"{options.store}: {done.written} records written again, {before} had checksums, {len(done.bad)} bad")
    return _list_problems(done.bad)


def _images(
    options: argparse.Namespace,
    store: Path,
    outputs: Sequence[Path] = (),
    ignore_exif: bool = False,
    new: bool = False,
) -> ImageSource | None:
    """Open the images of --images, turned by EXIF where the store's masks are; None without them.

    outputs: folders that the command writes to.
    """
    if not options.images:
        return None
    return open_source(options.images, None, "--images", reading_orientation(store, ignore_exif, new), outputs)


def _filled(store: Path, done: FillResult) -> int:
    """Print what a store holds now; return the exit status."""
    print(f"{store}: {done.stored} images stored, {done.present} were there, {len(done.bad)} bad")
    return _list_problems(done.bad)


def _list_problems(problems: Sequence[str]) -> int:
    """Print problems to stderr; return the exit status, 1 where there are any."""
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))
