"""Read and write videos through the programs ffmpeg and ffprobe: one frame at a time, by pipes."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from sam4ir.errors import UserError
from sam4ir.utils.files import refuse_full

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".wmv"})
_MUXERS = {".mp4": "mp4", ".mov": "mov", ".m4v": "mp4", ".mkv": "matroska", ".webm": "webm"}  # what is written
_MATRICES = {"bt709": "bt709", "smpte170m": "smpte170m", "bt470bg": "bt470bg", "bt2020nc": "bt2020"}
_HDR = ("smpte2084", "arib-std-b67")
PART_MUXER = "nut"  # of the parts of a video: it keeps the times of frames as they are


class VideoError(UserError):
    """A video that cannot be read or written; the message names it."""


@dataclass(frozen=True)
class VideoStream:
    """What is known of a file's first video.

    size: (h, w) as shown, turned by the file's rotation. rate: frames a second. varies: whether frames come at uneven
    times; they are read at `rate` then. frames: how many there are, 0 where the file does not say. start: seconds from
    the start of the file. matrix, primaries, transfer: of the colours, '' where the file does not say. notes: what is
    lost.
    """

    size: tuple[int, int]
    rate: Fraction
    varies: bool
    frames: int
    start: float
    matrix: str
    primaries: str
    transfer: str
    notes: tuple[str, ...]


def require_ffmpeg(name: str) -> None:
    """Raise VideoError where ffmpeg or ffprobe is not installed. name: the video that needs them."""
    for program in ("ffmpeg", "ffprobe"):
        if shutil.which(program) is None:
            raise VideoError(
                f"{name}: videos are read by {program}, which is not installed; install it (apt install ffmpeg, brew "
                "install ffmpeg, winget install ffmpeg), or give the frames as images"
            )


def video_suffix(source: Path) -> str:
    """Return the suffix of the result of a video: its own where that kind is written, else .mkv."""
    suffix = source.suffix.lower()
    if suffix in _MUXERS:
        return suffix
    return ".mkv"


def probe(path: Path) -> VideoStream:
    """Return what ffprobe finds out about a video. Raises VideoError naming the file."""
    words = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_streams", "-show_format", "-of", "json"]
    done = subprocess.run([*words, _place(path)], capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise VideoError(f"{path}: cannot be read as a video ({_reason(done.stderr)})")
    answer: dict[str, Any] = json.loads(done.stdout)
    if not answer.get("streams"):
        raise VideoError(f"{path}: holds no video")
    stream = answer["streams"][0]
    rate, varies = _rate(path, stream)
    height, width = int(stream["height"]), int(stream["width"])
    if _rotation(stream) % 180:
        height, width = width, height
    start = _seconds(stream.get("start_time")) - _seconds(answer.get("format", {}).get("start_time"))
    return VideoStream(
        (height, width),
        rate,
        varies,
        _frames(stream, answer.get("format", {}), rate, varies),
        start,
        _known(stream.get("color_space")),
        _known(stream.get("color_primaries")),
        _known(stream.get("color_transfer")),
        tuple(_notes(stream, rate, varies)),
    )


def _rate(path: Path, stream: dict[str, Any]) -> tuple[Fraction, bool]:
    """Return the frames a second, and whether they vary: then the mean, else the rate of the stream."""
    steady, mean = _fraction(stream.get("r_frame_rate")), _fraction(stream.get("avg_frame_rate"))
    if not steady and not mean:
        raise VideoError(f"{path}: names no frame rate; convert it with ffmpeg first")
    if not mean or not steady:
        return steady or mean, False
    if abs(steady - mean) <= mean / 100:
        return steady, False
    return mean, True


def _fraction(text: str | None) -> Fraction:
    try:
        return Fraction(text or 0)
    except (ValueError, ZeroDivisionError):
        return Fraction(0)


def _seconds(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def _known(text: str | None) -> str:
    if text in (None, "unknown", "unspecified", "reserved"):
        return ""
    return str(text)


def _rotation(stream: dict[str, Any]) -> int:
    """Return the degrees by which the frames are turned when they are shown."""
    for data in stream.get("side_data_list", []):
        if "rotation" in data:
            return int(float(data["rotation"]))
    return int(stream.get("tags", {}).get("rotate", 0))


def _frames(stream: dict[str, Any], file: dict[str, Any], rate: Fraction, varies: bool) -> int:
    """Return how many frames a video has, for the progress alone."""
    count = str(stream.get("nb_frames", ""))
    if count.isdecimal() and not varies:
        return int(count)
    return round(_seconds(stream.get("duration") or file.get("duration")) * rate)


def _notes(stream: dict[str, Any], rate: Fraction, varies: bool) -> Iterator[str]:
    """Yield what the restored video does not keep."""
    if varies:
        yield f"its frame rate varies; it is read at {float(rate):.3f} frames a second; some are repeated or left out"
    if stream.get("field_order", "progressive") not in ("progressive", "unknown"):
        yield "it is interlaced; its frames are restored as they are"
    if any(depth in str(stream.get("pix_fmt")) for depth in ("10", "12", "16", "14")):
        yield "its pixels of more than 8 bits are restored with 8"
    if stream.get("color_transfer") in _HDR:
        yield "it is HDR; its values are restored as they are, and only its tags say so"


def read_frames(path: Path, stream: VideoStream, first: int, damage: list[str]) -> Iterator[np.ndarray]:
    """Yield the frames of a video from number `first` on: (h, w, 3) RGB uint8, turned as they are shown.

    damage: gets a sentence at the end where ffmpeg went on after errors, which it does where a file is damaged.
    Raises VideoError where ffmpeg ends with an error.
    """
    height, width = stream.size
    filters = f"fps={stream.rate},trim=start_frame={first},setpts=PTS-STARTPTS,scale={width}:{height}"
    words = ["ffmpeg", "-v", "error", "-nostdin", "-i", _place(path), "-map", "0:v:0", "-vf", filters]
    words += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    with _running(words, path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, damage=damage) as process:
        assert process.stdout is not None
        while frame := process.stdout.read(height * width * 3):
            if len(frame) < height * width * 3:
                break
            yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)


@contextlib.contextmanager
def writing_frames(
    path: Path, size: tuple[int, int], stream: VideoStream, suffix: str, crf: int
) -> Iterator[Callable[[np.ndarray], None]]:
    """Write a part of a video inside the block; yield what appends a frame (h, w, 3) RGB uint8.

    size: (h, w). stream: the source, of which colours and rate are taken. suffix: of the video that the part is for.
    crf: the quality, 0 (nothing is lost) to 51. Raises VideoError where ffmpeg cannot write it.
    """
    height, width = size
    words = ["ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    words += ["-r", str(stream.rate), "-i", "-", *_codec(size, stream, suffix, crf), "-f", PART_MUXER, _place(path)]
    with _running(words, path, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        pipe = process.stdin
        assert pipe is not None

        def write(frame: np.ndarray) -> None:
            pipe.write(np.ascontiguousarray(frame).data)

        yield write


def _codec(size: tuple[int, int], stream: VideoStream, suffix: str, crf: int) -> list[str]:
    """Return the words that name codec, quality and colours."""
    pixels = "yuv420p"
    if size[0] % 2 or size[1] % 2 or not crf:
        pixels = "yuv444p"  # colours at half the resolution need even sides, and lose some
    if suffix == ".webm":
        words = ["-c:v", "libvpx-vp9", "-crf", str(crf), "-b:v", "0", "-row-mt", "1"]
        if not crf:
            words = ["-c:v", "libvpx-vp9", "-lossless", "1"]
    elif not crf:
        return ["-c:v", "libx264rgb", "-crf", "0", "-preset", "medium", "-pix_fmt", "rgb24"]
    else:
        words = ["-c:v", "libx264", "-crf", str(crf), "-preset", "medium"]
    words += ["-pix_fmt", pixels]
    if stream.matrix in _MATRICES:
        words += [
            "-vf",
            f"scale=out_color_matrix={_MATRICES[stream.matrix]}:out_range=tv",
            "-colorspace",
            stream.matrix,
        ]
    if stream.primaries:
        words += ["-color_primaries", stream.primaries]
    if stream.transfer:
        words += ["-color_trc", stream.transfer]
    return words


def join(
    parts: list[tuple[Path, int]], source: Path, stream: VideoStream, target: Path, suffix: str
) -> tuple[str, ...]:
    """Write a video of parts, with the sound, subtitles and tags of its source; return notes on what is not kept.

    parts: file and number of frames of each, in order. target: the file; its kind is that of suffix. Sound that this
    kind does not hold is encoded anew. Raises VideoError.
    """
    listing = ["ffconcat version 1.0"]
    for path, frames in parts:
        quoted = str(path.absolute()).replace("'", "'\\''")
        listing += [f"file '{quoted}'", f"duration {float(frames / stream.rate):.6f}"]
    places = parts[0][0].with_name("parts.txt")
    places.write_text("\n".join(listing) + "\n", encoding="utf-8")
    words = ["ffmpeg", "-v", "error", "-nostdin", "-y", "-itsoffset", f"{stream.start:.6f}"]
    words += ["-f", "concat", "-safe", "0", "-i", _place(places), "-i", _place(source)]
    words += ["-map", "0:v", "-map_metadata", "1"]
    as_it_is = ["-c", "copy", "-map", "1:a?", "-map", "1:s?"]
    anew = ["-c:v", "copy", "-map", "1:a?"]
    end = ["-f", _MUXERS[suffix], _place(target)]
    if suffix in (".mp4", ".m4v", ".mov"):
        end = ["-movflags", "+faststart", *end]
    first = subprocess.run([*words, *as_it_is, *end], capture_output=True, check=False)
    if not first.returncode:
        return ()
    second = subprocess.run([*words, *anew, *end], capture_output=True, check=False)
    if second.returncode:
        raise _failure(target, f"cannot be written ({_reason(second.stderr)})")
    return (f"{suffix} does not hold its sound or subtitles; sound was encoded anew, and subtitles are left out",)


@contextlib.contextmanager
def _running(
    words: list[str], path: Path, stdin: int, stdout: int, damage: list[str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ffmpeg inside the block, and wait for its end. Raises VideoError naming the file where that is an error.

    damage: gets a sentence where ffmpeg speaks of errors and yet ends well.
    A block that ends by an exception, or because no more frames are wanted, ends ffmpeg. What ffmpeg says goes into a
    file, as a pipe that nobody reads would stop it.
    """
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(words, stderr=said, stdin=stdin, stdout=stdout) as process:
            try:
                yield process
            except BrokenPipeError:
                pass  # ffmpeg has ended, and says why
            except BaseException:
                process.kill()
                raise
            with contextlib.suppress(BrokenPipeError):
                if process.stdin is not None:
                    process.stdin.close()
            code = process.wait()
        said.seek(0)
        errors = said.read()
        if code:
            raise _failure(path, f"ffmpeg ended with an error ({_reason(errors)})")
        if errors.strip() and damage is not None:
            damage.append(f"it is damaged, and frames may be wrong or missing (ffmpeg: {_reason(errors)})")


def _failure(path: Path, reason: str) -> VideoError:
    """Return the error of a video. Raises FileError where the reason is a full disk, which ends the command."""
    error = VideoError(f"{path}: {reason}")
    refuse_full(path, error)
    return error


def _place(path: Path) -> str:
    """Return a path as ffmpeg takes it: one that is no flag and no protocol."""
    return f"file:{path}"


def _reason(said: bytes) -> str:
    """Return the last line of what ffmpeg wrote."""
    lines = said.decode("utf-8", "replace").strip().splitlines()
    if not lines:
        return "it gave no reason"
    return lines[-1].strip()
