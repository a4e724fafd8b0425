"""A fingerprint of a data set: how many images, and digests of their names, of some pixels and of the masks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from sam4ir.config.schema import DatasetOptions, Options
from sam4ir.data.loader import eval_sample
from sam4ir.data.sample import Dataset, Resizable
from sam4ir.engine.agreement import mask_facts
from sam4ir.engine.build import build_dataset
from sam4ir.errors import UserError, first_line
from sam4ir.utils.faults import fault_of_item
from sam4ir.utils.image import to_uint8

_SHOWN = 16  # digits of a digest


def data_fingerprints(options: Options) -> dict[str, str]:
    """Return {'data KEY': fingerprint} of all data sets of an option file; why it is not known, where they are gone."""
    lines = {}
    for key, block in options.datasets.items():
        try:
            lines[f"data {key}"] = _fingerprint(key, block, options)
        except Exception as error:
            fault = fault_of_item(error)
            if fault is None:
                raise
            lines[f"data {key}"] = f"not known now ({first_line(fault)})"
    return lines


def _fingerprint(key: str, block: DatasetOptions, options: Options) -> str:
    """Return the fingerprint of one data set in words."""
    data: Dataset = build_dataset(key, block, options.scale)
    keys = list(map(data.key, range(len(data))))
    words = [f"{len(keys):,} images", f"names {_short(json.dumps(sorted(keys)).encode())}"]
    if isinstance(data, Resizable):
        data = data.with_gt_size(None)
    pixels = hashlib.sha256()
    count = 0
    for index in sorted({0, len(keys) // 2, len(keys) - 1}):  # the first, the middle and the last
        gt = eval_sample(data, options.manual_seed, index).gt
        if gt is not None:
            pixels.update(to_uint8(gt).tobytes())
            count += 1
    if count:
        words.append(f"pixels of {count} of them {pixels.hexdigest()[:_SHOWN]}")
    if block.masks is not None:
        words.append(_masks_in_words(key, str(block.masks.store), keys))
    return ", ".join(words)


def _masks_in_words(key: str, path: str, keys: Sequence[str]) -> str:
    """Return the digest of how the masks of a data set were made, and of some of their records."""
    from sam4ir.data.masks.store import MaskStore

    try:
        digest = mask_facts(key, MaskStore(path), keys).digest()
    except UserError as error:
        return f"masks not known now ({first_line(error)})"
    return f"masks {digest[:_SHOWN]}"


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_SHOWN]
