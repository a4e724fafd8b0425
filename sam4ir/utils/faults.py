"""Which errors belong to one image among many, so that the others can go on."""

from __future__ import annotations

import errno

import cv2

from sam4ir.errors import UserError, first_line
from sam4ir.utils.files import takes_no_more
from sam4ir.utils.memory import out_of_memory

_OF_THE_DISK = {errno.EROFS, errno.EIO}  # beside a full disk; the next image would meet them as well


def fault_of_item(error: Exception) -> str | None:
    """Return what is wrong with the image that was read, restored or written when the error came; None for a bug.

    None also stands for an error of the whole disk, which ends the command.
    """
    if takes_no_more(error) or (isinstance(error, OSError) and error.errno in _OF_THE_DISK):
        return None
    if isinstance(error, UserError):
        return str(error)
    if out_of_memory(error):
        return f"memory ran out ({first_line(error)})"
    if isinstance(error, cv2.error):
        return f"OpenCV cannot work on it ({first_line(error)})"
    if isinstance(error, OSError) and error.errno is not None:
        return str(error)
    return None


def fault_of_file(error: Exception, name: str) -> str | None:
    """Return what fault_of_item does, beginning with the file's name where it does not name it; None for a bug."""
    fault = fault_of_item(error)
    if fault is None or name in fault:
        return fault
    return f"{name}: {fault}"
