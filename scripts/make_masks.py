"""Make masks with SAM: `python scripts/make_masks.py` is `sam4ir make-masks` (sam4ir/cli/make_masks.py)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sam4ir.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["make-masks", *sys.argv[1:]]))
