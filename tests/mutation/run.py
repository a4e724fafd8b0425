"""Change the code in small ways, one at a time, and count how many of these mutants the tests notice.

python tests/mutation/run.py                            all modules of targets.py, 20 mutants each: about an hour
python tests/mutation/run.py --module distill --sample 60      the modules whose names contain `distill`
python tests/mutation/run.py --again                    try survivors again, after tests were added
python tests/mutation/run.py --report                   print the score of what was tried
python tests/mutation/run.py --count                    print how many mutants there are

It needs cosmic-ray: pip install -e ".[test,mutation]". Each trial is a fork of a process that has imported torch
already; it reads the mutated module from memory, so that nothing on the disk changes. Results are appended to a table,
build/mutation.jsonl, and what stands there is not tried again: a job that was stopped goes on.

equivalent.json lists mutants that change no result, each with the reason. They do not count:
score = killed / (tried - equivalent).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mutants import Mutant, sample, sites
from targets import TARGETS
from trial import Trial, warm_up

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.json")
Name = tuple[str, str, str, str]  # module, inside, before, after
TABLE = ROOT / "build" / "mutation.jsonl"


@dataclass(frozen=True)
class Result:
    """The result of one trial: the fields of its mutant, and what came of it.

    outcome: killed, survived or slow (killed for taking too long). by: the test that failed.
    """

    module: str
    inside: str
    line: int
    operator: str
    before: str
    after: str
    outcome: str
    by: str = ""


def name_of(item: Mutant | Result) -> Name:
    """Return what names a mutant, also after lines were added elsewhere in its module."""
    return item.module, item.inside, item.before, item.after


def read_results(table: Path) -> dict[Name, Result]:
    """Return the latest result of each mutant in a table; {} without one."""
    if not table.exists():
        return {}
    lines = table.read_text(encoding="utf-8").splitlines()
    results = [Result(**json.loads(line)) for line in lines]
    return {name_of(result): result for result in results}


def write_result(table: Path, result: Result) -> None:
    """Append a result to a table."""
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("a", encoding="utf-8") as file:
        file.write(json.dumps(vars(result), ensure_ascii=False) + "\n")


def equivalents() -> set[Name]:
    """Return the names of the mutants that change no result."""
    entries = json.loads(EQUIVALENT.read_text(encoding="utf-8"))
    return {(entry["module"], entry["inside"], entry["before"], entry["after"]) for entry in entries}


def modules(part: str) -> list[str]:
    """Return the targets whose names contain `part`."""
    return [module for module in TARGETS if part in module]


def drawn(module: str, count: int, seed: int) -> list[Mutant]:
    """Return the sample of a module."""
    return sample(module, (ROOT / module).read_text(encoding="utf-8"), count, seed)


def try_module(module: str, mutants: Sequence[Mutant], jobs: int) -> Iterator[Result]:
    """Try the mutants of one module; yield their results as they come.

    Raises SystemExit where the module's tests fail without a change.
    """
    tests = TARGETS[module]
    source = (ROOT / module).read_text(encoding="utf-8")
    unchanged = Trial(module, source, tests, cpu_seconds=600)
    unchanged.wait()
    if unchanged.outcome != "survived":
        raise SystemExit(f"{module}: its tests fail without a change ({unchanged.by or unchanged.outcome})")
    limit = int(20 + 4 * unchanged.cpu)
    waiting = list(mutants)
    running: list[tuple[Mutant, Trial]] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop(0)
            running.append((mutant, Trial(module, mutant.source, tests, limit)))
        for mutant, trial in list(running):
            if trial.ended():
                running.remove((mutant, trial))
                fields = (mutant.module, mutant.inside, mutant.line, mutant.operator, mutant.before, mutant.after)
                yield Result(*fields, trial.outcome, trial.by)
        time.sleep(0.02)


def report(results: Iterable[Result]) -> float:
    """Print score and survivors of each module; return the score of all, 1 where nothing was tried."""
    known_same = equivalents()
    by_module: dict[str, list[Result]] = {}
    for result in results:
        by_module.setdefault(result.module, []).append(result)
    killed_in_all = counted_in_all = same_in_all = 0
    for module, tried in sorted(by_module.items()):
        survivors = [r for r in tried if r.outcome == "survived"]
        same = [result for result in survivors if name_of(result) in known_same]
        counted, killed = len(tried) - len(same), len(tried) - len(survivors)
        print(f"{module}: {killed} of {counted} killed, {len(same)} equivalent")
        for result in survivors:
            if result not in same:
                print(f"    line {result.line}: {result.before}\n{'':12}-> {result.after}")
        killed_in_all += killed
        counted_in_all += counted
        same_in_all += len(same)
    score = killed_in_all / max(counted_in_all, 1) if counted_in_all else 1.0
    print(f"killed {killed_in_all} of {counted_in_all}: {score:.1%}; {same_in_all} equivalent mutants left out")
    return score


def job(part: str, count: int, seed: int, jobs: int, table: Path, again: bool) -> float:
    """Try the mutants that the table lacks (again: also those that survived); return the score of the sample."""
    known = read_results(table)
    wanted: dict[Name, Result | None] = {}
    known_same = equivalents()
    for module in modules(part):
        todo = []
        for mutant in drawn(module, count, seed):
            result = wanted[name_of(mutant)] = known.get(name_of(mutant))
            retry = again and result is not None and result.outcome == "survived"
            if result is None or (retry and name_of(mutant) not in known_same):
                todo.append(mutant)
        if not todo:
            continue
        print(f"{module}: {len(todo)} mutants", flush=True)
        for result in try_module(module, todo, jobs):
            write_result(table, result)
            wanted[name_of(result)] = result
            print(f"  {result.outcome:9}{result.line:4} {result.after[:90]}  [{result.by}]", flush=True)
    return report(result for result in wanted.values() if result is not None)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", default="", metavar="TEXT", help="modules whose names contain this (default: all)")
    parser.add_argument("--sample", type=int, default=20, metavar="N", help="mutants of a module (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trials at once (default: 1)")
    parser.add_argument("--table", type=Path, default=TABLE, help="where results stand (default: build/mutation.jsonl)")
    parser.add_argument("--again", action="store_true", help="also try those that survived before")
    parser.add_argument("--count", action="store_true", help="print how many mutants there are, and try none")
    parser.add_argument("--least", type=float, default=0.0, metavar="SHARE", help="fail below this score, 0 to 1")
    parser.add_argument("--report", action="store_true", help="print the score of the table, and try none")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the job, or print what the flags ask for."""
    options = parse(arguments)
    os.chdir(ROOT)
    if options.count:
        total = 0
        for module in modules(options.module):
            by_place = sites((ROOT / module).read_text(encoding="utf-8"))
            total += sum(map(len, by_place.values()))
            print(f"{module}: {sum(map(len, by_place.values()))} mutants at {len(by_place)} places")
        print(f"{total} mutants")
    elif options.report:
        report(read_results(options.table).values())
    else:
        warm_up()
        score = job(options.module, options.sample, options.seed, options.jobs, options.table, options.again)
        if score < options.least:
            sys.exit(f"the score is below {options.least:.0%}")


if __name__ == "__main__":
    main()
