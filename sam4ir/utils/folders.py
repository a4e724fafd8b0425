"""List the files below a folder, in one way for all commands that read folders.

Links are followed, and each real folder is listed once, so a link that leads back ends. Hidden files and those of other
programs are left out, and what is left out is counted.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sam4ir.errors import UserError

log = logging.getLogger(__name__)

LMDB_SUFFIXES = (".lmdb", ".lmdb.part")  # of folders that hold records, no files to list
_OF_SYSTEMS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")  # of macOS archives, Synology's previews, Windows' bin
_SHOWN = 3  # names that a sentence lists

_HIDDEN = ("hidden file", "hidden files")
_HIDDEN_FOLDER = ("hidden folder", "hidden folders")
_LMDB = ("LMDB folder", "LMDB folders")
_OUTPUT = ("folder that the results go to", "folders that the results go to")
_AGAIN = ("link to a folder that is listed already", "links to folders that are listed already")
_SPECIAL = ("pipe, socket or device", "pipes, sockets or devices")
_UNREADABLE = ("folder that cannot be read", "folders that cannot be read")
_NAMED = {_LMDB, _OUTPUT, _AGAIN, _SPECIAL, _UNREADABLE}

_Identity = tuple[int, int | str]  # device and inode; the path where a file system numbers no inodes


@dataclass
class Listing:
    """The files below a folder.

    files: their paths below root, with '/'; the files of a folder come before those of its subfolders, each sorted.
    left_out: what does not count, by kind (one, several). doubles: links to files that are in the list themselves.
    unreadable: folders that cannot be read, with the reason.
    """

    root: Path
    files: list[str] = field(default_factory=list)
    left_out: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    doubles: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        """Return what was left out, such as '1 LMDB folder (gt.lmdb), 2 hidden files'; '' where nothing was."""
        parts = []
        for (one, several), unsorted in sorted(self.left_out.items()):
            names = sorted(unsorted)
            text = f"1 {one}"
            if len(names) > 1:
                text = f"{len(names)} {several}"
            if (one, several) in _NAMED:
                text += f" ({_first_of(names)})"
            elif not one.startswith("hidden"):
                text += f" ({_first_of(sorted({PurePosixPath(name).suffix or name for name in names}))})"
            parts.append(text)
        return ", ".join(parts)

    def report(self) -> None:
        """Log what was left out, and which files are listed twice; a sentence appears once in a process."""
        sentence = self.sentence()
        if sentence:
            _warn_once(f"{self.root}: left out: {sentence}")
        if self.doubles:
            count = f"{len(self.doubles)} files are links to others of this folder and count as well"
            if len(self.doubles) == 1:
                count = "1 file is a link to another one of this folder and counts as well"
            _warn_once(f"{self.root}: {count} ({_first_of(self.doubles)})")


def list_files(
    root: str | Path,
    suffixes: Set[str],
    *,
    kind: tuple[str, str] = ("file that is no image", "files that are no images"),
    output: Sequence[Path] = (),
) -> Listing:
    """List the files below `root` whose suffix, in lower case, is one of `suffixes`.

    kind: the words for files of other suffixes (one, several). output: folders that the command writes to, which are
    left out.

    Hidden files and folders, `__MACOSX` and the like, LMDB folders, pipes and devices are left out. A folder that can
    be reached in several ways is listed once: by its own path, else by the first link. A link to a file is a file.
    Raises UserError where `root` is no folder or cannot be read.
    """
    walk = _Walk(Path(root), suffixes, kind, output)
    walk.run()
    return walk.listing


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or is one that an operating system puts beside the user's files."""
    return name.startswith(".") or name in _OF_SYSTEMS


def refuse_folder_of_images(output: Path, images: Path, flags: str) -> None:
    """Raise UserError where results would go into the folder that the images come from, over files of their names."""
    if output.exists() and images.exists() and output.samefile(images):
        raise UserError(f"{flags}: {output} is where the images lie; results would replace them; name another folder")


class _Walk:
    """One pass over a folder: real folders first, then links to folders that were not reached yet."""

    def __init__(self, root: Path, suffixes: Set[str], kind: tuple[str, str], output: Sequence[Path]) -> None:
        self.listing = Listing(root)
        self._suffixes, self._kind = suffixes, kind
        self._output = {_identity(str(path)) for path in output if path.exists()}
        self._visited: set[_Identity] = set()
        self._folders: dict[str, list[str]] = {}  # folder below root -> its files
        self._folder_links: list[tuple[str, str]] = []
        self._inodes: dict[_Identity, str] = {}
        self._file_links: list[str] = []

    def run(self) -> None:
        """Fill the listing."""
        root = str(self.listing.root)
        try:
            os.listdir(root)
        except NotADirectoryError:
            raise UserError(f"{root}: is a file, give the folder that it lies in") from None
        except FileNotFoundError:
            raise UserError(f"{root}: no such folder") from None
        except OSError as error:
            raise UserError(f"{root}: cannot be read ({error.strerror})") from None
        self._enter(root, "")
        while self._folder_links:
            links, self._folder_links = sorted(self._folder_links), []
            for path, below in links:
                self._enter(path, below, link=True)
        for below in sorted(self._folders, key=lambda name: name.split("/")):
            self.listing.files += [f"{below}/{name}" if below else name for name in sorted(self._folders[below])]
        self._find_doubles()

    def _enter(self, path: str, below: str, link: bool = False) -> None:
        """List a folder and its real subfolders. below: its path below root."""
        pending = [(path, below)]
        while pending:
            path, below = pending.pop()
            try:
                identity = _identity(path)
                if identity in self._visited:
                    self._leave_out(_AGAIN, below)
                    continue
                if identity in self._output and below:
                    self._leave_out(_OUTPUT, below)
                    continue
                self._visited.add(identity)
                with os.scandir(path) as entries:
                    folders = self._sort(entries, below, identity[0])
                pending += sorted(folders, reverse=True)
            except OSError as error:
                self._leave_out(_UNREADABLE, f"{below}: {error.strerror}")
                self.listing.unreadable.append(f"{path}: cannot be read ({error.strerror})")

    def _sort(self, entries: Iterator[os.DirEntry[str]], below: str, device: int) -> list[tuple[str, str]]:
        """Put the files of a folder into the listing; return (path, path below root) of its real subfolders."""
        folders: list[tuple[str, str]] = []
        files: list[str] = []
        for entry in entries:
            name = entry.name
            place = f"{below}/{name}" if below else name
            if _is_folder(entry):
                if is_hidden(name):
                    self._leave_out(_HIDDEN_FOLDER, place)
                elif name.endswith(LMDB_SUFFIXES):
                    self._leave_out(_LMDB, place)
                elif entry.is_symlink():
                    self._folder_links.append((entry.path, place))
                else:
                    folders.append((entry.path, place))
            elif self._counts(entry, place):
                files.append(name)
                self._inodes.setdefault((device, entry.inode()), place)
                if entry.is_symlink():
                    self._file_links.append(place)
        self._folders[below] = files
        return folders

    def _counts(self, entry: os.DirEntry[str], place: str) -> bool:
        """Return whether this file is listed."""
        if is_hidden(entry.name):
            self._leave_out(_HIDDEN, place)
        elif os.path.splitext(entry.name)[1].lower() not in self._suffixes:
            self._leave_out(self._kind, place)
        elif not _is_regular(entry):
            self._leave_out(_SPECIAL, place)
        else:
            return True
        return False

    def _leave_out(self, kind: tuple[str, str], place: str) -> None:
        self.listing.left_out.setdefault(kind, []).append(place)

    def _find_doubles(self) -> None:
        """Name the links whose files are listed themselves, or by another link."""
        targets: dict[_Identity, str] = {}
        for place in sorted(self._file_links):
            try:
                identity = _identity(str(self.listing.root / place))
            except OSError:
                continue  # it leads nowhere: whoever reads it names it
            other = self._inodes.get(identity) or targets.setdefault(identity, place)
            if other != place:
                self.listing.doubles.append(f"{place} is {other}")


def _identity(path: str) -> _Identity:
    status = os.stat(path)
    return status.st_dev, status.st_ino or os.path.realpath(path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_regular(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a file, or a broken link: whoever reads that one names it."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True


def _first_of(names: Sequence[str]) -> str:
    """Return the first three names, and dots for the others."""
    text = ", ".join(names[:_SHOWN])
    if len(names) > _SHOWN:
        text += ", ..."
    return text


@functools.cache
def _warn_once(text: str) -> None:
    log.warning("%s", text)
