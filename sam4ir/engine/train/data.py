"""Build the data sets of a training run, with the maps that the model reads of their masks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam4ir.config.schema import Block, DatasetOptions, Options
from sam4ir.config.signature import accepts
from sam4ir.data.masks.store import MaskStore
from sam4ir.data.sample import Dataset, Resizable
from sam4ir.data.sources import listed
from sam4ir.data.views import View
from sam4ir.engine.agreement import Facts, dataset_facts, mask_facts
from sam4ir.engine.build import BuildError, build_dataset, build_part, channels_of, naming
from sam4ir.engine.train.stages import Stage
from sam4ir.errors import UserError
from sam4ir.priors.spe import Mean as SpeMean
from sam4ir.priors.spe import spe_map
from sam4ir.registry import DATASETS, VIEWS
from sam4ir.utils.shell import command_words


class DataSetsError(BuildError):
    """What is wrong with the data sets of a training. problems: a sentence for each set that cannot be built."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


SPE_IMAGES = 1000  # images on which the scale of the position encoding is measured, at most


def views_of(options: Options) -> dict[str, View]:
    """Return the views of the maps that the model reads, by name; none where it does not look at masks."""
    if options.distills and options.train is not None and options.train.distill.masks == "store":
        return {"regions": _view(Block(type="regions"), "model_type", options.process.mean)}
    if options.diffuses and options.process.needs_masks:
        return {"spe": _view(Block(type="spe"), "diffusion", options.process.mean)}
    return {}


def own_views(key: str, block: DatasetOptions, mean: SpeMean) -> dict[str, View]:
    """Return the views that a data set names under masks.views, for a user's own model, fusion or term."""
    if block.masks is None:
        return {}
    views: dict[str, View] = {}
    for number, view in enumerate(block.masks.views):
        views[view.type] = _view(view, f"datasets.{key}.masks.views.{number}", mean)
    return views


def _view(block: Block, place: str, mean: SpeMean) -> View:
    view: View = build_part(VIEWS, block, place, mean=mean)
    return view


def masked_dataset(
    key: str, block: DatasetOptions, views: Mapping[str, View], scale: int = 1, mean: SpeMean = "image"
) -> Dataset:
    """Return a data set whose samples carry the maps of these views and of its own ones, if it has masks.

    scale: of super-resolution. mean: diffusion.mean, for the position encoding.
    """
    views = {**own_views(key, block, mean), **views}
    if not views or block.masks is None:
        return build_dataset(key, block, scale)
    if not accepts(DATASETS.get(block.type), "masks"):
        raise BuildError(
            f"datasets.{key}.type: {block.type} takes no masks; its constructor needs masks and mask_views"
        )
    store = mask_store(key, block)
    if "spe" in views and mean == "region" and store.meta.get("imported", {}).get("format") == "spe":
        raise BuildError(
            f"diffusion.mean: region needs whole masks, but {store.path} was imported from maps of their encoding, "
            "which show of each mask what no other covers; take mean: image, or masks made by sam4ir make-masks"
        )
    data = build_dataset(key, block, scale, masks=store, mask_views=views)
    names = set(store.keys())
    keys = [data.key(index) for index in range(len(data))]
    lacking = [key for key in keys if key not in names]
    if lacking:
        raise BuildError(
            f"datasets.{key}.masks.store: {store.path} lacks {listed(lacking)} of {len(data)}; make their masks, from "
            "the images that the data set reads (sam4ir make-masks goes on with a store; sam4ir masks verify "
            "lists all that lack, and its crop cuts masks of whole images as sub-images were cut)"
            f"{_command_for(block, store.path, store.meta)}"
        )
    return data


def _command_for(block: DatasetOptions, store: Path | str, meta: Mapping[str, Any] | None = None) -> str:
    """Return ': sam4ir make-masks --input ...', the command that makes the masks of a data set; '' for masks of LQ.

    meta: of the store, where it is there; its command is of the same SAM.
    """
    images, sam = block.arguments.get("dataroot_gt"), "NAME"
    if meta is not None:
        sam = str(meta.get("told", {}).get("sam", sam))
    if not images or (meta or {}).get("source", "gt") != "gt" or "imported" in (meta or {}):
        return ""
    return ": " + command_words("sam4ir", "make-masks", "--input", images, "--store", store, "--sam", sam)


def measured_spe(key: str, block: DatasetOptions, scale: int, mean: SpeMean) -> float:
    """Return the RMS of the position encoding over the covered pixels of the training images, SPE_IMAGES at most.

    Raises BuildError where no pixel of them is covered.
    """
    store = mask_store(key, block)
    data = build_dataset(key, block, scale)
    total, count = 0.0, 0
    for index in range(0, len(data), -(-len(data) // SPE_IMAGES)):
        record = store.read(data.key(index))
        spe = spe_map(record, 0, 0, *record.size, mean=mean)
        covered = record.list_map(0, 0, *record.size) > 0
        total += float(np.square(spe[covered], dtype=np.float64).sum())
        count += int(covered.sum())
    if not total:
        raise BuildError(f"datasets.{key}.masks.store: {store.path} covers no pixel of the training images")
    return math.sqrt(total / count)


def mask_store(key: str, block: DatasetOptions) -> MaskStore:
    """Return the mask store of a data set; raise BuildError where it cannot be read or was made of other images."""
    assert block.masks is not None
    with naming(f"datasets.{key}.masks.store"):
        if not Path(block.masks.store).exists():
            advice = _command_for(block, block.masks.store) or "; make it with sam4ir make-masks"
            raise UserError(f"{block.masks.store}: there is no such mask store{advice}")
        store = MaskStore(block.masks.store)
        if block.masks.source and store.meta.get("source") != block.masks.source:
            source = store.meta.get("source")
            raise UserError(
                f"{store.path}: its masks were made of {source} images; masks.source asks for {block.masks.source}"
            )
    return store


@dataclass(frozen=True)
class Sets:
    """The data sets of a run: the training set with its options, validation sets by name."""

    train: Dataset
    loader: DatasetOptions
    val: Mapping[str, Dataset]

    @property
    def channels(self) -> int:
        """Channels of the degraded training images."""
        return channels_of(self.train)

    def of(self, stage: Stage) -> Dataset:
        """Return the training set with the patches of a stage."""
        if stage.gt_size is None:
            return self.train
        assert isinstance(self.train, Resizable)  # data_sets has looked
        return self.train.with_gt_size(stage.gt_size)


def data_facts(options: Options, sets: Sets) -> list[Callable[[], Facts]]:
    """Return what makes the facts that all processes must agree about: of each data set, and of its masks."""
    makers: list[Callable[[], Facts]] = []
    views = views_of(options)
    by_key = {**dict.fromkeys(options.phase("train"), sets.train)}
    for key, block in options.phase("val").items():
        by_key[key] = sets.val[block.name or key]
    for key, data in by_key.items():
        block = options.datasets[key]
        makers.append(functools.partial(dataset_facts, key, data, options.manual_seed))
        if block.masks is not None and (views or block.masks.views):
            makers.append(functools.partial(_mask_facts, key, block, data))
    return makers


def _mask_facts(key: str, block: DatasetOptions, data: Dataset) -> Facts:
    return mask_facts(key, mask_store(key, block), list(map(data.key, range(len(data)))))


def data_sets(options: Options) -> Sets:
    """Return training and validation sets, with masks where the model reads them or a data set names views.

    Raises DataSetsError, so that masks that lack are named for all sets at once.
    """
    built: dict[str, Dataset] = {}
    problems: list[str] = []
    for key, build_set in set_builders(options).items():
        try:
            built[key] = build_set()
        except BuildError as error:
            problems.append(str(error))
    if problems:
        raise DataSetsError(problems)
    return sets_of(options, built)


def sets_of(options: Options, built: Mapping[str, Dataset]) -> Sets:
    """Return the sets of a training. built: what set_builders built, by key."""
    ((key, block),) = options.phase("train").items()
    val = {}
    for val_key, val_block in options.phase("val").items():
        val[val_block.name or val_key] = built[val_key]
    return Sets(built[key], block, val)


def set_builders(options: Options) -> dict[str, Callable[[], Dataset]]:
    """Return what builds each data set of a training, by its key; a builder raises BuildError.

    Raises BuildError where the options train nothing.
    """
    if options.train is None or not options.phase("train"):
        raise BuildError("datasets.train: training needs a training set and a `train` block; sam4ir test scores")
    views = views_of(options)
    val_views: Mapping[str, View] = {}
    if options.val is not None and options.val.refiner:
        val_views = views
    builders: dict[str, Callable[[], Dataset]] = {}
    for key, block in {**options.phase("val"), **options.phase("train")}.items():
        read = views if key.startswith("train") else val_views
        builders[key] = functools.partial(_training_set, key, block, read, options)
    return builders


def _training_set(key: str, block: DatasetOptions, views: Mapping[str, View], options: Options) -> Dataset:
    """Return a data set of a training; one that trains can change its patches where it has stages."""
    data = masked_dataset(key, block, views, options.scale, options.process.mean)
    if key.startswith("train") and block.gt_sizes is not None and not isinstance(data, Resizable):
        raise BuildError(
            f"datasets.{key}.gt_sizes: {block.type} cannot change its patch size; it needs a method with_gt_size(size)"
        )
    return data
