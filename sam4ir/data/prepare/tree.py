"""The files of a downloaded data set, by their paths in it: in folders, in .zip and .tar archives, and MATLAB's .mat.

Archives are read in place and need not be unpacked.
"""

from __future__ import annotations

import functools
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
from sam4ir.utils.folders import is_hidden, list_files
from sam4ir.utils.image import IMAGE_SUFFIXES, ImageError, decode_image

ARCHIVES = (".zip", ".tar")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".rar", ".7z", ".gz")
_LISTED = IMAGE_SUFFIXES | {".mat"}


@dataclass(frozen=True)
class File:
    """A file on disk, a member of an archive, or a block of a .mat file.

    path: on disk. member: its name in the archive, else ''. start, length: its place in an uncompressed tar, in bytes.
    block: the index of an (h, w, 3) uint8 image in the .mat file's array, else None.
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
        """Return its bytes. Raises ImageError naming it where it cannot be read."""
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
        """Return its pixels, (h, w, 3) RGB uint8 or uint16. Raises ImageError naming it where it cannot be read."""
        if self.block is None:
            return decode_image(self.read(), str(self))
        return _mat_blocks(self.path)[self.block]


class Tree:
    """The images and .mat files below folders and in archives.

    files: {path inside the folder or archive, with '/': File}. Where two inputs have one path, the first counts.
    spare: paths of unread archives in the folders; a message names them when files are missing.
    Raises UserError naming an input that does not exist or is an archive that cannot be read in place.
    """

    def __init__(self, inputs: Sequence[Path]) -> None:
        self.files: dict[str, File] = {}
        self.spare: list[str] = []
        for path in inputs:
            for name, file in self._files_of(path):
                self.files.setdefault(name, file)

    def _files_of(self, path: Path) -> Iterator[tuple[str, File]]:
        """Return the files of one input with their paths inside it."""
        if path.is_dir():
            return self._files_below(path)
        if not path.exists():
            raise UserError(f"--input: {path}: no such folder or archive")
        if path.name.lower().endswith(ARCHIVES):
            return _archive_files(path)
        if path.suffix.lower() in _LISTED:
            return iter([(path.name, File(str(path)))])
        raise UserError(f"--input: {path}: neither a folder nor a .zip or .tar; unpack it and name the folder")

    def _files_below(self, root: Path) -> Iterator[tuple[str, File]]:
        """Yield the files below a folder and remember its archives; see utils.folders."""
        archives = (*ARCHIVES, *_COMPRESSED)
        suffixes = _LISTED | {f".{archive.rpartition('.')[2]}" for archive in archives}
        listing = list_files(root, suffixes, kind=("other file", "other files"))
        listing.report()
        for name in listing.files:
            path = root / name
            if path.suffix.lower() in _LISTED:
                yield name, File(str(path))
            elif name.lower().endswith(archives):
                self.spare.append(str(path))

    def find(self, pattern: str) -> Iterator[tuple[re.Match[str], File]]:
        """Yield the files whose paths end in the regular expression `pattern`, sorted by path.

        The match begins at the name of a folder or file and ignores case.
        """
        expression = re.compile(rf"(?:.*/)?{pattern}", re.IGNORECASE)
        for name in sorted(self.files):
            match = expression.fullmatch(name)
            if match:
                yield match, self.files[name]


def image_pattern(key: str = "key") -> str:
    """Return a regular expression for an image's file name; the group called `key` is the name without suffix."""
    suffixes = "|".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
    return rf"(?P<{key}>[^/]+)\.(?:{suffixes})"


def mat_block_count(file: File, shape: tuple[int, int, int]) -> int:
    """Return how many images a .mat file of SIDD's blocks holds: (scenes, blocks, *shape) uint8 -> scenes * blocks.

    Reads only the header. Raises UserError naming the file where it holds something else.
    """
    from scipy import io  # type: ignore[import-untyped]

    arrays = [(name, size) for name, size, _ in _read_mat(io.whosmat, file.path) if len(size) == 5]
    if len(arrays) != 1 or tuple(arrays[0][1][2:]) != shape:
        raise UserError(
            f"{file.path}: holds {arrays or 'no blocks'}, not one array of (scenes, blocks, *{shape}) uint8"
        )
    return int(arrays[0][1][0] * arrays[0][1][1])


@functools.lru_cache(maxsize=2)
def _mat_blocks(path: str) -> np.ndarray:
    """Return all images of a .mat file of SIDD's blocks: (n, h, w, 3) uint8, scene by scene."""
    from scipy import io

    values = _read_mat(io.loadmat, path).values()
    arrays = [value for value in values if isinstance(value, np.ndarray) and value.ndim == 5]
    if len(arrays) != 1 or arrays[0].dtype != np.uint8:
        raise ImageError(f"{path}: does not hold one array of (scenes, blocks, h, w, 3) uint8")
    blocks: np.ndarray = np.ascontiguousarray(arrays[0]).reshape(-1, *arrays[0].shape[2:])
    return blocks


def _read_mat(reader: Callable[..., Any], path: str) -> Any:
    """Return reader(path). Raises ImageError naming the file for each of the reader's errors."""
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


def _archive_files(path: Path) -> Iterator[tuple[str, File]]:
    """Yield the images of a .zip or .tar with their paths in it. Raises UserError where it cannot be read."""
    members = _zip_members if path.suffix.lower() == ".zip" else _tar_members
    try:
        yield from members(path)
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise UserError(
            f"--input: {path}: cannot be read as {path.suffix} ({error}); download it again, or, where it is "
            "compressed as a whole, unpack it"
        ) from None


def _zip_members(path: Path) -> Iterator[tuple[str, File]]:
    for info in _zip(str(path)).infolist():
        if _is_image(info.filename):
            yield PurePosixPath(info.filename).as_posix(), File(str(path), info.filename)


def _tar_members(path: Path) -> Iterator[tuple[str, File]]:
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            name = PurePosixPath(info.name).as_posix()
            if info.isreg() and _is_image(name):
                yield name, File(str(path), name, info.offset_data, info.size)


def _is_image(name: str) -> bool:
    """Return whether an archive's member is an image outside hidden folders."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(map(is_hidden, path.parts))


@functools.lru_cache(maxsize=8)
def _zip(path: str) -> zipfile.ZipFile:
    """Open an archive, once in each process; workers do not share it, since none is forked from this process."""
    return zipfile.ZipFile(path)
