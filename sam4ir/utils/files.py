"""Write files so that they are whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sam4ir.errors import UserError


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; after the block that file is flushed to disk and replaces `path`.

    If the block raises, `path` stays as it was and the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
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


def is_utf8(text: str) -> bool:
    """Return whether a text, such as the name of a file, can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_json(path: Path) -> Any:
    """Return what a JSON file holds. Raises OSError, and UserError naming the file where it holds no JSON."""
    try:
        return json.loads(read_text(path))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error})") from None
