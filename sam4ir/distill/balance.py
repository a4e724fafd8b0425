"""Weights of distillation terms: fixed, or measured from the pull on the student's output (docs/method.md#weights)."""

from __future__ import annotations

import math
from dataclasses import dataclass

BATCHES = 50


@dataclass
class TermWeight:
    """The weight of one term.

    fixed: a fixed weight. Without it, `share` sets the weight so that the term's gradient at the student's output has
    that share of the reconstruction's (L2 norms, mean over the first 50 batches that have the term). During those
    batches the weight follows the mean so far; afterwards it stays.
    """

    fixed: float | None = None
    share: float = 0.0
    batches: int = 0
    reconstruction: float = 0.0
    term: float = 0.0

    @property
    def measuring(self) -> bool:
        """Whether the weight still follows what is measured."""
        return self.fixed is None and self.batches < BATCHES

    @property
    def value(self) -> float:
        """The weight that holds now; 0 before anything is measured."""
        if self.fixed is not None:
            return self.fixed
        if self.term <= 0:
            return 0.0
        return self.share * self.reconstruction / self.term

    def observe(self, reconstruction: float, term: float) -> None:
        """Count one total batch: the gradient norms of reconstruction and unweighted term over all its images.

        A batch that is not finite, or whose term has no gradient (an open gate nowhere), does not count.
        """
        if self.measuring and math.isfinite(reconstruction) and math.isfinite(term) and term > 0:
            self.batches += 1
            self.reconstruction += reconstruction
            self.term += term

    def state(self) -> dict[str, float]:
        """Return plain values for a checkpoint."""
        return {"batches": self.batches, "reconstruction": self.reconstruction, "term": self.term}

    def load_state(self, state: dict[str, float]) -> None:
        """Restore the values that state() returned."""
        self.batches = int(state["batches"])
        self.reconstruction, self.term = state["reconstruction"], state["term"]
