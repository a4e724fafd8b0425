"""A fingerprint of a data set: how many images, and digests of their names, of some pixels and of the masks."""

from __future__ import annotations

import hashlib
import json

from sam4ir.config.schema import DatasetOptions, Options
from sam4ir.data.loader import eval_sample
from sam4ir.data.sample import Dataset, Resizable
from sam4ir.engine.build import build_dataset
from sam4ir.errors import UserError, first_line
from sam4ir.utils.faults import fault_of_item
from sam4ir.utils.image import to_uint8

_SAMPLED = 3  # images whose pixels are hashed: the first, the middle and the last
_SHOWN = 16  # digits of a digest


def data_fingerprints(options: Options) -> dict[str, str]:
    """Return {'data KEY': fingerprint} of all data sets of an option file; why it is not known, where they are gone."""
    lines = {}
    for key, block in options.datasets.items():
        try:
            lines[f"data {key}"] = _fingerprint(build_dataset(key, block, options.scale), block, options.manual_seed)
        except Exception as error:
            fault = fault_of_item(error)
            if fault is None:
                raise
            lines[f"data {key}"] = f"not known now ({first_line(fault)})"
    return lines


def _fingerprint(data: Dataset, block: DatasetOptions, seed: int) -> str:
    """Return the fingerprint of one data set in words."""
    keys = list(map(data.key, range(len(data))))
    words = [f"{len(keys):,} images", f"names {_short(json.dumps(sorted(keys)).encode())}"]
    if isinstance(data, Resizable):
        data = data.with_gt_size(None)
    pixels = hashlib.sha256()
    count = 0
    for index in sorted({0, len(keys) // 2, len(keys) - 1}):
        gt = eval_sample(data, seed, index).gt
        if gt is not None:
            pixels.update(to_uint8(gt).tobytes())
            count += 1
    if count:
        words.append(f"pixels of {count} of them {pixels.hexdigest()[:_SHOWN]}")
    if block.masks is not None:
        words.append(_masks_in_words(str(block.masks.store)))
    return ", ".join(words)


def _masks_in_words(path: str) -> str:
    """Return the digest that a mask store states of itself."""
    from sam4ir.data.masks.store import MaskStore

    try:
        digest = MaskStore(path).meta.get("digest")
    except UserError as error:
        return f"masks not known now ({first_line(error)})"
    return f"masks {str(digest)[:_SHOWN]}"


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_SHOWN]
