"""Restore a folder of images with a trained network.

python scripts/restore.py --weights experiments/<name>/models/net_g_latest.pth --input FOLDER --output FOLDER
python scripts/restore.py --weights restormer_deraining --input FOLDER --output FOLDER

The network is described by -opt, by the option file of the run that the weights lie in, or else by the weights
themselves: names of the zoo (scripts/fetch_weights.py list) have it on record, other files tell it by their shapes.
Only the plain network runs: no SAM, no VGG, no masks. A network of one channel restores grey images.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from pydantic import ValidationError
from tqdm import tqdm

from sam4ir.config.load import load_options
from sam4ir.config.schema import Block, Options
from sam4ir.engine import build
from sam4ir.engine.restoring import restorer
from sam4ir.engine.weights import flow, network_block
from sam4ir.utils import cli
from sam4ir.utils.image import IMAGE_SUFFIXES, ImageError, read_image, write_image


def positive(text: str) -> int:
    """A whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights",
        required=True,
        metavar="FILE|NAME",
        help=".pth or .safetensors of the network, or a name of the zoo",
    )
    parser.add_argument(
        "-opt", "--opt", type=Path, metavar="FILE", help="option file with network_g (default: see above)"
    )
    parser.add_argument("--input", type=Path, required=True, help="an image or a folder of images, subfolders too")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the restored PNGs go")
    parser.add_argument(
        "--tile", type=positive, metavar="PIXELS", help="restore in overlapping, blended tiles of this side"
    )
    parser.add_argument(
        "--overlap", type=positive, metavar="PIXELS", help="pixels that tiles share (default: an eighth of the tile)"
    )
    parser.add_argument("--self_ensemble", action="store_true", help="mean over the eight flips and rotations")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 ... (default: the option file's)")
    parser.add_argument("--overwrite", action="store_true", help="replace images that are in the output folder already")
    return parser.parse_args(arguments)


def run_options(weights: str, opt: Path | None, device: str | None) -> Options:
    """The options that describe the network: -opt, options.yml of the run that the weights lie in, or the weights."""
    own = Path(weights).resolve().parent.parent / "options.yml"
    path = opt or (own if Path(weights).is_file() and own.is_file() else None)
    if path is not None:
        return load_options(path, [f"device={device}"] if device else [])
    block = network_block(weights)
    print(f"network_g: {flow(block)} (told by the weights)")
    try:
        return Options(name="restore", network_g=Block(**block), device=device or "auto")
    except ValidationError as error:
        raise ValueError(f"--device: {device!r} is none; give auto, cpu, cuda, cuda:1 ... or mps") from error


def inference(options: Options, arguments: argparse.Namespace) -> build.Inference:
    """The option file's way through the network, changed by the command line."""
    own = build.inference(options)
    tile = arguments.tile or own.tile
    overlap = (
        arguments.overlap if arguments.overlap is not None else (arguments.tile // 8 if arguments.tile else own.overlap)
    )
    if tile and overlap >= tile:
        raise ValueError(f"--overlap: {overlap} must be smaller than the tile of {tile}")
    return dataclasses.replace(
        own, tile=tile, overlap=overlap, self_ensemble=arguments.self_ensemble or own.self_ensemble
    )


def images_in(place: Path) -> list[tuple[Path, Path]]:
    """(file, name of its result below the output folder) of every image; `a.jpg` beside `a.png` keeps its suffix."""
    if place.is_file():
        return [(place, Path(place.stem + ".png"))]
    if not place.is_dir():
        raise ValueError(f"{place}: no such image or folder")
    found = sorted(p for p in place.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise ValueError(f"{place}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    shared = Counter(p.with_suffix("") for p in found)
    names = [p.relative_to(place) for p in found]
    return [
        (p, n.with_name(f"{n.name if shared[p.with_suffix('')] > 1 else n.stem}.png"))
        for p, n in zip(found, names, strict=True)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 where images could not be read; they are listed and the rest is restored."""
    given = parse(arguments)
    work = images_in(given.input)
    options = run_options(given.weights, given.opt, given.device)
    restored = restorer(options, given.weights, inference(options, given))
    return restore_all(work, given.output, lambda file: restored(read_image(file, restored.channels)), given.overwrite)


def restore_all(
    work: list[tuple[Path, Path]], output: Path, restored: Callable[[Path], np.ndarray], overwrite: bool
) -> int:
    """Write every restored image; tell what was kept and what could not be read."""
    kept, bad = 0, []
    for file, name in tqdm(work, unit="image", disable=None):
        target = output / name
        if target.exists() and not overwrite:
            kept += 1
            continue
        try:
            write_image(target, restored(file))
        except ImageError as error:
            bad.append(str(error) if str(file) in str(error) else f"{file}: {error}")
    print(f"{len(work) - kept - len(bad)} images restored to {output}")
    if kept:
        print(f"{kept} were there already and were kept; --overwrite replaces them")
    for message in bad:
        print(f"skipped: {message}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
