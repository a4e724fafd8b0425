"""A pilot: the control with a few seeds, and the difference that a study of so many seeds would see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import stdev

from scipy import stats  # type: ignore[import-untyped]  # comes with scikit-image

from sam4ir.config.study import StudyOptions
from sam4ir.engine.study.plan import StudyError, StudyPlan, plan_of
from sam4ir.engine.study.scores import StudyScores, table_of
from sam4ir.engine.study.statistics import MOST_SEEDS, seeds_for, visible_difference


@dataclass(frozen=True)
class PilotFinding:
    """What a pilot shows. means: of each seed. deviation: of a difference of two arms, over seeds."""

    arm: str
    means: tuple[float, ...]
    deviation: float

    @property
    def lowest(self) -> float:
        """Lower end of the 90 % interval of the deviation."""
        return self._bound(0.95)

    @property
    def highest(self) -> float:
        """Upper end of the 90 % interval of the deviation."""
        return self._bound(0.05)

    def _bound(self, quantile: float) -> float:
        free = len(self.means) - 1
        return self.deviation * float((free / stats.chi2.ppf(quantile, free)) ** 0.5)


def pilot_plan(study: StudyOptions, file: Path, seeds: int) -> StudyPlan:
    """Return the jobs of a pilot: those of the control, which the study then need not do again."""
    if seeds < 2:
        raise StudyError(f"--seeds {seeds}: a pilot needs two seeds or more, since it measures their spread")
    chosen = tuple(range(seeds))
    if not isinstance(study.seeds, int):
        spare = [seed for seed in range(seeds + len(study.seeds)) if seed not in study.seeds]
        chosen = (*study.seeds, *spare)[:seeds]
    whole = study.model_copy(update={"seeds": chosen})
    return plan_of(whole, file)  # whatever the budget, the control has the iterations of its option file


def pilot_finding(scores: StudyScores) -> PilotFinding:
    """Return what the control's seeds show; the spread of a difference is taken for that of two independent runs."""
    arm = scores.plan.study.control_arm
    runs = scores.by_arm.get(arm, {})
    if len(runs) < 2:
        raise StudyError(f"{scores.plan.file}: fewer than two seeds of {arm} are done")
    images = scores.images()
    means = tuple(float(table_of([run.values], images).mean()) for run in runs.values())
    return PilotFinding(arm, means, 2**0.5 * stdev(means))


def pilot_text(finding: PilotFinding, study: StudyOptions) -> str:
    """Return the finding in words."""
    values = ", ".join(f"{mean:.4f}" for mean in finding.means)
    lines = [
        f"Pilot of {study.name}: {finding.arm} with {len(finding.means)} seeds: {values}",
        f"A difference of two arms then has a standard deviation of about {finding.deviation:.4f} over seeds, if "
        "runs of one seed share nothing. What they share makes it smaller.",
        f"{len(finding.means)} seeds tell a deviation roughly: the true one lies between "
        f"{finding.lowest:.4f} and {finding.highest:.4f} with a probability of 90 %.",
    ]
    alpha = study.alpha / max(len(study.comparisons), 1)  # as Holm's correction asks of the first of them
    for count in sorted({len(study.all_seeds), 3, 5, 10} - {1}):
        smallest = visible_difference(finding.deviation, count, alpha, study.power)
        lines.append(f"{count} seeds show a difference of {smallest:.3f} with probability {study.power:g}.")
    for matters in sorted({each.matters for each in study.comparisons}):
        needed = seeds_for(matters, finding.deviation, alpha, study.power)
        words = f"more than {MOST_SEEDS}" if needed is None else str(needed)
        lines.append(f"To see {matters:g}, which matters by the study file, takes {words} seeds.")
    return "\n".join(lines) + "\n"
