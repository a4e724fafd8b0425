"""No command writes outside of its output folder, whatever the keys of other people's files are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import World, photograph, sam_masks

from sam4ir.cli import masks
from sam4ir.config.load import load_options
from sam4ir.data.lmdb_io import LmdbWriter
from sam4ir.data.masks.crop import FolderSink
from sam4ir.data.masks.store import MaskStoreWriter
from sam4ir.data.sample import Sample
from sam4ir.engine.evaluate.saved_images import SavedImages
from sam4ir.engine.evaluate.score import score_network
from sam4ir.engine.evaluate.validate import Outputs, evaluate
from sam4ir.engine.restore.files import Results, restore_files
from sam4ir.engine.restore.images import ImageRestorer
from sam4ir.engine.restore.work import find_work
from sam4ir.engine.train.loop import Trainer
from sam4ir.errors import UserError
from sam4ir.utils.image import write_image


def outside(world: World) -> list[Path]:
    return list(world.root.parent.rglob("OUTSIDE*"))


def key_that_leads_out(kind: str, world: World) -> str:
    return {"above": "../../../../../../OUTSIDE", "absolute": str(world.root / "OUTSIDE")}[kind]


def with_foreign_images(world: World, key: str) -> dict:
    """Option values whose validation set is an LMDB with this key, and whose images are saved."""
    with LmdbWriter(world.root / "foreign.lmdb") as writer:
        writer.put("photo_0", photograph(0))
        writer.put(key, photograph(1))
    values = world.values()
    values["datasets"]["val"]["dataroot_gt"] = str(world.root / "foreign.lmdb")
    values["val"]["save_img"] = True
    return values


@pytest.mark.parametrize("kind", ["above", "absolute"])
def test_training_refuses_such_a_key_at_its_start(kind: str, world: World) -> None:
    key = key_that_leads_out(kind, world)
    options = load_options(world.write(with_foreign_images(world, key)))
    with pytest.raises(UserError, match=r"data set small_val: key .* leads out of") as caught:
        Trainer(options, resume=False).run()
    assert repr(key) in str(caught.value)
    assert outside(world) == []
    assert not list((world.root / "experiments").rglob("*.pth"))


@pytest.mark.parametrize("kind", ["above", "absolute", "line break"])
def test_a_test_lists_such_a_key_and_scores_the_others(kind: str, world: World) -> None:
    if kind == "line break":
        key = "a\nb"
        write_image(world.root / "odd" / "photo_0.png", photograph(2))
        write_image(world.root / "odd" / f"{key}.png", photograph(1))
    else:
        key = key_that_leads_out(kind, world)
    Trainer(world.options(), resume=False).run()
    values = with_foreign_images(world, "other" if kind == "line break" else key)
    if kind == "line break":
        values["datasets"]["val"]["dataroot_gt"] = str(world.root / "odd")
    values["datasets"] = {"test": values["datasets"]["val"]}
    values["path"]["pretrain_network_g"] = str(world.root / "experiments" / "small" / "models" / "net_g_8.pth")
    del values["train"]
    faults: list[str] = []
    score_network(load_options(world.write(values)), faults=faults)
    assert len(faults) == 1
    assert repr(key) in faults[0]
    assert "no file is written for it, rename the image" in faults[0]
    assert outside(world) == []
    assert [path.name[:7] for path in (world.root / "results").rglob("*.png")] == ["photo_0"]


class Keys:
    """A data set of black images with these keys."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, index: int) -> str:
        return self.keys[index]

    def get(self, index: int, rng: np.random.Generator) -> Sample:
        return Sample(self.keys[index], torch.zeros(3, 4, 4), torch.zeros(3, 4, 4))


class Same:
    """A restorer that gives back its input."""

    def __init__(self) -> None:
        self.network = torch.nn.Identity()

    def __call__(self, lq: torch.Tensor, key: str, sample: int = 0) -> torch.Tensor:
        return lq


def test_two_images_whose_results_would_be_one_file_are_named(tmp_path: Path) -> None:
    refined = Outputs(Same(), torch.device("cpu"), refiner=torch.nn.Identity())
    saved = SavedImages("Set5", tmp_path / "out", refined=True)
    with pytest.raises(UserError, match=r"'a' and 'a_refined' would both be written to .*a_refined\.png"):
        evaluate("Set5", Keys("a", "a_refined"), refined, {}, seed=0, saved=saved)
    assert not (tmp_path / "out").exists()
    outputs = Outputs(Same(), torch.device("cpu"))
    saved = SavedImages("Set5", tmp_path / "out")
    evaluate("Set5", Keys("a", "a_refined", "b/a", "b_a"), outputs, {}, seed=0, saved=saved)
    written = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")]
    assert sorted(written) == ["a.png", "a_refined.png", "b/a.png", "b_a.png"]


@pytest.mark.parametrize("kind", ["above", "absolute"])
def test_masks_view_and_export_name_such_a_key_and_do_the_rest(
    kind: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    key = key_that_leads_out(kind, world)
    store = world.root / "foreign.lmdb"
    with MaskStoreWriter(store, {"generator": "x"}) as writer:
        writer.put(key, sam_masks())
        writer.put("sub/good", sam_masks())
    out = world.root / "deep" / "out"
    for arguments in (["view"], ["export", "--format", "sam"], ["export", "--format", "labels"]):
        assert masks.main([arguments[0], str(store), *arguments[1:], "--output", str(out)]) == 1
        assert f"{store}: key {key!r} leads out of {out}" in capsys.readouterr().err
        assert [path.name.partition(".")[0] for path in out.rglob("*") if path.is_file()] == ["good"]
        for path in out.rglob("good.*"):
            path.unlink()
    assert outside(world) == []


def test_sub_images_are_written_below_their_folder_only(tmp_path: Path) -> None:
    sink = FolderSink(tmp_path / "out")
    with pytest.raises(UserError, match=r"--output-images: key '../OUTSIDE_s001' leads out of"):
        assert "../OUTSIDE_s001" in sink


def test_restore_names_images_that_would_have_one_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "a.bmp", "a.png.png", "b.png"):
        write_image(tmp_path / "in" / name, photograph(0))
    work = find_work([str(tmp_path / "in")], str(tmp_path / "out"))
    same = ImageRestorer(lambda lq, key, sample=0: lq, torch.device("cpu"), 3)
    assert restore_files(work, same, Results(), []) == 1
    errors = capsys.readouterr().err
    assert "a.png" in errors
    assert "would both be restored to" in errors
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.bmp.png", "a.png.png", "b.png"]
