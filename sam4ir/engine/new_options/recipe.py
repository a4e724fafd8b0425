"""Choose network, patch, batch and iterations by the images and the device."""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass, field
from typing import Any

from sam4ir.engine.new_options.images import Survey
from sam4ir.errors import UserError

SCALES = (1, 2, 4)  # of NAFNet (1) and RRDBNet (2, 4)
_LEAST_PATCH = 32
_STEP = 16  # patches are multiples of it: of every scale, and of what the networks halve


@dataclass(frozen=True)
class Recipe:
    """The sizes of a training.

    network: the block network_g. about: the network in words. patch: side of GT crops. batch: samples of a step.
    micro_batch: samples at once. iterations: steps of the run. optim, schedule, loss: the blocks of `train`.
    workers: processes that load images. notes: what the images made different.
    """

    network: dict[str, Any]
    about: str
    patch: int
    batch: int
    micro_batch: int
    iterations: int
    optim: dict[str, Any]
    schedule: dict[str, Any]
    loss: str
    workers: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Sizes:
    """What suits a device and a number of images. patch: on GT."""

    iterations: int
    patch: int
    batch: int
    micro_batch: int
    network: dict[str, Any]
    about: str


_TINY = {"width": 8, "enc_blk_nums": [1, 1], "middle_blk_num": 1, "dec_blk_nums": [1, 1]}
_SMALL = {"width": 16, "enc_blk_nums": [1, 1, 2, 4], "middle_blk_num": 2, "dec_blk_nums": [1, 1, 1, 1]}
_PUBLISHED = {"width": 32, "enc_blk_nums": [2, 2, 4, 8], "middle_blk_num": 12, "dec_blk_nums": [2, 2, 2, 2]}
_FOR_CPU = "small enough for a CPU"
_FOR_FEW = "of a size for few images"
_AS_PUBLISHED = "of the size that was published for SIDD"

# (images at most, sizes), first that fits
_RESTORING_CPU = (
    (20, _Sizes(2000, 64, 4, 4, _TINY, _FOR_CPU)),
    (200, _Sizes(3000, 64, 4, 4, _TINY, _FOR_CPU)),
    (None, _Sizes(6000, 64, 4, 4, _TINY, _FOR_CPU)),
)
_RESTORING_GPU = (
    (100, _Sizes(20_000, 128, 16, 16, _SMALL, _FOR_FEW)),
    (1000, _Sizes(60_000, 128, 16, 16, _PUBLISHED, _AS_PUBLISHED)),
    (None, _Sizes(200_000, 256, 32, 8, _PUBLISHED, _AS_PUBLISHED)),
)
_RRDB_TINY = {"num_feat": 32, "num_block": 5, "num_grow_ch": 16}
_RRDB = {"num_feat": 64, "num_block": 17, "num_grow_ch": 32}
_ENLARGING_CPU = (
    (20, _Sizes(1000, 96, 8, 8, _RRDB_TINY, _FOR_CPU)),
    (None, _Sizes(2000, 96, 8, 8, _RRDB_TINY, _FOR_CPU)),
)
_ENLARGING_GPU = (
    (100, _Sizes(20_000, 128, 16, 16, _RRDB_TINY, _FOR_FEW)),
    (None, _Sizes(100_000, 160, 64, 16, _RRDB, "as SRDiff and SAM-DiffSR take it")),
)


def recipe_for(images: Survey, count: int, cuda: bool) -> Recipe:
    """Return the recipe for `count` training images of a survey.

    cuda: whether a GPU trains. Raises UserError for a scale that no network has.
    """
    scale = images.scale
    if scale not in SCALES:
        raise UserError(
            f"--lq: GT images are {scale} times as large as theirs, but networks here enlarge by 2 and by 4 "
            "(a plugin may bring another, see docs/extending.md)"
        )
    enlarges = scale > 1
    table = {
        (False, False): _RESTORING_CPU,
        (False, True): _RESTORING_GPU,
        (True, False): _ENLARGING_CPU,
        (True, True): _ENLARGING_GPU,
    }[enlarges, cuda]
    sizes = next(sizes for most, sizes in table if most is None or count <= most)
    channels = 1 if images.all_grey else 3
    if enlarges:
        form = {"type": "RRDBNet", "num_in_ch": channels, "num_out_ch": channels, "scale": scale}
        optim: dict[str, Any] = {"type": "Adam", "lr": 5e-4 if not cuda else 2e-4, "betas": [0.9, 0.99]}
        lowest, loss = 1e-6, "L1Loss"
    else:
        form = {"type": "NAFNet", "img_channel": channels}
        optim = {"type": "AdamW", "lr": 1e-3, "weight_decay": 0, "betas": [0.9, 0.9]}
        lowest, loss = 1e-7, "PSNRLoss"
    schedule = {"type": "TrueCosineAnnealingLR", "T_max": sizes.iterations, "eta_min": lowest}
    patch, notes = _patch(images, sizes.patch)
    return Recipe(
        {**form, **sizes.network},
        f"a {form['type']} {sizes.about}",
        patch,
        sizes.batch,
        sizes.micro_batch,
        sizes.iterations,
        optim,
        schedule,
        loss,
        _workers(cuda),
        notes,
    )


def _patch(images: Survey, usual: int) -> tuple[int, list[str]]:
    """Return the side of the patch, and sentences about images that are smaller."""
    notes = []
    patch = usual
    middle = int(statistics.median(min(size) for size in images.sizes.values()))
    if middle < patch:
        patch = max(_LEAST_PATCH, middle // _STEP * _STEP)
        notes.append(f"patch {patch} in place of {usual}, since half of the images have a side of {middle} or less")
    small = images.smaller_than(patch)
    if small:
        notes.append(f"{small} of {len(images.sizes)} images are smaller than the patch of {patch}; they are mirrored")
    return patch, notes


def _workers(cuda: bool) -> int:
    """Return how many processes load images: none beside a CPU that trains."""
    if not cuda:
        return 0
    return min(8, os.cpu_count() or 1)
