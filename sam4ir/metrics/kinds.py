"""What the engine must know of a metric beside how to call it, and the metrics of a whole set of images.

A metric is one of three. A function (image, reference, [lq,] arguments, data_range) -> float. A class that is built
once, with the state of its network where it asks for `state`, whose objects are called as such a function. A class
that derives from SetMetric: one number for all images of a set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Traits:
    """What holds for a metric whatever its arguments.

    lower_is_better: whether less is better. definition: what the number is, where the name does not say it all; stands
    in every report. weights: name in the zoo of what is handed over as `state`. needs: (module, command that installs
    it) of packages that sam4ir does without otherwise.
    """

    lower_is_better: bool = False
    definition: str = ""
    weights: str | None = None
    needs: Sequence[tuple[str, str]] = ()


def described(traits: Traits) -> Callable[[T], T]:
    """Decorator that gives a function its traits; a class has them as its attribute `traits`."""

    def give(target: T) -> T:
        target.traits = traits  # type: ignore[attr-defined]
        return target

    return give


def traits_of(target: Callable[..., Any]) -> Traits:
    """The traits of a metric; those of a plain function that was given none: more is better."""
    found: Traits = getattr(target, "traits", Traits())
    return found


class SetMetric(ABC):
    """A metric of a whole set: images become features one by one, which are compared when all are there.

    dimensions: numbers of one image's features.
    """

    traits: ClassVar[Traits]
    dimensions: int

    @abstractmethod
    def features(self, image: Tensor, data_range: float) -> Tensor:
        """(dimensions,) float32 on the CPU, of a (3 or 1, h, w) image with values in [0, data_range]."""

    @abstractmethod
    def distance(self, images: Tensor, references: Tensor) -> float:
        """How far the features (n, dimensions) of images are from those (m, dimensions) of their references.

        NaN where there are too few to tell.
        """
