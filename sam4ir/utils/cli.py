"""Command lines that end in one clear message instead of a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

USER_ERROR = 2


def run(command: Callable[[], int | None]) -> int:
    """Run a command; what the user can mend (ValueError, OSError) is printed as one message, exit code 2.

    SAM4IR_TRACEBACK=1 in the environment shows the traceback too.
    """
    try:
        return command() or 0
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if os.environ.get("SAM4IR_TRACEBACK") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
