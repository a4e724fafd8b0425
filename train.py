"""Train a network: `python train.py -opt FILE` is `sam4ir train -opt FILE` (sam4ir/cli/train.py)."""

import sys

from sam4ir.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
