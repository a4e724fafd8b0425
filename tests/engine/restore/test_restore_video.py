"""Videos go through frame by frame, keep their sound, and go on where a killed command was."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam4ir.engine.restore import video
from sam4ir.engine.restore.video import restore_video
from sam4ir.utils import ffmpeg
from sam4ir.utils.ffmpeg import VideoError

FRAMES, RATE = 26, "30000/1001"
needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None, reason="ffmpeg is not installed"
)


def run_ffmpeg(*words: object) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, words)], check=True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 26 different frames, with a tone."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
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
def test_a_file_that_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"a\.mp4: cannot be read as a video"):
        restore_video(tmp_path / "a.mp4", tmp_path / "out.mp4", same, 0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4"]


def test_without_ffmpeg_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg.shutil, "which", lambda program: None)
    with pytest.raises(VideoError, match=r"a\.mp4: videos are read by ffmpeg, which is not installed; install it"):
        restore_video(tmp_path / "a.mp4", tmp_path / "out.mp4", same, 0, "")
