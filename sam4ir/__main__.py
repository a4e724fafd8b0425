"""`python -m sam4ir` is the command `sam4ir`; `torchrun -m sam4ir train ...` starts it in many processes."""

import sys

from sam4ir.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
