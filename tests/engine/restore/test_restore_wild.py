"""Files as people have them go through the command with a network that changes nothing, and keep what is theirs."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms, ImageOps

from sam4ir.cli.restore import main
from sam4ir.registry import ARCHS
from sam4ir.utils.image import read_image, write_image

TINY = {"width": 4, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [1]}
ROWS, COLUMNS = np.mgrid[0:40, 0:56]
RGB = np.stack([COLUMNS * 4, ROWS * 6, (ROWS + COLUMNS) * 2], -1).clip(0, 255).astype(np.uint8)
ALPHA = (COLUMNS[..., None] * 4).astype(np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
CAMERA, GPS = 0x8769, 0x8825


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network that gives back its input: it adds zero to it."""
    network = ARCHS.get("NAFNet")(img_channel=3, **TINY)
    state = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "identity.pth"
    torch.save({"params": state}, path)
    return str(path)


def exif(orientation: int = 1, height: int = 40, width: int = 56) -> Image.Exif:
    block = Image.Exif()
    block[0x0112], block[271], block[33432] = orientation, "Maker", "me"
    block[CAMERA] = {36867: "2020:01:02 03:04:05", 0xA002: width, 0xA003: height, 37500: b"maker's note"}
    block[GPS] = {1: "N", 2: (1.0, 2.0, 3.0)}
    return block


def saved(path: Path, picture: Image.Image, **settings: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **settings)
    return path


def restore(weights: str, source: Path, target: Path, *more: str) -> Path:
    words = ["--weights", weights, "--input", str(source), "--output", str(target), "--device", "cpu", *more]
    assert main(words) == 0
    return target


def check_exif(path: Path, height: int, width: int, orientation: int = 1) -> None:
    """The block has what `exif` put there, the new size, and no other orientation."""
    with Image.open(path) as file:
        block = file.getexif()
        assert (block[0x0112], block[271], block[33432]) == (orientation, "Maker", "me")
        camera = block.get_ifd(CAMERA)
        assert camera[36867] == "2020:01:02 03:04:05"
        assert (camera[0xA003], camera[0xA002]) == (height, width)
        assert camera[37500] == b"maker's note"
        assert block.get_ifd(GPS)[2] == (1.0, 2.0, 3.0)


# every profile of CMYK here maps each of 16 corners to a colour in Lab, and what lies between linearly


def cmyk_profile(lab: Callable[[int, int, int, int], tuple[int, int, int]]) -> bytes:
    """Return a profile (ICC.1:2022, 10.10, lut8Type) by the Lab bytes of the corners c, m, y, k in {0, 1}."""
    identity = np.diag([65536, 65536, 65536]).astype(">i4").tobytes()
    ramp = bytes(range(256))
    corners = b"".join(bytes(lab(i >> 3 & 1, i >> 2 & 1, i >> 1 & 1, i & 1)) for i in range(16))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + corners + ramp * 3
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    text = b"text" + bytes(4) + b"none\0"
    name = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(8 + 3 + 67)
    tags = {b"A2B0": table, b"wtpt": white, b"cprt": text, b"desc": name}
    place, entries, body = 128 + 4 + 12 * len(tags), b"", b""
    for tag, value in tags.items():
        value += bytes(-len(value) % 4)
        entries += tag + struct.pack(">II", place + len(body), len(value))
        body += value
    head = struct.pack(">I", place + len(body)) + b"none" + bytes([2, 0x40, 0, 0]) + b"prtrCMYKLab "
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + entries + body


def green_for_cyan(c: int, m: int, y: int, k: int) -> tuple[int, int, int]:
    if k:
        return 0, 128, 128
    if c:
        return 118, 80, 178  # L 46, a -48, b 50: the green (0, 128, 0) of sRGB
    return 255, 128, 128


def test_a_cmyk_jpeg_becomes_srgb_by_its_profile(
    tmp_path: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    patches = np.zeros((32, 48, 4), np.uint8)
    patches[:, 16:32, 0], patches[:, 32:, 3] = 255, 255  # paper, cyan, black
    source = saved(
        tmp_path / "a.jpg", Image.fromarray(patches, "CMYK"), quality=100, icc_profile=cmyk_profile(green_for_cyan)
    )
    result = read_image(restore(weights, source, tmp_path / "r.png")).astype(int)
    for column, colour in ((4, (255, 255, 255)), (24, (0, 128, 0)), (44, (0, 0, 0))):
        assert np.abs(result[10, column] - colour).max() <= 8, column
    with Image.open(tmp_path / "r.png") as file:
        assert "icc_profile" not in file.info
    assert "a.jpg: is CMYK; its colours became sRGB by its colour profile" in capsys.readouterr().out
    plain = saved(tmp_path / "b.jpg", Image.fromarray(patches, "CMYK"), quality=100)
    assert np.array_equal(read_image(restore(weights, plain, tmp_path / "p.png")), read_image(plain))
    assert "b.jpg: is CMYK without a colour profile; its colours are an estimate" in capsys.readouterr().out


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("target", ["r.png", "r.jpg", "r.webp", "r.tiff"])
def test_a_turned_photograph_comes_back_upright_with_its_exif_and_profile(
    tmp_path: Path, weights: str, orientation: int, target: str
) -> None:
    block = exif(orientation)
    source = saved(tmp_path / "a.jpg", Image.fromarray(RGB), quality=95, exif=block, icc_profile=SRGB)
    result = restore(weights, source, tmp_path / target)
    shown = read_image(source)
    assert shown.shape[:2] == ((56, 40) if orientation > 4 else (40, 56))
    closeness = {".png": 0, ".tiff": 0, ".jpg": 8, ".webp": 40}[result.suffix]
    assert np.abs(read_image(result).astype(int) - shown).max() <= closeness
    check_exif(result, *shown.shape[:2])
    with Image.open(result) as file:
        assert file.info["icc_profile"] == SRGB
        upright = ImageOps.exif_transpose(file)
        assert upright.size == shown.shape[1::-1]


def test_pixels_that_stay_as_stored_keep_their_orientation(tmp_path: Path, weights: str) -> None:
    source = saved(tmp_path / "a.png", Image.fromarray(RGB), exif=exif(6))
    result = restore(weights, source, tmp_path / "r.png", "--ignore-exif")
    assert np.array_equal(read_image(result, exif_orientation="ignore"), RGB)
    check_exif(result, 40, 56, orientation=6)


def test_the_thumbnail_of_the_damaged_picture_is_not_shown(tmp_path: Path, weights: str) -> None:
    ifd0 = struct.pack("<HHHII", 1, 0x0112, 3, 1, 6) + struct.pack("<I", 26)
    ifd1 = struct.pack("<HHHII", 1, 0x0201, 4, 1, 44) + bytes(4)
    block = b"Exif\0\0II*\0" + struct.pack("<I", 8) + ifd0 + ifd1 + b"\xff\xd8 thumbnail"
    source = saved(tmp_path / "a.jpg", Image.fromarray(RGB), exif=block)
    with Image.open(source) as before, Image.open(restore(weights, source, tmp_path / "r.jpg")) as after:
        assert before.info["exif"][6 + 22 : 6 + 26] == struct.pack("<I", 26)  # the place of the thumbnail's directory
        assert after.info["exif"][6 + 22 : 6 + 26] == bytes(4)
        assert after.getexif()[0x0112] == 1


@pytest.mark.parametrize("target", ["r.png", "r.tiff"])
def test_a_tiff_of_16_bits_keeps_its_depth_and_alpha(tmp_path: Path, weights: str, target: str) -> None:
    pixels = (RGB.astype(np.uint16) * 257) ^ 5
    alpha = ALPHA.astype(np.uint16) * 200
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.concatenate([pixels, alpha], 2),
        photometric="rgb",
        extrasamples=["unassalpha"],
        iccprofile=SRGB,
        extratags=[(271, "s", 0, "Maker", True)],
        metadata=None,
    )
    result = restore(weights, tmp_path / "a.tif", tmp_path / target)
    if target == "r.tiff":
        with tifffile.TiffFile(result) as file:
            stored, tags = file.asarray(), file.pages[0].tags  # type: ignore[union-attr]
            assert tags["InterColorProfile"].value == SRGB
            assert tags["Make"].value == "Maker"
            assert tags["ExtraSamples"].value == (2,)
        assert np.array_equal(stored, np.concatenate([pixels, alpha], 2))
        return
    assert np.array_equal(read_image(result), pixels)
    with Image.open(result) as picture:
        assert (picture.mode, picture.info["icc_profile"]) == ("RGBA", SRGB)
        assert np.array_equal(np.asarray(picture)[..., 3:], alpha >> 8)
        assert picture.getexif()[271] == "Maker"


def test_formats_say_what_they_do_not_hold(tmp_path: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "in" / "deep.png", RGB.astype(np.uint16) * 257 + 3)
    saved(tmp_path / "in" / "clear.png", Image.fromarray(np.concatenate([RGB, ALPHA], 2)), icc_profile=SRGB)
    restore(weights, tmp_path / "in", tmp_path / "out", "--format", "jpg", "--quality", "80")
    lines = capsys.readouterr().out
    assert f"{tmp_path}/in/deep.png: JPEG holds 8 of its 16 bits" in lines
    assert f"{tmp_path}/in/clear.png: JPEG holds no transparency" in lines
    restore(weights, tmp_path / "in", tmp_path / "bmp", "--format", "bmp", "--suffix", "_new")
    assert f"{tmp_path}/in/clear.png: BMP holds no colour profile" in capsys.readouterr().out
    assert np.array_equal(read_image(tmp_path / "bmp" / "clear_new.bmp"), RGB)


def test_a_palette_with_transparency_comes_back_in_colours(tmp_path: Path, weights: str) -> None:
    picture = Image.fromarray(RGB).quantize(16)
    source = saved(tmp_path / "a.png", picture, transparency=bytes([0, 99, *[255] * 14]))
    with Image.open(restore(weights, source, tmp_path / "r.png")) as file, Image.open(source) as before:
        assert np.array_equal(np.asarray(file), np.asarray(before.convert("RGBA")))


@pytest.mark.parametrize("kind", ["webp", "gif", "png"])
def test_of_an_animation_the_first_frame_is_restored_and_a_line_says_so(
    tmp_path: Path, weights: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [Image.fromarray(np.roll(RGB, shift, 1)).quantize(64).convert("RGB") for shift in (0, 9, 20)]
    settings = {"lossless": True} if kind == "webp" else {}
    source = saved(tmp_path / f"a.{kind}", frames[0], save_all=True, append_images=frames[1:], **settings)
    result = restore(weights, source, tmp_path / "r.png")
    assert np.array_equal(read_image(result), np.asarray(frames[0]))
    assert "is an animation of 3 frames, of which the first is restored" in capsys.readouterr().out


@pytest.mark.parametrize(("depth", "alpha"), [(8, False), (8, True), (16, False), (16, True)])
def test_grey_stays_grey(tmp_path: Path, weights: str, depth: int, alpha: bool) -> None:
    kind = np.uint8 if depth == 8 else np.uint16
    grey = RGB[..., :1].astype(kind) * (1 if depth == 8 else 257)
    if depth == 8 and alpha:
        saved(tmp_path / "a.png", Image.fromarray(np.concatenate([grey, ALPHA], 2), "LA"))
    elif depth == 16 and alpha:
        return  # pillow and OpenCV write no such file; the format's test does
    else:
        write_image(tmp_path / "a.png", grey)
    result = restore(weights, tmp_path / "a.png", tmp_path / "r.png")
    assert result.read_bytes()[24:26] == bytes([depth, 4 if alpha else 0])
    assert np.array_equal(read_image(result, 1), grey)
    if alpha:
        with Image.open(result) as file:
            assert np.array_equal(np.asarray(file)[..., 1:], ALPHA)


@pytest.mark.parametrize("size", [(1, 1), (50, 20_000)])
def test_images_of_odd_sizes(tmp_path: Path, weights: str, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    write_image(tmp_path / "a.png", pixels)
    assert np.array_equal(read_image(restore(weights, tmp_path / "a.png", tmp_path / "r.png")), pixels)


@pytest.mark.parametrize("factor", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_large_photograph_goes_through_in_tiles(
    tmp_path: Path, weights: str, factor: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Up to 12 megapixels with a profile; the network changes nothing, so tiles leave the pixels as they are."""
    monkeypatch.setattr("sam4ir.engine.restore.folder.LARGEST_WHOLE", 40_000 * factor**2)
    monkeypatch.setattr("sam4ir.engine.restore.images.LARGE_TILE", 128)
    caplog.set_level("INFO", "sam4ir")
    height, width = 300 * factor, 400 * factor
    pixels = np.tile(RGB, (75, 72, 1))[:height, :width]
    source = tmp_path / "a.jpg"
    saved(source, Image.fromarray(pixels), quality=90, icc_profile=SRGB, exif=exif(8, height, width))
    result = restore(weights, source, tmp_path / "r.png")
    assert np.array_equal(read_image(result), read_image(source))
    assert "so it is restored in blended tiles of 128; --tile 0 takes it whole" in caplog.text
    check_exif(result, width, height)
    with Image.open(result) as file:
        assert file.info["icc_profile"] == SRGB
    caplog.clear()
    restore(weights, source, tmp_path / "whole.png", "--tile", "0")
    assert "blended tiles" not in caplog.text
    assert np.array_equal(read_image(tmp_path / "whole.png"), read_image(source))


def test_transparency_is_enlarged_with_the_image(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ARCHS.get("RRDBNet")(num_feat=8, num_block=1, num_grow_ch=4, scale=4)
    torch.save({"params": network.state_dict()}, tmp_path / "sr.pth")
    alpha = np.full((10, 14, 1), 200, np.uint8)
    source = saved(tmp_path / "a.png", Image.fromarray(np.concatenate([RGB[:10, :14], alpha], 2)), exif=exif())
    for mode, constant in (("carry", True), ("network", False)):
        result = restore(str(tmp_path / "sr.pth"), source, tmp_path / f"{mode}.png", "--alpha", mode)
        with Image.open(result) as file:
            assert (file.mode, file.size) == ("RGBA", (56, 40))
            assert bool((np.asarray(file)[..., 3] == 200).all()) == constant
        check_exif(result, 40, 56)
    result = restore(str(tmp_path / "sr.pth"), source, tmp_path / "drop.png", "--alpha", "drop")
    with Image.open(result) as file:
        assert file.mode == "RGB"


@pytest.mark.slow
def test_standard_input_goes_to_standard_output_and_nothing_else_does(tmp_path: Path, weights: str) -> None:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG")
    words = ["restore", "--weights", weights, "--input", "-", "--output", "-", "--device", "cpu"]
    command = [sys.executable, "-m", "sam4ir", *words]
    done = subprocess.run([*command, "--format", "tiff"], input=file.getvalue(), capture_output=True, check=True)
    assert np.array_equal(tifffile.imread(io.BytesIO(done.stdout)), RGB)
    assert b"1 images restored to standard output" in done.stderr
    empty = subprocess.run(command, input=b"", capture_output=True, check=False)
    assert (empty.returncode, empty.stdout) == (1, b"")
    assert b"skipped: standard input: the file is empty" in empty.stderr


def test_patterns_and_several_places_are_restored_once_each(tmp_path: Path, weights: str) -> None:
    for name in ("x/a.png", "x/b.png", "y/c.png", "y/deep/d.png"):
        write_image(tmp_path / name, RGB)
    words = ["--weights", weights, "--output", str(tmp_path / "out"), "--device", "cpu", "--input"]
    assert main([*words, str(tmp_path / "x" / "*.png"), str(tmp_path / "x" / "a.png"), str(tmp_path / "y")]) == 0
    results = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert results == ["a.png", "b.png", "c.png", "deep/d.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "a.png", "--output", "r.gif"], "--output: images cannot be written as '.gif'; known: .avif, .bmp"),
        (["--input", "*.webp", "--output", "out"], r"\*.webp: no image or video has such a name"),
        (["--input", "-", "a.png", "--output", "out"], "--input: - is standard input and stands alone"),
        (["--input", "a.png", "b.png", "--output", "-"], "--output: - takes one image, and --input names 2"),
        (["--input", "a.png", "b.png", "--output", "r.png"], "--output: r.png is the name of an image"),
        (["--input", "a.png", "--output", "r.jpg", "--format", "png"], "--format: png does not fit r.jpg"),
        (["--input", "a.png", "--output", "r.png", "--suffix", "_x"], "--suffix: r.png is the whole name"),
        (["--input", "a.png", "--output", "r.png", "--quality", "90"], "--quality: PNG stores pixels without loss"),
        (["--input", "a.png", "--output", "r.jpg", "--quality", "101"], "--quality: 101 is none"),
        (["--input", "a.png", "b.png", "--output", "."], "--output: a.png is the image itself"),
        (["--input", "a.png", "--output", "out", "--crf", "60"], "--crf: 60 is none"),
    ],
)
def test_flags_that_do_not_fit_are_named(
    tmp_path: Path, weights: str, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        write_image(Path(name), RGB)
    with pytest.raises(ValueError, match=message):
        main(["--weights", weights, *words])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
