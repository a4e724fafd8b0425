"""The one base of errors that a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """The user's input cannot be used: an option, a file, an image, a flag or the machine that was asked for.

    The message names the file, key or image, what is wrong with it, and what would do. Command lines print it as one
    line (utils.cli). Anything else that escapes is a fault of ours and keeps its traceback.
    """
