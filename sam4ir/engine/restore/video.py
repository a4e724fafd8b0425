"""Restore a video frame by frame, in parts that a killed command need not restore again."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np

from sam4ir.utils import ffmpeg
from sam4ir.utils.ffmpeg import VideoStream
from sam4ir.utils.files import atomic, make_folder, read_text, write_text

FRAMES_OF_A_PART = 240  # that are lost at most when a command is killed
RestoreFrame = Callable[[np.ndarray], np.ndarray]  # (h, w, 3) RGB uint8 -> (h scale, w scale, 3) uint8
OnFrame = Callable[[int, int], None]  # (frames done, all frames or 0)


def restore_video(
    source: Path, target: Path, restore_frame: RestoreFrame, crf: int, identity: str, on_frame: OnFrame | None = None
) -> tuple[str, ...]:
    """Restore a video to a file beside which its parts lie meanwhile; return notes on what is not kept.

    target: a path with a suffix of ffmpeg.video_suffix. crf: quality, 0 without loss to 51. identity: what the frames
    depend on besides the video, such as weights and tiles; parts of another identity are not used.
    Sound, subtitles, tags, frame rate and the shown orientation stay. A frame that equals the one before is restored
    once. Raises VideoError.
    """
    ffmpeg.require_ffmpeg(str(source))
    stream = ffmpeg.probe(source)
    folder = target.with_name(f".{target.name}.parts")
    parts = _earlier_parts(folder, _digest(source, stream, crf, identity))
    done = sum(count for _, count in parts)
    damage: list[str] = []
    restored = _restored(ffmpeg.read_frames(source, stream, done, damage), restore_frame)
    whole = True
    while whole:
        path, frames = folder / f"{len(parts):06d}", islice(restored, FRAMES_OF_A_PART)
        part, count = _write_part(path, frames, stream, target.suffix, crf, _shown(on_frame, done, stream))
        if count:
            parts.append((part, count))
        done += count
        whole = count == FRAMES_OF_A_PART
    if not parts:
        shutil.rmtree(folder, ignore_errors=True)
        raise ffmpeg.VideoError(f"{source}: holds no frames")
    with atomic(target) as temporary:
        notes = ffmpeg.join(parts, source, stream, temporary, target.suffix)
    shutil.rmtree(folder, ignore_errors=True)
    return (*stream.notes, *damage, *notes)


def _digest(source: Path, stream: VideoStream, crf: int, identity: str) -> str:
    """Return a text that stands for the video and for all that its parts depend on."""
    status = source.stat()
    facts = (str(source.absolute()), status.st_size, status.st_mtime_ns, stream, crf, FRAMES_OF_A_PART, identity)
    return hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()


def _earlier_parts(folder: Path, digest: str) -> list[tuple[Path, int]]:
    """Return (file, frames) of the parts that a killed command left; a folder of other parts is emptied."""
    record = folder / "digest.txt"
    if not record.is_file() or read_text(record).strip() != digest:
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
        write_text(record, digest + "\n")
    parts: list[tuple[Path, int]] = []
    for path in sorted(folder.glob(f"[0-9]*.{ffmpeg.PART_MUXER}")):
        number, _, count = path.stem.partition("_")
        if int(number) != len(parts) or int(count) != FRAMES_OF_A_PART:
            break  # the last part of the video is short: it is cheap, and whether the video ended there is not known
        parts.append((path, int(count)))
    return parts


def _restored(frames: Iterator[np.ndarray], restore_frame: RestoreFrame) -> Iterator[np.ndarray]:
    """Yield the restored frames, RGB; equal neighbours are restored once."""
    before: np.ndarray | None = None
    for frame in frames:
        if before is None or not np.array_equal(frame, before):
            result, before = restore_frame(frame), frame
        yield result


def _shown(on_frame: OnFrame | None, done: int, stream: VideoStream) -> Callable[[int], None]:
    """Return what is called with the frames of a part that are done."""

    def show(count: int) -> None:
        if on_frame is not None:
            on_frame(done + count, stream.frames)

    return show


def _write_part(
    path: Path,
    frames: Iterator[np.ndarray],
    stream: VideoStream,
    suffix: str,
    crf: int,
    show: Callable[[int], None],
) -> tuple[Path, int]:
    """Write a part, with the number of its frames in its name; return its file and that number, 0 for no part."""
    first = next(frames, None)
    if first is None:
        return path, 0
    part = path.with_name(f"{path.name}.part")
    count = 0
    with ffmpeg.writing_frames(part, (first.shape[0], first.shape[1]), stream, suffix, crf) as write:
        for frame in chain([first], frames):
            write(frame)
            count += 1
            show(count)
    named = path.with_name(f"{path.name}_{count}.{ffmpeg.PART_MUXER}")
    with atomic(named) as whole:
        part.replace(whole)
    return named, count
