"""Split images into those of training and those of validation, by their names alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from sam4ir.errors import UserError


class Split(NamedTuple):
    """The keys of training and of validation, sorted."""

    train: list[str]
    val: list[str]


def split_by_name(keys: Sequence[str], share: float) -> Split:
    """Split keys so that about `share` of them, 0 to 1, are for validation.

    An image goes to validation where the SHA-256 of its key, as a fraction, lies below `share`. So it stays where it is
    when images are added or removed. Where no image lies there, the one of the lowest fraction goes to validation;
    where all do, the one of the highest is trained on. Raises UserError for fewer than two images.
    """
    if len(keys) < 2:
        raise UserError(f"--gt: {len(keys)} image can be used, but training and validation need one each; add images")
    ordered = sorted(keys, key=fraction)
    count = sum(fraction(key) < share for key in keys)
    count = min(max(count, 1), len(keys) - 1)
    return Split(sorted(ordered[count:]), sorted(ordered[:count]))


def fraction(key: str) -> float:
    """Return a number in [0, 1) that depends on a key alone, as good as drawn uniformly."""
    digest = hashlib.sha256(key.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
