"""Folders of masks that other programs wrote: which format, which file is whose, and what is in it.

sam        <key>.json, subfolders too: the list of segment-anything's automatic generator, or SA-1B's
           {image, annotations}; COCO RLE with compressed or uncompressed counts.
samdiffsr  <name>.json in one folder, data/sam_out/DF2K/DF2K_train_HR in SAM-DiffSR's released code (GitHub,
           lose4578/SAM-DiffSR): what segment-anything's amg.py --convert-to-rle writes. As its
           data_gen/merge_mask_to_one.py does, the key is the name up to its first dot, and of each entry only
           `segmentation` counts (area and box follow from it, scores are kept), later masks on top.
spe        <key>.npy, subfolders too, data/sam_embed in SAM-DiffSR's released code: the SPE map that
           data_gen/merge_mask_to_one.py makes of those .json files, or None of an image without masks.
labels     <key><suffix>.png (TIFF, BMP): one value a region, grey of 8 or 16 bits, palette, or colours.
binary     <key>/<number>.png, one mask each, with or without the metadata.csv of segment-anything's amg.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam4ir import regions
from sam4ir.data.lmdb_io import key_of
from sam4ir.data.masks.from_sam import read_sam_json
from sam4ir.data.masks.labels import METADATA, LabelRules, is_binary, read_binary_folder, read_label_map, read_spe_map
from sam4ir.data.masks.record import MaskStoreError
from sam4ir.errors import UserError
from sam4ir.utils.image import read_labels

FORMATS = ("sam", "samdiffsr", "spe", "labels", "binary")

_LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
_LOOKS = 8  # files that detection reads


@dataclass(frozen=True)
class MaskFile:
    """Where the masks of one image are: a file, of the binary format a folder."""

    key: str
    path: Path

    @property
    def keys(self) -> list[str]:
        """The one key, in the form that mask_jobs asks for."""
        return [self.key]

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class MaskFolder:
    """The files of one format below a folder, sorted by key."""

    format: str
    files: list[MaskFile]


def find_masks(folder: Path, form: str = "auto", suffix: str = "") -> MaskFolder:
    """The mask files below `folder`; hidden ones are left out.

    form: one of FORMATS, or 'auto': by what is there. suffix: what label maps have behind the image's name.
    Raises MaskStoreError naming the folder: nothing there, not clear what it is, two files of one key.
    """
    if not folder.is_dir():
        raise MaskStoreError(f"{folder}: {'is a file, name its folder' if folder.exists() else 'no such folder'}")
    tree = _Tree(folder)
    form = tree.detect() if form == "auto" else form
    if suffix and form != "labels":
        raise MaskStoreError(f"--suffix {suffix}: is for --format labels only, these masks are of format {form}")
    found = {
        "sam": tree.sam,
        "samdiffsr": tree.samdiffsr,
        "spe": tree.spe,
        "labels": lambda: tree.labels(suffix),
        "binary": tree.binary,
    }
    files: dict[str, Path] = {}
    for key, path in found[form]():
        other = files.setdefault(key, path)
        if other != path:
            raise MaskStoreError(
                f"{folder}: {other.name} and {path.name} are both of image {key!r}; remove one of them"
            )
    if not files:
        raise MaskStoreError(f"{folder}: {tree.nothing(form, suffix)}")
    return MaskFolder(form, [MaskFile(key, files[key]) for key in sorted(files)])


def read_masks(form: str, path: Path, rules: LabelRules) -> tuple[list[Any], regions.Size | None]:
    """The masks of one image in segment-anything's form, and its size where the file tells."""
    if form == "labels":
        return read_label_map(path, rules)
    if form == "spe":
        return read_spe_map(path)
    if form == "binary":
        return read_binary_folder(path)
    masks, size = read_sam_json(path)
    if form == "samdiffsr":
        masks = [{k: v for k, v in m.items() if k not in ("area", "bbox")} if isinstance(m, dict) else m for m in masks]
    return masks, size


class _Tree:
    """The files below a folder, by suffix."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.by_suffix: dict[str, list[Path]] = {}
        for folder, folders, files in os.walk(root, followlinks=True):
            folders[:] = sorted(f for f in folders if not f.startswith(".") and not f.endswith(".lmdb"))
            for name in sorted(files):
                if not name.startswith("."):
                    self.by_suffix.setdefault(Path(name).suffix.lower(), []).append(Path(folder) / name)

    def of(self, *suffixes: str) -> list[Path]:
        return [path for suffix in suffixes for path in self.by_suffix.get(suffix, [])]

    def sam(self) -> Iterable[tuple[str, Path]]:
        for path in self.of(".json"):  # a/b.json and a/b.png.json are both of image a/b
            yield key_of(path.relative_to(self.root).with_suffix("").as_posix()), path

    def samdiffsr(self) -> Iterable[tuple[str, Path]]:
        for path in self.of(".json"):
            if path.parent == self.root:
                yield path.name.split(".")[0], path

    def spe(self) -> Iterable[tuple[str, Path]]:
        for path in self.of(".npy"):
            yield path.relative_to(self.root).with_suffix("").as_posix(), path

    def labels(self, suffix: str) -> Iterable[tuple[str, Path]]:
        for path in self.of(*_LABEL_SUFFIXES):
            name = path.relative_to(self.root).with_suffix("").as_posix()
            if name.endswith(suffix) and Path(name).name != suffix:
                yield name.removesuffix(suffix), path

    def binary(self) -> Iterable[tuple[str, Path]]:
        folders = {path.parent for path in self.of(".png")} | {p.parent for p in self.of(".csv") if p.name == METADATA}
        if self.root in folders:
            raise MaskStoreError(
                f"{self.root}: has masks directly in it, so nothing tells whose they are; binary masks lie in a folder "
                "for each image, <key>/0.png, <key>/1.png, ... (for one map an image use --format labels)"
            )
        for folder in sorted(folders):
            yield folder.relative_to(self.root).as_posix(), folder

    def detect(self) -> str:
        jsons, maps, pictures = self.of(".json"), self.of(".npy"), self.of(*_LABEL_SUFFIXES)
        tables = [path for path in self.of(".csv") if path.name == METADATA]
        kinds = {
            f"{len(jsons)} .json files": jsons,
            f"{len(maps)} .npy files": maps,
            f"{len(pictures)} pictures": pictures,
        }
        there = [name for name, paths in kinds.items() if paths]
        if len(there) > 1:
            raise MaskStoreError(
                f"{self.root}: holds {' and '.join(there)}, either may be the masks; say --format {' | '.join(FORMATS)}"
            )
        if jsons or maps:
            return "sam" if jsons else "spe"
        if tables:
            return "binary"
        if not pictures:
            raise MaskStoreError(f"{self.root}: {self.nothing('auto', '')}")
        return self._pictures(pictures)

    def _pictures(self, pictures: list[Path]) -> str:
        looks = pictures[:: max(1, len(pictures) // _LOOKS)]
        binary = [_seems_binary(path) for path in looks]
        numbered = all(path.parent != self.root and path.stem.isdigit() for path in looks)
        if not all(binary) and not (any(binary) and numbered):
            return "labels"
        if all(binary) and all(path.parent != self.root and (path.parent / "0.png").exists() for path in looks):
            return "binary"
        raise MaskStoreError(
            f"{self.root}: its pictures, or some of them, hold 0 and one other value, so they may be label maps or "
            "binary masks, a folder for each image; say --format labels or --format binary"
        )

    def nothing(self, form: str, suffix: str) -> str:
        """Why there is nothing of a format."""
        if self.of(".npy"):
            return f"nothing of format {form} there but .npy files; SPE maps are read as --format spe"
        lacks: dict[str, Callable[[], str]] = {
            "sam": lambda: "no .json files there",
            "samdiffsr": lambda: "no .json files directly there",
            "spe": lambda: "no .npy files there",
            "labels": lambda: f"no pictures *{suffix}.png there" + self._jpeg(),
            "binary": lambda: "no folders of .png files there",
            "auto": lambda: (
                "no .json files there, no .npy maps, and no .png label maps or folders of .png masks" + self._jpeg()
            ),
        }
        return lacks[form]()

    def _jpeg(self) -> str:
        return "; JPEG changes labels and is not read" if self.of(".jpg", ".jpeg") else ""


def _seems_binary(path: Path) -> bool:
    try:
        return is_binary(read_labels(path))
    except UserError:
        return True  # told when it is its turn
