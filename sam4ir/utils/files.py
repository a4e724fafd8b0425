"""Write files so that they are whole or not there, and below the folder that the user named."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sam4ir.errors import UserError

_LONGEST_NAME = 255  # bytes of a file's or folder's name, on the file systems in use
_TEMPORARY = 24  # bytes that a temporary name is longer than the file's
_DRIVE = re.compile(r"[A-Za-z]:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


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

    If the block raises, `path` stays as it was and the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _temporary(path)
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def _temporary(path: Path) -> Path:
    """Return a hidden name beside `path`, of this process; a name that would be too long is replaced by its hash."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME - _TEMPORARY:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return path.with_name(f".{name}.{os.getpid()}.part")


def write_text(path: Path, text: str) -> None:
    """Write a whole text file atomically."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def read_text(path: Path) -> str:
    """Return the content of a text file. Raises OSError, and UserError naming the file where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a UTF-8 text file (byte {error.start})") from None


def read_json(path: Path) -> Any:
    """Return what a JSON file holds, in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises OSError, and UserError naming the file where it holds no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a UTF-8 text file (byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error})") from None
