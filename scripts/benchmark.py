"""Measure times: `python scripts/benchmark.py` is `sam4ir benchmark` (sam4ir/cli/benchmark.py)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sam4ir.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
