"""Restore images: `python scripts/restore.py` is `sam4ir restore` (sam4ir/cli/restore.py)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sam4ir.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["restore", *sys.argv[1:]]))
