"""Print the lines that make a shell complete the commands, flags and file names of sam4ir.

bash: add to ~/.bashrc                        eval "$(sam4ir completion bash)"
zsh:  add to ~/.zshrc, behind compinit        eval "$(sam4ir completion zsh)"
fish: add to ~/.config/fish/config.fish       sam4ir completion fish | source
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
from collections.abc import Mapping, Sequence

from sam4ir.errors import UserError
from sam4ir.utils import cli

SHELLS = ("bash", "zsh", "fish")


def parser() -> cli.Parser:
    """Return the parser of the command."""
    command = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("shell", choices=SHELLS, help="the shell that you use")
    return command


def main(words: Sequence[str] | None = None) -> int:
    """Print the lines of a shell. Raises UserError without the package argcomplete."""
    options = parser().parse_args(words)
    try:
        import argcomplete
    except ImportError:
        raise UserError("completion needs the package argcomplete: pip install argcomplete") from None
    print(argcomplete.shellcode(["sam4ir"], shell=options.shell))
    return 0


def complete(commands: Mapping[str, tuple[str, str]]) -> None:
    """Answer a shell that asks for completions by argcomplete's variables, and end the process.

    commands: name -> (module of sam4ir.cli, help). Only the module of the command on the line is imported.
    """
    import argcomplete

    argcomplete.autocomplete(_whole_parser(commands, _command_on_the_line()))


def _command_on_the_line() -> str:
    """Return the first word behind `sam4ir` on the line that the shell completes; '' without one."""
    line = os.environ.get("COMP_LINE", "")
    try:
        words = shlex.split(line)
    except ValueError:  # a quotation mark that is open still
        words = line.split()
    return words[1] if len(words) > 1 else ""


def _whole_parser(commands: Mapping[str, tuple[str, str]], chosen: str) -> cli.Parser:
    """Return a parser of all commands, in which only the chosen one has its flags."""
    whole = cli.Parser(prog="sam4ir")
    whole.add_argument("--version", action="store_true")
    group = whole.add_subparsers(metavar="COMMAND")
    for name, (module, text) in commands.items():
        group.add_parser(name, help=text)
        if name == chosen:
            parsers: dict[str, argparse.ArgumentParser] = group.choices  # type: ignore[assignment]
            parsers[name] = importlib.import_module(f"sam4ir.cli.{module}").parser()
    return whole
