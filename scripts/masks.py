"""Mask stores: make them of segment-anything's JSON files, look into them, check them against images.

python scripts/masks.py import --input JSON_FOLDER --store masks.lmdb --images GT_FOLDER --source gt \
    --generator segment_anything --checkpoint sam_vit_h_4b8939.pth --setting points_per_side=32
python scripts/masks.py info masks.lmdb
python scripts/masks.py verify masks.lmdb --images GT_FOLDER
python scripts/masks.py view masks.lmdb --images GT_FOLDER --output PICTURES --keys 0001 0002
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from sam4ir.data.lmdb_io import key_of
from sam4ir.data.mask_import import pixel_sha256, read_sam_json
from sam4ir.data.masks import SOURCES, MaskRecord, MaskStore, MaskStoreError, MaskStoreWriter
from sam4ir.data.sources import ImageSource, listed, open_source, read
from sam4ir.utils.image import write_image


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 1 where something is wrong with the input, the store or the images."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (ValueError, OSError) as error:
        print(f"masks.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("masks.py: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="masks.py"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_import(commands)
    info = commands.add_parser("info", help="how a store was made and what it holds")
    info.add_argument("store", type=Path)
    info.set_defaults(run=run_info)
    verify = commands.add_parser("verify", help="check that every image has masks of its size")
    verify.add_argument("store", type=Path)
    _add_images(verify, required=True)
    verify.set_defaults(run=run_verify)
    view = commands.add_parser("view", help="pictures: image, coloured regions, boundaries")
    view.add_argument("store", type=Path)
    _add_images(view, required=True)
    view.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    view.add_argument("--keys", nargs="+", metavar="KEY", help="default: every key of the store")
    view.set_defaults(run=run_view)
    return parser


def _add_images(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--images", type=Path, required=required, metavar="FOLDER", help="the images, a folder or an image LMDB"
    )


def _add_import(commands: Any) -> None:
    parser = commands.add_parser("import", help="make a store of JSON files, or go on where one stopped")
    parser.add_argument("--input", type=Path, required=True, metavar="FOLDER", help="<key>.json, subfolders too")
    parser.add_argument("--store", type=Path, required=True, metavar="OUT.lmdb")
    _add_images(parser, required=False)
    parser.add_argument("--source", choices=SOURCES, help="which image the generator looked at")
    parser.add_argument("--generator", metavar="NAME", help="the program that made the masks, with its version")
    parser.add_argument("--checkpoint", metavar="NAME", help="its weights")
    parser.add_argument("--sha256", metavar="HEX", help="checksum of the weights")
    parser.add_argument(
        "--setting", action="append", default=[], metavar="KEY=VALUE", type=_setting, help="may be repeated"
    )
    parser.add_argument("--new", action="store_true", help="begin anew; an existing store is moved aside, not deleted")
    parser.set_defaults(run=run_import)


def _setting(text: str) -> tuple[str, Any]:
    """'key=value'; the value as JSON where it is some (numbers, true, lists), else as text."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def run_import(options: argparse.Namespace) -> int:
    """Stores what is readable, then lists what is not."""
    files = {_key(p.relative_to(options.input)): p for p in options.input.rglob("*.json")}
    if not files:
        raise MaskStoreError(f"{options.input}: no .json files there")
    images = open_source(options.images, None, "--images") if options.images else None
    meta = {
        "generator": options.generator,
        "checkpoint": options.checkpoint,
        "checkpoint_sha256": options.sha256,
        "settings": dict(options.setting),
        "source": options.source,
    }
    bad: list[str] = []
    with MaskStoreWriter(options.store, meta, new=options.new) as writer:
        todo = sorted(key for key in files if key not in writer)
        unseen = set(todo) - set(images.keys) if images else set()
        for key in tqdm(todo, desc="masks", unit="image", disable=None):
            try:
                if images and key in unseen:
                    raise MaskStoreError(f"{files[key]}: {images.root} has no image {key!r}")
                _import_one(writer, key, files[key], images)
            except (ValueError, OSError) as error:
                bad.append(str(error))
    print(f"{options.store}: {len(todo) - len(bad)} images stored, {len(files) - len(todo)} were there, {len(bad)} bad")
    for problem in bad:
        print(problem, file=sys.stderr)
    return 1 if bad else 0


def _key(path: Path) -> str:
    """The image key of 'a/b.json' or 'a/b.png.json'."""
    return key_of(path.with_suffix("").as_posix())


def _import_one(writer: MaskStoreWriter, key: str, path: Path, images: ImageSource | None) -> None:
    masks, size = read_sam_json(path)
    sha256 = None
    if images is not None:
        image = read(images, key)
        size, sha256 = image.shape[:2], pixel_sha256(image)
    try:
        writer.put(key, masks, size, sha256)
    except MaskStoreError as error:
        raise MaskStoreError(f"{path}: {error}") from None


def run_info(options: argparse.Namespace) -> int:
    """Prints meta.json and the sums over the records."""
    store = MaskStore(options.store)
    keys = store.keys()
    masks = [store.read(key).count for key in keys]
    print(json.dumps(store.meta, indent=2, ensure_ascii=False))
    print(f"{len(keys)} images, {sum(masks)} masks", end="")
    print(f", {min(masks)} to {max(masks)} an image, median {np.median(masks):g}" if masks else "")
    print(f"{(options.store / 'data.mdb').stat().st_size / max(len(keys), 1) / 1024:.1f} KiB an image")
    if keys:
        print(f"keys: {', '.join(keys[:10])}{', ...' if len(keys) > 10 else ''}")
    return 0


def run_verify(options: argparse.Namespace) -> int:
    """Every image needs a whole record of its size; images that differ from those the generator saw are named."""
    store = MaskStore(options.store)
    images = open_source(options.images, None, "--images")
    stored = set(store.keys())
    problems = [f"{images.where(key)}: no record" for key in images.keys if key not in stored]
    others = []
    for key in tqdm([k for k in images.keys if k in stored], desc="verify", unit="image", disable=None):
        try:
            if not _verify_one(store.read(key), read(images, key)):
                others.append(key)
        except ValueError as error:
            problems.append(str(error))
    for problem in problems:
        print(problem, file=sys.stderr)
    if others:
        print(f"note: the generator saw other pixels (source: {store.meta.get('source')}) of {listed(others)}")
    without = stored - set(images.keys)
    if without:
        print(f"note: records without an image there: {listed(without)}")
    print(f"{options.store}: {len(images.keys) - len(problems)} of {len(images.keys)} images have their masks")
    return 1 if problems else 0


def _verify_one(record: MaskRecord, image: np.ndarray) -> bool:
    """Whether the generator saw these pixels, as far as is known. Raises MaskStoreError."""
    if record.size != image.shape[:2]:
        raise MaskStoreError(f"{record.name}: the masks are of {record.size}, the image is {image.shape[:2]}")
    areas = np.bincount(record.labels(0, 0, *record.size).ravel(), minlength=record.atom_count) @ record.table
    if not np.array_equal(areas, record.areas):
        raise MaskStoreError(f"{record.name}: damaged, the areas do not fit the pixels; make its masks again")
    return record.image_sha256 in (None, pixel_sha256(image))


def run_view(options: argparse.Namespace) -> int:
    """One PNG a key."""
    store = MaskStore(options.store)
    images = open_source(options.images, None, "--images")
    keys = options.keys or sorted(set(store.keys()) & set(images.keys))
    lacking = set(keys) - set(images.keys)
    if lacking or not keys:
        raise MaskStoreError(f"--images: {images.root} lacks {listed(lacking) if keys else 'every image of the store'}")
    for key in tqdm(keys, desc="view", unit="image", disable=None):
        write_image(options.output / f"{key}.png", picture(store.read(key), read(images, key)))
    print(f"{options.output}: {len(keys)} pictures")
    return 0


def picture(record: MaskRecord, image: np.ndarray) -> np.ndarray:
    """(h, 3 w, 3) uint8: the image, its regions coloured (plain grey image where there is none), boundaries in red.

    image: (h, w, 3) RGB uint8 or uint16.
    """
    if record.size != image.shape[:2]:
        raise MaskStoreError(f"{record.name}: the masks are of {record.size}, the image is {image.shape[:2]}")
    seen = (image >> 8).astype(np.uint8) if image.dtype == np.uint16 else image
    whole = (0, 0, *record.size)
    region = record.region_map(*whole)
    grey = seen.mean(axis=2, keepdims=True)
    coloured = np.where(region[..., None] > 0, 0.35 * grey + 0.65 * _colours(record.count)[region], grey)
    edges = np.where(record.boundary_map(*whole)[..., None], [255, 0, 0], seen)
    return np.concatenate([seen, coloured.astype(np.uint8), edges.astype(np.uint8)], axis=1)


def _colours(count: int) -> np.ndarray:
    """(count + 1, 3) in 0..255: hues by the golden ratio, so that neighbours in the list differ."""
    hue = (np.arange(count + 1) * 0.618034) % 1.0
    return 255 * np.clip(np.abs((hue[:, None] * 6 + [0, 4, 2]) % 6 - 3) - 1, 0, 1)


if __name__ == "__main__":
    sys.exit(main())
