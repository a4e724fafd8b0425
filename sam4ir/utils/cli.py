"""Command lines: flags in one spelling, user errors in one line, bugs with their traceback."""

from __future__ import annotations

import argparse
import contextlib
import errno
import itertools
import json
import logging
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sam4ir.errors import UserError
from sam4ir.utils.files import takes_no_more, write_error
from sam4ir.utils.shell import command_words
from sam4ir.utils.streams import ConsoleHandler, guard_streams, output_was_cut

BUG = 1
USER_ERROR = 2
MOST = 2**31 - 1  # of counts: torch and OpenCV take 32 bits
LAUNCHERS = ("none", "pytorch", "slurm")
TRACEBACK = "SAM4IR_TRACEBACK"  # environment variable; 1 shows the traceback of user errors as well
_OPTION_FILE_FLAGS = ("-opt", "--opt", "--restore-opt", "--restore_opt")


class Parser(argparse.ArgumentParser):
    """An argument parser whose long flags are spelt --kebab-case; the spelling with underscores works the same.

    It adds --traceback, which equals SAM4IR_TRACEBACK=1 in the environment. Parsers of subcommands are of this class
    too, so the flag may stand before or after the subcommand.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        settings.setdefault("prog", program_name())
        super().__init__(*arguments, **settings)
        self.add_argument(
            "--traceback",
            action=_ShowTraceback,
            nargs=0,
            default=argparse.SUPPRESS,
            help="show the traceback of user errors as well, not only their message",
        )

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as argparse does, after each flag got its kebab-case spelling."""
        words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(kebab_case(words), namespace)

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """Return the flags that an abbreviation may mean, as argparse does, but each with one of its spellings.

        --traceback counts only where nothing else fits, so that what it begins with still abbreviates other flags.
        """
        by_action: dict[argparse.Action, Any] = {}
        for match in super()._get_option_tuples(option_string):
            by_action.setdefault(match[0], match)
        others = [match for action, match in by_action.items() if not isinstance(action, _ShowTraceback)]
        return others or list(by_action.values())


class _ShowTraceback(argparse.Action):
    """Set the environment variable, which worker processes inherit."""

    def __call__(self, *_: Any) -> None:
        os.environ[TRACEBACK] = "1"


def program_name() -> str:
    """Return how usage names the running command: 'sam4ir restore', or the script that runs it: 'sam4ir restore'."""
    program = _typed_program()
    if program != ["sam4ir"] and program[-2:] != ["-m", "sam4ir"]:
        return Path(sys.argv[0]).name
    return " ".join(["sam4ir", *sys.argv[1:2]])


def _typed_program() -> list[str]:
    """Return the words of the command line that stand before its flags, as they can be typed again."""
    path = Path(sys.argv[0])
    if path.stem == "sam4ir":
        return ["sam4ir"]
    python = Path(sys.executable).name
    if path.name == "__main__.py" and path.parent.name == "sam4ir":
        return [python, "-m", "sam4ir"]
    return [python, sys.argv[0]]


def kebab_case(words: Sequence[str]) -> list[str]:
    """Return command-line words whose long flags have dashes for underscores; values stay, and so does all after --."""
    end = words.index("--") if "--" in words else len(words)
    spelt = []
    for word in words[:end]:
        flag, equals, value = word.partition("=")
        spelt.append(flag.replace("_", "-") + equals + value if flag.startswith("--") else word)
    return [*spelt, *words[end:]]


def count(text: str) -> int:
    """Return a flag's whole number, from 0 to what 32 bits hold."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    if number > MOST:
        raise argparse.ArgumentTypeError(f"{number} is above {MOST}")
    return number


def positive(text: str) -> int:
    """Return a flag's whole number, from 1 to what 32 bits hold."""
    if count(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return int(text)


def add_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the flags that `sam4ir train` and `sam4ir test` share with BasicSR. required: whether -opt must be given."""
    parser.add_argument("-opt", "--opt", required=required, metavar="FILE", help="option file (YAML)")
    parser.add_argument(
        "--force-yml",
        "--force_yml",
        nargs="+",
        default=[],
        metavar="KEY:KEY=VALUE",
        help="options that override the file",
    )
    add_launcher(parser)


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add --launcher, and --local-rank, which older launchers pass beside setting LOCAL_RANK."""
    parser.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        default="none",
        help="pytorch insists on torchrun, slurm reads srun's variables; none joins torchrun's processes, if any",
    )
    parser.add_argument("--local-rank", type=int, help=argparse.SUPPRESS)


def show_log() -> None:
    """Print the log of sam4ir, such as the entry that was read of a weights file, in a script without a log file."""
    logger = logging.getLogger("sam4ir")
    if not logger.handlers:
        handler = ConsoleHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def run(command: Callable[[], int | None], *, logged: bool = False) -> int:
    """Run a command and return its exit code.

    A user error (UserError, or an OSError that names a file or an error number) becomes one line and exit code 2;
    SAM4IR_TRACEBACK=1 prints its traceback before the line. Any other exception is a bug: its traceback, then lines
    that say how to report it, and exit code 1. Under torchrun both also go into its report of what failed first.
    A command whose reader has left (`| head -1`) does its work without a message (utils.streams); its exit code is then
    1 in place of 0, unless what it prints is in a file too (logged).
    """
    guard_streams()
    try:
        code = command() or 0
        sys.stdout.flush()  # here an error of it becomes a message
        if output_was_cut() and not logged:
            return code or BUG
        return code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        user_error = is_user_error(error)
        if not user_error or os.environ.get(TRACEBACK) == "1":
            traceback.print_exception(type(error), error, error.__traceback__)
        rank = os.environ.get("RANK")
        lines = _user_message(error, rank) if user_error else _bug_message(rank)
        print(lines, file=sys.stderr, flush=True)
        _report_to_torchrun(error, delay=60 if isinstance(error, ConnectionError) else 0)
        return USER_ERROR if user_error else BUG


def is_user_error(error: BaseException) -> bool:
    """Whether the user can mend it: a UserError, memory that ran out, or an OSError of a file, disk or connection."""
    if isinstance(error, (UserError, MemoryError, ConnectionError, TimeoutError)):
        return True
    if isinstance(error, OSError):
        return error.errno not in (None, errno.EBADF)
    if "torch" not in sys.modules:  # it has errors of its own, and no command should wait for its import
        return False
    from sam4ir.utils.memory import out_of_memory

    return out_of_memory(error)


def _user_message(error: Exception, rank: str | None) -> str:
    text = str(error).strip()
    if takes_no_more(error) and not isinstance(error, UserError):  # from a library, or from this process's output
        text = str(write_error(Path(os.fsdecode(getattr(error, "filename", None) or "a file")), error))
    elif not isinstance(error, (UserError, OSError)):
        text = f"memory ran out ({text.splitlines()[0] if text else type(error).__name__})"
    return f"error: {text}" if rank is None else f"error in process {rank}: {text}"


def _bug_message(rank: str | None) -> str:
    """The lines below a bug's traceback: whose fault it is, and what a report must hold."""
    words = [*_typed_program(), *sys.argv[1:]]
    process = "" if rank is None else f" (process {rank})"
    lines = [
        f"This is a fault of sam4ir or of a plugin{process}, not of your input. Please report it to its maintainers "
        "with the traceback above and these lines:",
        f"  command: {command_words(*words)}",
        f"  versions: {_versions()}",
    ]
    for flag, word in itertools.pairwise(words):
        name, equals, value = word.partition("=")
        if equals and name in _OPTION_FILE_FLAGS:
            lines.append(f"  option file, to be attached: {Path(value).absolute()}")
        if flag in _OPTION_FILE_FLAGS:
            lines.append(f"  option file, to be attached: {Path(word).absolute()}")
    return "\n".join(lines)


def _versions() -> str:
    """'sam4ir 0.1.0, torch 2.4.0, Python 3.11.2, Linux-...'."""
    from importlib import metadata  # here, since it takes half of the time of --help

    versions = []
    for package in ("sam4ir", "torch"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:  # run from a source folder that is not installed
            versions.append(f"{package} (not installed)")
    return ", ".join([*versions, f"Python {platform.python_version()}", platform.platform()])


def _report_to_torchrun(error: BaseException, delay: int) -> None:
    """Write the message where torchrun reads it, in the form of torch.distributed.elastic's error files.

    torchrun calls the first failure the root cause. delay: seconds by which an error that follows from another is
    put behind it.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file:
        return
    text = f"{type(error).__name__}: {error}"
    about = {"py_callstack": text, "timestamp": str(int(time.time()) + delay)}
    with contextlib.suppress(OSError), open(file, "w", encoding="utf-8") as report:  # the message was printed already
        json.dump({"message": {"message": text, "extraInfo": about}}, report)
