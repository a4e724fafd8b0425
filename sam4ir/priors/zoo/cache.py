"""The folder that holds fetched weights."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return $SAM4IR_HOME/weights, or ~/.cache/sam4ir/weights."""
    home = os.environ.get("SAM4IR_HOME")
    if home:
        return Path(home).expanduser() / "weights"
    return Path.home() / ".cache" / "sam4ir" / "weights"
