"""Pictures of val.save_img: outputs as files, and side by side with input and ground truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import World

from sam4ir.config.load import OptionsError, load_options
from sam4ir.config.schema import SaveOptions
from sam4ir.data.sample import Sample
from sam4ir.engine.evaluate.report import Score
from sam4ir.engine.evaluate.saved_images import CAPTION, GAP, SavedImages, saved_images
from sam4ir.engine.evaluate.score import score_network
from sam4ir.engine.train.loop import Trainer
from sam4ir.utils.image import read_image, to_uint8

WIDTH = 52


def views(picture: np.ndarray, number: int, width: int = WIDTH) -> list[np.ndarray]:
    assert picture.shape[1] == number * width + (number - 1) * GAP
    cut = []
    for place in range(number):
        left = place * (width + GAP)
        cut.append(picture[CAPTION:, left : left + width])
    return cut


def test_the_views_stand_in_the_order_of_the_option_below_their_scores(tmp_path: Path) -> None:
    gt = torch.rand(3, 40, 200)
    sample = Sample("a", gt[..., ::2, ::2].clone(), gt)
    restored = (gt + 0.1).clamp(0, 1)
    saved = SavedImages("s", tmp_path / "out", "net", panel=("gt", "lq", "restored", "regions"), panels=tmp_path / "p")
    saved.write(sample, {"restored": restored}, 0, [])
    untitled = read_image(tmp_path / "p" / "a_net.png")
    shown = views(untitled, 3, 200)
    assert np.array_equal(shown[0], to_uint8(gt))
    assert np.array_equal(shown[1][::2, ::2], to_uint8(sample.lq))
    assert np.array_equal(shown[2], read_image(tmp_path / "out" / "a_net.png"))
    saved.write(sample, {"restored": restored}, 0, [Score("s", "a", "restored", {"psnr": 20.0})])
    titled = read_image(tmp_path / "p" / "a_net.png")
    title = titled[:CAPTION] != untitled[:CAPTION]
    assert title[:, 2 * (200 + GAP) :].any()  # the score stands above the restored image alone
    assert not title[:, : 2 * (200 + GAP)].any()


def test_each_sample_has_its_panel(tmp_path: Path) -> None:
    sample = Sample("a", torch.rand(3, 20, 30), torch.rand(3, 20, 30))
    saved = SavedImages("s", tmp_path / "out", samples=2, panel=("lq",), panels=tmp_path / "p")
    for number in range(2):
        saved.write(sample, {"restored": torch.rand(3, 20, 30)}, number, [])
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["a_s0.png", "a_s1.png"]


def test_no_panel_is_written_where_none_of_its_views_is_there(tmp_path: Path) -> None:
    saved = SavedImages("s", tmp_path / "out", panel=("refined", "gt", "regions"), panels=tmp_path / "p")
    saved.write(Sample("a", torch.rand(3, 20, 30), None), {"restored": torch.rand(3, 20, 30)}, 0, [])
    assert (tmp_path / "out" / "a.png").is_file()
    assert not (tmp_path / "p").exists()


def test_the_option_chooses(tmp_path: Path) -> None:
    assert saved_images(False, "s", tmp_path, tmp_path) is None
    plain = saved_images(True, "s", tmp_path, tmp_path)
    assert plain is not None
    assert plain.panel == ()
    both = saved_images(SaveOptions(), "s", tmp_path, tmp_path, samples=3, refined=True)
    assert both is not None
    assert (both.panel, both.samples, both.refined) == (("lq", "restored", "gt"), 3, True)


def test_a_test_and_a_validation_write_panels(world: World) -> None:
    trainer = Trainer(world.options(True, ("val:save_img:panel=[lq,restored,refined,gt,error,regions]",)), False)
    trainer.run()
    folder = trainer.paths.run / "panels"
    (set_folder,) = folder.iterdir()
    assert sorted(path.name for path in set_folder.iterdir()) == ["4", "8"]
    pictures = sorted((set_folder / "8").glob("*.png"))
    saved = trainer.paths.visualization / set_folder.name / "8"
    assert len(pictures) * 2 == len(list(saved.glob("*.png")))  # restored and refined
    shown = views(read_image(pictures[0]), 6)
    assert np.array_equal(shown[1], read_image(saved / pictures[0].name))
    assert np.array_equal(shown[2], read_image(saved / f"{pictures[0].stem}_refined.png"))
    weights = trainer.paths.network("g", "latest")
    values = world.values(name="scored")
    del values["train"]
    values["datasets"] = {"test": values["datasets"]["val"]}
    values["path"]["pretrain_network_g"] = str(weights)
    values["val"]["save_img"] = {"panel": ["lq", "restored", "refined"]}
    score_network(load_options(world.write(values)))
    panels = sorted((world.root / "results" / "scored" / "panels").rglob("*.png"))
    assert len(panels) == len(pictures)
    views(read_image(panels[0]), 2)  # a test has no refiner


@pytest.mark.parametrize("value", ["{panel: []}", "{panel: [lq, sharp]}", "{panels: [lq]}", "yes please"])
def test_other_values_are_refused(world: World, value: str) -> None:
    with pytest.raises(OptionsError, match=r"val\.save_img"):
        world.options(True, (f"val:save_img={value}",))
