"""Inspect, import, export, cut and verify masks: `python scripts/masks.py` is `sam4ir masks` (sam4ir/cli/masks.py)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sam4ir.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["masks", *sys.argv[1:]]))
