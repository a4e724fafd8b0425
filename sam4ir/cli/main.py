"""The command `sam4ir`: a list of commands, each of which is a module of this folder."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from sam4ir import __version__
from sam4ir.errors import UserError
from sam4ir.utils import cli


class Command(NamedTuple):
    """A command: the module of sam4ir.cli that holds it, one line of help, and whether its output is in a log too."""

    module: str
    help: str
    logged: bool = False


COMMANDS = {
    "train": Command("train", "train a network, plain or with SAM4IR; or check an option file", logged=True),
    "test": Command("test", "restore test sets with networks and score them"),
    "restore": Command("restore", "restore images with a trained network"),
    "export": Command("export", "write a trained network as ONNX, torch.export or safetensors"),
    "make-masks": Command("make_masks", "make the masks of a folder of images with Segment Anything"),
    "masks": Command("masks", "inspect, verify, view, import, export and cut mask stores"),
    "prepare": Command("prepare", "make training and test sets of the files that you downloaded"),
    "info": Command("info", "describe a network: its size, cost, training and scores"),
    "demo": Command("demo", "serve a web page that restores images"),
    "push": Command("push", "publish a network on a model hub"),
    "watch": Command("watch", "draw the curves of runs in the terminal"),
    "average": Command("average", "average the weights of several checkpoints"),
    "weights": Command("weights", "list and fetch pretrained weights"),
    "compare": Command("compare", "compare results of tests, paired image by image"),
    "study": Command("study", "run arms and seeds that a file declares, and say what they show", logged=True),
    "report": Command("report", "report runs and results as one HTML file, or as a table for a paper"),
    "benchmark": Command("benchmark", "measure what training, inference and loading cost here"),
    "options": Command("options", "list, show and copy the option files that come with sam4ir"),
    "completion": Command("completion", "print the lines that make a shell complete commands and flags"),
    "quickstart": Command("quickstart", "train plainly and with SAM4IR on six photographs, in minutes"),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command that the first word names; return the exit status.

    Without a word, and with --help, the commands are listed. words: default those of the command line.
    """
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    if words is None:
        words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        return cli.run(show_help)
    if words[0] == "--version":
        return cli.run(show_version)
    return cli.run(lambda: run_command(words[0], words[1:]), logged=is_logged(words[0]))


def run_command(name: str, words: Sequence[str]) -> int:
    """Import the module of a command and run it. Raises UserError for an unknown name."""
    if name not in COMMANDS:
        raise UserError(f"{name!r} is no command of sam4ir; {_advice(name)}")
    module = importlib.import_module(f"sam4ir.cli.{COMMANDS[name].module}")
    return int(module.main(list(words)))


def _complete() -> None:
    """Answer a shell that asks what may stand next on its line."""
    from sam4ir.cli.completion import complete

    commands = {}
    for name, command in COMMANDS.items():
        commands[name] = command.module, command.help
    complete(commands)


def is_logged(name: str) -> bool:
    """Whether what a command prints is also in a file."""
    return name in COMMANDS and COMMANDS[name].logged


def _advice(name: str) -> str:
    """Return what to type instead of an unknown command."""
    if name.startswith("-"):
        return "the command comes first: sam4ir COMMAND [FLAGS]"
    spelt = name.lower().replace("_", "-").removesuffix(".py")
    near = difflib.get_close_matches(spelt, COMMANDS, n=1)
    if near:
        return f"did you mean {near[0]!r}? known: {', '.join(COMMANDS)}"
    return f"known: {', '.join(COMMANDS)}"


def show_help() -> int:
    """Print the list of commands."""
    print(help_text())
    return 0


def show_version() -> int:
    """Print the version."""
    print(f"sam4ir {__version__}")
    return 0


def help_text() -> str:
    """Return usage and the list of commands."""
    lines = [
        "usage: sam4ir COMMAND [FLAGS]",
        "",
        "Train, test and deploy networks for image restoration.",
        "",
        "commands:",
    ]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:12} {command.help}")
    lines += ["", "sam4ir COMMAND --help describes a command; sam4ir --version prints the version."]
    return "\n".join(lines)
