"""A user's own view and data set: each is one file, named in the option file; the rest of the program takes it up."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import World

from sam4ir.config.load import OptionsError, dump_options, load_options
from sam4ir.config.schema import Options
from sam4ir.config.signature import arguments_model
from sam4ir.data.cropped import CroppedDataset
from sam4ir.data.loader import train_batches
from sam4ir.data.masks.store import MaskStore
from sam4ir.data.sample import Examinable, Resizable
from sam4ir.engine.build import channels_of
from sam4ir.engine.train.data import data_sets
from sam4ir.engine.train.loop import Trainer
from sam4ir.errors import UserError
from sam4ir.registry import DATASETS, VIEWS
from sam4ir.utils.image import read_image, to_float_tensor
from sam4ir.utils.rng import generator

VIEW = '''
"""How many masks cover each pixel, as a map of every sample."""

import numpy as np

from sam4ir.data.masks.record import MaskRecord
from sam4ir.data.transforms import Window
from sam4ir.data.views import ValueView
from sam4ir.registry import VIEWS


@VIEWS.register()
class MaskCount(ValueView):
    """Number of masks that cover each pixel, (1, h, w) float32.

    Args:
        limit: Largest number that the map holds.
    """

    def __init__(self, limit: int = 8) -> None:
        self.limit = limit

    def read(self, record: MaskRecord, window: Window) -> np.ndarray:
        masks = record.stack(window.top, window.left, window.height, window.width)
        return masks.sum(axis=0).clip(max=self.limit)
'''

DATA_SET = '''
"""Underexposed photographs: the LQ image is brightened by the ratio of the exposures before the network sees it."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from sam4ir.data.paired import PairedImageDataset
from sam4ir.data.sample import Sample
from sam4ir.errors import UserError
from sam4ir.registry import DATASETS


@DATASETS.register()
@dataclass(kw_only=True)
class LowLightDataset(PairedImageDataset):
    """Pairs of an underexposed image and a well exposed one.

    Args:
        exposure_ratio: Exposure time of GT over that of LQ, by which lq is multiplied; above 0.
    """

    exposure_ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.exposure_ratio <= 0:
            raise UserError(f"exposure_ratio: {self.exposure_ratio} must be above 0")
        super().__post_init__()

    def get(self, index: int, rng: np.random.Generator) -> Sample:
        sample = super().get(index, rng)
        return dataclasses.replace(sample, lq=sample.lq * self.exposure_ratio)
'''

FROM_THE_BASE = '''
"""Images and their luma in all three channels, for networks that colour pictures."""

from dataclasses import dataclass

import numpy as np

from sam4ir.data.cropped import CroppedDataset
from sam4ir.data.sample import Sample
from sam4ir.registry import DATASETS


@DATASETS.register()
@dataclass(kw_only=True)
class ColouringDataset(CroppedDataset):
    """LQ = the grey picture of GT."""

    def get(self, index: int, rng: np.random.Generator) -> Sample:
        key = self.keys[index]
        with self.source.open(key) as image:
            size = (image.shape[0], image.shape[1])
            placement = self.draw(size, rng)
            gt = self.pixels(image, placement)
        return Sample(key, gt.mean(0, keepdim=True).expand_as(gt).contiguous(), gt, self.maps(key, size, placement))
'''

MINIMAL = '''
"""The least that a data set may be."""

import torch

from sam4ir.data.sample import Sample
from sam4ir.registry import DATASETS


@DATASETS.register()
class Flat:
    """Grey images of one value each."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self):
        return self.count

    def key(self, index):
        return str(index)

    def get(self, index, rng):
        return Sample(self.key(index), torch.full((3, 16, 16), 0.25), torch.full((3, 16, 16), 0.5))
'''


@pytest.fixture(autouse=True)
def own_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget after the test what plugins registered."""
    for table in (DATASETS, VIEWS):
        monkeypatch.setattr(table, "_entries", dict(table._entries))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


def plugin(world: World, source: str, values: Mapping[str, object]) -> Path:
    """Write a plugin and an option file that names it."""
    name = f"own_{abs(hash((world.root, source)))}"
    (world.root / f"{name}.py").write_text(source, encoding="utf-8")
    return world.write({**values, "plugins": [name]}, "own.yml")


def with_views(world: World, *views: Mapping[str, object], sam: bool = True, **changes: object) -> Path:
    values = world.values(sam)
    for block in values["datasets"].values():
        block["masks"] = {"store": str(world.root / "masks.lmdb"), "views": list(views)}
    values["datasets"]["train"] |= changes
    return plugin(world, VIEW, values)


def run(options: Options) -> None:
    trainer = Trainer(options, resume=False)
    trainer.run()
    trainer.close()


def whole_count(world: World, key: str, limit: int) -> np.ndarray:
    masks = MaskStore(world.root / "masks.lmdb").read(key).stack(0, 0, 40, 52)
    return np.minimum(masks.sum(0), limit)


@pytest.mark.parametrize("gt_size", [16, 48, None])  # 48 is mirrored: images are 40 x 52
@pytest.mark.parametrize("sam", [True, False])
def test_a_view_of_a_plugin_comes_with_samples_in_line_with_their_images(
    world: World, gt_size: int | None, sam: bool
) -> None:
    options = load_options(with_views(world, {"type": "MaskCount", "limit": 1}, sam=sam, gt_size=gt_size))
    sets = data_sets(options)
    assert isinstance(sets.train, CroppedDataset)
    flips = set()
    for seed in range(16):
        sample = sets.train.get(seed % 5, generator(seed))
        placement = sets.train.draw((40, 52), generator(seed))  # drawn first
        flips.add(placement.flip)
        image = read_image(world.root / "gt" / f"{sample.key}.png")
        assert sample.gt is not None
        assert torch.equal(sample.gt, to_float_tensor(placement.pixels(image)))
        count = sample.maps["MaskCount"]
        assert (count.dtype, count.shape) == (torch.float32, (1, *sample.gt.shape[1:]))
        np.testing.assert_array_equal(count[0], placement.take(whole_count(world, sample.key, 1)))
        assert set(sample.maps) == ({"MaskCount", "regions"} if sam else {"MaskCount"})
    assert len(flips) > 4
    assert "MaskCount" in sets.val["small_val"].get(0, generator(0)).maps


@pytest.mark.parametrize("workers", [0, 2])
def test_maps_of_a_view_are_stacked_and_moved_with_the_batch(world: World, workers: int) -> None:
    data = data_sets(load_options(with_views(world, {"type": "MaskCount"}))).train
    (batch,) = train_batches(data, seed=3, batch_size=4, total_samples=4, num_workers=workers)
    assert (batch.maps["MaskCount"].shape, batch.maps["regions"].shape) == ((4, 1, 24, 24), (4, 24, 24))
    assert batch.maps["MaskCount"].max() == 2
    assert batch.counts == {"regions": int(batch.maps["regions"].max())}
    assert {tensor.device.type for tensor in batch.to("meta").maps.values()} == {"meta"}


def test_a_run_trains_with_a_view_of_a_plugin(world: World) -> None:
    options = load_options(with_views(world, {"type": "MaskCount"}), ["train:total_iter=2"])
    assert "type: MaskCount" in dump_options(options)
    run(options)
    assert list((world.root / "experiments").rglob("net_g_latest.pth"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_map_of_another_size_than_its_window_is_a_bug_of_the_view(world: World, workers: int) -> None:
    source = VIEW.replace("masks.sum(axis=0)", "masks.sum(axis=0)[1:]")
    values = world.values()
    values["datasets"]["train"]["masks"] = {"store": str(world.root / "masks.lmdb"), "views": [{"type": "MaskCount"}]}
    data = data_sets(load_options(plugin(world, source, values))).train
    with pytest.raises(ValueError, match=r"view MaskCount returns \(23, 24\) for a window of 24x24") as caught:
        list(train_batches(data, seed=3, batch_size=2, total_samples=4, num_workers=workers))
    assert not isinstance(caught.value, UserError)


@pytest.mark.parametrize(
    ("views", "problem"),
    [
        ([{"type": "MaskCuont"}], "no view is called 'MaskCuont'; did you mean 'MaskCount'?"),
        ([{"type": "MaskCount", "limt": 2}], "views.0.limt: unknown key; did you mean 'limit'?"),
        ([{"type": "MaskCount", "limit": "two"}], "views.0.limit: 'two': expected a whole number"),
        ([{"type": "spe", "mean": "region"}], "views.0.mean: is handed over by the program"),
        ([{"type": "MaskCount"}, {"type": "MaskCount", "limit": 1}], "has two views of type MaskCount"),
    ],
)
def test_a_view_that_the_file_names_wrongly_is_reported(world: World, views: list[dict], problem: str) -> None:
    with pytest.raises(OptionsError) as caught:
        load_options(with_views(world, *views))
    assert len(caught.value.problems) == 2  # training and validation set
    assert problem in str(caught.value.problems[0])


def own_data_set(world: World, source: str, **train_block: object) -> Options:
    values = world.values()
    values["datasets"] = {"train": {**train_block, "batch_size_per_gpu": 2}}
    return load_options(plugin(world, source, values))


def folders(world: World) -> dict[str, object]:
    return {"dataroot_gt": str(world.root / "gt"), "dataroot_lq": str(world.root / "gt")}


def test_a_data_set_of_a_plugin_writes_its_own_arguments_only(world: World) -> None:
    common = {"gt_size": 24, "use_hflip": True, "use_rot": True, "masks": {"store": str(world.root / "masks.lmdb")}}
    options = own_data_set(world, DATA_SET, type="LowLightDataset", exposure_ratio=4, **folders(world), **common)
    data = data_sets(options).train
    sample = data.get(1, generator(5))
    assert sample.gt is not None
    assert torch.equal(sample.lq, sample.gt * 4)
    assert channels_of(data) == 3
    assert isinstance(data, Resizable)
    assert isinstance(data, Examinable)
    assert data.with_gt_size(32).get(1, generator(5)).lq.shape == (3, 32, 32)
    assert data.examine(1)


def test_the_arguments_that_a_data_set_inherits_are_checked_like_its_own(world: World) -> None:
    with pytest.raises(OptionsError) as caught:
        own_data_set(world, DATA_SET, type="LowLightDataset", exposure_ratio="4", gt_size=1.5, use_hflp=True)
    problems = [str(problem) for problem in caught.value.problems]
    for part in (
        "dataroot_gt: is required and missing",
        "dataroot_lq: is required and missing",
        "exposure_ratio: '4': expected a number",
        "gt_size: 1.5: expected a whole number",
        "use_hflp: unknown key; did you mean 'use_hflip'?",
    ):
        assert any(part in problem for problem in problems), part
    properties = arguments_model(DATASETS.get("LowLightDataset"), DATASETS.handed).model_json_schema()["properties"]
    paired = arguments_model(DATASETS.get("PairedImageDataset"), DATASETS.handed).model_json_schema()["properties"]
    assert {name: properties[name] for name in paired} == paired
    assert set(properties) - set(paired) == {"exposure_ratio"}


def test_a_data_set_from_the_base_needs_get_only(world: World) -> None:
    options = own_data_set(
        world, FROM_THE_BASE, type="ColouringDataset", dataroot_gt=str(world.root / "gt"), gt_size=16, use_rot=True
    )
    (batch,) = train_batches(data_sets(options).train, seed=0, batch_size=4, total_samples=4)
    torch.testing.assert_close(batch.lq[:, 2], batch.gt.mean(1))


def test_a_minimal_data_set_trains(world: World) -> None:
    options = own_data_set(world, MINIMAL, type="Flat", count=4)
    data = data_sets(options).train
    assert channels_of(data) == 3
    assert not isinstance(data, Resizable)
    assert not isinstance(data, Examinable)
    run(options)
