"""Command lines that end in one clear message instead of a traceback."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable

USER_ERROR = 2
LAUNCHERS = ("none", "pytorch", "slurm")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags that train.py and test.py share with BasicSR."""
    parser.add_argument("-opt", "--opt", required=True, metavar="FILE", help="option file (YAML)")
    parser.add_argument(
        "--force_yml", nargs="+", default=[], metavar="KEY:KEY=VALUE", help="options that override the file"
    )
    parser.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        default="none",
        help="pytorch insists on torchrun, slurm reads srun's variables; none joins torchrun's processes, if any",
    )
    local_rank = "--local_rank", "--local-rank"  # given by older launchers, which set LOCAL_RANK as well
    parser.add_argument(*local_rank, type=int, help=argparse.SUPPRESS)


def run(command: Callable[[], int | None]) -> int:
    """Run a command; what the user can mend (ValueError, OSError) is printed as one message, exit code 2.

    Under torchrun the message also goes into its report of what failed first.
    SAM4IR_TRACEBACK=1 in the environment shows the traceback too.
    """
    try:
        return command() or 0
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        if os.environ.get("SAM4IR_TRACEBACK") == "1":
            raise
        rank = os.environ.get("RANK")
        print(f"error: {error}" if rank is None else f"error in process {rank}: {error}", file=sys.stderr, flush=True)
        _tell_torchrun(f"{type(error).__name__}: {error}", later=60 if isinstance(error, ConnectionError) else 0)
        return USER_ERROR


def _tell_torchrun(text: str, later: int) -> None:
    """The message for torchrun's own report, in the form of torch.distributed.elastic's error files.

    It calls the first failure the root cause; later: seconds by which one that follows from another is put behind it.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        about = {"py_callstack": text, "timestamp": str(int(time.time()) + later)}
        with open(file, "w", encoding="utf-8") as report:
            json.dump({"message": {"message": text, "extraInfo": about}}, report)
