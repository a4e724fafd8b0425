"""Restore a folder of images with a trained network.

sam4ir restore --weights experiments/<name>/models/net_g_latest.pth --input FOLDER --output FOLDER
sam4ir restore --weights restormer_deraining --input FOLDER --output FOLDER
sam4ir restore -opt options/test/sr/samdiffsr_x4.yml --input FOLDER --output FOLDER --steps 15 --tile 64

The network is described by -opt, by the option file of the run that the weights lie in, or else by the weights
themselves: names of the zoo (sam4ir weights list) have it on record, for other files the shapes of the
weights show it.
Without --weights those of the option file's path.pretrain_network_g are taken.
Only the deployed network runs: no SAM, no VGG, no masks. A network of one channel restores grey images. A diffusion
network draws its noise from --seed and the file's name without suffix, so an image comes out the same in any folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sam4ir.utils import cli

SAMPLERS = ("ddim", "ddpm", "dpm_solver_2m")  # of sam4ir.diffusion.samplers, repeated so that --help loads no torch


def parser() -> cli.Parser:
    """Return the parser of the command."""
    command = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument(
        "--weights",
        metavar="FILE|NAME",
        help=".pth or .safetensors of the network, or a name of the zoo (default: as -opt says)",
    )
    command.add_argument(
        "-opt", "--opt", type=Path, metavar="FILE", help="option file with network_g (default: see above)"
    )
    command.add_argument("--input", type=Path, required=True, help="an image or a folder of images, subfolders too")
    command.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER|FILE",
        help="where the restored PNGs go; for one image also the file, such as restored.png",
    )
    command.add_argument(
        "--tile",
        type=cli.positive,
        metavar="PIXELS",
        help="restore in blended tiles of this side (of input)",
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
    command.add_argument("--precision", choices=("auto", "fp32", "bf16"), help="diffusion: of the network")
    command.add_argument(
        "--compile", action="store_true", help="compile the network first, which takes a minute or more"
    )
    command.add_argument("--device", default=None, help="cpu, cuda, cuda:1 ... (default: the option file's)")
    command.add_argument("--ignore-exif", action="store_true", help="do not turn images by their EXIF orientation")
    command.add_argument(
        "--overwrite", action="store_true", help="replace images that are in the output folder already"
    )
    return command


def main(words: Sequence[str] | None = None) -> int:
    """Return the exit status: 1 where images cannot be read; they are listed and the rest is restored."""
    flags = parser().parse_args(words)
    from sam4ir.engine.restore.folder import RestoreRequest, restore_folder

    cli.show_log()
    return restore_folder(RestoreRequest(**vars(flags)))
