"""Score networks: `python test.py -opt FILE` is `sam4ir test -opt FILE` (sam4ir/cli/test.py)."""

import sys

from sam4ir.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["test", *sys.argv[1:]]))
