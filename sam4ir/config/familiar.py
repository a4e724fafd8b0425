"""What option files of BasicSR and Restormer write in another way, brought into ours."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from sam4ir.config.signature import accepts
from sam4ir.config.yaml_text import Path, Problem
from sam4ir.registry import DATASETS

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


def as_ours(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """(values in our own keys, problems); `values` stays as it is."""
    ours = copy.deepcopy(dict(values))
    for *around, key in _MAY_BE_EMPTY:
        block: Any = ours
        for outer in around:
            block = block.get(outer) if isinstance(block, dict) else None
        if isinstance(block, dict) and key in block and block[key] is None:
            del block[str(key)]
    datasets = ours.get("datasets")
    problems: list[Problem] = []
    for name, block in datasets.items() if isinstance(datasets, dict) else ():
        if isinstance(block, dict) and GEOMETRIC in block and takes_geometric(block.get("type")):
            problems += _geometric(block, ("datasets", name, GEOMETRIC))
    return ours, problems


def takes_geometric(type_name: Any) -> bool:
    """Whether a data set has use_hflip and use_rot for geometric_augs to stand for."""
    if not isinstance(type_name, str) or type_name not in DATASETS:
        return False
    target = DATASETS.get(type_name)
    return all(accepts(target, key) for key in FLIP_AND_ROTATE) and not accepts(target, GEOMETRIC)


def _geometric(block: dict[str, Any], path: Path) -> list[Problem]:
    """Replace geometric_augs by use_hflip and use_rot."""
    given = block.pop(GEOMETRIC)
    if not isinstance(given, bool):
        return [Problem(path, f"{given!r}: expected true or false")]
    against = [key for key in FLIP_AND_ROTATE if block.get(key, given) is not given]
    block.update(dict.fromkeys(FLIP_AND_ROTATE, given))
    sets = f"sets {' and '.join(FLIP_AND_ROTATE)}"
    return [Problem(path, f"{sets}, but {key} says otherwise; keep one") for key in against]
