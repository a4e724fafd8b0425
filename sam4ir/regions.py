"""The geometry of masks: runs, atoms, region maps and the sums that the SPE needs, as functions of arrays.

Runs are COCO's run lengths of one mask: (k,) int64, column by column, uncovered and covered pixels in turn, starting
with the uncovered ones; they sum to h * w. An atom is a set of pixels that exactly the same masks cover. One atom label
for each pixel and a table of atoms x masks therefore hold any overlapping masks without loss.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sam4ir.errors import UserError

Size = tuple[int, int]
Runs = NDArray[np.int64]
_LARGEST_RUN = (1 << 63) - 1


class RleError(UserError):
    """Raised where counts are no run-length encoding of a mask of the stated size."""


def parse_counts(counts: str | bytes | Sequence[int] | NDArray[Any], size: Size) -> Runs:
    """Return the runs of COCO's `counts`, which are compressed text or a list of lengths.

    size: (h, w). Raises RleError where the counts do not encode a mask of that size.
    """
    pixels = size[0] * size[1]
    runs = _decompress(counts, pixels) if isinstance(counts, (str, bytes)) else _integers(counts)
    if runs.size and runs.min() < 0:
        raise RleError(f"run {int(runs.argmin())} is negative ({int(runs.min())})")
    if runs.size and runs.max() > pixels:  # their sum may wrap to the right one
        raise RleError(f"run {int(runs.argmax())} is {int(runs.max())}, the size {list(size)} has {pixels} pixels")
    if runs.sum() != pixels:
        raise RleError(f"the runs cover {int(runs.sum())} pixels, the size {list(size)} has {pixels}")
    return runs


def _integers(counts: Sequence[int] | NDArray[Any]) -> Runs:
    try:
        array = np.asarray(counts)
    except ValueError:  # ragged: a list of polygons
        array = np.empty((0, 0))
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise RleError("counts must be a list of whole numbers below 2^63 or a compressed string")
    if array.dtype == np.uint64:
        array = np.minimum(array, np.uint64(_LARGEST_RUN))  # which no image has, so that the caller refuses it
    return array.astype(np.int64)


def _decompress(counts: str | bytes, pixels: int) -> Runs:
    """Return the runs of COCO's compressed text for a mask of so many pixels; raise RleError on any other text.

    Each character holds 5 bits of a number, low bits first. Bit 5 says that more characters follow, and bit 4 of the
    last one is the sign. From the fourth run on the number is the difference from the run two places before.
    """
    try:
        text = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError as error:
        raise RleError(f"character {counts[error.start]!r} at {error.start} does not occur in COCO counts") from None
    digits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    outside = (digits < 0) | (digits > 63)
    if outside.any():
        at = int(outside.argmax())
        raise RleError(f"character {chr(text[at])!r} at {at} does not occur in COCO counts")
    if not digits.size:
        return digits
    ends = np.flatnonzero(digits < 32)
    if not ends.size or ends[-1] != digits.size - 1:
        raise RleError("the counts end in the middle of a number")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 11:
        raise RleError("a run is longer than 55 bits")
    shift = 5 * (np.arange(digits.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((digits & 31) << shift, starts)
    runs -= np.where(digits[ends] & 16, np.int64(1) << (5 * lengths), 0)
    largest = int(np.abs(runs).argmax())
    if abs(int(runs[largest])) > pixels:  # so that no sum below wraps
        raise RleError(f"run {largest} differs from the run before by {int(runs[largest])}, there are {pixels} pixels")
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def runs_to_mask(runs: Runs, size: Size) -> NDArray[np.bool_]:
    """Return the mask of some runs, (h, w) bool."""
    covered = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(covered, runs).reshape(size[1], size[0]).T)


def mask_to_runs(mask: NDArray[Any]) -> Runs:
    """Return the runs of an (h, w) mask; any nonzero value counts as covered."""
    flat = (mask != 0).T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return _runs_between(edges, flat.size, bool(flat.size and flat[0]))


def _runs_between(edges: NDArray[np.int64], pixels: int, covered_first: bool) -> Runs:
    """Return the runs of a mask that changes at the pixels `edges`, after an empty run where it covers pixel 0."""
    first = [0, 0] if covered_first else [0]
    return np.diff(np.concatenate((first, edges, [pixels])))


def _covered(runs: Runs) -> tuple[Runs, Runs]:
    """Return where the covered runs start and end (exclusive), as column-major pixel numbers."""
    edges = np.cumsum(runs)
    ends = edges[1::2]
    starts = edges[0::2][: len(ends)]
    solid = ends > starts
    return starts[solid], ends[solid]


def area(runs: Runs) -> int:
    """Return the number of covered pixels."""
    return int(runs[1::2].sum())


def box(runs: Runs, size: Size) -> tuple[int, int, int, int]:
    """Return (x, y, x_max - x, y_max - y), as segment-anything writes `bbox`; zeros for an empty mask."""
    starts, ends = _covered(runs)
    if not starts.size:
        return 0, 0, 0, 0
    left, right = int(starts[0]) // size[0], int(ends[-1] - 1) // size[0]
    if (starts // size[0] != (ends - 1) // size[0]).any():  # a run that crosses columns holds top and bottom row
        return left, 0, right - left, size[0] - 1
    top, bottom = int((starts % size[0]).min()), int(((ends - 1) % size[0]).max())
    return left, top, right - left, bottom - top


def first_pixel(runs: Runs, size: Size) -> int:
    """Return the raster (row-major) number of the mask's first pixel; h * w for an empty mask."""
    h, w = size
    starts, ends = _covered(runs)
    column, row = np.divmod(starts, h)
    at_start = row * w + column
    at_next_column = np.where((ends - 1) // h > column, column + 1, h * w)  # row 0 of the column where a run continues
    return int(min(at_start.min(initial=h * w), at_next_column.min(initial=h * w)))


class Atoms(NamedTuple):
    """The atoms of n masks.

    labels: (h, w) uint16, or uint32 beyond 65,535 atoms, the atom of each pixel. table: (atoms, n) bool, True where the
    mask covers the atom.
    """

    labels: NDArray[Any]
    table: NDArray[np.bool_]


def atoms_of_runs(runs: Sequence[Runs], size: Size) -> Atoms:
    """Return the atoms of n masks; exact for any overlap.

    The set of covering masks changes only at the edges of runs. One running XOR over all edges gives these sets
    (_covering_sets), so no (n, h, w) stack is painted.
    """
    h, w = size
    starts, bits = _covering_sets(runs, h * w)
    group, first = _distinct_rows(bits)
    table = np.unpackbits(bits[first].view(np.uint8), axis=1, count=len(runs), bitorder="little").astype(bool)
    dtype = np.uint16 if len(first) <= 65535 else np.uint32
    flat = np.repeat(group.astype(dtype), np.diff(starts, append=h * w))
    return Atoms(np.ascontiguousarray(flat.reshape(w, h).T), table)


def _covering_sets(runs: Sequence[Runs], pixels: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Return the pixels where the set of covering masks changes, and the set that holds from each of them on.

    The pixels are column-major numbers, (s,), the first of them 0. The sets are bits, (s, n / 64 rounded up)
    little-endian words: mask i is bit i % 64 of word i // 64.
    """
    edges = [np.cumsum(r)[:-1] for r in runs]
    mask = np.repeat(np.arange(len(runs)), [len(e) for e in edges])
    pixel = np.concatenate([np.zeros(0, np.int64), *edges])
    inside = pixel < pixels
    mask, pixel = mask[inside], pixel[inside]
    starts, segment = np.unique(np.concatenate((pixel, [0])), return_inverse=True)
    bits = np.zeros((len(starts), (len(runs) + 63) // 64), "<u8")
    np.bitwise_xor.at(bits, (segment[:-1], mask // 64), np.uint64(1) << (mask % 64).astype(np.uint64))
    np.bitwise_xor.accumulate(bits, axis=0, out=bits)
    return starts, bits


def paint_runs(runs: Sequence[Runs], values: NDArray[Any], size: Size) -> NDArray[Any]:
    """Return (h, w): the value of the last mask in the list that covers each pixel.

    values: (n + 1,), values[i + 1] for mask i, values[0] where no mask lies. The result equals painting one mask after
    the other, but the time depends on the number of runs and not on the masks' areas.
    """
    h, w = size
    starts, bits = _covering_sets(runs, h * w)
    top = np.zeros(len(starts), np.int64)
    for number, half in enumerate(bits.view("<u4").T):  # halves, because float64 holds them exactly
        length = np.frexp(half.astype(np.float64))[1]
        top[length > 0] = 32 * number + length[length > 0]
    flat = np.repeat(values[top], np.diff(starts, append=h * w))
    return np.ascontiguousarray(flat.reshape(w, h).T)


def runs_of_atoms(atoms: Atoms) -> list[Runs]:
    """Return the runs of each mask: the inverse of atoms_of_runs. The labels need not use all atoms of the table."""
    h, w = atoms.labels.shape
    flat = atoms.labels.T.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    covered = atoms.table[flat[starts].astype(np.intp)].T
    masks = []
    for inside in np.ascontiguousarray(covered):
        edges = starts[1:][inside[1:] != inside[:-1]]
        masks.append(_runs_between(edges, h * w, bool(inside[0])))
    return masks


def resize_atoms(atoms: Atoms, size: Size) -> Atoms:
    """Return the atoms on a grid of another size (h, w): each pixel takes the label of the nearest pixel centre."""
    rows = _nearest_pixels(size[0], atoms.labels.shape[0])
    columns = _nearest_pixels(size[1], atoms.labels.shape[1])
    return Atoms(atoms.labels[rows[:, None], columns], atoms.table)


def _nearest_pixels(new: int, old: int) -> NDArray[np.int64]:
    """Return for each of `new` pixels along an axis the nearest of `old` pixels, by their centres, (new,)."""
    return (2 * np.arange(new) + 1) * old // (2 * new)


def drop_absent_masks(atoms: Atoms) -> tuple[Atoms, NDArray[np.bool_]]:
    """Return the atoms without the masks that have no pixel in the labels, and which masks remain, (n,) bool."""
    present = np.zeros(len(atoms.table), bool)
    present[atoms.labels] = True
    remaining: NDArray[np.bool_] = np.any(atoms.table[present], axis=0)
    return Atoms(atoms.labels, atoms.table[:, remaining]), remaining


def _distinct_rows(rows: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of each row among the distinct rows, and where each distinct row occurs first."""
    group = np.zeros(len(rows), np.int64)
    first = np.zeros(1, np.int64)
    for word in rows.T:
        values, number = np.unique(word, return_inverse=True)
        _, first, group = np.unique(group * len(values) + number, return_index=True, return_inverse=True)
    return group, first


def paint_order(areas: NDArray[Any], first_pixels: NDArray[Any]) -> NDArray[np.int64]:
    """Return the mask numbers, (n,), largest area first; equal areas by first pixel in raster order, then as listed."""
    return np.lexsort((first_pixels, -np.asarray(areas, np.int64)))


def top_masks(table: NDArray[np.bool_], order: NDArray[Any]) -> NDArray[np.int32]:
    """Return (atoms,) int32: number + 1 of the mask that `order` paints last, 0 where no mask lies."""
    if not len(order):
        return np.zeros(len(table), np.int32)
    last_first = np.asarray(order)[::-1]
    painted = table[:, last_first]
    return np.where(painted.any(axis=1), last_first[painted.argmax(axis=1)] + 1, 0).astype(np.int32)


def boundary(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return (h, w) bool: True where a pixel's label differs from a 4-neighbour's inside the array."""
    edge = np.zeros(labels.shape, bool)
    down = labels[1:] != labels[:-1]
    right = labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge


def densify(labels: NDArray[Any]) -> tuple[NDArray[np.int64], int]:
    """Return the labels renumbered to 1..n in their order, (h, w) int64, and n; 0 (no region) stays 0.

    Raises UserError on negative labels.
    """
    if labels.size and labels.min() < 0:
        raise UserError(f"region labels must not be negative, got {int(labels.min())}")
    highest = int(labels.max(initial=0))
    if highest > 4 * labels.size + 65536:  # a table would be larger than the map
        values, dense = np.unique(labels, return_inverse=True)
        has_zero = int(values[0] == 0)
        return dense.reshape(labels.shape) + (1 - has_zero), len(values) - has_zero
    present = np.zeros(highest + 1, np.int64)
    present[labels] = 1
    present[0] = 0
    number = np.cumsum(present)
    return number[labels], int(number[-1])


def rotary_table(size: Size) -> NDArray[np.float64]:
    """Return R of the SPE (SAM-DiffSR), (h, w) float64.

    R[m, 2i] = cos(a) - sin(a) and R[m, 2i + 1] = cos(a) + sin(a) with a = m * 10000^(-2i/w). An odd last column is 1:
    our choice, because the released code fails on odd widths.
    """
    h, w = size
    theta = 10000.0 ** (-2.0 * np.arange(w // 2) / w)
    angle = np.arange(h)[:, None] * theta
    table = np.ones((h, w))
    table[:, 0 : w - w % 2 : 2] = np.cos(angle) - np.sin(angle)
    table[:, 1::2] = np.cos(angle) + np.sin(angle)
    return table


def spe_sum(runs: Runs, size: Size) -> float:
    """Return the sum of R over the whole mask.

    The released SPE divides it by h * w and paints it in list order, later masks on top; `mean: region` divides it by
    the mask's area instead.
    """
    return float(spe_sums([runs], size)[0])


def spe_sums(runs: Sequence[Runs], size: Size) -> NDArray[np.float64]:
    """Return spe_sum of each mask, (n,); the time depends on the number of runs and not on the image's size."""
    starts, ends = [], []
    for mask_runs in runs:
        mask_starts, mask_ends = _covered(mask_runs)
        starts.append(mask_starts)
        ends.append(mask_ends)
    mask = np.repeat(np.arange(len(runs)), list(map(len, starts)))
    edges = np.concatenate([np.zeros(0, np.int64), *starts, *ends])
    before, behind = _rotary_prefix(edges, (int(size[0]), int(size[1]))).reshape(2, -1)
    return np.bincount(mask, behind - before, minlength=len(runs)).astype(np.float64)


def _rotary_prefix(pixels: NDArray[np.int64], size: Size) -> NDArray[np.float64]:
    """Return the sum of R over the first `pixels` pixels, column-major; in float64, because fp32 errs by 7e-3."""
    h = size[0]
    column = pixels // h
    before, half, turn, factor = _rotary_columns(size)[:, column]
    return before + _column_sum(pixels - column * h, half, turn, factor)


def _column_sum(
    rows: NDArray[np.int64], half: NDArray[np.float64], turn: NDArray[np.float64], factor: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the sum of R over a column's first rows.

    R[m, x] = sqrt(2) cos(2 half m + turn), and its sum is a Dirichlet kernel.
    """
    angle = rows * half
    return factor * np.sin(angle) * np.cos(angle - half + turn)


@functools.lru_cache(maxsize=64)
def _rotary_columns(size: Size) -> NDArray[np.float64]:
    """Return four numbers for each column of R, (4, w + 1).

    They are the sum of R over the columns before it, half its theta, its phase, and the kernel's factor
    sqrt(2) / sin(theta / 2).
    """
    h, w = size
    half = np.full(w + 1, 1e-200)  # for R = 1 of an odd last column: the kernel becomes the number of rows
    half[: w - w % 2] = np.repeat(10000.0 ** (-2.0 * np.arange(w // 2) / w) / 2, 2)
    turn = np.where(np.arange(w + 1) % 2, -np.pi / 4, np.pi / 4)
    factor = 2**0.5 / np.sin(half)
    sums = _column_sum(np.full(w, h), half[:w], turn[:w], factor[:w])
    return np.stack((np.concatenate(([0.0], np.cumsum(sums))), half, turn, factor))
