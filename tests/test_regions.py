"""Runs, atoms and region maps against pycocotools, the released SPE values and naive loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from sam4ir import regions

# SPE of four overlapping masks as SAM-DiffSR a18eaf6 computes it (counts and size from its run on 24 x 34)
RELEASED_SIZE = (24, 34)
RELEASED_COUNTS = (
    "Z2b06000000000000000000000000000000000000000000000000000n2",
    "57a0000000000000000cb0",
    "T=7`02N2O000000000001N2NU4",
    "gh01h0",
)
SPE_MEAN = 0.19275532775175044
SPE_VALUES = [-0.014018476940691471, 0.0, 0.001220635138452053, 0.13507482409477234, 0.4194360673427582]


def stack(seed: int, n: int, h: int, w: int) -> np.ndarray:
    """(n, h, w) bool: boxes, noise, an empty, a full and a one-pixel mask."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, h, w), bool)
    for i in range(n):
        kind = rng.integers(6)
        if kind == 0:
            masks[i] = rng.random((h, w)) < rng.random()
        elif kind == 1:
            masks[i] = True
        elif kind == 2:
            masks[i, rng.integers(h), rng.integers(w)] = True
        elif kind != 3:
            y, x = np.sort(rng.integers(0, h + 1, 2)), np.sort(rng.integers(0, w + 1, 2))
            masks[i, y[0] : y[1], x[0] : x[1]] = True
    return masks


def all_runs(masks: np.ndarray) -> list[regions.Runs]:
    return [regions.mask_to_runs(m) for m in masks]


SHAPES = {"h": st.integers(1, 40), "w": st.integers(1, 40), "n": st.integers(0, 12), "seed": st.integers(0, 10**6)}


@settings(max_examples=60, deadline=None)
@given(**SHAPES)
def test_runs_equal_pycocotools_both_ways(h: int, w: int, n: int, seed: int) -> None:
    for mask in stack(seed, n, h, w):
        rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        runs = regions.parse_counts(rle["counts"], (h, w))
        assert runs.tolist() == regions.mask_to_runs(mask).tolist()
        assert regions.parse_counts(rle["counts"].decode(), (h, w)).tolist() == runs.tolist()
        assert regions.parse_counts(runs.tolist(), (h, w)).tolist() == runs.tolist()
        assert np.array_equal(regions.runs_to_mask(runs, (h, w)), mask)
        assert regions.area(runs) == int(coco.area(rle))


@settings(max_examples=60, deadline=None)
@given(**SHAPES)
def test_atoms_hold_every_mask_without_loss(h: int, w: int, n: int, seed: int) -> None:
    masks = stack(seed, n, h, w)
    atoms = regions.atoms(all_runs(masks), (h, w))
    assert atoms.labels.shape == (h, w)
    assert np.array_equal(atoms.table[atoms.labels].transpose(2, 0, 1), masks)
    assert len(np.unique(atoms.table, axis=0)) == len(atoms.table)  # no set of masks stands twice


def test_many_masks_and_more_than_65535_atoms_take_wider_labels() -> None:
    h, w = 300, 300
    number = np.arange(h * w).reshape(h, w)
    masks = np.stack([(number >> bit) & 1 == 1 for bit in range(17)])
    atoms = regions.atoms(all_runs(masks), (h, w))
    assert atoms.labels.dtype == np.uint32
    assert len(atoms.table) == h * w
    assert np.array_equal(atoms.table[atoms.labels].transpose(2, 0, 1), masks)


@settings(max_examples=60, deadline=None)
@given(**SHAPES)
def test_the_region_map_is_painted_by_area_largest_first(h: int, w: int, n: int, seed: int) -> None:
    masks = stack(seed, n, h, w)
    runs = all_runs(masks)
    areas = np.array([m.sum() for m in masks])
    first = np.array([np.flatnonzero(m.ravel())[0] if m.any() else h * w for m in masks])
    assert [regions.first_pixel(r, (h, w)) for r in runs] == first.tolist()
    painted = np.zeros((h, w), np.int32)
    for i in sorted(range(n), key=lambda i: (-areas[i], first[i])):
        painted[masks[i]] = i + 1
    atoms = regions.atoms(runs, (h, w))
    top = regions.top_masks(atoms.table, regions.paint_order(areas, first))
    assert np.array_equal(top[atoms.labels], painted)


@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 12), w=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_boundary_and_densify_equal_naive_loops(h: int, w: int, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 4, (h, w)) * 7
    expected = np.zeros((h, w), bool)
    for y in range(h):
        for x in range(w):
            near = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
            expected[y, x] = any(0 <= a < h and 0 <= b < w and labels[a, b] != labels[y, x] for a, b in near)
    assert np.array_equal(regions.boundary(labels), expected)
    dense, count = regions.densify(labels)
    present = sorted(set(labels.ravel().tolist()) - {0})
    assert count == len(present)
    assert np.array_equal(dense, np.vectorize(lambda v: present.index(v) + 1 if v else 0)(labels))


def test_densify_of_far_apart_labels_needs_no_table_of_their_size() -> None:
    dense, count = regions.densify(np.array([[0, 10**12], [5, 10**12]]))
    assert dense.tolist() == [[0, 2], [1, 2]]
    assert count == 2


@settings(max_examples=40, deadline=None)
@given(**SHAPES)
def test_spe_sum_equals_the_sum_over_the_painted_mask(h: int, w: int, n: int, seed: int) -> None:
    table = regions.rotary_table((h, w))
    for mask in stack(seed, n, h, w):
        assert regions.spe_sum(regions.mask_to_runs(mask), (h, w)) == pytest.approx(table[mask].sum(), abs=1e-9)


def test_spe_equals_the_released_values() -> None:
    """The released map of these masks: means and two pixels (later masks on top, sums divided by h w)."""
    h, w = RELEASED_SIZE
    runs = [regions.parse_counts(c, RELEASED_SIZE) for c in RELEASED_COUNTS]
    spe = np.zeros(RELEASED_SIZE)
    for r in runs:
        spe[regions.runs_to_mask(r, RELEASED_SIZE)] = regions.spe_sum(r, RELEASED_SIZE) / (h * w)
    assert spe.mean() == pytest.approx(SPE_MEAN, rel=1e-6)
    assert sorted({round(v, 6) for v in spe.ravel().tolist()}) == pytest.approx(SPE_VALUES, abs=2e-6)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("\u00e9", "does not occur"),
        ("P", "middle of a number"),
        ([3, -1], "negative"),
        ([3, 4], "cover 7 pixels"),
        ([1.5], "whole"),
    ],
)
def test_counts_that_are_no_mask_of_the_size_are_named(counts: object, message: str) -> None:
    with pytest.raises(regions.RleError, match=message):
        regions.parse_counts(counts, (3, 4))  # type: ignore[arg-type]
