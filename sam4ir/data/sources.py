"""Image sources: keys, and the pixels of each, from a folder of files or an LMDB folder.

A key is the image's path in the source, with '/', without suffix: the same for a folder and for the LMDB of its images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from sam4ir.data.lmdb_io import (
    LARGEST_LIST,
    LmdbReader,
    Verified,
    key_of,
    parse_meta_line,
    read_image_keys,
    unpack_image,
    unpack_orientation,
    unpack_pixels,
    unpack_size,
)
from sam4ir.data.transforms import Cuttable
from sam4ir.errors import UserError
from sam4ir.registry import near_miss
from sam4ir.utils.files import read_text
from sam4ir.utils.folders import list_files
from sam4ir.utils.image import IMAGE_SUFFIXES, ExifOrientation, read_image, read_orientation, read_size
from sam4ir.utils.tables import text_lines

IoBackend = Mapping[Literal["type"], Literal["disk", "lmdb"]]

SHOWN = 10  # names that an error message lists


class ImageSource(Protocol):
    """Images by key, of a folder or an LMDB."""

    root: Path
    keys: list[str]  # sorted

    def open(self, key: str) -> AbstractContextManager[np.ndarray]:
        """Lend the image, (h, w, 3) RGB uint8 or uint16, for the `with` block only; copy the pixels to keep them."""

    def lend(self, key: str) -> AbstractContextManager[Cuttable]:
        """Lend the image as `open` does, to cut windows out of it: of a raw record only these are verified."""

    def size(self, key: str) -> tuple[int, int]:
        """Return (h, w) by the image's header; the pixels may still turn out to be damaged."""

    def orientation(self, key: str) -> int:
        """Return the EXIF orientation by the image's header, 1 to 8; 1 where it has none."""

    def where(self, key: str) -> str:
        """Return the image's name in error messages."""


def read(source: ImageSource, key: str) -> np.ndarray:
    """Return an image, (h, w, 3) RGB uint8 or uint16, as the caller's own copy."""
    with source.open(key) as image:
        return image.copy()


class FolderSource:
    """The images in a folder and its subfolders, see utils.folders; the constructor lists the folder, once.

    output: folders that the command writes to, which are left out.
    """

    def __init__(
        self, root: str | Path, exif_orientation: ExifOrientation = "apply", output: Sequence[Path] = ()
    ) -> None:
        self.root = Path(root)
        self._exif: ExifOrientation = exif_orientation
        listing = list_files(self.root, IMAGE_SUFFIXES, output=output)
        listing.report()
        self._files: dict[str, str] = {}
        for name in listing.files:
            other = self._files.setdefault(key_of(name), name)
            if other != name:
                raise UserError(f"{root}: {other} and {name} differ only in their suffix; remove one of them")
        self.keys = sorted(self._files)

    @contextmanager
    def open(self, key: str) -> Iterator[np.ndarray]:
        """Lend the image of a file."""
        yield read_image(self.root / self._files[key], exif_orientation=self._exif)

    def lend(self, key: str) -> AbstractContextManager[Cuttable]:
        """Lend the image of a file."""
        return self.open(key)

    def size(self, key: str) -> tuple[int, int]:
        """Return (h, w) by the header of a file."""
        return read_size(self.root / self._files[key], self._exif)

    def orientation(self, key: str) -> int:
        """Return the EXIF orientation of a file."""
        return read_orientation(self.root / self._files[key])

    def where(self, key: str) -> str:
        """Return the path of a file."""
        return str(self.root / self._files[key])


class LmdbSource:
    """The images that an LMDB folder's meta_info.txt lists: BasicSR's or our own."""

    def __init__(self, root: str | Path, exif_orientation: ExifOrientation = "apply") -> None:
        self.root = Path(root)
        self._exif: ExifOrientation = exif_orientation
        self.keys = read_image_keys(self.root)
        self._reader = LmdbReader(self.root)
        self._verified: Verified = {}

    @contextmanager
    def open(self, key: str) -> Iterator[np.ndarray]:
        """Lend the image of a record."""
        with self._reader.value(key) as value:
            yield unpack_image(value, self.where(key), self._exif)

    @contextmanager
    def lend(self, key: str) -> Iterator[Cuttable]:
        """Lend the image of a record to cut windows out of it."""
        with self._reader.value(key) as value:
            yield unpack_pixels(value, self.where(key), self._verified, self._exif)

    def size(self, key: str) -> tuple[int, int]:
        """Return (h, w) by the header of a record."""
        with self._reader.value(key) as value:
            return unpack_size(value, self.where(key), self._exif)

    def orientation(self, key: str) -> int:
        """Return the EXIF orientation of a record."""
        with self._reader.value(key) as value:
            return unpack_orientation(value, self.where(key))

    def where(self, key: str) -> str:
        """Return the LMDB's path with the key in brackets."""
        return f"{self.root}[{key}]"


def open_source(
    dataroot: str | Path,
    io_backend: IoBackend | None,
    option: str,
    exif_orientation: ExifOrientation = "apply",
    output: Sequence[Path] = (),
) -> ImageSource:
    """Open the source at `dataroot`.

    io_backend: {'type': 'disk' | 'lmdb'}; None goes by the folder's name. option: dataroot's name in error messages.
    exif_orientation: 'ignore' reads the pixels in the order in which they are stored.
    output: folders that the command writes to; where they lie in `dataroot` they are left out.
    Raises ValueError for an unknown type, a type that the folder's name contradicts, and where there are no images.
    """
    by_name = "disk"
    if Path(dataroot).suffix == ".lmdb":
        by_name = "lmdb"
    kind = _backend_type(io_backend) or by_name
    if kind != by_name:
        raise UserError(
            f"{option}: {dataroot} with io_backend.type: {kind}; a folder whose name ends in .lmdb is read with lmdb, "
            "any other with disk"
        )
    try:
        source: ImageSource
        if by_name == "lmdb":
            source = LmdbSource(dataroot, exif_orientation)
        else:
            source = FolderSource(dataroot, exif_orientation, output)
    except UserError as error:
        raise UserError(f"{option}: {error}") from error
    if not source.keys:
        raise UserError(f"{option}: {dataroot} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return source


def select_keys(source: ImageSource, meta_info_file: str | Path | None) -> list[str]:
    """Return the source's keys, or those that a BasicSR meta_info file names (`name.png (h,w,c)`, one a line), sorted.

    Raises ValueError listing the names that the source lacks.
    """
    if meta_info_file is None:
        return list(source.keys)
    keys = set(source.keys)
    try:
        lines = text_lines(read_text(Path(meta_info_file), LARGEST_LIST))
    except OSError as error:
        raise UserError(f"meta_info_file: {meta_info_file} cannot be read ({error.strerror})") from error
    names = set()
    for line in lines:
        if line.strip():
            key = _meta_key(line, keys)
            if key in keys or not line.lstrip().startswith("#"):
                names.add(key)
    if names - keys:
        hint = ""
        if not all(map(str.isascii, names - keys)):
            hint = "; where the names look wrong, the list is in another encoding: save it as UTF-8"
        raise UserError(f"meta_info_file: {meta_info_file} names {listed(names - keys)} that {source.root} lacks{hint}")
    if not names:
        raise UserError(f"meta_info_file: {meta_info_file} names no image")
    return sorted(names)


def listed(names: Iterable[str]) -> str:
    """Return '12 images: a, b, ...' with the first ten names."""
    ordered = sorted(names)
    shown = ordered[:SHOWN]
    if len(ordered) > SHOWN:
        shown.append("...")
    count = f"{len(ordered)} images"
    if len(ordered) == 1:
        count = "1 image"
    return f"{count}: {', '.join(shown)}"


def _meta_key(line: str, keys: set[str]) -> str:
    """Return the key that a line names: a key as it is, or an image's name, which more words may follow.

    Keys and names may hold spaces.
    """
    for key in (line, key_of(line), key_of(parse_meta_line(line)[0])):
        if key in keys:
            return key
    return key_of(line.split()[0])


def _backend_type(io_backend: IoBackend | None) -> str | None:
    """Return the type that io_backend names, None where it leaves it open; raise UserError for another key or type."""
    if io_backend is None:
        return None
    for name in io_backend:
        if name != "type":
            raise UserError(f"io_backend: unknown key {name!r}; its one key is 'type'")
    kind = io_backend.get("type")
    if kind not in (None, "disk", "lmdb"):
        raise UserError(f"io_backend.type: {kind!r} must be 'disk' or 'lmdb'{near_miss(str(kind), ['disk', 'lmdb'])}")
    return kind
