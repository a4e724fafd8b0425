"""--check: what it finds before a run, and that it leaves nothing behind."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from conftest import World, photograph
from engine.train.test_training import run

from sam4ir.engine.build import BuildError
from sam4ir.engine.train import check as module
from sam4ir.engine.train import data as train_data
from sam4ir.engine.train.check import check
from sam4ir.utils.image import write_image

PROGRESSIVE = (
    "datasets:train:gt_sizes=[16, 24]",
    "datasets:train:mini_batch_sizes=[2, 1]",
    "datasets:train:iters=[3, 5]",
    "train:total_batch=[4, 4]",
)


def files(root: Path) -> dict[Path, bytes]:
    """What lies below a folder, but LMDB's lock files, in which readers hold places."""
    found = (path for path in root.rglob("*") if path.name != "lock.mdb")
    return {path: path.read_bytes() if path.is_file() else b"" for path in found}


@pytest.mark.parametrize("sam", [False, True])
def test_a_run_that_can_start_is_measured_and_nothing_is_written(world: World, sam: bool, capsys) -> None:
    options, before = world.options(sam, PROGRESSIVE), files(world.root)
    assert check(options) == 0
    assert files(world.root) == before
    out = capsys.readouterr().out
    assert "patches of 16, batch 4 as 2 images in 2 rounds" in out
    assert "patches of 24, batch 4 as 1 images in 4 rounds" in out
    assert out.count("s a step") == (3 if sam else 2)  # SAM4IR's terms begin within the first stage
    assert "estimate" in out
    assert out.splitlines()[-1] == "small: ready to train"


def test_every_problem_is_listed(world: World, capsys) -> None:
    broken = world.root / "gt" / "photo_1.png"
    broken.write_bytes(broken.read_bytes()[:300])
    write_image(world.root / "gt" / "photo_3.png", photograph(3, height=44))
    assert check(world.options(True, ("path:pretrain_network_g=/nowhere.pth",))) == 2
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("PROBLEM")]
    for named in ("photo_1.png", "photo_3", "/nowhere.pth"):
        assert any(named in line for line in problems), named


def test_every_set_that_cannot_be_built_is_listed(world: World, capsys) -> None:
    overrides = ("datasets:train:dataroot_gt=/no_gt", "datasets:val:masks:store=/no_masks.lmdb")
    assert check(world.options(True, overrides)) == 2
    out = capsys.readouterr().out
    assert "/no_gt" in out
    assert "/no_masks.lmdb" in out
    assert "not measured" in out
    write_image(world.root / "gt" / "new.png", photograph(9))
    assert check(world.options(True)) == 2
    assert "masks.lmdb lacks 1 image: new" in capsys.readouterr().out


def test_masks_that_lack_are_named_for_all_sets_at_once_with_the_command_that_makes_them(world: World, capsys) -> None:
    for i in range(5):
        write_image(world.root / "val" / f"other_{i}.png", photograph(i))
    overrides = (
        f"datasets:val:dataroot_gt={world.root / 'val'}",
        "datasets:train:masks:store=/no_masks.lmdb",
    )
    with pytest.raises(BuildError) as raised:
        train_data.data_sets(world.options(True, overrides))
    missing = f"sam4ir make-masks --input {world.root / 'gt'} --store /no_masks.lmdb --sam NAME"
    for sentence in ("datasets.train.masks.store: /no_masks.lmdb: there is no such mask store", missing):
        assert sentence in str(raised.value)
    assert f"datasets.val.masks.store: {world.root / 'masks.lmdb'} lacks 5 images" in str(raised.value)
    assert check(world.options(True, overrides)) == 2
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("PROBLEM")]
    assert len(problems) == 2
    assert missing in " ".join(problems)
    assert f"make-masks --input {world.root / 'val'} --store {world.root / 'masks.lmdb'}" in " ".join(problems)


def test_a_val_block_without_a_set_is_noted(world: World, capsys) -> None:
    options = world.options(False)
    options = options.model_copy(update={"datasets": {"train": options.datasets["train"]}})
    assert check(options) == 0
    assert "notice   val.val_freq has no effect: datasets has no validation set" in capsys.readouterr().out


def test_images_smaller_than_the_patch_are_counted(world: World, capsys) -> None:
    assert check(world.options(False, ("datasets:train:gt_size=48",))) == 0
    assert "train: 5 images are smaller than the patch" in capsys.readouterr().out


def test_an_image_beyond_the_sample_that_is_read_whole_is_still_compared_by_its_header(world: World, capsys) -> None:
    for i in range(5):
        write_image(world.root / "lq" / f"photo_{i}.png", photograph(i))
    write_image(world.root / "lq" / "photo_4.png", photograph(4, width=53))
    pairs = (
        f"{{type: PairedImageDataset, dataroot_gt: {world.root / 'gt'}, dataroot_lq: {world.root / 'lq'}, gt_size: 24}}"
    )
    options = world.options(False, (f"datasets:train={pairs}",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DECODED", 1)
        assert check(options) == 2
    out = capsys.readouterr().out
    assert "40x53" in out
    assert "1 read whole, the others by their headers" in out


def test_a_disk_that_is_too_small_is_told(world: World, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "total used free")(1, 1, 1000))
    assert check(world.options()) == 2
    assert "PROBLEM  disk: 2 checkpoints" in capsys.readouterr().out


def test_a_batch_that_cannot_be_made_up_is_told(world: World, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    from sam4ir.utils.dist import World as Processes

    monkeypatch.setattr(Processes, "largest", lambda self, value: value)  # there are no other processes to ask
    monkeypatch.setattr(Processes, "gather", lambda self, value: [value] * self.size)
    assert check(world.options(False, ("train:total_batch=4",)), world=Processes(0, 3)) == 2
    assert "train.total_batch: 4 is no multiple of what 3 process(es)" in capsys.readouterr().out


def test_a_run_that_would_be_refused_is_told_and_one_that_resumes_is_loaded(world: World, capsys) -> None:
    run(world, False, "train:total_iter=4")
    assert check(world.options()) == 2
    assert "holds a run with checkpoints up to iteration 4" in capsys.readouterr().out
    before = files(world.root)
    assert check(world.options(), resume=True) == 0
    assert files(world.root) == before
    assert "resume   from iteration 4" in capsys.readouterr().out
    assert check(world.options(False, ("network_g:width=8",)), resume=True) == 2
    assert "belongs to another network" in capsys.readouterr().out


def test_terms_that_count_from_the_start_make_one_phase(world: World, capsys) -> None:
    assert check(world.options(True, ("train:distill:start_iter=0",))) == 0
    assert capsys.readouterr().out.count("s a step") == 1


def test_phases_are_measured_each_by_itself(world: World, capsys) -> None:
    first = run(world, False, "name=first", "train:total_iter=2")
    pretrained = f"path:pretrain_network_g={first / 'models' / 'net_g_2.pth'}"
    phases = "train:distill={schedule: two_phase, refine_iter: 3}"
    assert check(world.options(True, (pretrained, phases))) == 0
    out = capsys.readouterr().out
    assert "iterations 1 to 3" in out
    assert "iterations 4 to 8" in out


def test_a_gradient_that_is_not_finite_is_told(world: World, capsys) -> None:
    assert check(world.options(False, ("train:optim_g:lr=1e30", "train:use_grad_clip=false"))) == 2
    assert "not finite" in capsys.readouterr().out


@pytest.mark.parametrize("error", [KeyError("a bug"), ValueError("a bug"), RuntimeError("a bug")], ids=repr)
def test_a_bug_in_a_data_set_is_no_problem_of_the_data(
    world: World, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(*_: object) -> None:
        raise error

    monkeypatch.setattr("sam4ir.data.noisy.GaussianDenoisingDataset.get", get)
    with pytest.raises(type(error), match="a bug"):
        check(world.options())
