"""What option files of BasicSR, NAFNet, HINet and Restormer write in another way, brought into ours."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from sam4ir.config.signature import accepts
from sam4ir.config.yaml_text import Path, Problem
from sam4ir.registry import DATASETS, SCHEDULES

# Blocks that may be left empty (`path:` with all its lines commented out); nothing is the same as no such key.
_MAY_BE_EMPTY: tuple[Path, ...] = (
    ("plugins",),
    ("datasets",),
    ("path",),
    ("logger",),
    ("train", "distill"),
    ("val", "metrics"),
)

GEOMETRIC = "geometric_augs"  # Restormer: one of the eight flips and rotations
FLIP_AND_ROTATE = ("use_hflip", "use_rot")
IDLE = ("dataroot_lq", "filename_tmpl")  # Restormer: written for data sets that make their degraded images, too
MIXUP = "mixup"  # NAFNet: in `train`
TOTAL = "total_iter"  # LinearLR and VibrateLR take it from `train`
CROP_SIDES = ("crop_size_h", "crop_size_w")  # NAFNet: height and width of a tile
ENSEMBLE = "trans_num"  # HINet: of the eight flips and rotations, how many are averaged
EIGHT = 8

# keys of official files that are replaced by ours, and how
SPELLINGS: Mapping[str, str] = {
    GEOMETRIC: "Restormer's switch for flips and rotations, which sets use_hflip and use_rot.",
    IDLE[0]: "Folder of degraded images in Restormer's files, without effect; the data set makes them.",
    IDLE[1]: "Name pattern of degraded images in Restormer's files, without effect; the data set makes them.",
    MIXUP: "NAFNet's switch for mixup, which sets mixing_augs.mixup.",
    ENSEMBLE: "HINet's number of averaged flips and rotations: 8 sets self_ensemble, 1 leaves it off.",
    CROP_SIDES[0]: "NAFNet's height of a tile in pixels; with the same crop_size_w it sets crop_size.",
    CROP_SIDES[1]: "NAFNet's width of a tile in pixels; with the same crop_size_h it sets crop_size.",
}


def as_ours(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """(values in our own keys, problems); `values` stays as it is."""
    ours = copy.deepcopy(dict(values))
    for *around, key in _MAY_BE_EMPTY:
        block: Any = ours
        for outer in around:
            block = block.get(outer) if isinstance(block, dict) else None
        if isinstance(block, dict) and key in block and block[key] is None:
            del block[str(key)]
    if isinstance(ours.get("datasets"), dict):  # val: ~ is no validation set
        ours["datasets"] = {k: v for k, v in ours["datasets"].items() if v is not None or str(k).startswith("train")}
    datasets, train, val = (ours.get(key) for key in ("datasets", "train", "val"))
    problems: list[Problem] = []
    for name, block in datasets.items() if isinstance(datasets, dict) else ():
        if isinstance(block, dict):
            problems += _data_set(block, ("datasets", name))
    if isinstance(train, dict):
        problems += _training(train, ours.get("model_type"))
    if isinstance(val, dict):
        problems += _tiles(val) + _ensemble(val)
    return ours, problems


def is_placeholder(block: Mapping[str, Any]) -> bool:
    """Whether a data set only shows where one would go: it has dataroots, and all are null (HINet's Rain13k)."""
    roots = [value for key, value in block.items() if key.startswith("dataroot")]
    return bool(roots) and all(root is None for root in roots)


def takes_geometric(type_name: Any) -> bool:
    """Whether a data set has use_hflip and use_rot for geometric_augs to stand for."""
    if not isinstance(type_name, str) or type_name not in DATASETS:
        return False
    target = DATASETS.get(type_name)
    return all(accepts(target, key) for key in FLIP_AND_ROTATE) and not accepts(target, GEOMETRIC)


def idle(type_name: Any) -> tuple[str, ...]:
    """Keys that official files give to a data set which makes its degraded images and so has no use for them."""
    if not isinstance(type_name, str) or type_name not in DATASETS:
        return ()
    target = DATASETS.get(type_name)
    if not any(accepts(target, key) for key in ("sigma_range", "degradations")):
        return ()
    return tuple(key for key in IDLE if not accepts(target, key))


def _data_set(block: dict[str, Any], path: Path) -> list[Problem]:
    """One data set; keys that it has no use for go into `without_effect`."""
    unused = {key: block.pop(key) for key in idle(block.get("type")) if key in block}
    if unused and isinstance(block.setdefault("without_effect", {}), dict):
        block["without_effect"].update(unused)
    if GEOMETRIC in block and takes_geometric(block.get("type")):
        return _geometric(block, (*path, GEOMETRIC))
    return []


def _geometric(block: dict[str, Any], path: Path) -> list[Problem]:
    """Replace geometric_augs by use_hflip and use_rot."""
    given = block.pop(GEOMETRIC)
    if not isinstance(given, bool):
        return [Problem(path, f"{given!r}: expected true or false")]
    against = [key for key in FLIP_AND_ROTATE if block.get(key, given) is not given]
    block.update(dict.fromkeys(FLIP_AND_ROTATE, given))
    sets = f"sets {' and '.join(FLIP_AND_ROTATE)}"
    return [Problem(path, f"{sets}, but {key} says otherwise; keep one") for key in against]


def _training(train: dict[str, Any], model_type: Any) -> list[Problem]:
    """What the official models take for granted, written out."""
    if model_type == "SRModel":
        train.setdefault("use_grad_clip", False)  # BasicSR does not clip; NAFNet, HINet and Restormer clip at 0.01
    for key in ("scheduler", "scheduler_r"):
        block = train.get(key)
        if isinstance(block, dict) and _counts_all_iterations(block.get("type")) and _is_whole(train.get(TOTAL)):
            block.setdefault(TOTAL, train[TOTAL])
    return _mixup(train) if MIXUP in train else []


def _counts_all_iterations(type_name: Any) -> bool:
    return isinstance(type_name, str) and type_name in SCHEDULES and accepts(SCHEDULES.get(type_name), TOTAL)


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 1 and value == int(value)


def _mixup(train: dict[str, Any]) -> list[Problem]:
    """Replace `mixup` by that of mixing_augs."""
    given, place = train.pop(MIXUP), ("train", MIXUP)
    if not isinstance(given, bool):
        return [Problem(place, f"{given!r}: expected true or false")]
    if train.get("mixing_augs") is None:
        train["mixing_augs"] = {}
    mixing = train["mixing_augs"]
    if not isinstance(mixing, dict) or mixing.setdefault(MIXUP, given) is given:
        return []
    return [Problem(place, "is mixing_augs.mixup, which says otherwise; keep one")]


def _tiles(val: dict[str, Any]) -> list[Problem]:
    """Replace crop_size_h and crop_size_w by crop_size."""
    given = {key: val.pop(key) for key in CROP_SIDES if key in val}
    if not given:
        return []
    sides = list(given.values())
    if len(sides) == len(CROP_SIDES) and sides[0] == sides[1] and val.setdefault("crop_size", sides[0]) == sides[0]:
        return []
    wanted = "tiles are square here: give crop_size, or crop_size_h and crop_size_w of the same value"
    return [Problem(("val", key), wanted) for key in given]


def _ensemble(val: dict[str, Any]) -> list[Problem]:
    """Replace trans_num by self_ensemble."""
    given, place = val.pop(ENSEMBLE, None), ("val", ENSEMBLE)
    if given is None:
        return []
    if isinstance(given, bool) or given not in (1, EIGHT):
        return [Problem(place, f"{given!r}: expected 8 (the mean over all flips and rotations) or 1 (none)")]
    if val.setdefault("self_ensemble", given == EIGHT) is (given == EIGHT):
        return []
    return [Problem(place, "is self_ensemble, which says otherwise; keep one")]
