"""What the command `sam4ir study` does with a plan: check it, run it, report it."""

from __future__ import annotations

import sys
from pathlib import Path

from sam4ir.config.load import OptionsError
from sam4ir.config.study import StudyOptions
from sam4ir.engine.study.findings import findings_of
from sam4ir.engine.study.pilot import pilot_finding, pilot_plan, pilot_text
from sam4ir.engine.study.plan import Plan
from sam4ir.engine.study.report import study_json, study_page, study_text
from sam4ir.engine.study.run import Outcome, RunChoice, run_jobs
from sam4ir.engine.study.scores import read_scores
from sam4ir.utils.files import make_folder, write_text

PAGE, SUMMARY, TEXT = "report.html", "summary.json", "report.txt"


def check(plan: Plan) -> int:
    """Load the options of each training and print the study's size; return 1 where some cannot be used."""
    wrong, steps = 0, 0
    for job in plan.jobs.values():
        if job.base is None:
            continue
        try:
            options = job.options()
        except OptionsError as error:
            wrong += 1
            print(f"{job.name}: {error}")
            continue
        assert options.train is not None
        steps += options.train.total_iter
    trainings = [job for job in plan.jobs.values() if job.base is not None]
    commands = len(plan.jobs) - len(trainings)
    print(
        f"{plan.study.name}: {len(plan.study.arms)} arms, {len(plan.study.all_seeds)} seeds: {len(trainings)} "
        f"trainings with {steps:,} steps, {commands} commands; {len(plan.study.comparisons)} comparisons declared"
    )
    if wrong:
        print(f"{wrong} of them have an option file that cannot be used")
        return 1
    print("Every option file is in order. sam4ir train -opt FILE --check looks at data, memory and time of one.")
    return 0


def run(plan: Plan, choice: RunChoice, output: Path | None) -> int:
    """Run what is not done, and report what is; return the exit status."""
    outcome = run_jobs(plan, choice, _say)
    if outcome.signal:
        print("Stopped. The same command goes on.", file=sys.stderr)
        return 128 + outcome.signal
    if _any_run(plan):
        report(plan, output)
    return _failures(outcome)


def _any_run(plan: Plan) -> bool:
    """Return whether a training of some arm is done."""
    return any((plan.folder / "done" / f"{run.name}.json").is_file() for run in plan.runs())


def _failures(outcome: Outcome) -> int:
    """Print the jobs that failed; return the exit status."""
    for name, log in outcome.failed.items():
        print(f"{name} failed; its log is {log}", file=sys.stderr)
    return 1 if outcome.failed else 0


def report(plan: Plan, output: Path | None) -> None:
    """Print the report; write it as text, JSON and a page into the study's folder. Raises StudyError without runs."""
    findings = findings_of(read_scores(plan))
    text = study_text(findings)
    make_folder(plan.folder)
    write_text(plan.folder / TEXT, text)
    write_text(plan.folder / SUMMARY, study_json(findings))
    page = output or plan.folder / PAGE
    write_text(page, study_page(findings))
    print(f"{text}\npage: {page}, figures: {plan.folder / SUMMARY}")


def run_pilot(study: StudyOptions, file: Path, choice: RunChoice, seeds: int) -> int:
    """Train the control with some seeds and print what a study could see; return the exit status."""
    plan = pilot_plan(study, file, seeds)
    arms = RunChoice(choice.jobs, choice.threads, choice.devices, choice.processes, arms=[study.control_arm])
    outcome = run_jobs(plan, arms, _say)
    if outcome.signal:
        return 128 + outcome.signal
    status = _failures(outcome)
    if not status:
        print(pilot_text(pilot_finding(read_scores(plan)), study), end="")
    return status


def _say(line: str) -> None:
    print(line, flush=True)
