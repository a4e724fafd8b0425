"""Options -> the data sets of a training run, with what the model reads of their masks."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sam4ir.config.schema import DatasetOptions, Options
from sam4ir.config.signature import accepts
from sam4ir.data.masks.store import MaskStore
from sam4ir.data.sample import MaskRecordLike, MaskViews
from sam4ir.data.sources import listed
from sam4ir.data.transforms import Window
from sam4ir.engine.build import (
    BuildError,
    channels_of,
    dataset,
    naming,
)
from sam4ir.engine.train.stages import Stage
from sam4ir.errors import UserError
from sam4ir.priors.spe import MaskRecordLike as SpeRecordLike
from sam4ir.priors.spe import Mean, spe_map
from sam4ir.registry import DATASETS

SPE_IMAGES = 1000  # that the scale of the position encoding is measured on


def region_view(record: MaskRecordLike, window: Window) -> np.ndarray:
    """The region map of a crop: (h, w) int, 0 = no region."""
    return record.region_map(window.top, window.left, window.height, window.width)  # type: ignore[attr-defined]


def spe_view(record: SpeRecordLike, window: Window, mean: Mean = "image") -> np.ndarray:
    """The structural position encoding of a crop: (h, w) float32."""
    return spe_map(record, window.top, window.left, window.height, window.width, mean)


def views_of(options: Options) -> MaskViews:
    """What training reads of masks; nothing where the model does not look at them."""
    if options.distills and options.train is not None and options.train.distill.masks == "store":
        return {"regions": region_view}
    if options.diffuses and options.process.needs_masks:
        return {"spe": functools.partial(spe_view, mean=options.process.mean)}
    return {}


def masked_dataset(key: str, block: DatasetOptions, options: Options, views: MaskViews) -> Any:
    """A data set whose samples carry these views of its masks, if any."""
    if not views or block.masks is None:
        return dataset(key, block, options)
    if not accepts(DATASETS.get(block.type), "masks"):
        raise BuildError(
            f"datasets.{key}.type: {block.type} takes no masks; its constructor needs masks and mask_views"
        )
    store = mask_store(key, block)
    if "spe" in views and options.process.mean == "region" and store.meta.get("imported", {}).get("format") == "spe":
        raise BuildError(
            f"diffusion.mean: region needs whole masks, but {store.path} was imported from maps of their encoding, "
            "which show of each mask what no other covers; take mean: image, or masks made by scripts/make_masks.py"
        )
    data = dataset(key, block, options, masks=store, mask_views=views)
    known = set(store.keys())
    lacking = [name for name in map(data.key, range(len(data))) if name not in known]
    if lacking:
        raise BuildError(
            f"datasets.{key}.masks.store: {store.path} lacks {listed(lacking)} of {len(data)}; make their masks, from "
            "the images that the data set reads (scripts/make_masks.py goes on with a store; scripts/masks.py verify "
            "lists all that lack, and its crop cuts masks of whole images as sub-images were cut)"
        )
    return data


def measured_spe(options: Options) -> float:
    """The RMS of the position encoding over the covered pixels of the training images (at most SPE_IMAGES of them).

    Raises BuildError where no pixel of them is covered.
    """
    ((key, block),) = options.phase("train").items()
    store = mask_store(key, block)
    data = dataset(key, block, options)
    total, count = 0.0, 0
    for index in range(0, len(data), -(-len(data) // SPE_IMAGES)):
        record = store.read(data.key(index))
        spe = spe_map(record, 0, 0, *record.size, mean=options.process.mean)
        covered = record.list_map(0, 0, *record.size) > 0
        total += float(np.square(spe[covered], dtype=np.float64).sum())
        count += int(covered.sum())
    if not total:
        raise BuildError(f"datasets.{key}.masks.store: {store.path} covers no pixel of the training images")
    return math.sqrt(total / count)


def mask_store(key: str, block: DatasetOptions) -> MaskStore:
    """The mask store of a data set; raises BuildError where it cannot be read or was made of other images."""
    assert block.masks is not None
    with naming(f"datasets.{key}.masks.store"):
        store = MaskStore(block.masks.store)
        if block.masks.source and store.meta.get("source") != block.masks.source:
            made = store.meta.get("source")
            raise UserError(
                f"{store.path}: its masks were made of {made} images; masks.source asks for {block.masks.source}"
            )
    return store


@dataclass(frozen=True)
class Sets:
    """The data sets of a run: the training set with its options, validation sets by name."""

    train: Any
    loader: DatasetOptions
    val: Mapping[str, Any]

    @property
    def channels(self) -> int:
        """Channels of the degraded training images."""
        return channels_of(self.train)

    def of(self, stage: Stage) -> Any:
        """The training set with the patches of a stage."""
        return self.train if stage.gt_size is None else self.train.with_gt_size(stage.gt_size)


def data_sets(options: Options) -> Sets:
    """Training and validation sets; masks are read where the model looks at them."""
    train = options.train
    if train is None or not options.phase("train"):
        raise BuildError("datasets.train: training needs a training set and a `train` block; test.py scores networks")
    ((key, block),) = options.phase("train").items()
    views = views_of(options)
    scored = views if options.val is not None and options.val.refiner else {}
    val = {b.name or k: masked_dataset(k, b, options, scored) for k, b in options.phase("val").items()}
    built = masked_dataset(key, block, options, views)
    if block.gt_sizes is not None and not callable(getattr(built, "with_gt_size", None)):
        raise BuildError(
            f"datasets.{key}.gt_sizes: {block.type} cannot change its patch size; it needs a method with_gt_size(size)"
        )
    return Sets(built, block, val)
