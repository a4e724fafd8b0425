"""Keys that option files of BasicSR, NAFNet, HINet and Restormer spell in another way, and their translation."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from sam4ir.config.signature import accepts
from sam4ir.config.yaml_text import Path, Problem
from sam4ir.registry import DATASETS, SCHEDULES

# Blocks that may be left empty (`path:` with all its lines commented out), which counts as no such key.
_MAY_BE_EMPTY: tuple[Path, ...] = (
    ("plugins",),
    ("datasets",),
    ("path",),
    ("logger",),
    ("train", "losses"),
    ("train", "distill"),
    ("val", "metrics"),
)

GEOMETRIC = "geometric_augs"  # Restormer: one of the eight flips and rotations
FLIP_AND_ROTATE = ("use_hflip", "use_rot")
IDLE = ("dataroot_lq", "filename_tmpl")  # Restormer: written for data sets that make their degraded images, too
MIXUP = "mixup"  # NAFNet: in `train`
TOTAL = "total_iter"  # LinearLR and VibrateLR take it from `train`
OLD_PATHS = {"pretrain_model_g": "pretrain_network_g", "strict_load": "strict_load_g"}  # BasicSR before 1.1
GAN_KEYS: tuple[Path, ...] = (  # of ESRGANModel's training, which is refused by itself
    ("network_d",),
    ("path", "pretrain_network_d"),
    ("path", "pretrain_model_d"),
    ("path", "param_key_d"),
    ("path", "strict_load_d"),
    ("train", "optim_d"),
    ("train", "gan_opt"),
    ("train", "net_d_iters"),
    ("train", "net_d_init_iters"),
)
CROP_SIDES = ("crop_size_h", "crop_size_w")  # NAFNet: height and width of a tile
ENSEMBLE = "trans_num"  # HINet: of the eight flips and rotations, how many are averaged
EIGHT = 8
BASICSR_MODELS = ("SRModel", "ESRGANModel")
OFFICIAL_MODELS = ("ImageRestorationModel", "ImageCleanModel", *BASICSR_MODELS)  # model types of official files

# keys of official files that are replaced by ours, and how
SPELLINGS: Mapping[str, str] = {
    GEOMETRIC: "Restormer's switch for flips and rotations, which sets use_hflip and use_rot.",
    IDLE[0]: "Folder of degraded images in Restormer's files, without effect; the data set makes them.",
    IDLE[1]: "Name pattern of degraded images in Restormer's files, without effect; the data set makes them.",
    MIXUP: "NAFNet's switch for mixup, which sets mixing_augs.mixup.",
    ENSEMBLE: "HINet's number of averaged flips and rotations: 8 sets self_ensemble, 1 leaves it off.",
    CROP_SIDES[0]: "NAFNet's height of a tile in pixels of the output; with the same crop_size_w it sets crop_size.",
    CROP_SIDES[1]: "NAFNet's width of a tile in pixels of the output; with the same crop_size_h it sets crop_size.",
}


def as_ours(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Return (values in our own keys, problems); `values` stays unchanged."""
    ours = copy.deepcopy(dict(values))
    _remove_empty_blocks(ours)
    if ours.get("model_type") in BASICSR_MODELS:
        _old_paths(ours.get("path"))
    if ours.get("model_type") == "ESRGANModel":
        _remove(ours, GAN_KEYS)
    datasets, train, val = (ours.get(key) for key in ("datasets", "train", "val"))
    problems: list[Problem] = []
    if isinstance(datasets, dict):
        for name, block in datasets.items():
            if isinstance(block, dict):
                problems += _data_set(block, ("datasets", name))
    if isinstance(train, dict):
        problems += _training(train, ours.get("model_type"))
    if isinstance(val, dict):
        problems += _tiles(val, ours.get("scale")) + _ensemble(val)
        _overlap(val, ours.get("model_type"))
    return ours, problems


def _remove_empty_blocks(values: dict[str, Any]) -> None:
    """Remove empty blocks that may be empty, and validation and test sets that are null."""
    for *around, key in _MAY_BE_EMPTY:
        block: Any = values
        for outer in around:
            if isinstance(block, dict):
                block = block.get(outer)
        if isinstance(block, dict) and key in block and block[key] is None:
            del block[str(key)]
    datasets = values.get("datasets")
    if isinstance(datasets, dict):  # val: ~ is no validation set
        for name, block in list(datasets.items()):
            if block is None and not str(name).startswith("train"):
                del datasets[name]


def _old_paths(path: Any) -> None:
    """Rename keys of BasicSR's older files in the block `path`, unless it has the newer ones too."""
    for old, new in OLD_PATHS.items():
        if isinstance(path, dict) and old in path and new not in path:
            path[new] = path.pop(old)


def _remove(values: dict[str, Any], paths: tuple[Path, ...]) -> None:
    """Remove keys of nested blocks, where they are there."""
    for *around, key in paths:
        block: Any = values
        for outer in around:
            block = block.get(outer) if isinstance(block, dict) else None
        if isinstance(block, dict):
            block.pop(str(key), None)


def is_placeholder(block: Mapping[str, Any]) -> bool:
    """Return whether a data set only shows where one would go: all of its dataroots are null (HINet's Rain13k)."""
    roots = []
    for key, value in block.items():
        if key.startswith("dataroot"):
            roots.append(value)
    return bool(roots) and all(root is None for root in roots)


def takes_geometric(type_name: Any) -> bool:
    """Return whether geometric_augs sets use_hflip and use_rot of this data set, which has no such key itself."""
    if not isinstance(type_name, str) or type_name not in DATASETS:
        return False
    target = DATASETS.get(type_name)
    return all(accepts(target, key) for key in FLIP_AND_ROTATE) and not accepts(target, GEOMETRIC)


def idle(type_name: Any) -> tuple[str, ...]:
    """Return the keys of official files that have no use for a data set because it degrades clean images."""
    if not isinstance(type_name, str) or type_name not in DATASETS:
        return ()
    target = DATASETS.get(type_name)
    if not accepts(target, "sigma_range") and not accepts(target, "degradations"):
        return ()
    return tuple(key for key in IDLE if not accepts(target, key))


def _data_set(block: dict[str, Any], path: Path) -> list[Problem]:
    """Translate one data set; keys that it has no use for move into `without_effect`."""
    unused = {}
    for key in idle(block.get("type")):
        if key in block:
            unused[key] = block.pop(key)
    if unused and isinstance(block.setdefault("without_effect", {}), dict):
        block["without_effect"].update(unused)
    if GEOMETRIC in block and takes_geometric(block.get("type")):
        return _geometric(block, (*path, GEOMETRIC))
    return []


def _geometric(block: dict[str, Any], path: Path) -> list[Problem]:
    """Replace geometric_augs by use_hflip and use_rot."""
    value = block.pop(GEOMETRIC)
    if not isinstance(value, bool):
        return [Problem(path, f"{value!r}: expected true or false")]
    names = " and ".join(FLIP_AND_ROTATE)
    problems = []
    for key in FLIP_AND_ROTATE:
        if block.get(key, value) is not value:
            problems.append(Problem(path, f"sets {names}, but {key} differs; keep one"))
        block[key] = value
    return problems


def _training(train: dict[str, Any], model_type: Any) -> list[Problem]:
    """Write out the defaults that official models have and ours do not."""
    if model_type == "SRModel":
        train.setdefault("use_grad_clip", False)  # BasicSR does not clip; NAFNet, HINet and Restormer clip at 0.01
    for key in ("scheduler", "scheduler_r"):
        block = train.get(key)
        if isinstance(block, dict) and _counts_all_iterations(block.get("type")) and _is_whole(train.get(TOTAL)):
            block.setdefault(TOTAL, train[TOTAL])
    if MIXUP in train:
        return _mixup(train)
    return []


def _counts_all_iterations(type_name: Any) -> bool:
    """Return whether a scheduler has an argument total_iter."""
    return isinstance(type_name, str) and type_name in SCHEDULES and accepts(SCHEDULES.get(type_name), TOTAL)


def _is_whole(value: Any) -> bool:
    """Return whether a value is a whole number of at least 1."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 1 and value == int(value)


def _mixup(train: dict[str, Any]) -> list[Problem]:
    """Replace `mixup` by mixing_augs.mixup."""
    value, place = train.pop(MIXUP), ("train", MIXUP)
    if not isinstance(value, bool):
        return [Problem(place, f"{value!r}: expected true or false")]
    if train.get("mixing_augs") is None:
        train["mixing_augs"] = {}
    mixing = train["mixing_augs"]
    if not isinstance(mixing, dict) or mixing.setdefault(MIXUP, value) is value:
        return []
    return [Problem(place, "sets mixing_augs.mixup, which has another value; keep one")]


def _tiles(val: dict[str, Any], scale: Any) -> list[Problem]:
    """Replace crop_size_h and crop_size_w, in pixels of the output, by crop_size, in pixels of the input."""
    sides_by_key = {}
    for key in CROP_SIDES:
        if key in val:
            sides_by_key[key] = val.pop(key)
    if not sides_by_key:
        return []
    sides = list(sides_by_key.values())
    if _is_whole(scale) and all(_is_whole(side) and side >= scale for side in sides):
        sides = [side // scale for side in sides]
    if len(sides) == len(CROP_SIDES) and sides[0] == sides[1] and val.setdefault("crop_size", sides[0]) == sides[0]:
        return []
    message = "tiles are square here: give crop_size, or crop_size_h and crop_size_w of the same value"
    return [Problem(("val", key), message) for key in sides_by_key]


def _overlap(val: dict[str, Any], model_type: Any) -> None:
    """Set the overlap of tiles where a file names none.

    A file without a model type gets its eighth as a number: saved options name a model type, and must mean the same.
    """
    if val.get("grids") is not True or val.get("overlap") is not None:
        return
    if model_type in OFFICIAL_MODELS:
        val["overlap"] = 0  # as few tiles as cover the image, as HINet and NAFNet do
    elif model_type is None and _is_whole(val.get("crop_size")):
        val["overlap"] = int(val["crop_size"]) // 8


def _ensemble(val: dict[str, Any]) -> list[Problem]:
    """Replace trans_num by self_ensemble."""
    number, place = val.pop(ENSEMBLE, None), ("val", ENSEMBLE)
    if number is None:
        return []
    if isinstance(number, bool) or number not in (1, EIGHT):
        return [Problem(place, f"{number!r}: expected 8 (the mean over all flips and rotations) or 1 (none)")]
    if val.setdefault("self_ensemble", number == EIGHT) is (number == EIGHT):
        return []
    return [Problem(place, "sets self_ensemble, which has another value; keep one")]
