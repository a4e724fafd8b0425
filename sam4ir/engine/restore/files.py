"""Restore the files of a Work one after the other, write each result whole, and say what was lost or skipped."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from sam4ir.engine.restore.images import PictureRestorer
from sam4ir.engine.restore.pictures import AlphaMode, restore_picture
from sam4ir.engine.restore.progress import ItemProgress
from sam4ir.engine.restore.video import restore_video
from sam4ir.engine.restore.work import STREAM, STREAM_NAME, Work, is_video, planned
from sam4ir.utils.faults import fault_of_file
from sam4ir.utils.files import remove_left_over, write_bytes
from sam4ir.utils.image import ExifOrientation, file_bytes
from sam4ir.utils.memory import out_of_memory
from sam4ir.utils.picture import PictureFile, read_picture
from sam4ir.utils.picture_formats import encode_picture

_SHOWN = 3  # names that a line lists


@dataclass(frozen=True)
class Results:
    """How results are made and written.

    quality: of JPEG, WebP and AVIF, None for the format's own. alpha: what becomes of transparency. samples: results of
    an image. overwrite: whether results that are there are replaced. crf: quality of videos. identity: what results
    depend on besides their file; a video that was begun with another one begins anew. whole_keys: whether the restorer
    gets the keys that images have in a data set, in place of the names of their files.
    """

    quality: int | None = None
    alpha: AlphaMode = "carry"
    samples: int = 1
    overwrite: bool = False
    exif_orientation: ExifOrientation = "apply"
    crf: int = 16
    identity: str = ""
    whole_keys: bool = False


@dataclass
class _Report:
    """What a run has to say at its end. notes: sentence -> names of the files that it holds for."""

    images: int = 0
    videos: int = 0
    old: int = 0
    bad: list[str] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def note(self, name: str, sentences: Sequence[str]) -> None:
        """Add what is not kept of a file."""
        for sentence in dict.fromkeys(sentences):
            self.notes.setdefault(sentence, []).append(name)

    def print(self, output: str) -> None:
        """Print the lines of the report."""
        count = f"{self.images} images"
        if self.videos:
            count += f" and {self.videos} videos"
        print(f"{count} restored to {output}")
        if self.old:
            print(f"{self.old} were there already and were kept; --overwrite replaces them")
        for sentence, names in self.notes.items():
            text = ", ".join(names[:_SHOWN])
            if len(names) > _SHOWN:
                text = f"{len(names)} files ({text}, ...)"
            print(f"{text}: {sentence}")
        for message in self.bad:
            print(f"skipped: {message}", file=sys.stderr)


def restore_files(
    work: Work,
    restorer: PictureRestorer,
    results: Results,
    progress: Sequence[ItemProgress],
    stream: BinaryIO | None = None,
) -> int:
    """Write every restored file; print how many there are, what is not kept of them, and which cannot be read.

    progress: is set to the name of each file. stream: standard output, for a Work without a folder.
    Returns the exit status: 1 where a file was skipped.
    """
    report = _Report(bad=list(work.unreadable))
    if work.folder is not None and work.folder.is_dir():
        remove_left_over(work.folder)
    for file, wanted in tqdm(planned(work, results.samples, report.bad), unit="image", disable=None):
        targets: Mapping[int, Path] = wanted
        if work.folder is not None and not results.overwrite:
            targets = {number: target for number, target in wanted.items() if not target.exists()}
        if not targets:
            report.old += 1
            continue
        for item in progress:
            item.begin(str(file))
        try:
            if is_video(file):
                report.note(str(file), _video(file, targets[0], restorer, results))
                report.videos += 1
            else:
                report.note(_name(file), _image(file, targets, work, restorer, results, stream))
                report.images += 1
        except Exception as error:
            message = _message_of(file, error)
            if message is None:
                raise
            report.bad.append(message)
    report.print(_place(work))
    return int(bool(report.bad))


def _place(work: Work) -> str:
    """Return where the results are: a folder, a file, or standard output."""
    if work.folder is None:
        return "standard output"
    if work.single:
        return str(work.folder / work.files[0][1])
    return str(work.folder)


def _name(file: Path) -> str:
    """Return what messages call a file."""
    if str(file) == STREAM:
        return STREAM_NAME
    return str(file)


def _image(
    file: Path,
    targets: Mapping[int, Path],
    work: Work,
    restorer: PictureRestorer,
    results: Results,
    stream: BinaryIO | None,
) -> tuple[str, ...]:
    """Restore an image to its targets, or to the stream; return notes on what is not kept."""
    key = file.stem
    if results.whole_keys:
        key = work.keys[file]
    if str(file) == STREAM:
        data, key = sys.stdin.buffer.read(), "stdin"
    else:
        data = file_bytes(file)
    picture = read_picture(data, _name(file), restorer.channels, results.exif_orientation)
    del data
    notes = picture.notes
    for number, target in targets.items():
        restored = restore_picture(restorer, picture, key, number, results.alpha)
        encoded, lost = encode_picture(restored, work.format, results.quality)
        notes += (*lost, *_dropped(picture, results))
        if stream is not None:
            stream.write(encoded)
            stream.flush()
        else:
            write_bytes(target, encoded)
    return notes


def _dropped(picture: PictureFile, results: Results) -> tuple[str, ...]:
    if picture.alpha is not None and results.alpha == "drop":
        return ("its transparency was dropped",)
    return ()


def _video(file: Path, target: Path, restorer: PictureRestorer, results: Results) -> tuple[str, ...]:
    """Restore a video; return notes on what is not kept."""
    frames = ItemProgress("frame")
    frames.begin(str(file))

    def restore_frame(frame: np.ndarray) -> np.ndarray:
        return restorer(frame, file.stem)

    return restore_video(file, target, restore_frame, results.crf, results.identity, frames)


def _message_of(file: Path, error: Exception) -> str | None:
    """Return the sentence that lists a file with its error; None for a bug."""
    message = fault_of_file(error, _name(file))
    if message is not None and out_of_memory(error):
        message += "; --tile 256 needs less"
    return message
