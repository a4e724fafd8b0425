"""Look at a user's images, so that the options of a training can be chosen by them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sam4ir.data.paired import fitting_template, partner_of
from sam4ir.data.sources import ImageSource, listed, open_source
from sam4ir.errors import UserError
from sam4ir.utils.files import is_utf8
from sam4ir.utils.image import ImageError

PATIENCE = 5.0  # seconds in which images are read whole
_UNREADABLE = "that cannot be read"  # kind of images that are left out
SHOWN = 5  # pairs at fault that a message lists


@dataclass(frozen=True)
class Pairing:
    """The LQ images of GT images. lq: their source. template: of LQ names by GT names. scale: GT's side over LQ's."""

    lq: ImageSource
    template: str = "{}"
    scale: int = 1


@dataclass
class Survey:
    """What images are there.

    gt: the clean images. keys: those that can be trained on, sorted. pairing: None for clean images alone.
    left_out: kind -> keys that cannot be trained on. sizes: key -> (h, w) of GT. looked: images that were read whole,
    of GT and LQ; grey, deep: how many of them are grey, and have 16 bits.
    """

    gt: ImageSource
    keys: list[str]
    pairing: Pairing | None = None
    left_out: dict[str, list[str]] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    looked: int = 0
    grey: int = 0
    deep: int = 0

    @property
    def all_grey(self) -> bool:
        """Whether all images that were read are grey, so that a network of one channel restores them."""
        return self.grey == self.looked

    @property
    def scale(self) -> int:
        """The side of GT over that of LQ."""
        if self.pairing is None:
            return 1
        return self.pairing.scale

    def smaller_than(self, side: int) -> int:
        """Return how many GT images have a side below `side` pixels."""
        return sum(min(size) < side for size in self.sizes.values())


def survey(gt: Path, lq: Path | None = None) -> Survey:
    """Look at the clean images in a folder or LMDB, and at their degraded versions in another one.

    Of every image the header is read, of some the pixels. Images without a partner and unreadable ones are left out.
    Raises UserError where a folder holds no images, no two names pair, or sizes of pairs do not fit.
    """
    clean = open_source(gt, None, "--gt")
    result = Survey(clean, list(clean.keys))
    if lq is not None:
        _pair(result, open_source(lq, None, "--lq"))
    _leave_out(result, "names that no list can hold", [key for key in result.keys if not _listable(key)])
    _read_sizes(result)
    if not result.keys:
        raise UserError(f"{_first_fault(result)}; none of the images can be used")
    _look(result)
    return result


def _listable(key: str) -> bool:
    """Return whether a line of a list of names can hold a key."""
    return is_utf8(key) and key.splitlines() == [key] and not key.lstrip().startswith("#")


def _leave_out(result: Survey, kind: str, keys: Sequence[str]) -> None:
    """Take keys out of a survey."""
    if keys:
        result.left_out[kind] = list(keys)
        gone = set(keys)
        result.keys = [key for key in result.keys if key not in gone]


def _pair(result: Survey, lq: ImageSource) -> None:
    """Find the partners of GT images. Raises UserError where there are none."""
    lq_keys = set(lq.keys)
    template = "{}"
    if not lq_keys.intersection(result.keys):
        template = fitting_template(result.keys, lq_keys) or ""
    if not template:
        raise UserError(
            f"--gt {result.gt.root} and --lq {lq.root}: no two names pair; an image and its degraded version need the "
            f"same name. In --gt {listed(result.keys)}; in --lq {listed(lq_keys)}"
        )
    partners = {key: partner_of(key, template) for key in result.keys}
    lonely = [key for key, partner in partners.items() if partner not in lq_keys]
    _leave_out(result, "without a degraded version in --lq", lonely)
    unused = sorted(lq_keys.difference(partners.values()))
    if unused:
        result.left_out["without a clean version in --gt"] = unused
    result.pairing = Pairing(lq, template)


def _read_sizes(result: Survey) -> None:
    """Read the size of every image, and find the scale of pairs. Raises UserError where sizes do not fit."""
    faulty: list[str] = []
    lq_sizes: dict[str, tuple[int, int]] = {}
    for key in result.keys:
        try:
            size = result.gt.size(key)
            if result.pairing is not None:
                lq_sizes[key] = result.pairing.lq.size(partner_of(key, result.pairing.template))
        except ImageError:
            faulty.append(key)
        else:
            result.sizes[key] = size
    _leave_out(result, _UNREADABLE, faulty)
    if result.pairing is not None and result.keys:
        scale = _scale(result, result.pairing, lq_sizes)
        result.pairing = Pairing(result.pairing.lq, result.pairing.template, scale)


def _scale(result: Survey, pairing: Pairing, lq_sizes: Mapping[str, tuple[int, int]]) -> int:
    """Return the whole factor between the sizes of all pairs. Raises UserError where they have no common one."""
    votes: Counter[int] = Counter()
    for key in result.keys:
        votes[max(1, round(result.sizes[key][0] / lq_sizes[key][0]))] += 1
    scale = votes.most_common(1)[0][0]
    wrong = []
    for key in result.keys:
        (h, w), small = result.sizes[key], lq_sizes[key]
        if (h, w) != (small[0] * scale, small[1] * scale):
            wrong.append(f"{key}: GT {h}x{w}, LQ {small[0]}x{small[1]}")
    if wrong and all(_larger(lq_sizes[key], result.sizes[key]) for key in result.keys):
        raise UserError(
            f"--lq {pairing.lq.root}: its images are larger than those of --gt {result.gt.root}, such as {wrong[0]} "
            "(h x w); if the two flags are swapped, swap them back"
        )
    if wrong:
        first = "\n  ".join([*wrong[:SHOWN], *["..."][: len(wrong) > SHOWN]])
        raise UserError(
            f"--gt {result.gt.root} and --lq {pairing.lq.root}: {len(wrong)} of {len(result.keys)} pairs have sizes "
            f"(h x w) that do not fit; GT must be {_times(scale)} its LQ image, as most are. Crop them, or move them "
            f"elsewhere:\n  {first}"
        )
    return scale


def _larger(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether an image is larger than another one in both directions."""
    return size[0] > other[0] and size[1] > other[1]


def _times(scale: int) -> str:
    if scale == 1:
        return "as large as"
    return f"exactly {scale} times as large as"


def _look(result: Survey) -> None:
    """Read images whole, those of GT and LQ in turns, spread over the folder, for as long as there is patience."""
    begun = time.monotonic()
    step = max(1, len(result.keys) // 100)
    unreadable: dict[str, ImageError] = {}
    for key in result.keys[::step]:
        images = [(result.gt, key)]
        if result.pairing is not None:
            images.append((result.pairing.lq, partner_of(key, result.pairing.template)))
        for source, name in images:
            try:
                with source.open(name) as image:
                    result.looked += 1
                    result.grey += _is_grey(image)
                    result.deep += image.dtype == np.uint16
            except ImageError as error:
                unreadable.setdefault(key, error)
        if time.monotonic() - begun > PATIENCE:
            break
    _leave_out(result, "with damaged pixels", sorted(unreadable))
    if not result.looked or not result.keys:
        first = next(iter(unreadable.values()))
        raise UserError(f"{first}; none of the {len(unreadable)} images that were read can be used")


def _is_grey(image: np.ndarray) -> bool:
    """Return whether the channels of (h, w, 3) are equal."""
    return bool((image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all())


def _first_fault(result: Survey) -> str:
    """Return what is wrong with the first image that cannot be read, or with its partner."""
    for key in result.left_out.get(_UNREADABLE, ()):
        try:
            result.gt.size(key)
            if result.pairing is not None:
                result.pairing.lq.size(partner_of(key, result.pairing.template))
        except ImageError as error:
            return str(error)
    return f"--gt {result.gt.root}: no list can hold the names of its images"
