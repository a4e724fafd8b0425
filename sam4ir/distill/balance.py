"""Weights of loss terms, by hand or from their pull on the student's output ([D])."""

from __future__ import annotations

import math
from dataclasses import dataclass

BATCHES = 50


@dataclass
class TermWeight:
    """The weight of one term.

    fixed: the weight by hand; otherwise `share` sets it so that the term's gradient at the student's
    output has that share of the reconstruction's (L2 norms, mean over the first 50 batches that have
    the term). While those are measured the weight follows the mean so far; then it is kept.
    """

    fixed: float | None = None
    share: float = 0.0
    batches: int = 0
    reconstruction: float = 0.0
    term: float = 0.0

    @property
    def measuring(self) -> bool:
        return self.fixed is None and self.batches < BATCHES

    @property
    def value(self) -> float:
        if self.fixed is not None:
            return self.fixed
        return self.share * self.reconstruction / self.term if self.term > 0 else 0.0

    def observe(self, reconstruction: float, term: float) -> None:
        """Count one total batch: the gradient norms of reconstruction and unweighted term over all its images.

        A batch that is not finite, or whose term has no gradient (an open gate nowhere), does not count.
        """
        if self.measuring and math.isfinite(reconstruction) and math.isfinite(term) and term > 0:
            self.batches += 1
            self.reconstruction += reconstruction
            self.term += term

    def state(self) -> dict[str, float]:
        """Plain values for a checkpoint."""
        return {"batches": self.batches, "reconstruction": self.reconstruction, "term": self.term}

    def load_state(self, state: dict[str, float]) -> None:
        """Take up what state() gave."""
        self.batches = int(state["batches"])
        self.reconstruction, self.term = state["reconstruction"], state["term"]
