"""The commands of `sam4ir masks`: each works on a mask store, prints what it did and returns the exit status.

The flags of the command come as they were parsed; sam4ir/cli/masks.py has a sentence for each. The exit status is 1
where images or records are bad; they are listed after the others are done.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sam4ir.data.masks.control import make_control
from sam4ir.data.masks.crop import crop_by_table, crop_images
from sam4ir.data.masks.exporter import export_masks
from sam4ir.data.masks.fill import FillResult, refuse_same
from sam4ir.data.masks.formats import find_masks
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
)
from sam4ir.data.masks.store import MaskStore
from sam4ir.data.masks.upgrade import upgrade
from sam4ir.data.masks.verify import verify
from sam4ir.data.sources import ImageSource, open_source, read
from sam4ir.data.windows import Crop
from sam4ir.errors import UserError
from sam4ir.priors.spe import spe_map
from sam4ir.utils.faults import fault_of_item
from sam4ir.utils.files import output_path, write_text
from sam4ir.utils.folders import refuse_folder_of_images
from sam4ir.utils.image import side_by_side, write_image
from sam4ir.utils.shell import command_words
from sam4ir.utils.tables import listing_text


def describe_store(options: Namespace) -> int:
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


def verify_store(options: Namespace) -> int:
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
        print(f"{options.missing}: {len(report.keys_to_make)} keys; sam4ir make-masks {flags} makes them")
    return status


def view_masks(options: Namespace) -> int:
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


def _check_view(options: Namespace) -> None:
    """Raise UserError where --output and --contact-sheet are no places for pictures."""
    if options.output is None and options.contact_sheet is None:
        raise UserError("--output FOLDER or --contact-sheet FILE says where the pictures go; give one or both")
    if options.output is not None and options.output.is_file():
        raise UserError(f"--output: {options.output} is a file; give a folder for the pictures")
    if options.output is not None and options.images is not None:
        refuse_folder_of_images(options.output, options.images, "--output")


def _view_one(store: MaskStore, images: ImageSource | None, key: str, options: Namespace) -> list[np.ndarray]:
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


def import_store(options: Namespace) -> int:
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


def export_store(options: Namespace) -> int:
    """Write one file for each image."""
    store = MaskStore(options.store)
    done = export_masks(
        store, options.format, options.output, spe_map, options.keys, options.overwrite, options.workers
    )
    print(f"{options.output}: {done.written} files written, {done.present} were there, {len(done.bad)} bad")
    return _list_problems(done.bad)


def crop_store(options: Namespace) -> int:
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


def _refuse_beside_windows(options: Namespace) -> None:
    """Raise UserError for options that --windows makes meaningless."""
    extra = []
    for name in ("crop_size", "step", "thresh", "output_images", "encoding"):
        if getattr(options, name):
            extra.append(f"--{name.replace('_', '-')}")
    if extra:
        raise UserError(f"{' and '.join(extra)}: --windows says how the images were cut; leave one of them out")


def make_control_store(options: Namespace) -> int:
    """Make a control store."""
    refuse_same(options.like, options.output)
    images = _images(options, options.like)
    if images is not None and options.kind != "superpixels":
        print(f"note: --kind {options.kind} looks at no images; --images is not used")
    done = make_control(
        options.kind, MaskStore(options.like), options.output, images, options.seed, options.new, options.workers
    )
    return _filled(options.output, done)


def upgrade_store(options: Namespace) -> int:
    """Give every record checksums."""
    done = upgrade(options.store, options.workers)
    before = done.images - done.written - len(done.bad)
    print(f"{options.store}: {done.written} records written again, {before} had checksums, {len(done.bad)} bad")
    return _list_problems(done.bad)


def _images(
    options: Namespace,
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
