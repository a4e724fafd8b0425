"""Run, report and plan studies: arms, seeds and comparisons that a file declares before anything is trained.

sam4ir study run my_study.yml                       train what is not trained yet, and report
sam4ir study run my_study.yml --jobs 2 --threads 1  two trainings at a time
sam4ir study run my_study.yml --shard 0/4           a quarter of the runs, for a job array
sam4ir study run my_study.yml --check               look at every option file of the study, and train nothing
sam4ir study report my_study.yml --output study.html
sam4ir study pilot my_study.yml                     four seeds of the control: how small a difference can be seen

Each run is an ordinary one, experiments/STUDY_ARM_sSEED. The same command goes on where a study was stopped. Several
processes may run one study at once; each run is trained once.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from sam4ir.errors import UserError
from sam4ir.registry import near_miss
from sam4ir.utils import cli


def parser() -> cli.Parser:
    """Return the parser of the command."""
    command = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = command.add_subparsers(dest="action", metavar="COMMAND", required=True)
    run = actions.add_parser("run", help="train what is not trained yet, and report")
    report = actions.add_parser("report", help="table, JSON and HTML of the runs that are done")
    pilot = actions.add_parser("pilot", help="a few seeds of the control: how small a difference can be seen")
    for action in (run, report, pilot):
        action.add_argument("study", type=Path, metavar="FILE", help="the study file")
    for action in (run, pilot):
        action.add_argument(
            "--jobs", type=cli.positive, default=1, metavar="N", help="trainings at a time (default: 1)"
        )
        action.add_argument(
            "--threads", type=cli.positive, metavar="N", help="CPU threads of each (default: an equal share)"
        )
        action.add_argument(
            "--devices",
            nargs="+",
            type=device,
            default=[],
            metavar="DEVICE",
            help="one for each job, such as cuda:0 cuda:1",
        )
        action.add_argument(
            "--processes", type=cli.positive, default=1, metavar="N", help="of each training, by torchrun (default: 1)"
        )
    run.add_argument("--shard", default="0/1", metavar="I/N", help="the I-th of N shares of the runs, from 0")
    run.add_argument("--check", action="store_true", help="look at the option file of each run, and train nothing")
    for action in (run, report):
        action.add_argument("--output", type=Path, metavar="FILE.html", help="the page (default: in studies/NAME)")
    pilot.add_argument("--seeds", type=cli.positive, default=4, metavar="N", help="seeds (default: 4)")
    return command


def main(words: Sequence[str] | None = None) -> int:
    """Do what the words ask for; return the exit status: 1 where a run failed, 128 and more after a signal."""
    options = parser().parse_args(words)
    from sam4ir.config.study import load_study
    from sam4ir.engine.study.budget import plan_as_kept
    from sam4ir.engine.study.command import check_study, report_study, run_pilot, run_study
    from sam4ir.engine.study.run import RunChoice

    study = load_study(options.study)
    for name, step in study.shared.items():
        _refuse_unknown(options.study, name, step.command)
    if options.action == "report":
        report_study(plan_as_kept(study, options.study), options.output)
        return 0
    choice = RunChoice(options.jobs, options.threads, tuple(options.devices), options.processes)
    if options.action == "pilot":
        return run_pilot(study, options.study, choice, options.seeds)
    if options.check:
        return check_study(study, options.study)
    choice = dataclasses.replace(choice, shard=shard_of(options.shard))
    return run_study(study, options.study, choice, options.output)


def _refuse_unknown(file: Path, name: str, command: Sequence[str] | None) -> None:
    """Raise UserError where a shared step is no command of sam4ir."""
    from sam4ir.cli.main import COMMANDS

    if command is not None and command[0] not in COMMANDS:
        hint = near_miss(command[0], list(COMMANDS)) or f"; known: {', '.join(COMMANDS)}"
        raise UserError(f"{file}: shared.{name}.command: {command[0]!r} is no command of sam4ir{hint}")


def device(text: str) -> str:
    """Return a name of a device. Raises what argparse shows for any other text."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", text):
        raise argparse.ArgumentTypeError(f"{text!r}: devices are auto, cpu, cuda, cuda:N and mps")
    return text


def shard_of(text: str) -> tuple[int, int]:
    """Return (i, n) of a text I/N. Raises UserError for any other."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise UserError(f"--shard {text}: expected I/N with I from 0 to N - 1, such as 0/4")
    return int(number), int(count)
