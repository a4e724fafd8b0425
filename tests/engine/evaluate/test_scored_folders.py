"""`sam4ir test` on two folders, without an option file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import World, photograph

from sam4ir.archs.nafnet import NAFNet
from sam4ir.archs.rrdb import RRDBNet
from sam4ir.cli.main import main
from sam4ir.metrics.psnr import psnr
from sam4ir.utils.image import read_image, to_grey, write_image


@pytest.fixture(autouse=True)
def _here(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs gt and lq: lq is gt, darker by 10 levels."""
    monkeypatch.chdir(world.root)
    for path in sorted(Path("gt").iterdir()):
        dark = np.maximum(read_image(path).astype(int) - 10, 0).astype(np.uint8)
        write_image(Path("lq") / path.name, dark)


def network(channels: int = 3) -> str:
    """Weights of a NAFNet that changes nothing: its blocks begin as identities, and its last convolution is 0."""
    net = NAFNet(img_channel=channels, width=4, enc_blk_nums=[1], middle_blk_num=1, dec_blk_nums=[1])
    torch.nn.init.zeros_(net.ending.weight)
    torch.nn.init.zeros_(net.ending.bias)
    torch.save({"params": net.state_dict()}, "same.pth")
    return "same.pth"


def summary(name: str) -> dict:
    return json.loads(Path("results", name, "summary.json").read_text())


def expected(a: str, b: str, grey: bool = False) -> float:
    values = []
    for path in sorted(Path(a).iterdir()):
        images = [read_image(path), read_image(Path(b) / path.name)]
        if grey:
            images = [to_grey(image) for image in images]
        x, y = (torch.from_numpy(image).permute(2, 0, 1) for image in images)
        values.append(psnr(x, y, data_range=255.0))
    return float(np.mean(values))


@pytest.mark.parametrize("channels", [3, 1])
def test_images_are_restored_by_the_network_of_the_weights_and_scored(
    channels: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["test", "--images", "lq", "--gt", "gt", "--weights", network(channels), "--device", "cpu"]) == 0
    assert "restored" in capsys.readouterr().out
    means = summary("same_lq")["mean"]["gt"]
    wanted = expected("lq", "gt", grey=channels == 1)
    assert means["restored"]["psnr"] == pytest.approx(wanted, abs=1e-4)
    assert means["input"] == pytest.approx(means["restored"])
    assert set(means["restored"]) == {"psnr", "ssim"}


def test_the_scale_is_that_of_the_network_and_names_may_have_a_template() -> None:
    for path in sorted(Path("gt").iterdir()):
        write_image(Path("small") / f"{path.stem}x2.png", read_image(path)[::2, ::2])
    net = RRDBNet(scale=2, num_feat=8, num_block=1, num_grow_ch=4)
    torch.save({"params": net.state_dict()}, "large.pth")
    words = ["test", "--images", "small", "--gt", "gt", "--weights", "large.pth", "--name", "x2", "--metrics", "psnr_y"]
    assert main(words) == 0
    assert set(summary("x2")["mean"]["gt"]) == {"bicubic", "restored"}
    assert set(summary("x2")["mean"]["gt"]["restored"]) == {"psnr_y"}


def test_images_that_are_restored_already_need_no_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--restored", "lq", "--gt", "gt"]) == 0
    means = summary("lq")["mean"]["gt"]
    assert set(means) == {"restored"}
    assert means["restored"]["psnr"] == pytest.approx(expected("lq", "gt"), abs=1e-4)
    assert main(["test", "--restored", "gt", "--gt", "gt", "--name", "lq"]) == 2
    assert "results made with other options" in capsys.readouterr().err
    assert main(["test", "--restored", "gt", "--gt", "gt", "--name", "lq", "--overwrite"]) == 0
    write_image(Path("lq") / "photo_2.png", photograph(2)[:20])
    assert main(["test", "--restored", "lq", "--gt", "gt", "--overwrite"]) == 1
    assert "photo_2" in capsys.readouterr().err


def test_results_of_one_ground_truth_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("lq", "others")
    for name in ("lq", "others"):
        assert main(["test", "--restored", name, "--gt", "gt"]) == 0
    assert main(["test", "--images", "lq", "--gt", "gt", "--weights", network(3), "--name", "same"]) == 0
    assert main(["compare", "results/lq", "results/others", "results/same"]) == 0
    assert "lacks" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "lq", "--gt", "gt"], "add --weights FILE, or --restored"),
        (["--gt", "gt"], "give --images and --weights, or --restored"),
        (["--gt", "gt", "--images", "lq", "--restored", "lq"], "give --images and --weights, or --restored"),
        (["--gt", "gt", "--restored", "lq", "--weights", "same.pth"], "leave --weights out"),
        (["--gt", "gt", "--restored", "nowhere"], "--restored: "),
        (["--gt", "gt", "--restored", "other"], "no two names pair; the first are 'photo_0' and 'x'"),
        (["--gt", "gt", "--restored", "lq", "--metrics", "psnt"], "psnr"),
        (["--gt", "gt", "--restored", "lq", "--name", "a/b"], "--name: "),
        (["--gt", "gt", "--images", "lq", "--weights", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_wrong_folders_are_one_message(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(Path("other") / "x.png", photograph(0))
    assert main(["test", *words]) == 2
    assert message in capsys.readouterr().err
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give an option file"),
        (["-opt", "my.yml", "--gt", "gt"], "--gt: is for folders"),
        (["--gt", "gt", "--restored", "lq", "--force_yml", "name=x"], "needs an option file"),
        (["--gt", "gt", "--images", "lq", "--weights", "a.pth", "b.pth"], "several files need an option file"),
    ],
)
def test_flags_of_folders_and_of_option_files_do_not_mix(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["test", *words])
    assert message in capsys.readouterr().err


def test_weights_in_the_folder_of_a_run_are_scored_as_its_option_file_says(world: World) -> None:
    """Of a training with an average its average is scored, as sam4ir restore takes it."""
    options = world.write(world.values(), name="own.yml")
    assert main(["train", "-opt", str(options)]) == 0
    weights = "experiments/small/models/net_g_latest.pth"
    assert main(["test", "--images", "lq", "--gt", "gt", "--weights", "experiments/small"]) == 0
    assert main(["restore", "--weights", weights, "--input", "lq", "--output", "restored"]) == 0
    assert main(["test", "--restored", "restored", "--gt", "gt"]) == 0
    a, b = summary("small_lq")["mean"]["gt"]["restored"], summary("restored")["mean"]["gt"]["restored"]
    assert a == pytest.approx(b, abs=1e-6)
    test = {"test": {"type": "PairedImageDataset", "dataroot_gt": "gt", "dataroot_lq": "lq"}}
    options = world.write({**world.values(), "datasets": test, "train": world.values()["train"]}, name="test.yml")
    state = torch.load(weights)
    torch.save({"params": state["params_ema"]}, "average.pth")
    assert main(["test", "-opt", str(options), "--weights", "average.pth"]) == 0
    assert summary("small")["mean"]["test"]["restored"] == pytest.approx(b, abs=1e-6)
    assert not torch.equal(state["params"]["ending.bias"], state["params_ema"]["ending.bias"])
