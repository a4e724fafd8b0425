"""The record of every step: its JSON line, its console line, and whether it was skipped."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import torch

from sam4ir.config.paths import RunPaths
from sam4ir.data.sample import Batch
from sam4ir.engine.train.checkpoint import Progress
from sam4ir.engine.train.console_line import IterationLine, Pace
from sam4ir.engine.train.data import Sets
from sam4ir.engine.train.journal import Journal
from sam4ir.engine.train.parts import TrainingParts
from sam4ir.engine.train.step import Outcome
from sam4ir.errors import UserError
from sam4ir.utils.dist import World
from sam4ir.utils.memory import in_words, peak_memory

PATIENCE = 55.0  # seconds without a line after which an iteration between two printed ones gets one
GRADIENT_NORM = "gradient_norm_"  # before the label of a network, in log.jsonl


class NonFiniteError(UserError):
    """Training that does not recover from losses that are not finite."""


class StepLog:
    """The log of a run's steps.

    max_nonfinite: steps in a row that may fail to be finite before the run ends.
    """

    def __init__(
        self,
        parts: TrainingParts,
        progress: Progress,
        sets: Sets,
        paths: RunPaths,
        journal: Journal,
        log: logging.Logger,
        *,
        device: torch.device,
        world: World,
        max_nonfinite: int,
    ) -> None:
        self.parts = parts
        self.progress = progress
        self.sets = sets
        self.paths = paths
        self.journal = journal
        self.log = log
        self.device = device
        self.world = world
        self.max_nonfinite = max_nonfinite

    def record(self, outcome: Outcome, micro: Sequence[Batch]) -> None:
        """Write the JSON line of the iteration; count a step that was skipped, and name its images.

        Raises NonFiniteError where too many steps in a row were not finite.
        """
        progress, line = self.progress, dict[str, Any](outcome.values)
        for label, norm in outcome.norms.items():
            line[f"{GRADIENT_NORM}{label}"] = norm
        reasons = self._skipped_images(micro)
        if reasons:
            line["replaced"] = reasons
            for reason in reasons:
                self.log.error("Iteration %d: image skipped: %s", progress.iteration, reason)
        lowers_scale = outcome.overflow and self.parts.scaler.get_scale() >= 1  # a scale below 1 is no remedy
        if outcome.finite or lowers_scale:
            progress.skipped_in_a_row = 0
        else:
            progress.skipped_in_a_row += 1
        if not outcome.finite:
            progress.skipped += 1
            line |= {"skipped": True, "images": self._keys(micro)}
            cause = "loss or gradient is not finite"
            if lowers_scale:
                cause = "float16 overflows, its scale is lowered"
            images = ", ".join(line["images"])
            self.log.warning("Iteration %d: %s; step skipped. Images: %s", progress.iteration, cause, images)
        self.journal.write(progress.iteration, line)
        if progress.skipped_in_a_row >= self.max_nonfinite:
            raise NonFiniteError(
                f"{self.paths.name}: loss or gradient not finite {progress.skipped_in_a_row} times in a row up to "
                f"iteration {progress.iteration}; the images are named in {self.paths.run / 'log.jsonl'}. "
                "Lower the learning rate, or look at the data"
            )

    def _skipped_images(self, micro: Sequence[Batch]) -> list[str]:
        """Return why images were skipped (bad_images: skip), in all processes."""
        reasons: list[str] = []
        for batch in micro:
            reasons += batch.skipped
        if self.sets.loader.bad_images == "stop" or not self.world.largest(len(reasons)):
            return []
        return list(itertools.chain.from_iterable(self.world.gather(reasons)))

    def _keys(self, micro: Sequence[Batch]) -> list[str]:
        """Return the keys of the images in all processes."""
        keys: list[str] = []
        for batch in micro:
            keys += batch.keys
        return list(itertools.chain.from_iterable(self.world.gather(keys)))

    def show(self, outcome: Outcome, pace: Pace, times: tuple[float, float]) -> None:
        """Log the console line of the iteration, and give its scalars to the trackers.

        times: seconds of the whole iteration, and of loading its images.
        """
        self.journal.scalars(self.progress.iteration, self._tagged(outcome))
        self._line(outcome, pace, times)

    def show_life(self, outcome: Outcome, pace: Pace, times: tuple[float, float]) -> None:
        """Log the console line of an iteration where the last line is long ago, so that slow runs are seen to go on."""
        if pace.since_line() > PATIENCE:
            self._line(outcome, pace, times)

    def _line(self, outcome: Outcome, pace: Pace, times: tuple[float, float]) -> None:
        iteration = self.progress.iteration
        epoch = self.progress.sample // max(len(self.sets.train) * self.sets.loader.dataset_enlarge_ratio, 1)
        line = IterationLine(
            self.paths.name,
            epoch,
            iteration,
            list(self._rates().values()),
            pace.left(iteration),
            times,
            pace.rate(),
            in_words(peak_memory(self.device)),
            outcome.values,
        )
        self.log.info("%s", line)

    def _rates(self) -> dict[str, float]:
        """Return the learning rate of each network that trains."""
        iteration, rates = self.progress.iteration, {}
        for label in self.parts.model.active(iteration):
            rates[label] = self.parts.optimisers[label].rate(iteration)
        return rates

    def _tagged(self, outcome: Outcome) -> dict[str, float]:
        """Return losses, measures, rates and gradient norms by tag. `lr` is the rate of the first network."""
        tags = {}
        for name, value in outcome.values.items():
            tag = f"losses/{name}" if name.startswith("l_") else name
            tags[tag] = value
        for number, (label, rate) in enumerate(self._rates().items()):
            tags["lr" if number == 0 else f"lr_{label}"] = rate
        for label, norm in outcome.norms.items():
            tags[f"gradient_norm/{label}"] = norm
        return tags
