"""Notices: keys of an option file that do nothing here or not what they are there for, one line each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from sam4ir.config.schema import DatasetOptions, Options, TrainOptions

# Keys of official files that do nothing here, and why. A key of a path may be a pattern: `*` is any text, `|` stands
# between alternatives.
WITHOUT_EFFECT: Mapping[tuple[str, ...], str] = {
    ("dist_params",): "torchrun sets up the processes",
    ("img_path",): "sam4ir restore works on single images and takes their paths on its command line",
    ("datasets", "*", "prefetch_mode"): "batches are pinned and copied ahead on CUDA by themselves",
    ("datasets", "*", "num_prefetch_queue"): "batches are pinned and copied ahead on CUDA by themselves",
    ("datasets", "*", "phase"): "the key of the data set (train, val, test) decides",
    ("datasets", "val*|test*", "gt_sizes"): "only training has stages",
    ("datasets", "val*|test*", "mini_batch_sizes"): "only training has stages",
    ("datasets", "val*|test*", "iters"): "only training has stages",
    ("datasets", "*", "without_effect", "*"): "the data set makes its degraded images from the clean ones",
    ("val", "random_crop_num"): "tiles cover the image evenly",
    ("val", "rgb2bgr"): "images are RGB everywhere and files are written in the right order",
    ("val", "suffix"): "images are saved under the name of the run",
    ("val", "pbar"): "long work shows a progress bar when it runs in a terminal",
}

OF_VALIDATION = ("val_freq", "metrics", "save_img", "refiner")  # keys of `val` that do nothing without a set

GPUS = "the number of processes is torchrun's, and device names the device"  # of num_gpu


def notices(options: Options) -> list[str]:
    """Return one line for every key of the file that has no effect here, and for others that do not fit together."""
    values = options.model_dump(exclude_unset=True, exclude_none=True)
    lines = _gpus(options)
    for pattern, reason in WITHOUT_EFFECT.items():
        for place in _places(values, pattern):
            key = ".".join(part for part in place if part != "without_effect")
            lines.append(f"{key} has no effect: {reason}")
    for key, loader in options.datasets.items():
        if loader.placeholder and not key.startswith("train"):
            lines.append(f"datasets.{key} has no effect: its dataroots are null; name them, or remove the block")
    if options.val is not None and not options.val.grids:
        for key in ("crop_size", "overlap", "max_minibatch"):
            if key in values.get("val", {}):
                lines.append(f"val.{key} has no effect: without grids: true images are restored whole")
    lines += _validation(options, values)
    if options.diffuses:
        lines += _diffusion(options, values)
    for key, loader in options.phase("train").items():
        lines += _stages(f"datasets.{key}", loader, options.train)
    return lines + _cosines(options.train)


def _cosines(train: TrainOptions | None) -> list[str]:
    """Return a line for each half cosine of a learning rate that is longer or shorter than the run."""
    if train is None:
        return []
    lines = []
    for key, block in (("scheduler", train.scheduler), ("scheduler_r", train.scheduler_r)):
        if block is None or block.type != "TrueCosineAnnealingLR":
            continue
        length = block.arguments.get("T_max")
        if not isinstance(length, int) or length == train.total_iter:
            continue
        why = "the rate ends before it has fallen to eta_min"
        if length < train.total_iter:
            why = "the rate rises again after it has fallen to eta_min"
        lines.append(f"train.{key}.T_max is {length}, but train.total_iter is {train.total_iter}: {why}")
    return lines


def _validation(options: Options, values: Mapping[str, Any]) -> list[str]:
    """Return the line of a training that validates nothing although the file has sets, a frequency or metrics for it.

    Where the file does not train, sam4ir test scores its sets, with or without val.val_freq.
    """
    if options.train is None:
        return []
    sets, val = options.phase("val"), options.val
    if sets:
        place = f"datasets.{next(iter(sets))}"
        if val is None:
            return [f"{place} has no effect: the file has no block `val`; add val: {{val_freq: 5000, metrics: ...}}"]
        if val.val_freq is None:
            return [f"{place} has no effect: nothing is validated without val.val_freq; add one, such as 5000"]
        if not val.metrics and not val.save_img:
            return [
                f"{place} is restored and not scored: val.metrics names none; add one, such as psnr: {{type: psnr}}"
            ]
        return []
    if any(key.startswith("val") for key in options.datasets):  # one of null dataroots has a line of its own
        return []
    for key in OF_VALIDATION:
        if values.get("val", {}).get(key):
            return [f"val.{key} has no effect: datasets has no validation set; name one `val`, or remove val.{key}"]
    return []


def _diffusion(options: Options, values: Mapping[str, Any]) -> list[str]:
    """Return lines for keys of the diffusion that another key switches off, and for masks that it does not read."""
    process = options.process
    lines = []
    of_schedule = {"cosine": ("beta_start", "beta_end"), "linear": ("s",)}[process.schedule]
    reasons = dict.fromkeys(of_schedule, f"schedule {process.schedule} has none")
    if process.modulation == "none":
        reasons |= dict.fromkeys(("strength", "profile", "mean"), "modulation is none")
    for key in reasons.keys() & values.get("diffusion", {}).keys():
        lines.append(f"diffusion.{key} has no effect: {reasons[key]}")
    for key, loader in options.phase("train").items():
        if loader.masks is not None and not loader.masks.views and not process.needs_masks:
            why = "strength is 0"
            if process.modulation == "none":
                why = "modulation is none"
            lines.append(f"datasets.{key}.masks has no effect: diffusion.{why}")
    return sorted(lines)


def _places(values: Any, pattern: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the key paths of a tree that match a pattern and hold a value."""
    if not pattern:
        if values is not None:
            yield ()
    elif isinstance(values, Mapping):
        for key in values:
            if _matches(key, pattern[0]):
                for rest in _places(values[key], pattern[1:]):
                    yield (key, *rest)


def _matches(key: str, pattern: str) -> bool:
    """Return whether a key matches one of the alternatives of a pattern."""
    return any(fnmatchcase(key, alternative) for alternative in pattern.split("|"))


def _gpus(options: Options) -> list[str]:
    """Return the line for num_gpu, with the total_batch that gives the same training on any number of GPUs."""
    number, train = options.num_gpu, options.train
    if number is None:
        return []
    reason = GPUS
    if isinstance(number, int) and number > 1 and train is not None and train.total_batch is None:
        for loader in options.phase("train").values():
            batch: int | list[int] = number * loader.batch_size_per_gpu
            if loader.mini_batch_sizes:
                batch = [number * size for size in loader.mini_batch_sizes]
            reason += f"; train.total_batch: {batch} makes the batch of {number} GPUs on any number of them"
    return [f"num_gpu has no effect: {reason}"]


def _stages(place: str, loader: DatasetOptions, train: TrainOptions | None) -> list[str]:
    """Return lines for keys that the stages of progressive training replace, and for stages that are not reached."""
    if loader.gt_sizes is None or loader.mini_batch_sizes is None or loader.iters is None or train is None:
        return []
    lines = []
    for key, value, owner, largest in (
        ("gt_size", loader.arguments.get("gt_size"), "gt_sizes", max(loader.gt_sizes)),
        ("batch_size_per_gpu", loader.batch_size_per_gpu, "mini_batch_sizes", max(loader.mini_batch_sizes)),
    ):
        in_file = key in loader.model_fields_set or key in loader.arguments
        if in_file and value not in (None, largest):
            lines.append(f"{place}.{key} has no effect: {owner} sets it, stage by stage")
    lines += _unreached(place, loader.iters, train.total_iter)
    return lines


def _unreached(place: str, lengths: Sequence[int], total: int) -> list[str]:
    """Return a line where stages of these lengths take more iterations than the run has."""
    *begins, end = [0, *itertools.accumulate(lengths)]
    if end <= total:
        return []
    unreached = []
    for number, begin in enumerate(begins, 1):
        if begin >= total:
            unreached.append(str(number))
    late = "the last stage is cut short"
    if unreached:
        late = f"never reached: stage {', '.join(unreached)}"
    return [f"{place}.iters adds up to {end}, but train.total_iter is {total}: {late}"]
