"""List and download weights: `python scripts/fetch_weights.py` is `sam4ir weights` (sam4ir/cli/weights.py)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sam4ir.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["weights", *sys.argv[1:]]))
