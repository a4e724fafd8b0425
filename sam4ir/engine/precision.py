"""The number formats of a run: what `auto` is on its devices, and a warning where a format costs more than fp32."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple

import torch

from sam4ir.config.schema import Options, TrainOptions
from sam4ir.utils.dist import ALONE, World
from sam4ir.utils.precision import AUTO, Support, bf16_support, slow_format

SGR = "SGR"  # the term whose VGG may run in bf16 by itself (its argument bf16)


class Settled(NamedTuple):
    """Options without `auto`. chosen: a line for each key that was auto. warnings: for formats that cost more."""

    options: Options
    chosen: list[str]
    warnings: list[str]

    def log(self, log: logging.Logger) -> None:
        """Log what was chosen, and the warnings."""
        for line in self.chosen:
            log.info(line)
        for line in self.warnings:
            log.warning(line)


def settle_training(options: Options, device: torch.device, world: World = ALONE) -> Settled:
    """Return the options of a training with a format for `auto`; one for all processes, bf16 where it is fast in all.

    The saved options then name the format, so that a resume on another machine reports another choice.
    """
    formats = _Formats(device, agreed_support(device, world))
    updates: dict[str, object] = {"precision": formats.of("precision", options.precision)}
    if options.train is not None:
        updates["train"] = _terms(options.train, formats)
    settled = options.model_copy(update=updates)
    return _sampling(settled, formats)


def settle_restoring(options: Options, device: torch.device, world: World = ALONE) -> Settled:
    """Return the options of a program that restores, with a format for `auto` of val.sampling.precision."""
    return _sampling(options, _Formats(device, agreed_support(device, world)))


def settle_format(key: str, asked: str, device: torch.device, world: World = ALONE) -> tuple[str, Iterable[str]]:
    """Return the format of a flag, and what to print about it: the choice, or a warning."""
    formats = _Formats(device, agreed_support(device, world))
    number_format = formats.of(key, asked)
    return number_format, (*formats.chosen, *formats.warnings)


def agreed_support(device: torch.device, world: World) -> Support:
    """Return whether bf16 is fast on the devices of all processes."""
    support = bf16_support(device)
    if world.largest(int(not support.fast)) and support.fast:
        return Support(False, "bf16 is slow on the device of another process")
    return support


class _Formats:
    """The formats of a device. chosen, warnings: lines about the keys that were asked for."""

    def __init__(self, device: torch.device, support: Support) -> None:
        self.device = device
        self.support = support
        self.chosen: list[str] = []
        self.warnings: list[str] = []

    def of(self, key: str, asked: str) -> str:
        """Return the format of a key."""
        if asked == AUTO:
            number_format = "bf16" if self.support.fast else "fp32"
            self.chosen.append(f"{key}: auto is {number_format} here; {self.support.reason}.")
            return number_format
        slow = slow_format(asked, self.device)
        if slow:
            self.warnings.append(f"{key}: {asked} is slow here: {slow}; set {AUTO} or fp32")
        return asked

    def switch(self, key: str, asked: object) -> bool:
        """Return the value of a key that is true for bf16, false or auto."""
        if asked == AUTO:
            self.chosen.append(f"{key}: auto is {str(self.support.fast).lower()} here; {self.support.reason}.")
            return self.support.fast
        if asked is True and slow_format("bf16", self.device):
            self.warnings.append(f"{key}: true is slow here: {slow_format('bf16', self.device)}; set {AUTO} or false")
        return bool(asked)


def _terms(train: TrainOptions, formats: _Formats) -> TrainOptions:
    """Return the training options with a value for `bf16: auto` of each term SGR."""
    updates: dict[str, object] = {}
    further = dict(train.distill.terms)
    for name, (path, term) in train.terms.items():
        if term.type != SGR or "bf16" not in term.arguments or term.off:
            continue
        value = formats.switch(".".join((*path, "bf16")), term.arguments["bf16"])
        changed = term.model_copy(update={"bf16": value})
        if name in further:
            further[name] = changed
        else:
            updates[f"{name}_opt"] = changed
    if further != train.distill.terms:
        updates["distill"] = train.distill.model_copy(update={"terms": further})
    return train.model_copy(update=updates)


def _sampling(options: Options, formats: _Formats) -> Settled:
    """Return the options with a format for the sampling of a diffusion network."""
    if options.diffuses and options.val is not None:
        key = "val.sampling.precision"
        sampling = options.val.sampling
        sampling = sampling.model_copy(update={"precision": formats.of(key, sampling.precision)})
        options = options.model_copy(update={"val": options.val.model_copy(update={"sampling": sampling})})
    return Settled(options, formats.chosen, formats.warnings)
