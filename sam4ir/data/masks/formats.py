"""Find and read folders of masks that other programs wrote: detect the format, and match files with images by key.

sam        <key>.json, subfolders too: the list of segment-anything's automatic generator, or SA-1B's
           {image, annotations}; COCO RLE with compressed or uncompressed counts.
samdiffsr  <name>.json in one folder, data/sam_out/DF2K/DF2K_train_HR in SAM-DiffSR's released code (GitHub,
           lose4578/SAM-DiffSR): what segment-anything's amg.py --convert-to-rle writes. As in its
           data_gen/merge_mask_to_one.py, the key is the name up to its first dot, and only `segmentation` and the
           scores of each entry are read (area and box follow from the pixels); later masks lie on top.
spe        <key>.npy, subfolders too, data/sam_embed in SAM-DiffSR's released code: the SPE map that
           data_gen/merge_mask_to_one.py makes from those .json files, or None for an image without masks.
labels     <key><suffix>.png (TIFF, BMP): one value for each region, grey of 8 or 16 bits, palette, or colours.
binary     <key>/<number>.png, one file for each mask, with or without the metadata.csv of segment-anything's amg.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam4ir import regions
from sam4ir.data.lmdb_io import key_of
from sam4ir.data.masks.from_sam import read_sam_json
from sam4ir.data.masks.labels import METADATA, LabelRules, is_binary, read_binary_folder, read_label_map, read_spe_map
from sam4ir.data.masks.record import MaskStoreError
from sam4ir.utils.faults import fault_of_item
from sam4ir.utils.folders import list_files
from sam4ir.utils.image import read_labels

FORMATS = ("sam", "samdiffsr", "spe", "labels", "binary")

_LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
_SUFFIXES = {*_LABEL_SUFFIXES, ".json", ".npy", ".csv", ".jpg", ".jpeg"}
_DETECTION_FILES = 8  # pictures that the detection of the format reads


@dataclass(frozen=True)
class MaskFile:
    """The path of one image's masks: a file, or a folder for the binary format."""

    key: str
    path: Path

    @property
    def keys(self) -> list[str]:
        """The key in a list, as fill.Task asks for."""
        return [self.key]

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class MaskFolder:
    """The files of one format below a folder, sorted by key."""

    format: str
    files: list[MaskFile]


def find_masks(folder: Path, form: str = "auto", suffix: str = "") -> MaskFolder:
    """Return the mask files below `folder`, without hidden ones.

    form: one of FORMATS, or 'auto' to detect it from the files. suffix: text behind the image's name in the names of
    label maps. Raises MaskStoreError, with the folder, where it has no masks, where the format is ambiguous, and where
    two files belong to one key.
    """
    if not folder.is_dir():
        problem = "is a file, name its folder" if folder.exists() else "no such folder"
        raise MaskStoreError(f"{folder}: {problem}")
    tree = _Tree(folder)
    if form == "auto":
        form = tree.detect()
    if suffix and form != "labels":
        raise MaskStoreError(f"--suffix {suffix}: is for --format labels only, these masks are of format {form}")
    list_files = {
        "sam": tree.sam,
        "samdiffsr": tree.samdiffsr,
        "spe": tree.spe,
        "labels": lambda: tree.labels(suffix),
        "binary": tree.binary,
    }
    files: dict[str, Path] = {}
    for key, path in list_files[form]():
        other = files.setdefault(key, path)
        if other != path:
            raise MaskStoreError(
                f"{folder}: {other.name} and {path.name} are both of image {key!r}; remove one of them"
            )
    if not files:
        raise MaskStoreError(f"{folder}: {tree.explain_absence(form, suffix)}")
    return MaskFolder(form, [MaskFile(key, files[key]) for key in sorted(files)])


def read_masks(form: str, path: Path, rules: LabelRules) -> tuple[list[Any], regions.Size | None]:
    """Return the masks of one image in segment-anything's form, and the size (h, w), None where the file has none."""
    if form == "labels":
        return read_label_map(path, rules)
    if form == "spe":
        return read_spe_map(path)
    if form == "binary":
        return read_binary_folder(path)
    masks, size = read_sam_json(path)
    if form == "samdiffsr":
        masks = list(map(_without_area_and_box, masks))
    return masks, size


def _without_area_and_box(mask: Any) -> Any:
    if not isinstance(mask, dict):
        return mask  # record_from_sam reports it
    return {key: value for key, value in mask.items() if key not in ("area", "bbox")}


class _Tree:
    """The files below a folder, grouped by suffix; see utils.folders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.by_suffix: dict[str, list[Path]] = {}
        listing = list_files(root, _SUFFIXES, kind=("file that holds no masks", "files that hold no masks"))
        listing.report()
        for name in listing.files:
            path = root / name
            self.by_suffix.setdefault(path.suffix.lower(), []).append(path)

    def files(self, *suffixes: str) -> list[Path]:
        paths: list[Path] = []
        for suffix in suffixes:
            paths += self.by_suffix.get(suffix, [])
        return paths

    def tables(self) -> list[Path]:
        """Return the metadata.csv files of the binary format."""
        return [path for path in self.files(".csv") if path.name == METADATA]

    def sam(self) -> Iterable[tuple[str, Path]]:
        for path in self.files(".json"):  # a/b.json and a/b.png.json both belong to image a/b
            yield key_of(path.relative_to(self.root).with_suffix("").as_posix()), path

    def samdiffsr(self) -> Iterable[tuple[str, Path]]:
        for path in self.files(".json"):
            if path.parent == self.root:
                yield path.name.split(".")[0], path

    def spe(self) -> Iterable[tuple[str, Path]]:
        for path in self.files(".npy"):
            yield path.relative_to(self.root).with_suffix("").as_posix(), path

    def labels(self, suffix: str) -> Iterable[tuple[str, Path]]:
        for path in self.files(*_LABEL_SUFFIXES):
            name = path.relative_to(self.root).with_suffix("").as_posix()
            if name.endswith(suffix) and Path(name).name != suffix:
                yield name.removesuffix(suffix), path

    def binary(self) -> Iterable[tuple[str, Path]]:
        folders = {path.parent for path in self.files(".png") + self.tables()}
        if self.root in folders:
            raise MaskStoreError(
                f"{self.root}: has masks directly in it, so their image is not known; binary masks lie in a folder "
                "for each image, <key>/0.png, <key>/1.png, ... (for one map of each image use --format labels)"
            )
        for folder in sorted(folders):
            yield folder.relative_to(self.root).as_posix(), folder

    def detect(self) -> str:
        """Return the format of the files; raise MaskStoreError where there are none or several may be the masks."""
        jsons, maps, pictures = self.files(".json"), self.files(".npy"), self.files(*_LABEL_SUFFIXES)
        kinds = {
            f"{len(jsons)} .json files": jsons,
            f"{len(maps)} .npy files": maps,
            f"{len(pictures)} pictures": pictures,
        }
        present = [name for name, paths in kinds.items() if paths]
        if len(present) > 1:
            raise MaskStoreError(
                f"{self.root}: holds {' and '.join(present)}, either may be the masks; say --format "
                f"{' | '.join(FORMATS)}"
            )
        if jsons or maps:
            return "sam" if jsons else "spe"
        if self.tables():
            return "binary"
        if not pictures:
            raise MaskStoreError(f"{self.root}: {self.explain_absence('auto', '')}")
        return self._detect_pictures(pictures)

    def _detect_pictures(self, pictures: list[Path]) -> str:
        examples = pictures[:: max(1, len(pictures) // _DETECTION_FILES)]
        binary = list(map(_seems_binary, examples))
        in_folders = all(path.parent != self.root for path in examples)
        numbered = in_folders and all(path.stem.isdigit() for path in examples)
        if not all(binary) and not (any(binary) and numbered):
            return "labels"
        if all(binary) and in_folders and all((path.parent / "0.png").exists() for path in examples):
            return "binary"
        raise MaskStoreError(
            f"{self.root}: its pictures, or some of them, hold 0 and one other value, so they may be label maps or "
            "binary masks, a folder for each image; say --format labels or --format binary"
        )

    def explain_absence(self, form: str, suffix: str) -> str:
        """Return the reason why the folder has no files of a format."""
        if self.files(".npy"):
            return f"nothing of format {form} there but .npy files; SPE maps are read as --format spe"
        reasons = {
            "sam": "no .json files there",
            "samdiffsr": "no .json files directly there",
            "spe": "no .npy files there",
            "labels": f"no pictures *{suffix}.png there",
            "binary": "no folders of .png files there",
            "auto": "no .json files there, no .npy maps, and no .png label maps or folders of .png masks",
        }
        if form in ("labels", "auto") and self.files(".jpg", ".jpeg"):
            return f"{reasons[form]}; JPEG changes labels and is not read"
        return reasons[form]


def _seems_binary(path: Path) -> bool:
    try:
        return is_binary(read_labels(path))
    except Exception as error:
        if fault_of_item(error) is None:
            raise
        return True  # the error is reported when the file is imported
