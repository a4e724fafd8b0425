"""Write files whole or not at all, below the folder that the user named; name the file where the system refuses."""

from __future__ import annotations

import codecs
import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import select
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from sam4ir.errors import FileError, UserError, first_line

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

_LONGEST_NAME = 255  # bytes of a file's or folder's name, on the file systems in use
_TEMPORARY_NAME = re.compile(r"\..+\.\d+\.part", re.DOTALL)  # .NAME.PROCESS.part
_TEMPORARY = 24  # bytes that a temporary name is longer than the file's
_DRIVE = re.compile(r"[A-Za-z]:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_GO_ON = "then run the command again (sam4ir train with --auto_resume); what was written before is whole"
_ANOTHER_DISK = "or choose a folder on another disk"
_FULL = {  # error numbers of storage that takes no more, and what helps
    errno.ENOSPC: f"free space on its disk, {_ANOTHER_DISK}",
    errno.EDQUOT: f"free space of your quota, {_ANOTHER_DISK}",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
}
_WITHOUT_PATH = ("a file", "standard output", "standard error")  # names that stand for an unknown place
_BARRED = (errno.EACCES, errno.EPERM, errno.EROFS)
_IN_THE_WAY = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
_GONE = (errno.ENOENT, errno.ESTALE)
_TORCH_WRITER = re.compile("inline_container|PytorchStreamWriter|iostream")  # in what torch.save raises
_PATIENCE = 2000  # milliseconds that the writer of a pipe has to begin
_PART = 1 << 20  # bytes that are read at once
_LITTLE = 1 << 20  # bytes of free space: a writer without an error number has most likely failed for lack of it


def write_error(path: Path, error: Exception) -> FileError:
    """Return the error of a file that cannot be written: its message names the file, the reason and a remedy.

    error: an OSError, or the error of a library (LMDB, torch) whose message may hold the system's words.
    """
    number = _number_of(error)
    if number is None:
        number = _likely_number(path)
    if number is not None:
        reason = os.strerror(number)
    else:
        reason = first_line(error)
    if number in _FULL:
        remedy = f"{_FULL[number]}, {_GO_ON}"
        if str(path) not in _WITHOUT_PATH:
            free = shutil.disk_usage(existing_folder(path)).free
            reason += f"; its disk has {free / 1e6:.0f} MB free"
    elif number in _BARRED:
        remedy = "choose a folder that you may write into"
    elif number in _IN_THE_WAY:
        remedy = f"{_obstacle(path)}; rename it, or choose another folder"
    elif number in _GONE:
        remedy = f"its folder was moved or removed meanwhile; put it back, {_GO_ON}"
    else:
        remedy = f"look at its disk, {_GO_ON}"
    failure = FileError(f"{path}: cannot be written ({reason}); {remedy}")
    failure.errno = number
    return failure


def refuse_full(path: Path, error: Exception) -> None:
    """Raise write_error's FileError where the error of a library, such as LMDB, means that the storage is full."""
    failure = write_error(path, error)
    if takes_no_more(failure):
        raise failure from None


def takes_no_more(error: BaseException) -> bool:
    """Return whether an OSError means a full disk, a quota, or a limit on the size of files."""
    return isinstance(error, OSError) and error.errno in _FULL


def _number_of(error: Exception) -> int | None:
    """Return the error number of an OSError, or the one of _FULL whose words a library's message holds."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    for number in _FULL:
        if os.strerror(number) in str(error):
            return number
    return None


def _likely_number(path: Path) -> int | None:
    """Return the likely error number of a writer that gives none: the disk is full, or the limit on sizes is small."""
    if shutil.disk_usage(existing_folder(path)).free < _LITTLE:
        return errno.ENOSPC
    try:
        import resource
    except ImportError:  # not a POSIX system
        return None
    if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
        return errno.EFBIG
    return None


def _obstacle(path: Path) -> str:
    """Name what lies at a path where a file is to be written below a folder."""
    for folder in (*reversed(path.parents), path):
        if os.path.lexists(folder) and not folder.is_dir():
            return f"{folder} is a file or a broken link, where a folder is needed"
    return "a folder lies there, where a file is needed"


def existing_folder(path: Path) -> Path:
    """Return the nearest folder at or above the path that is there."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


@contextlib.contextmanager
def writing(path: Path, *others: Path) -> Iterator[None]:
    """Turn an error of writing `path` inside the block into a FileError (write_error).

    others: further paths of the same file, such as its temporary name. Errors about any other file pass unchanged, and
    so do those of connections.
    """
    try:
        yield
    except (FileError, ConnectionError, TimeoutError):
        raise
    except OSError as error:
        own = set(map(str, (path, *path.parents, *others)))
        unnamed = error.filename is None and error.errno in (*_FULL, *_GONE, errno.EIO)  # as write() raises them
        if unnamed or os.fsdecode(error.filename or "") in own:
            raise write_error(path, error) from error
        raise
    except RuntimeError as error:
        if _TORCH_WRITER.search(str(error)):
            raise write_error(path, error) from error
        raise


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are missing. Raises FileError naming what is in the way."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def output_path(folder: Path, key: str, suffix: str, source: object) -> Path:
    """Return folder/<key><suffix>, the file that is written for an image; every such path is made here.

    Keys come from files that others made: meta_info files, mask stores, archives. So a key must name a file below
    `folder`, by one spelling: it may hold '/', but no '..', '.', backslash, drive letter or control character, no empty
    name or name beyond 255 bytes, and no folder on its way may be a link that leads out of `folder`. The file need not
    exist, nor the folder. suffix: text behind the key, with the file's suffix.
    Raises UserError with the key and `source`, where it comes from.
    """
    reason = _why_not(folder, f"{key}{suffix}", key)
    if reason:
        raise UserError(f"{source}: key {key!r} {reason}; no file is written for it, rename the image")
    return folder / f"{key}{suffix}"


def _why_not(folder: Path, name: str, key: str) -> str:
    """Return why `name`, made of `key`, is no good name of a file below `folder`, '' where it is one."""
    parts = name.split("/")
    if not key or key.endswith("/"):
        return "names no file"
    if _CONTROL.search(name):
        return "holds a control character"
    if key.startswith("/") or _DRIVE.match(key) or ".." in (*parts, *key.split("/")):
        return f"leads out of {folder}"
    if "\\" in name:
        return "holds a backslash, which leads elsewhere on Windows"
    if "" in parts or "." in parts:
        return "holds a folder without a name, or '.'"
    try:
        longest = max(len(os.fsencode(part)) for part in parts)
    except UnicodeEncodeError:
        return "cannot be a name of a file"
    if longest > _LONGEST_NAME:
        return f"makes a name of {longest} bytes (at most {_LONGEST_NAME})"
    way = os.path.realpath(os.path.join(folder, *parts[:-1]))
    real_folder = os.path.realpath(folder)
    if os.path.commonpath([way, real_folder]) != real_folder:
        return f"leads out of {folder}, by a link on its way to {way}"
    return ""


def refuse_shared(paths: Iterable[tuple[str, Path]], source: object) -> None:
    """Raise UserError, with both keys and `source`, where two (key, path) pairs have one path."""
    owners: dict[Path, str] = {}
    for key, path in paths:
        other = owners.setdefault(path, key)
        if other != key:
            raise UserError(f"{source}: {other!r} and {key!r} would both be written to {path}; rename one of them")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; after the block that file is flushed to disk and replaces `path`.

    If the block raises, `path` stays as it was and the temporary file is removed. Temporary files of the same `path`
    are removed too where a process left them that was killed. Raises FileError where the system cannot write the file,
    and for a pipe, socket or device, which a file would replace.
    """
    _refuse_special(path)
    part = _temporary(path)
    with writing(path, part):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
    try:
        with writing(path, part), _held(part):  # looks at the disk while the temporary file is still there
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
            if os.name == "posix":
                folder = os.open(path.parent, os.O_RDONLY)
                os.fsync(folder)
                os.close(folder)
    finally:
        part.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, atomically: a hard link, or a copy where the file system has no links.

    Neither name sees what `atomic` writes to the other one. Raises FileError where the system cannot write the file.
    """
    with atomic(target) as part:
        part.unlink(missing_ok=True)
        try:
            os.link(source, part)
        except OSError:  # of many numbers: no links in this file system, none across its borders, too many
            shutil.copyfile(source, part)


def _refuse_special(path: Path) -> None:
    """Raise FileError for the name of a pipe, socket or device."""
    try:
        mode = path.stat().st_mode
    except OSError:  # nothing lies there
        return
    except ValueError:  # a name that no file has, which writing refuses
        return
    links_of_streams = path.absolute().parent == Path("/dev")  # /dev/stdout may lead to a file
    if links_of_streams or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise FileError(f"{path}: is a pipe, socket or device, which a file would replace; name a file")


class AppendedFile:
    """A text file that grows by whole pieces: each is in the file when write() returns, or no byte of it is.

    head: the first text of the file, written wherever the file is new or empty. A file that was removed alone begins
    anew; where its folder was moved or removed, writing raises. All methods raise FileError naming the file.
    """

    def __init__(self, path: Path, head: str = "") -> None:
        self.path = path
        self._head = encode_text(head)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folder = _identity(os.stat(path.parent))
            self._file = self._open()

    def _open(self) -> Any:
        file = self.path.open("ab", buffering=0)  # what a buffer holds after an error would be written again at its end
        if os.fstat(file.fileno()).st_size == 0:
            _append(file.fileno(), self._head)
        return file

    def write(self, text: str) -> None:
        """Append a text. On an error the file gets its former length back."""
        with writing(self.path):
            if self._moved():
                self._reopen()
            _append(self._file.fileno(), encode_text(text))

    def sync(self) -> None:
        """Flush the file to disk."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def _moved(self) -> bool:
        """Return whether the path is another file than the open one, or none."""
        try:
            return _identity(os.stat(self.path)) != _identity(os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return True

    def _reopen(self) -> None:
        """Begin the file anew in its folder. Raises where that is another folder, or none."""
        if _identity(os.stat(self.path.parent)) != self._folder:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        self._file.close()
        self._file = self._open()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> AppendedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _append(descriptor: int, data: bytes) -> None:
    """Append all bytes to an open file; where that fails, cut the file to its former length."""
    length = os.fstat(descriptor).st_size
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, length)
        raise


def append_text(path: Path, text: str) -> None:
    """Append to a file and flush it to disk. Raises FileError naming the file where it cannot be written."""
    with AppendedFile(path) as file:
        file.write(text)
        file.sync()


def encode_text(text: str) -> bytes:
    """Return a text as UTF-8. A file name that is no UTF-8 becomes the bytes that the file system has."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte, as JSON may hold it
        return text.encode("utf-8", "backslashreplace")


def _temporary(path: Path) -> Path:
    """Return a hidden name beside `path`, of this process; a name that would be too long is replaced by its hash."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME - _TEMPORARY:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return path.with_name(f".{name}.{os.getpid()}.part")


def remove_left_over(folder: Path) -> None:
    """Remove the temporary files below `folder` that `atomic` left where a process was killed.

    A file stays where a process of this machine has its number, or a process of any machine holds its lock.
    """
    for part in folder.rglob(".*.part"):
        process = part.name.removesuffix(".part").rpartition(".")[2]
        if process.isdecimal() and int(process) != os.getpid() and not _runs(int(process)):
            _remove_unless_held(part)


def _runs(process: int) -> bool:
    """Return whether a process with this number runs; True where the system does not say."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def _held(part: Path) -> Iterator[None]:
    """Make a temporary file and lock it inside the block; the lock ends with this process, even when it is killed."""
    if fcntl is None:
        yield
        return
    file = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(file)


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files of `path` that lay there before this process and that no process holds."""
    for part in _earlier_temporaries(path.parent.absolute()).pop(_stem(_temporary(path).name), ()):
        _remove_unless_held(part)


def _remove_unless_held(part: Path) -> None:
    """Remove a temporary file that no process has locked; keep it where the file system cannot say."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):  # held, removed by another process, or on a file system without locks
        file = os.open(part, os.O_RDWR)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()
        finally:
            os.close(file)


@functools.lru_cache(maxsize=256)  # a folder is listed once, not for each of its files
def _earlier_temporaries(folder: Path) -> dict[str, list[Path]]:
    """Return the temporary files in a folder by their stem, as they lie there at the first call."""
    earlier: dict[str, list[Path]] = {}
    with contextlib.suppress(OSError), os.scandir(folder) as entries:  # one may write into folders that one cannot list
        for entry in entries:
            if _TEMPORARY_NAME.fullmatch(entry.name):
                earlier.setdefault(_stem(entry.name), []).append(folder / entry.name)
    return earlier


def _stem(temporary: str) -> str:
    """Return the name of a temporary file without the number of its process."""
    return temporary.rsplit(".", 2)[0]


def write_text(path: Path, text: str) -> None:
    """Write a whole text file atomically."""
    readable = encode_text(text).decode("utf-8", "surrogateescape")
    with atomic(path) as part:
        part.write_text(readable, encoding="utf-8", errors="surrogateescape")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic(path) as part:
        part.write_bytes(data)


def read_text(path: Path, largest: int | None = None) -> str:
    """Return the content of a text file; its lines end with LF, whatever they end with in the file.

    The text is UTF-8 with or without a byte order mark, or UTF-16 with one. largest: the most bytes that are read, for
    a text that somebody else wrote; such a text holds no zero byte either.
    Raises OSError, and UserError naming the file where it is in another encoding or larger.
    """
    with _opened(path) as file:
        data = file.read() if largest is None else file.read(largest + 1)
    if largest is not None and len(data) > largest:
        raise UserError(f"{path}: is larger than {largest / 1e6:g} MB, the most that is read of such a file")
    encoding = "utf-8-sig"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(_not_utf8(path, data, error.start)) from None
    if largest is not None and "\0" in text:
        raise UserError(_not_utf8(path, data, data.index(b"\0")))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _opened(path: Path) -> BinaryIO:
    """Open a file for reading; of a pipe raise UserError where nobody writes to it, as reading would wait for ever."""
    if not path.is_fifo():
        return path.open("rb")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    waits = select.poll()
    waits.register(descriptor, select.POLLIN)
    if not waits.poll(_PATIENCE):
        os.close(descriptor)
        raise UserError(f"{path}: is a pipe that nobody writes to; give a file")
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "rb")


def _not_utf8(path: Path, data: bytes, position: int) -> str:
    """Return the message of a text in another encoding, with the place of the first byte that does not fit."""
    line = data.count(b"\n", 0, position) + 1
    return f"{path}: is not a UTF-8 text file (line {line}, byte {position}); save it with the encoding UTF-8"


def sha256_of(path: Path) -> str:
    """Return the file's SHA-256 in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_PART):
            digest.update(part)
    return digest.hexdigest()


def is_utf8(text: str) -> bool:
    """Return whether a text, such as the name of a file, can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_json(path: Path) -> Any:
    """Return what a JSON file holds, in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises OSError, and UserError naming the file where it holds no JSON.
    """
    try:
        with _opened(path) as file:
            return json.loads(file.read())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a UTF-8 text file (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error})") from None
