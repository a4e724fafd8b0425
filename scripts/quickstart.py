"""Try it on photographs: `python scripts/quickstart.py` is `sam4ir quickstart` (sam4ir/cli/quickstart.py)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sam4ir.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["quickstart", *sys.argv[1:]]))
