"""The files that a user downloaded: folders, .zip and .tar archives, MATLAB's .mat, by name inside the data set."""

from __future__ import annotations

import functools
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sam4ir.errors import UserError
from sam4ir.utils.image import IMAGE_SUFFIXES, ImageError, decode_image

ARCHIVES = (".zip", ".tar")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".rar", ".7z", ".gz")
_LISTED = IMAGE_SUFFIXES | {".mat"}


@dataclass(frozen=True)
class File:
    """A file on disk, a member of an archive, or a block of a .mat file.

    path: on disk. member: its name in the archive. start, length: where an uncompressed tar holds it, in bytes.
    block: which (h, w, 3) uint8 image of the .mat file's array.
    """

    path: str
    member: str = ""
    start: int = 0
    length: int = 0
    block: int | None = None

    def __str__(self) -> str:
        inside = self.member if self.block is None else f"block {self.block}"
        return f"{self.path}:{inside}" if inside else self.path

    def read(self) -> bytes:
        """Its bytes. Raises ImageError naming it."""
        try:
            if self.path.lower().endswith(".zip"):
                return _zip(self.path).read(self.member)
            with Path(self.path).open("rb") as file:
                file.seek(self.start)
                return file.read(self.length) if self.member else file.read()
        except (OSError, zipfile.BadZipFile, zlib.error, KeyError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ImageError(f"{self}: cannot be read ({reason})") from None

    def image(self) -> np.ndarray:
        """(h, w, 3) RGB uint8 or uint16. Raises ImageError naming it."""
        if self.block is None:
            return decode_image(self.read(), str(self))
        return _mat_blocks(self.path)[self.block]


class Tree:
    """The images and .mat files below folders and in archives.

    files: {path inside the folder or archive, with '/': File}. Where two inputs have one path, the first counts.
    spare: archives that lie in the folders unread; told when something is missing.
    Raises ValueError naming the input that is missing or no archive that can be read in place.
    """

    def __init__(self, inputs: Sequence[Path]) -> None:
        self.files: dict[str, File] = {}
        self.spare: list[str] = []
        for path in inputs:
            for name, file in self._listed(path):
                self.files.setdefault(name, file)

    def _listed(self, path: Path) -> Iterator[tuple[str, File]]:
        if path.is_dir():
            return self._folder(path)
        if not path.exists():
            raise UserError(f"--input: {path}: no such folder or archive")
        if path.name.lower().endswith(ARCHIVES):
            return _archive(path)
        if path.suffix.lower() in _LISTED:
            return iter([(path.name, File(str(path)))])
        raise UserError(f"--input: {path}: neither a folder nor a .zip or .tar; unpack it and name the folder")

    def _folder(self, root: Path) -> Iterator[tuple[str, File]]:
        for folder, folders, names in os.walk(root, followlinks=True):
            folders[:] = sorted(f for f in folders if not _hidden(f) and not f.endswith((".lmdb", ".lmdb.part")))
            for name in sorted(n for n in names if not _hidden(n)):
                path = Path(folder) / name
                if path.suffix.lower() in _LISTED:
                    yield path.relative_to(root).as_posix(), File(str(path))
                elif name.lower().endswith((*ARCHIVES, *_COMPRESSED)):
                    self.spare.append(str(path))

    def find(self, pattern: str) -> Iterator[tuple[re.Match[str], File]]:
        """The files whose path ends in the regular expression, which begins at a folder's name; case does not count."""
        expression = re.compile(rf"(?:.*/)?{pattern}", re.IGNORECASE)
        for name in sorted(self.files):
            match = expression.fullmatch(name)
            if match:
                yield match, self.files[name]


def image_pattern(key: str = "key") -> str:
    """The regular expression of an image's file name; the group `key` is its name without suffix."""
    suffixes = "|".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
    return rf"(?P<{key}>[^/]+)\.(?:{suffixes})"


def mat_block_count(file: File, shape: tuple[int, int, int]) -> int:
    """How many images a .mat file of SIDD's blocks holds: (scenes, blocks, *shape) uint8 -> scenes * blocks.

    Only the header is read. Raises ValueError naming the file where it holds something else.
    """
    from scipy import io  # type: ignore[import-untyped]

    arrays = [(name, size) for name, size, _ in _mat(io.whosmat, file.path) if len(size) == 5]
    if len(arrays) != 1 or tuple(arrays[0][1][2:]) != shape:
        raise UserError(
            f"{file.path}: holds {arrays or 'no blocks'}, not one array of (scenes, blocks, *{shape}) uint8"
        )
    return int(arrays[0][1][0] * arrays[0][1][1])


@functools.lru_cache(maxsize=2)
def _mat_blocks(path: str) -> np.ndarray:
    """(n, h, w, 3) uint8, scene by scene."""
    from scipy import io

    arrays = [a for a in _mat(io.loadmat, path).values() if isinstance(a, np.ndarray) and a.ndim == 5]
    if len(arrays) != 1 or arrays[0].dtype != np.uint8:
        raise ImageError(f"{path}: does not hold one array of (scenes, blocks, h, w, 3) uint8")
    blocks: np.ndarray = np.ascontiguousarray(arrays[0]).reshape(-1, *arrays[0].shape[2:])
    return blocks


def _mat(reader: Callable[..., Any], path: str) -> Any:
    """reader(path), its many errors as one ImageError."""
    from scipy.io.matlab import MatReadError  # type: ignore[import-untyped]

    try:
        return reader(path, appendmat=False)
    except NotImplementedError:
        raise ImageError(
            f"{path}: is a MATLAB v7.3 (HDF5) file, which is not read; SIDD's own files are v5: download it again, or "
            "save it in MATLAB with -v7"
        ) from None
    except (MatReadError, OSError, ValueError, TypeError, EOFError, zlib.error) as error:
        raise ImageError(f"{path}: cannot be read as a MATLAB file ({error}); download it again") from None


def _archive(path: Path) -> Iterator[tuple[str, File]]:
    try:
        yield from _zip_members(path) if path.suffix.lower() == ".zip" else _tar_members(path)
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise UserError(
            f"--input: {path}: cannot be read as {path.suffix} ({error}); download it again, or, where it is "
            "compressed as a whole, unpack it"
        ) from None


def _zip_members(path: Path) -> Iterator[tuple[str, File]]:
    for info in _zip(str(path)).infolist():
        if _wanted(info.filename):
            yield PurePosixPath(info.filename).as_posix(), File(str(path), info.filename)


def _tar_members(path: Path) -> Iterator[tuple[str, File]]:
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            name = PurePosixPath(info.name).as_posix()
            if info.isreg() and _wanted(name):
                yield name, File(str(path), name, info.offset_data, info.size)


def _wanted(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in _LISTED - {".mat"} and not any(_hidden(part) for part in path.parts)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


@functools.lru_cache(maxsize=8)
def _zip(path: str) -> zipfile.ZipFile:
    """Opened once a process; workers are started afresh, so none shares it."""
    return zipfile.ZipFile(path)
