"""Prepare the data sets of the field: `python scripts/prepare_data.py` is `sam4ir prepare` (sam4ir/cli/prepare.py)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sam4ir.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
