"""The three kinds of metrics, and the facts about a metric that do not depend on its arguments.

A metric is a function (image, reference, [lq,] arguments, data_range) -> float; or a class whose objects are called as
such a function, built once, with the state of its network if its constructor has an argument `state`; or a class that
derives from SetMetric and gives one number for all images of a set.
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
    """Facts about a metric that do not depend on its arguments.

    lower_is_better: whether a lower value is better.
    definition: exact definition for reports, if the name does not say it all.
    weights: name in the zoo of the weights that the engine hands over as `state`.
    needs: (module, command that installs it) of packages that only this metric needs.
    """

    lower_is_better: bool = False
    definition: str = ""
    weights: str | None = None
    needs: Sequence[tuple[str, str]] = ()


def described(traits: Traits) -> Callable[[T], T]:
    """Return a decorator that attaches traits to a function; a class has them as its attribute `traits`."""

    def give(target: T) -> T:
        target.traits = traits  # type: ignore[attr-defined]
        return target

    return give


def traits_of(target: Callable[..., Any]) -> Traits:
    """Return the traits of a metric; by default a higher value is better."""
    traits: Traits = getattr(target, "traits", Traits())
    return traits


class SetMetric(ABC):
    """A metric of a whole set: each image becomes features, and the features of all images are compared at the end.

    dimensions: length of one image's features.
    """

    traits: ClassVar[Traits]
    dimensions: int

    @abstractmethod
    def features(self, image: Tensor, data_range: float) -> Tensor:
        """Return the features (dimensions,) float32 on the CPU of a (3 or 1, h, w) image in [0, data_range]."""

    @abstractmethod
    def distance(self, images: Tensor, references: Tensor) -> float:
        """Return the distance of the features (n, dimensions) of images from those (m, dimensions) of their references.

        It is NaN if there are too few images for one.
        """
