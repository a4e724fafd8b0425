"""Try it on photographs: `python scripts/quickstart.py` is `sam4ir quickstart` in the checkout's folder."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sam4ir.cli.main import main

if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main(["quickstart", *sys.argv[1:]]))
