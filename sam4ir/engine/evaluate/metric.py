"""Metrics as the engine calls them: each image is prepared once for all, and each definition has a text."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sam4ir.config.signature import accepts
from sam4ir.errors import UserError
from sam4ir.metrics.kinds import SetMetric, Traits, traits_of
from sam4ir.registry import METRICS
from sam4ir.utils.image import to_uint8

CPU = torch.device("cpu")


class MetricBuildError(UserError):
    """A metric that lacks a package or weights; the message names the remedy."""


class Pixels:
    """One image in the two forms that metrics read, each computed once.

    image: (c, h, w) float in [0, 1]; grey or RGB.
    """

    def __init__(self, image: Tensor) -> None:
        self.image = image

    @functools.cached_property
    def finite(self) -> bool:
        """Whether every value is finite."""
        return bool(self.image.isfinite().all())

    @functools.cached_property
    def rounded(self) -> Tensor:
        """(c, h, w) uint8; the image must be finite."""
        return torch.from_numpy(to_uint8(self.image)).permute(2, 0, 1).contiguous()

    def form(self, uint8: bool) -> tuple[Tensor, float]:
        """Return the pixels and the value of white, as 8 bits or as float."""
        if uint8:
            return self.rounded, 255.0
        return self.image, 1.0


@dataclass(frozen=True)
class Metric:
    """A metric protocol with its arguments.

    function: the entry of the registry, see metrics.kinds. uint8: images are rounded to 8 bit first and the range is
    255; otherwise they are float with range 1. device: that of the metric's network, if it has one.
    """

    name: str
    type_name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    uint8: bool = True
    device: torch.device = CPU

    @property
    def traits(self) -> Traits:
        """The properties that hold for it whatever its arguments."""
        return traits_of(self.function)

    @property
    def lower_is_better(self) -> bool:
        """Whether a lower value is better."""
        return self.traits.lower_is_better

    @property
    def of_set(self) -> bool:
        """Whether it is one number for a whole set, with no value for an image."""
        return inspect.isclass(self.function) and issubclass(self.function, SetMetric)

    @functools.cached_property
    def measure(self) -> Any:
        """The function with its arguments, or an object of the metric's class, built once.

        Raises MetricBuildError where a package or weights are missing; weights that can be fetched are fetched.
        """
        if not inspect.isclass(self.function):
            return functools.partial(self.function, **self.arguments)
        arguments = dict(self.arguments)
        if accepts(self.function, "state"):
            arguments["state"] = self._state()
        measure = self.function(**arguments)
        if isinstance(measure, nn.Module):
            return measure.to(self.device)
        return measure

    @functools.cached_property
    def _reads_lq(self) -> bool:
        if not inspect.isclass(self.function):
            return accepts(self.function, "lq")
        return accepts(getattr(self.function, "forward", self.function.__call__), "lq")

    def _state(self) -> Mapping[str, Tensor]:
        """Return the weights of the metric's network."""
        for module, install in self.traits.needs:
            if importlib.util.find_spec(module) is None:
                raise MetricBuildError(
                    f"val.metrics.{self.name}: {self.type_name} needs the package {module.replace('_', '-')}: {install}"
                )
        if self.traits.weights is None:
            raise MetricBuildError(f"val.metrics.{self.name}: {self.type_name} takes a state but names no weights")
        from sam4ir.priors.zoo import weights as zoo  # metrics without a network need no zoo

        try:
            return zoo.load_state(self.traits.weights)
        except zoo.WeightsError as error:
            fetch = f"(sam4ir weights {self.traits.weights})"
            raise MetricBuildError(f"val.metrics.{self.name}: {self.type_name}: {error} {fetch}") from error

    def __call__(self, image: Pixels, reference: Pixels, lq: Pixels | None = None) -> float:
        """Return the value for an image and its ground truth; NaN where the image has values that are not finite.

        lq: the degraded image, which some metrics read.
        """
        if not image.finite:
            return math.nan
        arguments: dict[str, Any] = {}
        if self._reads_lq:
            if lq is None:
                raise UserError(f"{self.name}: {self.type_name} needs the degraded image")
            arguments["lq"] = lq.form(self.uint8)[0]
        pixels, arguments["data_range"] = image.form(self.uint8)
        value: float = self.measure(pixels, reference.form(self.uint8)[0], **arguments)
        return value

    def features(self, image: Pixels) -> Tensor:
        """Return the features of an image for a metric of a set, (dimensions,); NaN where values are not finite."""
        if not image.finite:
            return torch.full((self.measure.dimensions,), math.nan)
        features: Tensor = self.measure.features(*image.form(self.uint8))
        return features

    @property
    def protocol(self) -> str:
        """The definition as a text that names every argument, so that equal texts are equal definitions."""
        arguments: dict[str, Any] = {}
        for parameter in inspect.signature(self.function).parameters.values():
            if parameter.default is not parameter.empty and parameter.name not in METRICS.handed:
                arguments[parameter.name] = parameter.default
        arguments.update(self.arguments)
        pixels = "8-bit images" if self.uint8 else "float images in [0, 1]"
        text = f"{self.type_name} on {pixels}"
        for name, value in arguments.items():
            text += f", {name} {value}"
        if self.traits.definition:
            text += f": {self.traits.definition}"
        return text


def prepare_metrics(metrics: Mapping[str, Metric], device: torch.device) -> dict[str, Metric]:
    """Build the metrics' networks on a device, so that a missing package is reported before any work is done."""
    ready = {}
    for name, metric in metrics.items():
        ready[name] = dataclasses.replace(metric, device=device)
        _ = ready[name].measure
    return ready


def protocols_of(metrics: Mapping[str, Metric]) -> dict[str, str]:
    """Return {metric: definition}."""
    return {name: metric.protocol for name, metric in metrics.items()}


def lower_is_better(metrics: Mapping[str, Metric]) -> list[str]:
    """Return the metrics where a lower value is better."""
    return [name for name, metric in metrics.items() if metric.lower_is_better]
