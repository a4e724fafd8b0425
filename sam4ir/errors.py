"""The base class of the errors that a user can mend, and what a message takes from other errors."""

from __future__ import annotations


class UserError(ValueError):
    """The user's input cannot be used: an option, a file, an image, a flag or the machine.

    The message names the file, key or image, what is wrong with it, and what helps. Command lines print it as one line
    (utils.cli). Any other exception that escapes is a bug and keeps its traceback.
    """


class FileError(OSError, UserError):
    """A file that the system cannot write or read; the message names the file and the reason."""


def first_line(error: BaseException | str) -> str:
    """Return the first line of an error's text; the name of its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
