"""The milestones of a run, where it validates, keeps its best records, and saves checkpoints."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sam4ir.config.paths import RunPaths
from sam4ir.data.sample import Dataset
from sam4ir.engine.evaluate.metric import Metric
from sam4ir.engine.evaluate.panel import Panel, write_panel
from sam4ir.engine.evaluate.progress import SetProgress
from sam4ir.engine.evaluate.report import BASELINES, Means, Score, SetScore, means
from sam4ir.engine.evaluate.saved_images import SavedImages, saved_images
from sam4ir.engine.evaluate.validate import SHOWN_FAULTS, Outputs, evaluate
from sam4ir.engine.interrupt import Interrupted, Signals
from sam4ir.engine.restore import build as restore_build
from sam4ir.engine.restore.build import RestoreRecipe
from sam4ir.engine.restore.one_pass import OnTile
from sam4ir.engine.train.checkpoint import Progress, publish_latest, save_checkpoint
from sam4ir.engine.train.journal import Journal
from sam4ir.engine.train.keeping import BestWeights, Keeping
from sam4ir.engine.train.parts import TrainingParts
from sam4ir.errors import UserError
from sam4ir.models.sam_distill import SamDistill
from sam4ir.utils.dist import World

BestRecords = dict[str, dict[str, float]]


class ValidationResult(NamedTuple):
    """What a validation gives: scores of all images and of whole sets, and the rows of the panel by name."""

    scores: list[Score]
    sets: list[SetScore]
    panel: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Validation:
    """The scoring of a run's averaged networks on its validation sets.

    recipe: how images are restored; its `val` also says whether the refiner is scored and whether images are saved.
    sets: data sets by name. folder: of the run, where images go, as visualization/<data set>/<iteration>. signals: ends
    a validation.
    """

    recipe: RestoreRecipe
    sets: Mapping[str, Dataset]
    metrics: Mapping[str, Metric]
    parts: TrainingParts
    device: torch.device
    world: World
    seed: int
    folder: Path
    signals: Signals
    log: logging.Logger

    def run(self, iteration: int) -> ValidationResult:
        """Return the scores; raise Interrupted where a signal has reached a process."""
        for ema in self.parts.emas.values():
            self.world.share_buffers(ema.module)
        progress = SetProgress(self.world.main)
        outputs = validation_outputs(self.recipe, self.parts, self.device, progress.inside)
        panel = None
        if self.recipe.val.panel:
            panel = Panel(self.sets, self.recipe.val.panel, self.seed)
        scores: list[Score] = []
        sets: list[SetScore] = []
        for name, data in self.sets.items():
            with torch.compiler.set_stance("force_eager"):  # each image size would be compiled anew
                evaluation = evaluate(
                    name,
                    data,
                    outputs,
                    self.metrics,
                    seed=self.seed,
                    world=self.world,
                    saved=self.saved(name, iteration),
                    stopped=self.signals.number,
                    panel=panel,
                    progress=progress,
                )
            if evaluation.stopped:
                raise Interrupted(evaluation.stopped)
            if evaluation.faults:  # means of fewer images would be no point of the same curve
                raise UserError(_faults_text(name, evaluation.faults))
            scores += evaluation.scores
            sets += evaluation.sets
            for note in evaluation.notes:
                self.log.warning(note)
        rows = {} if panel is None else panel.take(self.world)
        return ValidationResult(scores, sets, rows)

    def saved(self, name: str, iteration: int) -> SavedImages | None:
        """Return where the images of a validation set go, None where val.save_img saves none."""
        val = self.recipe.val
        folder = self.folder / "visualization" / name / str(iteration)
        panels = self.folder / "panels" / name / str(iteration)
        return saved_images(val.save_img, name, folder, panels, refined=val.refiner)


def _faults_text(name: str, faults: Sequence[tuple[str, str]]) -> str:
    """Return the message for images of a validation set that cannot be scored."""
    lines = [f"validation set {name}: {len(faults)} of its images cannot be scored"]
    lines += [f"{key}: {reason}" for key, reason in faults[:SHOWN_FAULTS]]
    if len(faults) > SHOWN_FAULTS:
        lines.append(f"and {len(faults) - SHOWN_FAULTS} more")
    return "\n  ".join(lines) + "\nthe training so far is saved: mend this, then go on with --auto_resume"


def validation_outputs(
    recipe: RestoreRecipe, parts: TrainingParts, device: torch.device, on_part: OnTile | None = None
) -> Outputs:
    """Return the outputs that validation scores: the averaged student's, and the refiner's where val.refiner is set.

    on_part: called with (done, all) after tiles and after sampling steps of an image.
    """
    emas = parts.emas
    refiner = None
    if recipe.val.refiner and "r" in emas:
        refiner = emas["r"].module
    restorer = restore_build.build_restorer(recipe, emas["g"].module, on_part, on_part)
    own = isinstance(parts.model, SamDistill) and parts.model.masks == "own"
    return Outputs(restorer, device, refiner, own_masks=own)


class Milestones:
    """The validations and checkpoints of a run at the iterations where they are due; the main process alone writes.

    validation: None for a run that does not validate. total_iter: the last iteration, which is always a milestone.
    save_freq: iterations between checkpoints; keeping: which of them stay. options_text: the options as YAML, for
    checkpoints.
    means: of the last validation; empty before the first one of this process.
    """

    def __init__(
        self,
        validation: Validation | None,
        parts: TrainingParts,
        progress: Progress,
        paths: RunPaths,
        journal: Journal,
        log: logging.Logger,
        *,
        total_iter: int,
        save_freq: int,
        keeping: Keeping,
        options_text: str,
        main: bool,
    ) -> None:
        self.validation = validation
        self.parts = parts
        self.progress = progress
        self.paths = paths
        self.journal = journal
        self.log = log
        self.total_iter = total_iter
        self.save_freq = save_freq
        self.keeping = keeping
        self.options_text = options_text
        self.main = main
        self.means: Means = {}
        self.best_score = None if validation is None else validation.recipe.val.save_best
        self.best_weights = self._best_weights()

    def _best_weights(self) -> BestWeights | None:
        """Return the keeper of the best weights, in the main process alone; None where none are kept."""
        if self.validation is None or self.best_score is None or not self.main:
            return None
        return BestWeights(self.paths, self.parts, self.best_score, lower_is_better=self._lower_is_better())

    def _lower_is_better(self) -> bool:
        assert self.validation is not None
        assert self.best_score is not None
        return self.validation.metrics[self.best_score.rpartition("/")[2]].lower_is_better

    @property
    def exhausted(self) -> bool:
        """Whether val.patience ends the run: that many validations have brought no better score."""
        if self.validation is None or self.best_score is None:
            return False
        val = self.validation.recipe.val
        best = self.progress.best.get(self.best_score)
        if val.patience is None or val.val_freq is None or best is None:
            return False
        return self.progress.validated - int(best["iter"]) >= val.patience * val.val_freq

    def reach(self) -> None:
        """Validate and save where the present iteration is due for it; the checkpoint holds the best records."""
        iteration = self.progress.iteration
        if self._validation_due():
            self.validate()
        if iteration % self.save_freq == 0 or iteration == self.total_iter or self.exhausted:
            self.save()

    def catch_up(self) -> None:
        """Repeat the validation in whose middle the run was stopped, and save."""
        if self._validation_due() and self.progress.validated < self.progress.iteration:
            self.validate()
            self.save()

    def _validation_due(self) -> bool:
        """Return whether this iteration validates; the last one does too."""
        iteration = self.progress.iteration
        if self.validation is None or self.validation.recipe.val.val_freq is None:
            return False
        if not self.validation.sets or iteration == 0:
            return False
        return iteration % self.validation.recipe.val.val_freq == 0 or iteration == self.total_iter

    def validate(self) -> None:
        """Score the validation sets and report the means."""
        assert self.validation is not None
        iteration = self.progress.iteration
        result = self.validation.run(iteration)
        self.journal.scores(iteration, result.scores)
        self._report(result.scores, result.sets, self.validation.metrics)
        self._show(result.panel)
        self.progress.validated = iteration

    def _report(self, scores: Sequence[Score], sets: Sequence[SetScore], metrics: Mapping[str, Metric]) -> None:
        """Write means to console, TensorBoard and JSON, and update the best records of the deployed network."""
        iteration, values_by_tag = self.progress.iteration, dict[str, float]()
        self.means = means(scores, sets)
        for (dataset, output), values in self.means.items():
            if output in BASELINES:
                continue
            head, suffix = f"Validation {dataset}", ""
            if output == "refined":
                head, suffix = f"{head} (refiner)", "_refiner"
            lines = [head]
            for metric, mean in values.items():
                line = f"\t # {metric}: {mean}"
                if output == "restored":
                    lower = metrics[metric].lower_is_better
                    best = update_best(self.progress.best, f"{dataset}/{metric}", mean.value, iteration, lower)
                    line += f"\tBest: {best['value']:.4f} @ {int(best['iter'])} iter"
                lines.append(line)
                values_by_tag[f"metrics/{dataset}/{metric}{suffix}"] = mean.value
            self.log.info("\n".join(lines))
        self.journal.scalars(iteration, values_by_tag)
        self.journal.write(iteration, values_by_tag)
        self._keep_best(metrics)

    def _show(self, panel: Mapping[str, np.ndarray]) -> None:
        """Give the rows of a panel to the trackers, and write them as one picture; in the main process alone."""
        if not panel or not self.main:
            return
        iteration = self.progress.iteration
        self.journal.pictures(iteration, {f"panel/{name}": row for name, row in panel.items()})
        write_panel(panel, self.paths.visualization / "panel" / f"{iteration}.jpg")

    def _keep_best(self, metrics: Mapping[str, Metric]) -> None:
        """Update the record of val.save_best, and keep the weights that have reached it."""
        if self.best_score is None:
            return
        value = self._score_of(self.best_score)
        iteration, lower = self.progress.iteration, self._lower_is_better()
        best = update_best(self.progress.best, self.best_score, value, iteration, lower)
        if int(best["iter"]) != iteration or self.best_weights is None:
            return
        if self.best_weights.offer(value, iteration, self.options_text):
            self.log.info("Best %s so far: %.4f; its weights are kept as net_g_best.", self.best_score, value)

    def _score_of(self, name: str) -> float:
        """Return the score of the deployed network: of one set (SET/METRIC), or the mean of all sets (METRIC)."""
        chosen, _, metric = name.rpartition("/")
        values = []
        for (dataset, output), scores in self.means.items():
            if output == "restored" and chosen in ("", dataset) and metric in scores:
                values.append(scores[metric].value)
        return sum(values) / len(values)

    def save(self) -> None:
        """Write the checkpoint of the present iteration."""
        if self.main:
            iteration = self.progress.iteration
            self.journal.flush()
            save_checkpoint(self.paths, self.parts, self.progress, self.options_text)
            publish_latest(self.paths, self.parts, iteration)
            self.keeping.remove_older(self.paths, iteration)
            self.log.info("Saved checkpoint of iteration %d.", iteration)

    def rescue(self) -> None:
        """Save the iterations since the last checkpoint, before an error ends the run."""
        if self.progress.iteration not in {0, *self.paths.saved_iterations()}:
            try:
                self.save()
            except OSError as error:
                self.log.error("%s", error)

    def finish(self) -> None:
        """Do once more what follows a checkpoint, in case a kill came before it, and say that the run is done."""
        if self.main:
            publish_latest(self.paths, self.parts, self.progress.iteration)
            self.keeping.remove_older(self.paths, self.progress.iteration)
        if self.exhausted and self.progress.iteration < self.total_iter:
            assert self.best_score is not None
            best = self.progress.best[self.best_score]
            self.log.info(
                "%s has not become better than %.4f (iteration %d) for val.patience validations: the run ends.",
                self.best_score,
                best["value"],
                int(best["iter"]),
            )
        latest = self.paths.network("g", "latest", self.parts.save_format)
        self.log.info("Done: %s is trained; its weights are %s.", self.paths.name, latest)


def update_best(
    records: BestRecords, name: str, value: float, iteration: int, lower_is_better: bool
) -> dict[str, float]:
    """Write {value, iter} as the record of this name where the value is better; return the record that holds then."""
    best = records.get(name)
    sign = -1 if lower_is_better else 1
    if best is None or sign * value > sign * best["value"] or math.isnan(best["value"]):
        best = {"value": value, "iter": iteration}
        records[name] = best
    return best
