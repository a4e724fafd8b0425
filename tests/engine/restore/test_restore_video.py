"""Videos go through frame by frame, keep their sound, and go on where a killed command was."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sam4ir.cli.restore import main
from sam4ir.engine.restore import video
from sam4ir.engine.restore.video import restore_video
from sam4ir.registry import ARCHS
from sam4ir.utils import ffmpeg
from sam4ir.utils.ffmpeg import VideoError
from sam4ir.utils.image import write_image

FRAMES, RATE = 26, "30000/1001"
pytestmark = pytest.mark.slow
needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None, reason="ffmpeg is not installed"
)


def run_ffmpeg(*words: object) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, words)], check=True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 26 different frames, with a tone; an empty file where there is no ffmpeg."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    if shutil.which("ffmpeg") is None:
        path.touch()
        return path
    source = f"testsrc=size=64x48:rate={RATE}:duration=0.86"
    run_ffmpeg("-f", "lavfi", "-i", source, "-f", "lavfi", "-i", "sine=duration=0.86", "-c:a", "aac", path)
    return path


@pytest.fixture(autouse=True)
def _short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "FRAMES_OF_A_PART", 10)


def same(frame: np.ndarray) -> np.ndarray:
    return frame


def frames_of(path: Path) -> np.ndarray:
    """Return the frames as ffmpeg shows them, (n, h, w, 3)."""
    stream = shown(path)["streams"][0]
    words = ["ffmpeg", "-v", "error", "-i", path, "-vsync", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    data = subprocess.run(words, capture_output=True, check=True).stdout
    height, width = stream["height"], stream["width"]
    for side in stream.get("side_data_list", []):
        if side.get("rotation", 0) % 180:
            height, width = width, height
    return np.frombuffer(data, np.uint8).reshape(-1, height, width, 3)


def shown(path: Path) -> dict[str, Any]:
    words = ["ffprobe", "-v", "error", "-show_streams", "-show_packets", "-of", "json", path]
    found: dict[str, Any] = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    return found


def sound(path: Path) -> bytes:
    words = ["ffmpeg", "-v", "error", "-i", path, "-map", "0:a", "-c", "copy", "-f", "adts", "-"]
    return subprocess.run(words, capture_output=True, check=True).stdout


@needs_ffmpeg
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_frames_sound_and_rate_stay(clip: Path, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"out{suffix}"
    assert restore_video(clip, target, same, 0, "") == ()
    assert len(frames_of(clip)) == FRAMES
    assert np.array_equal(frames_of(target), frames_of(clip))
    assert sound(target) == sound(clip)
    stream = shown(target)["streams"][0]
    assert (stream["r_frame_rate"], stream["avg_frame_rate"]) == (RATE, RATE)
    assert sorted(path.name for path in tmp_path.iterdir()) == [target.name]


@needs_ffmpeg
def test_a_killed_command_goes_on_behind_its_whole_parts(clip: Path, tmp_path: Path) -> None:
    target, calls = tmp_path / "out.mp4", 0

    def ends_at_14(frame: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 14:
            raise KeyboardInterrupt
        return frame

    with pytest.raises(KeyboardInterrupt):
        restore_video(clip, target, ends_at_14, 0, "a network")
    assert not target.exists()
    rest = []
    restore_video(clip, target, lambda frame: rest.append(frame) or frame, 0, "a network")  # type: ignore[func-returns-value]
    assert len(rest) == FRAMES - 10
    assert np.array_equal(frames_of(target), frames_of(clip))
    assert sound(target) == sound(clip)


@needs_ffmpeg
def test_parts_of_another_network_are_not_used(clip: Path, tmp_path: Path) -> None:
    def fails(frame: np.ndarray) -> np.ndarray:
        raise MemoryError

    folder = tmp_path / ".out.mp4.parts"
    folder.mkdir()
    (folder / "000000_10.nut").write_bytes(b"of another network")
    (folder / "digest.txt").write_text("another")
    with pytest.raises(MemoryError):
        restore_video(clip, tmp_path / "out.mp4", fails, 0, "")
    assert not (folder / "000000_10.nut").exists()


@needs_ffmpeg
def test_a_turned_video_comes_back_upright(clip: Path, tmp_path: Path) -> None:
    turned = tmp_path / "turned.mp4"
    run_ffmpeg("-i", clip, "-c", "copy", "-metadata:s:v", "rotate=90", turned)
    if frames_of(turned).shape[1:3] != (64, 48):
        pytest.skip("this ffmpeg writes a rotation in another way")
    restore_video(turned, tmp_path / "out.mp4", same, 0, "")
    assert np.array_equal(frames_of(tmp_path / "out.mp4"), frames_of(turned))
    assert "side_data_list" not in shown(tmp_path / "out.mp4")["streams"][0]


@needs_ffmpeg
def test_a_rate_that_varies_is_stated_and_the_length_stays(clip: Path, tmp_path: Path) -> None:
    uneven = tmp_path / "uneven.mp4"
    run_ffmpeg("-i", clip, "-vf", "select='not(eq(mod(n,5),1))*not(eq(mod(n,7),3))'", "-vsync", "vfr", uneven)
    (note,) = restore_video(uneven, tmp_path / "out.mp4", same, 20, "")
    assert note.startswith("its frame rate varies; it is read at ")
    before, after = (float(shown(path)["streams"][0]["duration"]) for path in (uneven, tmp_path / "out.mp4"))
    assert abs(before - after) < 0.06


@needs_ffmpeg
@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_network_that_enlarges_gives_a_larger_video(clip: Path, tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"out{suffix}"
    restore_video(clip, target, lambda frame: frame.repeat(2, 0).repeat(2, 1), 10, "")
    found = frames_of(target)
    assert found.shape == (FRAMES, 96, 128, 3)
    means = found.astype(float).mean((1, 2)) - frames_of(clip).astype(float).mean((1, 2))
    assert np.abs(means).max() < 8


@needs_ffmpeg
def test_colours_keep_their_tags(clip: Path, tmp_path: Path) -> None:
    tagged = tmp_path / "tagged.mp4"
    flags = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709")
    run_ffmpeg("-i", clip, "-vf", "scale=out_color_matrix=bt709", *flags, tagged)
    restore_video(tagged, tmp_path / "out.mp4", same, 10, "")
    stream = shown(tmp_path / "out.mp4")["streams"][0]
    assert [stream[key] for key in ("color_space", "color_primaries", "color_transfer")] == ["bt709"] * 3
    apart = frames_of(tmp_path / "out.mp4").astype(float).mean((0, 1, 2)) - frames_of(tagged).mean((0, 1, 2))
    assert np.abs(apart).max() < 3


@needs_ffmpeg
def test_a_video_that_is_damaged_in_the_middle_is_restored_and_said_to_be(clip: Path, tmp_path: Path) -> None:
    run_ffmpeg("-i", clip, "-c:v", "mpeg2video", "-g", "5", tmp_path / "whole.ts")
    assert restore_video(tmp_path / "whole.ts", tmp_path / "whole.mkv", same, 20, "") == ()
    data = bytearray((tmp_path / "whole.ts").read_bytes())
    half = len(data) // 2
    data[half : half + 4000] = np.random.default_rng(0).bytes(4000)
    (tmp_path / "damaged.ts").write_bytes(data)
    (note,) = restore_video(tmp_path / "damaged.ts", tmp_path / "damaged.mkv", same, 20, "")
    assert note.startswith("it is damaged, and frames may be wrong or missing (ffmpeg: ")
    assert len(frames_of(tmp_path / "damaged.mkv")) > FRAMES // 2


@needs_ffmpeg
def test_a_file_that_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"a\.mp4: cannot be read as a video"):
        restore_video(tmp_path / "a.mp4", tmp_path / "out.mp4", same, 0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4"]


@pytest.fixture
def words(clip: Path, tmp_path: Path) -> list[str]:
    """The words of a command with a network that changes nothing, for a folder with a video and an image."""
    network = ARCHS.get("NAFNet")(img_channel=3, width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1])
    torch.save({key: torch.zeros_like(value) for key, value in network.state_dict().items()}, tmp_path / "w.pth")
    write_image(tmp_path / "in" / "a.png", np.full((8, 9, 3), 7, np.uint8))
    shutil.copy(clip, tmp_path / "in" / "clip.mp4")
    flags = ["--weights", str(tmp_path / "w.pth"), "--device", "cpu", "--crf", "0"]
    return [*flags, "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]


@needs_ffmpeg
def test_a_folder_may_hold_videos(
    words: list[str], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for again in ("restored to", "2 were there already and were kept"):
        assert main(words) == 0
        assert again in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "clip.mp4"]
    assert np.array_equal(frames_of(tmp_path / "out" / "clip.mp4"), frames_of(clip))


def test_a_video_is_skipped_with_a_hint_where_ffmpeg_is_missing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ffmpeg.shutil, "which", lambda program: None)
    (tmp_path / "in" / "clip.mp4").touch()
    assert main(words) == 1
    assert f"skipped: {tmp_path}/in/clip.mp4: videos are read by ffmpeg, which is not" in capsys.readouterr().err
    assert (tmp_path / "out" / "a.png").is_file()


@needs_ffmpeg
def test_an_encoder_that_ends_early_is_named(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg, "_codec", lambda *_: ["-c:v", "nonesuch"])
    with pytest.raises(VideoError, match=r"ffmpeg ended with an error .*nonesuch"):
        restore_video(clip, tmp_path / "out.mp4", same, 0, "")


@needs_ffmpeg
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_command_that_kill_9_ends_goes_on(clip: Path, tmp_path: Path) -> None:
    """The command itself, killed while its ffmpeg runs, whenever a part was saved."""
    torch.manual_seed(0)
    network = ARCHS.get("NAFNet")(img_channel=3, width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1])
    torch.save({"params": network.state_dict()}, tmp_path / "w.pth")
    long, out = tmp_path / "long.mkv", tmp_path / "out"
    run_ffmpeg("-stream_loop", "19", "-i", clip, "-c", "copy", long)
    words = ["--weights", tmp_path / "w.pth", "--device", "cpu", "--crf", "0", "--input", long, "--output"]
    command = [sys.executable, "-m", "sam4ir", "restore", *map(str, words)]
    subprocess.run([*command, str(tmp_path / "straight")], check=True)
    parts, saved = out / ".long.mkv.parts", 0
    for _ in range(2):
        process = subprocess.Popen([*command, str(out)])
        while process.poll() is None and len(list(parts.glob("*.nut"))) <= saved:
            time.sleep(0.02)
        process.kill()
        process.wait()
        saved = len(list(parts.glob("*.nut")))
        assert saved
    done = subprocess.run([*command, str(out)], check=True, capture_output=True, text=True)
    assert "0 images and 1 videos restored" in done.stdout
    assert np.array_equal(frames_of(out / "long.mkv"), frames_of(tmp_path / "straight" / "long.mkv"))
    assert sound(out / "long.mkv") == sound(tmp_path / "straight" / "long.mkv")
    assert [path.name for path in out.iterdir()] == ["long.mkv"]


def test_without_ffmpeg_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg.shutil, "which", lambda program: None)
    with pytest.raises(VideoError, match=r"a\.mp4: videos are read by ffmpeg, which is not installed; install it"):
        restore_video(tmp_path / "a.mp4", tmp_path / "out.mp4", same, 0, "")
