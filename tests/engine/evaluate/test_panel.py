"""The panel of a validation: which crops it shows, and what stands in its rows."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from conftest import World

from sam4ir.data.sample import Sample
from sam4ir.engine.evaluate.panel import SIDE, Panel
from sam4ir.engine.train.loop import Trainer
from sam4ir.utils.dist import ALONE


def sized(count: int) -> list[int]:
    return list(range(count))


def sample(scale: int = 1, channels: int = 3, height: int = 300, width: int = 40, **maps: torch.Tensor) -> Sample:
    lq = torch.rand(channels, height // scale, width // scale)
    gt = torch.rand(min(channels, 3), height, width)
    return Sample("photo", lq, gt, maps)


def test_the_same_images_are_chosen_each_time_and_others_by_another_seed() -> None:
    sets = {"a": sized(50), "b": sized(50)}

    def chosen(seed: int) -> list[str]:
        panel = Panel(sets, 5, seed)
        for name in sets:
            for index in range(50):
                picture = sample()
                panel.add(name, index, picture, {"restored": picture.gt})
        rows = panel.take(ALONE)
        assert panel.take(ALONE) == {}
        return list(rows)

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)
    assert len(set(chosen(1))) == 5


def test_fewer_images_than_asked_for_are_all_shown() -> None:
    panel = Panel({"a": sized(2)}, 4, 0)
    for index in range(2):
        panel.add("a", index, sample(), {"restored": torch.rand(3, 300, 40)})
    assert list(panel.take(ALONE)) == ["a/0", "a/1"]


def columns(row: np.ndarray, number: int) -> list[np.ndarray]:
    assert row.shape[1] % number == 0
    return np.split(row[32:], number, axis=1)


def drawn(item: Sample, **outputs: torch.Tensor) -> np.ndarray:
    panel = Panel({"a": sized(1)}, 1, 0)
    panel.add("a", 0, item, outputs)
    return panel.take(ALONE)["a/0"]


@pytest.mark.parametrize("scale", [1, 4])
def test_a_row_shows_one_crop_of_every_view(scale: int) -> None:
    item = sample(scale, regions=torch.randint(0, 4, (300, 40)))
    restored = item.gt.clone()
    restored[0] += 0.1
    row = drawn(item, restored=restored.clamp(0, 1), refined=item.gt)
    lq, shown, refined, gt, error, regions = columns(row, 6)
    assert gt.shape == (SIDE, 40, 3)
    whole = (item.gt.permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)
    tops = [top for top in range(300 - SIDE + 1) if np.array_equal(whole[top : top + SIDE], gt)]
    assert len(tops) == 1
    assert np.array_equal(refined, gt)
    assert not np.array_equal(shown, gt)
    assert error[..., 1:].max() == 0
    assert abs(float(np.median(error[..., 0])) - 0.5 * 255) < 2
    small = (item.lq.permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)
    cut = small[tops[0] // scale : tops[0] // scale + SIDE // scale]
    assert np.array_equal(lq[::scale, ::scale], cut)
    assert len(np.unique(regions.reshape(-1, 3), axis=0)) > 3


def test_grey_images_dual_pixels_and_values_that_are_not_finite_are_drawn() -> None:
    item = sample(channels=1)
    row = drawn(item, restored=torch.full((1, 300, 40), float("nan")))
    assert row.shape[2] == 3
    assert drawn(sample(channels=6), restored=torch.rand(3, 300, 40)).shape == row.shape


def test_a_run_writes_its_panel(world: World) -> None:
    trainer = Trainer(world.options(True, ("val:panel=3",)), False)
    trainer.run()
    folder = trainer.paths.visualization / "panel"
    assert sorted(path.name for path in folder.iterdir()) == ["4.jpg", "8.jpg"]
    sheet = cv2.imread(str(folder / "8.jpg"))
    assert sheet.shape == (3 * (40 + 32 + 6), 6 * 52, 3)  # photographs of 40 x 52: six views of three images
    none = Trainer(world.options(True, ("name=none", "val:panel=0")), False)
    none.run()
    assert not (none.paths.visualization / "panel").exists()
