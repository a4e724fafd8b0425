"""scripts/restore.py: which network it builds, and what images it gives back."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
import torch
from conftest import photograph

from sam4ir.cli import restore as script
from sam4ir.engine.restore import files as restoring
from sam4ir.errors import FileError, UserError
from sam4ir.priors.zoo import weights as zoo
from sam4ir.priors.zoo.sources import Url
from sam4ir.priors.zoo.weights import Entry, ZooNetwork
from sam4ir.registry import ARCHS
from sam4ir.utils.files import write_error
from sam4ir.utils.image import ExifOrientation, read_image, write_image
from sam4ir.utils.picture import PictureFile, read_picture

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "restore.py"
TINY = {"width": 4, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [1]}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_image(tmp_path / "in" / "colour.png", photograph(1))
    write_image(tmp_path / "in" / "grey.png", photograph(2)[..., :1].astype("uint16") * 257)
    return tmp_path / "in"


def brightening(role: str, channels: str, number: int, **arguments: object) -> dict[str, torch.Tensor]:
    """Weights of a network that adds 1/255 to each value and nothing else."""
    network = ARCHS.get(role)(**{channels: number, **arguments})
    state = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    state["ending.bias" if role.startswith("NAF") else "last.bias"] += 1 / 255
    return state


def restored(weights: object, photos: Path, *more: str) -> dict[str, np.ndarray]:
    out = photos.parent / "out"
    arguments = ["--weights", str(weights), "--input", str(photos), "--output", str(out), "--device", "cpu", *more]
    assert script.main(arguments) == 0
    return {p.name: read_image(p, 1 if "grey" in p.name else 3) for p in sorted(out.glob("*.png"))}


def brighter(image: np.ndarray, step: int = 1) -> np.ndarray:
    top = np.iinfo(image.dtype).max
    return np.minimum(image.astype(np.int64) + step, top).astype(image.dtype)


def test_a_file_alone_tells_its_network(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = photos.parent / "some.pth"
    torch.save({"state_dict": brightening("HINet", "in_chn", 3, wf=4, depth=2)}, weights)
    found = restored(weights, photos)
    assert np.array_equal(found["colour.png"], brighter(photograph(1)))
    assert "network_g: {type: HINet, in_chn: 3, wf: 4, depth: 2, " in capsys.readouterr().out


def test_a_network_of_one_channel_restores_grey_images(photos: Path) -> None:
    weights = photos.parent / "grey.pth"
    torch.save(brightening("NAFNet", "img_channel", 1, **TINY), weights)
    found = restored(weights, photos, "--tile", "24")
    assert found["grey.png"].shape == (40, 52, 1)
    assert found["grey.png"].dtype == np.uint16
    assert np.array_equal(found["grey.png"], brighter(photograph(2)[..., :1].astype("uint16") * 257, 257))
    luma = read_image(photos / "colour.png", 1)
    assert np.array_equal(read_image(photos.parent / "out" / "colour.png", 1), brighter(luma))


def test_a_name_of_the_zoo_tells_its_network(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAM4IR_HOME", str(photos.parent / "home"))
    file = photos.parent / "home" / "weights" / "tiny.pth"
    file.parent.mkdir(parents=True)
    torch.save({"params": brightening("NAFNetLocal", "img_channel", 3, **TINY)}, file)
    source = Url("http://127.0.0.1:9/tiny.pth", hashlib.sha256(file.read_bytes()).hexdigest())
    entry = Entry("tiny_deraining", "", "", (source,), network=ZooNetwork("NAFNetLocal", TINY))
    monkeypatch.setattr(zoo, "ENTRIES", {entry.name: entry})
    assert np.array_equal(restored(entry.name, photos)["colour.png"], brighter(photograph(1)))
    assert "network_g: {type: NAFNetLocal, width: 4" in capsys.readouterr().out
    with pytest.raises(ValueError, match="did you mean 'tiny_deraining'"):
        restored("tiny_draining", photos)


def test_an_option_file_beside_the_weights_or_by_name_goes_first(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = photos.parent / "experiments" / "x"
    (run / "models").mkdir(parents=True)
    weights = run / "models" / "net_g_latest.pth"
    torch.save({"params": brightening("NAFNet", "img_channel", 3, **TINY)}, weights)
    text = "name: x\nnetwork_g: {type: NAFNet, width: 4, enc_blk_nums: [1], middle_blk_num: 1, dec_blk_nums: [1]}\n"
    (run / "options.yml").write_text(text)
    assert np.array_equal(restored(weights, photos)["colour.png"], brighter(photograph(1)))
    assert "network_g" not in capsys.readouterr().out
    other = photos.parent / "other.yml"
    other.write_text(text.replace("width: 4", "width: 8"))
    with pytest.raises(ValueError, match=r"does not fit NAFNet.*width: 4.* would fit"):
        restored(weights, photos, "-opt", str(other), "--overwrite")


def test_the_folder_of_a_run_means_its_latest_weights(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = photos.parent / "experiments" / "x"
    (run / "models").mkdir(parents=True)
    torch.save({"params": brightening("NAFNet", "img_channel", 3, **TINY)}, run / "models" / "net_g_latest.pth")
    assert np.array_equal(restored(run, photos)["colour.png"], brighter(photograph(1)))
    with pytest.raises(UserError, match="in: is no folder of a run"):
        restored(photos, photos)


def test_the_report_names_the_file_of_a_single_result(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, target = photos.parent / "some.pth", photos.parent / "out" / "one.webp"
    torch.save(brightening("NAFNet", "img_channel", 3, **TINY), weights)
    words = ["--weights", str(weights), "--input", str(photos / "colour.png"), "--device", "cpu", "--output"]
    assert script.main([*words, str(target)]) == 0
    assert f"restored to {target}\n" in capsys.readouterr().out
    assert script.main([*words, str(target.parent)]) == 0
    assert f"restored to {target.parent}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": torch.zeros(1)}, "no network that is known here; give an option file with network_g"),
        (None, "no such weights file"),
    ],
)
def test_weights_that_tell_no_network_are_an_error(
    state: dict[str, torch.Tensor] | None, message: str, photos: Path
) -> None:
    weights = photos.parent / "unknown.pth"
    if state is not None:
        torch.save(state, weights)
    with pytest.raises(ValueError, match=f"unknown.pth: .*{message}"):
        restored(weights, photos)


def test_a_network_of_two_views_is_refused(photos: Path) -> None:
    dual = {"inp_channels": 6, "dual_pixel_task": True, "dim": 4, "num_blocks": [1, 1, 1, 1], "heads": [1, 1, 1, 1]}
    torch.save(ARCHS.get("Restormer")(**dual).state_dict(), photos.parent / "dual.pth")
    with pytest.raises(ValueError, match=r"Restormer restores neither RGB nor grey images \(.*6 channels"):
        restored(photos.parent / "dual.pth", photos)


def test_a_wrong_device_is_named(photos: Path) -> None:
    torch.save(brightening("NAFNet", "img_channel", 3, **TINY), photos.parent / "w.pth")
    with pytest.raises(ValueError, match="--device: 'gpu' is none; give auto, cpu"):
        restored(photos.parent / "w.pth", photos, "--device", "gpu")


def identity(photos: Path) -> str:
    """A network that adds 1/255, which every test of places uses."""
    torch.save(brightening("NAFNet", "img_channel", 3, **TINY), photos.parent / "w.pth")
    return str(photos.parent / "w.pth")


def test_the_output_may_be_a_file_for_one_image(photos: Path) -> None:
    place = ["--weights", identity(photos), "--input", str(photos / "colour.png"), "--device", "cpu"]
    target = photos.parent / "new" / "better.tiff"
    assert script.main([*place, "--output", str(target)]) == 0
    assert np.array_equal(read_image(target), brighter(photograph(1)))
    assert script.main([*place, "--output", str(photos.parent / "folder")]) == 0
    assert (photos.parent / "folder" / "colour.png").is_file()
    (photos.parent / "old.png").mkdir()  # a folder of such a name stays one
    assert script.main([*place, "--output", str(photos.parent / "old.png")]) == 0
    assert (photos.parent / "old.png" / "colour.png").is_file()


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("in", "in", "--output: .*in is where the images lie; results would replace them"),
        ("in", "link", "--output: .*link is where the images lie; results would replace them"),
        ("in", "x.png", "--output: .*x.png is the name of an image, and .*in is a folder; name a folder"),
        ("in", "file", "--output: .*file is a file; name a folder"),
        ("in/colour.png", "in", "--output: .*colour.png is the image itself"),
        ("in/colour.png", "in/colour.png", "--output: .*colour.png is the image itself"),
        ("in/colour.png", "file", "--output: .*file is a file; name a folder, or a file with the suffix"),
    ],
)
def test_an_output_that_is_no_place_for_results_is_refused(
    photos: Path, source: str, output: str, message: str
) -> None:
    (photos.parent / "link").symlink_to(photos)
    (photos.parent / "file").touch()
    before = (photos / "colour.png").read_bytes()
    arguments = ["--weights", identity(photos), "--input", str(photos.parent / source), "--overwrite"]
    with pytest.raises(ValueError, match=message):
        script.main([*arguments, "--output", str(photos.parent / output)])
    assert (photos / "colour.png").read_bytes() == before


def test_results_and_hidden_files_in_the_input_are_no_input(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photos / "._colour.png").write_bytes(b"no image")
    (photos / "again").symlink_to(photos)
    place = ["--weights", identity(photos), "--input", str(photos), "--output", str(photos / "out"), "--device", "cpu"]
    assert script.main(place) == 0
    assert script.main(place) == 0
    assert sorted(path.name for path in photos.rglob("*.png")) == sorted(
        ["._colour.png", "colour.png", "grey.png", "colour.png", "grey.png"]
    )
    assert "1 hidden file, 1 link to a folder that is listed already (again)" in caplog.text
    assert "1 folder that the results go to (out)" in caplog.text


def test_images_at_fault_are_listed_and_the_rest_is_restored(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = {
        "a.png": MemoryError(),
        "b.png": cv2.error("no such size"),
        "c.png": OSError(36, "File name too long"),
        "d.png": UserError("damaged"),
    }
    for name in (*faults, "e.png"):
        write_image(photos / name, photograph(1))
    (photos / "gone.png").symlink_to(photos / "nowhere.png")

    def read(data: bytes, name: str, channels: Literal[1, 3], exif_orientation: ExifOrientation) -> PictureFile:
        if Path(name).name in faults:
            raise faults[Path(name).name]
        return read_picture(data, name, channels, exif_orientation)

    monkeypatch.setattr(restoring, "read_picture", read)
    out = photos.parent / "out"
    status = script.main(["--weights", identity(photos), "--input", str(photos), "--output", str(out)])
    assert status == 1
    assert sorted(path.name for path in out.glob("*")) == ["colour.png", "e.png", "grey.png"]
    skipped = capsys.readouterr().err
    for line in (
        f"skipped: {photos}/a.png: memory ran out (MemoryError)",
        f"skipped: {photos}/b.png: OpenCV cannot work on it (no such size)",
        f"skipped: {photos}/c.png: [Errno 36] File name too long",
        f"skipped: {photos}/d.png: damaged",
        f"skipped: {photos}/gone.png: cannot be read",
    ):
        assert line in skipped
    monkeypatch.setitem(faults, "a.png", OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        script.main(["--weights", identity(photos), "--input", str(photos), "--output", str(out)])


RRDB = "{type: RRDBNet, num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_block: 1, num_grow_ch: 4, scale: 4}"


@pytest.mark.parametrize("tiles", [(), ("--tile", "24")])
def test_an_enlarging_network_without_a_scale_gives_the_large_image(photos: Path, tiles: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    network = ARCHS.get("RRDBNet")(num_feat=8, num_block=1, num_grow_ch=4, scale=4)
    weights, options = photos.parent / "sr.pth", photos.parent / "sr.yml"
    torch.save({"params": network.state_dict()}, weights)
    by_weights = restored(weights, photos, *tiles)
    assert by_weights["colour.png"].shape == tuple(
        side * factor for side, factor in zip(photograph(1).shape, (4, 4, 1), strict=True)
    )
    for text in ("", "scale: 4\n"):
        options.write_text(f"name: x\nnetwork_g: {RRDB}\n{text}")
        by_options = restored(weights, photos, "-opt", str(options), "--overwrite", *tiles)
        assert np.array_equal(by_options["colour.png"], by_weights["colour.png"])
    options.write_text(f"name: x\nnetwork_g: {RRDB}\nscale: 2\n")
    with pytest.raises(ValueError, match=r"scale: is 2, but RRDBNet .* images 4 times .*; set scale: 4"):
        restored(weights, photos, "-opt", str(options), "--overwrite", *tiles)


MEMORY = """
import resource, sys
import torch
sys.argv = sys.argv[1:]
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
room = used + (1000 << 20)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_an_image_too_large_for_the_memory_is_restored_in_tiles_and_the_next_one_too(photos: Path) -> None:
    torch.save({"params": brightening("NAFNet", "img_channel", 3, **{**TINY, "width": 8})}, photos.parent / "w.pth")
    large = np.tile(photograph(1), (76, 58, 1))
    write_image(photos / "a_large.png", large)
    words = ["--weights", photos.parent / "w.pth", "--input", photos, "--output", photos.parent / "out"]
    command = [sys.executable, "-c", MEMORY, SCRIPT, *words, "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=500)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "a_large: memory ran out" in done.stderr
    assert "--tile " in done.stderr
    assert np.abs(read_image(photos.parent / "out" / "a_large.png").astype(int) - brighter(large)).max() == 0
    assert (photos.parent / "out" / "grey.png").is_file()


def test_a_full_disk_ends_the_command_at_the_first_image(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[Path] = []

    def write(path: Path, data: bytes) -> None:
        files.append(path)
        raise write_error(path, OSError(28, "No space left on device"))

    monkeypatch.setattr(restoring, "write_bytes", write)
    out = photos.parent / "out"
    with pytest.raises(FileError, match=r"cannot be written \(No space left.*free space"):
        script.main(["--weights", identity(photos), "--input", str(photos), "--output", str(out)])
    assert len(files) == 1


def test_what_a_killed_process_left_is_removed_and_that_of_a_running_one_stays(photos: Path) -> None:
    out = photos.parent / "out"
    out.mkdir()
    with subprocess.Popen(["true"]) as ended:
        pass
    (out / f".a.png.{ended.pid}.part").touch()
    (out / f".b.png.{os.getppid()}.part").touch()
    (out / ".notes.part").touch()
    script.main(["--weights", identity(photos), "--input", str(photos), "--output", str(out)])
    assert sorted(path.name for path in out.glob(".*")) == [f".b.png.{os.getppid()}.part", ".notes.part"]
