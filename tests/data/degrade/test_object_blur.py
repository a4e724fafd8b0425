"""Blur of single objects: which regions move, what they look like, and that patches agree with whole images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import World, sam_masks

from sam4ir.config.load import load_options
from sam4ir.data.degrade.blur import convolve
from sam4ir.data.degrade.dataset import DegradedImageDataset
from sam4ir.data.degrade.noise import Quantize
from sam4ir.data.degrade.objects import ObjectMotionBlur
from sam4ir.data.loader import eval_sample
from sam4ir.data.masks.store import MaskStore, MaskStoreWriter
from sam4ir.engine.build import build_dataset
from sam4ir.errors import UserError
from sam4ir.utils.image import read_image, to_float_tensor, write_image
from sam4ir.utils.rng import generator


@pytest.fixture
def root(world: World) -> Path:
    return world.root


def blur(root: Path, **arguments: object) -> ObjectMotionBlur:
    return ObjectMotionBlur(str(root / "masks.lmdb"), **{"length": 9.0, "share": 0.5, **arguments})  # type: ignore[arg-type]


def dataset(root: Path, *chain: object, **arguments: object) -> DegradedImageDataset:
    return DegradedImageDataset(dataroot_gt=str(root / "gt"), degradations=chain, **arguments)  # type: ignore[arg-type]


def test_what_does_not_move_stays_sharp_and_what_moves_is_blurred_with_its_mask(root: Path) -> None:
    still = dataset(root, blur(root, share=0)).get(0, generator(1))
    assert torch.equal(still.lq, still.gt)
    sample = dataset(root, blur(root, share=1, anxiety=0)).get(0, generator(1))
    labels = torch.from_numpy(MaskStore(root / "masks.lmdb").read("photo_0").region_map(0, 0, 40, 52).astype(np.int64))
    far = (labels > 0).float().unsqueeze(0)
    touched = convolve(far, np.full((13, 13), 1 / 169, np.float32))[0] > 1e-6
    assert torch.allclose(sample.lq[:, ~touched], sample.gt[:, ~touched], atol=1e-5)
    assert (sample.lq - sample.gt).abs().max() > 0.05
    assert sample.lq.min() > -1e-4
    assert sample.lq.max() < 1 + 1e-4


def test_one_region_is_its_blurred_layer_over_the_image(root: Path) -> None:
    motion = blur(root, share=1)
    image, labels = torch.rand(3, 30, 34), torch.zeros(30, 34, dtype=torch.int64)
    labels[8:20, 10:24] = 7
    moved = motion(image, generator(3), labels)
    seed = int(generator(3).integers(1 << 62))
    own = generator(seed, "object", 7)
    own.random()
    kernel = motion._motion.kernel(own)
    inside = (labels == 7).float().unsqueeze(0)
    cover = convolve(inside, kernel)
    assert torch.allclose(moved, image * (1 - cover) + convolve(image * inside, kernel), atol=1e-5)


def test_a_patch_is_the_same_place_of_the_whole_image(root: Path) -> None:
    degraded = dataset(root, blur(root), Quantize(), gt_size=16, noise_seed=4)
    whole = dataset(root, blur(root), Quantize(), noise_seed=4)
    for number in range(6):
        index = number % 5
        patch = degraded.get(index, generator(number))
        picture = whole.get(index, generator(0))
        places = []
        for top in range(40 - 16 + 1):
            for left in range(52 - 16 + 1):
                if torch.equal(picture.gt[:, top : top + 16, left : left + 16], patch.gt):
                    places.append((top, left))
        assert places
        top, left = places[0]
        assert torch.allclose(patch.lq, picture.lq[:, top : top + 16, left : left + 16], atol=1e-5)


def test_about_the_asked_share_moves(root: Path) -> None:
    labels = torch.zeros(5, 400, 12, dtype=torch.int64)
    labels[:, :, 4:8] = torch.arange(1, 401).view(1, 400, 1)  # with gaps that no blur crosses
    image = torch.rand(1, 5, 400 * 12)
    moved = blur(root, share=0.25, length=2.0)(image, generator(0), labels.flatten(1))
    changed = (moved != image).view(5, 400, 12)[2, :, 5]
    assert 0.2 < changed.float().mean() < 0.3


def test_an_option_file_names_it_and_a_missing_record_names_the_store(world: World) -> None:
    values = world.values()
    chain = [{"type": "ObjectMotionBlur", "store": str(world.root / "masks.lmdb"), "length": 7}, {"type": "Quantize"}]
    place = {"type": "DegradedImageDataset", "dataroot_gt": str(world.root / "gt"), "degradations": chain}
    values["datasets"] = {"train": {**place, "gt_size": 24, "batch_size_per_gpu": 2}, "val": {**place, "noise_seed": 0}}
    options = load_options(world.write(values))
    data = build_dataset("val", options.datasets["val"], 1)
    first, again = eval_sample(data, 0, 0), eval_sample(data, 0, 0)
    assert torch.equal(first.lq, again.lq)
    assert torch.equal(first.gt, to_float_tensor(read_image(world.root / "gt" / "photo_0.png")))
    with MaskStoreWriter(world.root / "few.lmdb", {"generator": "drawn", "source": "gt"}) as store:
        store.put("photo_1", sam_masks())
    write_image(world.root / "gt" / "photo_9.png", read_image(world.root / "gt" / "photo_0.png"))
    with pytest.raises(UserError, match=r"photo_0\.png: no masks: .*few\.lmdb"):
        dataset(world.root, ObjectMotionBlur(str(world.root / "few.lmdb"))).get(0, generator(0))
    with pytest.raises(UserError, match="share"):
        blur(world.root, share=1.5)


def test_it_is_a_function_of_image_stream_and_labels_on_any_number_of_threads(root: Path) -> None:
    motion, image = blur(root), torch.rand(3, 40, 52)
    labels = torch.from_numpy(MaskStore(root / "masks.lmdb").read("photo_0").region_map(0, 0, 40, 52).astype(np.int64))
    before = image.clone()
    one = motion(image, generator(1), labels)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(motion(image, generator(1), labels), one)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(image, before)
    assert not torch.equal(motion(image, generator(2), labels), one)
