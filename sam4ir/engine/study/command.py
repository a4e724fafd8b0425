"""What the command `sam4ir study` does with a plan: check it, run it, report it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from sam4ir.config.load import OptionsError
from sam4ir.config.study import StudyOptions
from sam4ir.engine.study.budget import is_measured, plan_as_kept, plan_with_budget
from sam4ir.engine.study.findings import findings_of
from sam4ir.engine.study.pilot import pilot_finding, pilot_plan, pilot_text
from sam4ir.engine.study.plan import StudyPlan
from sam4ir.engine.study.report import study_json, study_page, study_text
from sam4ir.engine.study.run import RunChoice, StudyOutcome, refuse_changed, run_jobs
from sam4ir.engine.study.scores import read_scores, refuse_unscored
from sam4ir.utils.files import make_folder, write_text

PAGE, SUMMARY, TEXT = "report.html", "summary.json", "report.txt"


def check_study(study: StudyOptions, file: Path) -> int:
    """Load the options of each training and print the study's size; return 1 where some cannot be used."""
    plan = plan_as_kept(study, file)
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
        if options.train is not None:
            steps += options.train.total_iter
    trainings = [job for job in plan.jobs.values() if job.base is not None]
    commands = len(plan.jobs) - len(trainings)
    print(
        f"{study.name}: {len(study.arms)} arms, {len(study.all_seeds)} seeds: {len(trainings)} trainings with "
        f"{steps:,} steps, {commands} commands; {len(study.comparisons)} comparisons declared"
    )
    if wrong:
        print(f"{wrong} of them have an option file that cannot be used")
        return 1
    refuse_unscored(plan)
    refuse_changed(plan)
    if not is_measured(plan):
        print(f"The steps are those of the option files: {study.budget} is measured when the study runs.")
    print("Every option file is in order. sam4ir train -opt FILE --check looks at data, memory and time of one.")
    return 0


def run_study(study: StudyOptions, file: Path, choice: RunChoice, output: Path | None) -> int:
    """Run what is not done, and report what is; return the exit status."""
    plan = plan_as_kept(study, file)
    refuse_unscored(plan)
    refuse_changed(plan)
    if not is_measured(plan):
        shared = [job for job in plan.firsts() if job.arm is None]
        outcome = run_jobs(plan, choice, _say, shared)  # the measurement reads the data that they make
        if outcome.signal or outcome.failed:
            return _ended(outcome)
        _say(f"{study.name}: takes a few steps of each arm to measure what they cost")
        plan = plan_with_budget(study, file, choice.devices[0] if choice.devices else None)
    outcome = run_jobs(plan, choice, _say)
    if not outcome.signal and _any_run(plan):
        report_study(plan, output)
    return _ended(outcome)


def _any_run(plan: StudyPlan) -> bool:
    """Return whether a training of some arm is done."""
    return any((plan.folder / "done" / f"{run.name}.json").is_file() for run in plan.runs())


def _ended(outcome: StudyOutcome) -> int:
    """Print how the jobs ended; return the exit status."""
    for name, log in outcome.failed.items():
        print(f"{name} failed; its log is {log}", file=sys.stderr)
    if outcome.signal:
        print("Stopped. The same command goes on.", file=sys.stderr)
        return 128 + outcome.signal
    return 1 if outcome.failed else 0


def report_study(plan: StudyPlan, output: Path | None) -> None:
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
    refuse_unscored(plan)
    control = dataclasses.replace(choice, arms=[study.control_arm])
    refuse_changed(plan, plan.share(control.shard, control.arms))
    outcome = run_jobs(plan, control, _say)
    status = _ended(outcome)
    if not status:
        print(pilot_text(pilot_finding(read_scores(plan, [study.control_arm])), study), end="")
    return status


def _say(line: str) -> None:
    print(line, flush=True)
