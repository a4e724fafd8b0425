"""Files that come with sam4ir beside its code: option files and the masks of the quickstart.

An installed package holds them in its folder `shipped`, where setup.py copies them. In a checkout, which an editable
install uses too, they lie where people edit them.
"""

from __future__ import annotations

from pathlib import Path

from sam4ir.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped(name: str) -> Path:
    """Return the path of a file or folder that comes with sam4ir, such as 'options'. Raises UserError without it."""
    for folder in (_PACKAGE / "shipped", _PACKAGE.parent):
        if (folder / name).exists():
            return folder / name
    raise UserError(f"{name}: this installation of sam4ir lacks it; install sam4ir again, or work in a checkout")
