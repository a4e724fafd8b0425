"""Make training and test sets as LMDB from the files that you downloaded.

sam4ir prepare sidd    --input SIDD_Medium_Srgb blocks --output datasets/SIDD
sam4ir prepare gopro   --input GOPRO_Large      --output datasets/GoPro
sam4ir prepare rain13k --input Rain13k          --output datasets/Rain13k
sam4ir prepare dfwb    --input Downloads        --output datasets/DFWB
sam4ir prepare df2k    --input DIV2K Flickr2K   --output datasets/DF2K --scale 4
sam4ir prepare dpdd    --input DPDD             --output datasets/DPDD
sam4ir prepare folder  --gt SHARP --lq BLURRED  --output datasets/mine
sam4ir prepare folder  --gt HR --scale 4 --make-lq --output datasets/mine
sam4ir prepare degraded -opt my.yml --set val --output datasets/mine/lq

Images are cut as the set's recipes cut them, counts and names are verified, GT and LQ get the same keys. It may be
killed at any moment: the same command goes on. sam4ir prepare SET --help shows the folders and files that a set is
read from, --dry-run what it takes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from sam4ir.utils import cli

# The recipes of sam4ir.data.prepare.recipes, repeated so that --help loads no torch: phases, and a sentence.
SETS = {
    "sidd": (
        ("train", "val"),
        "SIDD-Medium sRGB: 160 scene instances, 320 pairs; 512 crops at steps of 384 (NAFNet, HINet; Restormer the "
        "same).",
    ),
    "gopro": (
        ("train", "val", "test"),
        "GoPro: 2103 pairs in 22 sequences; 512 crops at steps of 256 (NAFNet, HINet, Restormer: patch 512, overlap "
        "256).",
    ),
    "rain13k": (
        ("train", "test"),
        "Rain13k: 13712 pairs of many sizes, whole (HINet reads them from an LMDB, Restormer from files).",
    ),
    "dfwb": (
        ("train",),
        "DIV2K, Flickr2K, WED and BSD400 for Gaussian denoising, GT only (Restormer): 800, 2650, 4744 and 400 images.",
    ),
    "df2k": (
        ("train", "val"),
        "DIV2K (800) and Flickr2K (2650) for super-resolution: 480 crops at steps of 240 of HR, LR alike (BasicSR).",
    ),
    "div2k": (
        ("train", "val"),
        "DIV2K alone for super-resolution, as in BasicSR's classical recipes: 480 crops at steps of 240 of HR.",
    ),
    "dpdd": (
        ("train", "val", "test"),
        "DPDD, dual-pixel defocus deblurring, 16 bits: left, right and combined view and target of 350, 74, 76 scenes.",
    ),
}


# The folder trees of the sets, as datasets/README.md shows them.
_DIV2K = (
    "DIV2K_train_HR/0001.png     DIV2K_train_LR_bicubic/X4/0001x4.png",
    "DIV2K_valid_HR/0801.png     DIV2K_valid_LR_bicubic/X4/0801x4.png",
)
TREES = {
    "sidd": (
        "SIDD_Medium_Srgb/Data/0001_001_S6_00100_00060_3200_L/0001_{GT,NOISY}_SRGB_{010,011}.PNG     160 folders",
        "ValidationGtBlocksSrgb.mat  ValidationNoisyBlocksSrgb.mat                                   anywhere below "
        "--input",
    ),
    "gopro": (
        "{train,test}/GOPR0372_07_00/{blur,blur_gamma,sharp}/000047.png         22 and 11 sequences",
        "{train,test}/{input,target}/GOPR0372_07_00-000047.png                  test/GoPro/{input,target} too",
    ),
    "rain13k": (
        "train/{input,target}/*.jpg   or   train/Rain13K/{input,target}/*.jpg",
        "test/{Test100,Rain100H,Rain100L,Test2800,Test1200}/{input,target}/*",
    ),
    "dfwb": (
        "DIV2K/0001.png  Flickr2K/000001.png  WaterlooED/00001.bmp  BSD400/*        Restormer's names, or",
        "DIV2K_train_HR/  Flickr2K_HR/  pristine_images/                            the sets' own",
    ),
    "df2k": (_DIV2K[0], "Flickr2K_HR/000001.png      Flickr2K_LR_bicubic/X4/000001x4.png", _DIV2K[1]),
    "div2k": _DIV2K,
    "dpdd": ("{train,val,test}/{inputL,inputR,inputC,target}/*.png",),
}


def main(words: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 130 when stopped; a UserError says what is missing or damaged."""
    flags = vars(parser().parse_args(words))
    if flags["recipe"] == "degraded":
        return _degraded(flags["opt"], flags["force_yml"], flags["set"], flags["output"])
    from sam4ir.data.prepare.command import PrepareRequest, prepare_set

    if isinstance(flags.get("scale"), int):  # folder has one scale, other sets several
        flags["scale"] = [flags["scale"]]
    return prepare_set(PrepareRequest(**flags))


def parser() -> cli.Parser:
    """Return the parser of the command, with one for each data set."""
    whole = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sets = whole.add_subparsers(required=True, dest="recipe", metavar="SET")
    for name, (phases, text) in SETS.items():
        one = sets.add_parser(
            name, help=text, epilog=_tree_text(name), formatter_class=argparse.RawDescriptionHelpFormatter
        )
        one.add_argument(
            "--input", type=Path, nargs="+", required=True, metavar="PATH", help="folders, .zip or .tar archives"
        )
        one.add_argument("--subset", choices=(*phases, "all"), default="all", help="default: all")
        if name in ("df2k", "div2k"):
            one.add_argument("--scale", type=int, nargs="+", choices=(2, 3, 4), default=[4], help="default: 4")
            _add_make_lq(one)
        if name == "gopro":
            one.add_argument("--blur", choices=("blur", "blur_gamma"), default="blur", help="GOPRO_Large's folder")
        one.add_argument(
            "--allow-incomplete",
            action="store_true",
            help="take what is there where counts or names are not as published",
        )
        _add_common(one)
    own = sets.add_parser("folder", help="your own pairs, matched by name, or GT alone")
    own.add_argument("--gt", type=Path, required=True, metavar="FOLDER")
    own.add_argument("--lq", type=Path, metavar="FOLDER")
    own.add_argument("--filename-tmpl", default="{}", metavar="TEMPLATE", help="LQ name of a GT name, e.g. '{}x4'")
    own.add_argument("--scale", type=int, default=1, help="GT size over LQ size (default 1)")
    _add_make_lq(own)
    _add_common(own)
    degraded = sets.add_parser("degraded", help="the degraded images of a data set that degrades on the fly, as files")
    degraded.add_argument("-opt", "--opt", type=Path, required=True, metavar="FILE", help="the option file")
    degraded.add_argument("--set", default="val", metavar="KEY", help="the data set, below datasets: (default: val)")
    degraded.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the images go, as PNG")
    degraded.add_argument(
        "--force-yml", "--force_yml", nargs="+", default=[], metavar="KEY=VALUE", help="keys to set, as a:b=c"
    )
    return whole


def _degraded(opt: Path, force: Sequence[str], key: str, output: Path) -> int:
    """Write the degraded images of a data set; return the exit status."""
    from sam4ir.config.load import load_options
    from sam4ir.engine.degraded import write_degraded

    written, there = write_degraded(load_options(opt, force, named_by_user=True), key, output)
    print(f"{output}: {written} images written, {there} were there")
    return 0


def _tree_text(name: str) -> str:
    """Return the end of the help of a set: the folders and files that it is read from."""
    lines = "\n".join(f"  {line}" for line in TREES[name])
    return f"what --input holds; folders above do not matter:\n{lines}"


def _add_make_lq(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--make-lq",
        action="store_true",
        help="LQ is GT shrunk by --scale with MATLAB's bicubic, not read; GT is cut to a multiple of it",
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--encoding",
        choices=("raw", "png"),
        default="raw",
        help="raw pixels read fastest; png is smaller (default raw)",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: all cores)"
    )
    parser.add_argument("--crop-size", type=int, metavar="PIXELS", help="instead of the recipe's, for training images")
    parser.add_argument("--step", type=int, metavar="PIXELS", help="distance of sub-images")
    parser.add_argument("--thresh", type=int, metavar="PIXELS", help="remainder at the border that is left out")
    parser.add_argument("--no-crop", action="store_true", help="keep training images whole")
    parser.add_argument("--dry-run", action="store_true", help="print what would be made and its disk space, then stop")
