"""What stands in an option file but does nothing here: one line each, with the reason."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from sam4ir.config.schema import WITHOUT_EFFECT, DatasetOptions, Options, TrainOptions


def notices(options: Options) -> list[str]:
    """One line for every key that stands in the file but has no effect here, with the reason."""
    given = options.model_dump(exclude_unset=True, exclude_none=True)
    found = _gpus(options)
    for pattern, reason in WITHOUT_EFFECT.items():
        for place in _places(given, pattern):
            found.append(f"{'.'.join(key for key in place if key != 'without_effect')} has no effect: {reason}")
    for key, loader in options.datasets.items():
        if loader.placeholder and not key.startswith("train"):
            found.append(f"datasets.{key} has no effect: its dataroots are null; name them, or remove the block")
    if options.val is not None and not options.val.grids:
        for key in ("crop_size", "overlap", "max_minibatch"):
            if key in given.get("val", {}):
                found.append(f"val.{key} has no effect: without grids: true images are restored whole")
    if options.diffuses:
        found += _diffusion(options, given)
    for key, loader in options.phase("train").items():
        found += _stages(f"datasets.{key}", loader, options.train)
    return found


def _diffusion(options: Options, given: Mapping[str, Any]) -> list[str]:
    """Keys of the diffusion that another one switches off, and masks that it does not look at."""
    process, found = options.process, []
    of_schedule = {"cosine": ("beta_start", "beta_end"), "linear": ("s",)}[process.schedule]
    reasons = dict.fromkeys(of_schedule, f"schedule {process.schedule} has none")
    if process.modulation == "none":
        reasons |= dict.fromkeys(("strength", "profile", "mean"), "modulation is none")
    for key in reasons.keys() & given.get("diffusion", {}).keys():
        found.append(f"diffusion.{key} has no effect: {reasons[key]}")
    for key, loader in options.phase("train").items():
        if loader.masks is not None and not loader.masks.views and not process.needs_masks:
            why = "modulation is none" if process.modulation == "none" else "strength is 0"
            found.append(f"datasets.{key}.masks has no effect: diffusion.{why}")
    return sorted(found)


def _places(values: Any, pattern: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if not pattern:
        if values is not None:
            yield ()
    elif isinstance(values, Mapping):
        for key in values:
            if any(fnmatchcase(key, wanted) for wanted in pattern[0].split("|")):
                yield from ((key, *rest) for rest in _places(values[key], pattern[1:]))


def _gpus(options: Options) -> list[str]:
    """num_gpu: with the total_batch that trains as this file does on its number of GPUs."""
    number, train = options.num_gpu, options.train
    if number is None:
        return []
    reason = "the number of processes is torchrun's, and device names the device"
    if isinstance(number, int) and number > 1 and train is not None and train.total_batch is None:
        for loader in options.phase("train").values():
            micro = loader.mini_batch_sizes or (loader.batch_size_per_gpu,)
            totals = [number * batch for batch in micro]
            batch = totals if loader.mini_batch_sizes else totals[0]
            reason += f"; train.total_batch: {batch} makes the batch of {number} GPUs on any number of them"
    return [f"num_gpu has no effect: {reason}"]


def _stages(place: str, loader: DatasetOptions, train: TrainOptions | None) -> list[str]:
    """Keys that the stages of progressive training overrule, and stages that training does not reach."""
    if loader.gt_sizes is None or loader.mini_batch_sizes is None or loader.iters is None or train is None:
        return []
    found = []
    for key, value, owner, largest in (
        ("gt_size", loader.arguments.get("gt_size"), "gt_sizes", max(loader.gt_sizes)),
        ("batch_size_per_gpu", loader.batch_size_per_gpu, "mini_batch_sizes", max(loader.mini_batch_sizes)),
    ):
        given = key in loader.model_fields_set or key in loader.arguments
        if given and value not in (None, largest):
            found.append(f"{place}.{key} has no effect: {owner} says it, stage by stage")
    begins = [0, *itertools.accumulate(loader.iters)]
    unreached = [str(number) for number, begin in enumerate(begins[:-1], 1) if begin >= train.total_iter]
    if begins[-1] > train.total_iter:
        late = f"never reached: stage {', '.join(unreached)}" if unreached else "the last stage is cut short"
        found.append(f"{place}.iters adds up to {begins[-1]}, but train.total_iter is {train.total_iter}: {late}")
    return found
