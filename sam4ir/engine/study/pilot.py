"""A pilot: the control with a few seeds, and the difference that a study of so many seeds would see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import stdev

from sam4ir.config.study import StudyOptions
from sam4ir.engine.study.budget import planned
from sam4ir.engine.study.plan import Plan, StudyError
from sam4ir.engine.study.scores import StudyScores, table_of
from sam4ir.engine.study.statistics import seeds_for, visible_difference

SEEDS = 4


@dataclass(frozen=True)
class PilotFinding:
    """What a pilot found. means: of each seed. deviation: of a difference of two arms, over seeds."""

    arm: str
    means: tuple[float, ...]
    deviation: float


def pilot_plan(study: StudyOptions, file: Path, seeds: int) -> Plan:
    """Return the jobs of a pilot: those of the control, which the study then need not do again."""
    if seeds < 2:
        raise StudyError(f"--seeds {seeds}: a pilot needs two seeds or more, since it measures their spread")
    chosen = tuple(range(seeds))
    if not isinstance(study.seeds, int):
        spare = [seed for seed in range(seeds + len(study.seeds)) if seed not in study.seeds]
        chosen = (*study.seeds, *spare)[:seeds]
    whole = study.model_copy(update={"seeds": chosen})
    return planned(whole, file)


def pilot_finding(scores: StudyScores) -> PilotFinding:
    """Return what the control's seeds show; the spread of a difference is taken for that of two independent runs."""
    arm = scores.plan.study.control_arm
    runs = scores.by_arm.get(arm, {})
    if len(runs) < 2:
        raise StudyError(f"{scores.plan.file}: fewer than two seeds of {arm} are done")
    images = scores.images()
    means = tuple(float(table_of([run.values], images).mean()) for run in runs.values())
    return PilotFinding(arm, means, 2**0.5 * stdev(means))


def pilot_text(found: PilotFinding, study: StudyOptions) -> str:
    """Return the finding in words."""
    values = ", ".join(f"{mean:.4f}" for mean in found.means)
    lines = [
        f"Pilot of {study.name}: {found.arm} with {len(found.means)} seeds: {values}",
        f"A difference of two arms has a standard deviation of {found.deviation:.4f} over seeds, if seeds share "
        "nothing; pairing by seed can only make it smaller.",
    ]
    for count in sorted({len(study.all_seeds), 3, 5, 10} - {1}):
        seen = visible_difference(found.deviation, count, study.alpha, study.power)
        lines.append(f"{count} seeds show a difference of {seen:.3f} with probability {study.power:g}.")
    for matters in sorted({each.matters for each in study.comparisons}):
        needed = seeds_for(matters, found.deviation, study.alpha, study.power)
        words = "more than 1000" if needed is None else str(needed)
        lines.append(f"To see {matters:g}, which matters by the study file, takes {words} seeds.")
    return "\n".join(lines) + "\n"
