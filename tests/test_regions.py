"""Runs, atoms, region maps and SPE sums against pycocotools, painting pixel by pixel, and the released SPE map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from sam4ir import regions

GOLDEN = Path(__file__).parent / "golden" / "golden_spe.npz"
SIZES = st.tuples(st.integers(1, 19), st.integers(1, 23))
MASKS = SIZES.flatmap(lambda size: hnp.arrays(bool, size))
STACKS = st.tuples(st.integers(0, 7), SIZES).flatmap(lambda s: hnp.arrays(bool, (s[0], *s[1])))


def coco_counts(mask: np.ndarray) -> bytes:
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


def blobs(n: int, h: int, w: int, seed: int = 0) -> np.ndarray:
    """(n, h, w) bool: overlapping rectangles of many sizes."""
    rng = np.random.default_rng(seed)
    stack = np.zeros((n, h, w), bool)
    for mask in stack:
        (top, bottom), (left, right) = np.sort(rng.integers(0, h + 1, 2)), np.sort(rng.integers(0, w + 1, 2))
        mask[top:bottom, left:right] = True
    return stack


@given(MASKS)
@settings(max_examples=150, deadline=None)
def test_compressed_counts_of_pycocotools_are_read_as_pycocotools_reads_them(mask: np.ndarray) -> None:
    counts = coco_counts(mask)
    for form in (counts, counts.decode()):
        runs = regions.parse_counts(form, mask.shape)
        np.testing.assert_array_equal(regions.runs_to_mask(runs, mask.shape), mask)


@pytest.mark.parametrize("seed", range(4))
def test_counts_with_long_and_shrinking_runs_are_read(seed: int) -> None:
    """Runs beyond 5, 10 and 15 bits and negative differences between them."""
    size = (487, 911)
    mask = blobs(6, *size, seed).sum(axis=0) % 2 == 1
    mask[:, 300:420] = np.random.default_rng(seed).random((487, 120)) < 0.01
    runs = regions.parse_counts(coco_counts(mask), size)
    np.testing.assert_array_equal(runs, regions.mask_to_runs(mask))
    np.testing.assert_array_equal(regions.runs_to_mask(runs, size), mask)


@given(MASKS)
@settings(max_examples=60, deadline=None)
def test_uncompressed_counts_box_and_area_agree_with_the_mask(mask: np.ndarray) -> None:
    counts = regions.mask_to_runs(mask).tolist()
    assert coco.frPyObjects({"size": list(mask.shape), "counts": counts}, *mask.shape)["counts"] == coco_counts(mask)
    runs = regions.parse_counts(counts, mask.shape)
    assert regions.area(runs) == mask.sum()
    ys, xs = np.nonzero(mask)
    expected = (xs.min(), ys.min(), np.ptp(xs), np.ptp(ys)) if mask.any() else (0, 0, 0, 0)
    assert regions.box(runs, mask.shape) == expected
    assert regions.first_pixel(runs, mask.shape) == (mask.ravel().argmax() if mask.any() else mask.size)


def test_zero_runs_in_the_middle_change_nothing() -> None:
    runs = regions.parse_counts([0, 2, 0, 1, 3, 0], (2, 3))
    assert regions.runs_to_mask(runs, (2, 3)).T.ravel().tolist() == [True] * 3 + [False] * 3
    labels, table = regions.atoms_of_runs([runs], (2, 3))
    assert table[labels][..., 0].T.ravel().tolist() == [True] * 3 + [False] * 3
    assert regions.first_pixel(runs, (2, 3)) == 0


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("0 2", "character ' ' at 1"),
        ("0é", "character 'é' at 1"),
        ("0P", "middle of a number"),
        ("0" + "o" * 12 + "0", "55 bits"),
        ("5", "cover 5 pixels, the size .2, 3. has 6"),
        ("", "cover 0 pixels"),
        ([8, -2], "run 1 is negative"),
        ([1.5, 4.5], "whole numbers"),
        ([[0, 0, 1, 1], [2, 2]], "whole numbers"),
    ],
)
def test_damaged_counts_say_what_is_wrong(counts: str | list[int], message: str) -> None:
    with pytest.raises(regions.RleError, match=message):
        regions.parse_counts(counts, (2, 3))


@given(STACKS)
@settings(max_examples=150, deadline=None)
def test_atoms_hold_any_overlap_without_loss(stack: np.ndarray) -> None:
    size = stack.shape[1:]
    labels, table = regions.atoms_of_runs([regions.mask_to_runs(m) for m in stack], size)
    assert labels.shape == size
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(table[labels].transpose(2, 0, 1), stack)
    assert len(np.unique(table, axis=0)) == len(table) == len(np.unique(labels))


@given(STACKS, st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_painted_runs_are_the_masks_painted_one_after_the_other(stack: np.ndarray, seed: int) -> None:
    n, h, w = stack.shape
    values = np.random.default_rng(seed).random(n + 1).astype(np.float32)
    expected = np.full((h, w), values[0])
    for mask, value in zip(stack, values[1:], strict=True):
        expected[mask] = value
    painted = regions.paint_runs([regions.mask_to_runs(mask) for mask in stack], values, (h, w))
    np.testing.assert_array_equal(painted, expected)
    assert painted.flags.c_contiguous


@pytest.mark.parametrize("count", [31, 32, 33, 64, 65, 130])
def test_the_last_of_many_masks_is_on_top(count: int) -> None:
    stack = blobs(count, 40, 30, seed=count)
    stack[-1, 3:9, 4:8] = True
    expected = np.zeros((40, 30), int)
    for number, mask in enumerate(stack, 1):
        expected[mask] = number
    runs = [regions.mask_to_runs(mask) for mask in stack]
    np.testing.assert_array_equal(regions.paint_runs(runs, np.arange(count + 1), (40, 30)), expected)


@given(SIZES, SIZES)
@settings(max_examples=60, deadline=None)
def test_resized_atoms_take_the_nearest_centre(old: tuple[int, int], new: tuple[int, int]) -> None:
    labels = np.arange(old[0] * old[1], dtype=np.uint16).reshape(old)
    resized = regions.resize_atoms(regions.Atoms(labels, np.ones((labels.size, 1), bool)), new)
    assert resized.labels.shape == new
    for i, row in enumerate(resized.labels):
        for j, label in enumerate(row):
            y, x = (i + 0.5) * old[0] / new[0], (j + 0.5) * old[1] / new[1]  # the new pixel's centre on the old grid
            assert abs(label // old[1] + 0.5 - y) <= 0.5 + 1e-9
            assert abs(label % old[1] + 0.5 - x) <= 0.5 + 1e-9


def test_a_centre_between_two_pixels_belongs_to_the_later_one() -> None:
    atoms = regions.Atoms(np.array([[0, 1, 2, 3]], np.uint16), np.ones((4, 1), bool))
    assert regions.resize_atoms(atoms, (1, 2)).labels.tolist() == [[1, 3]]
    assert regions.resize_atoms(atoms, (2, 8)).labels.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]] * 2


def test_masks_without_a_pixel_are_dropped_and_the_others_keep_theirs() -> None:
    table = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]], bool)
    window = regions.Atoms(np.array([[0, 1], [1, 0]], np.uint16), table)
    atoms, remaining = regions.drop_absent_masks(window)
    assert remaining.tolist() == [True, False, False]
    assert atoms.table.tolist() == [[False], [True], [True], [False]]
    np.testing.assert_array_equal(atoms.labels, window.labels)


@given(STACKS, st.data())
@settings(max_examples=100, deadline=None)
def test_runs_come_back_from_atoms_and_from_windows_of_them(stack: np.ndarray, data: st.DataObject) -> None:
    n, h, w = stack.shape
    atoms = regions.atoms_of_runs([regions.mask_to_runs(mask) for mask in stack], (h, w))
    top, left = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    for labels, masks in ((atoms.labels, stack), (atoms.labels[top:, left:], stack[:, top:, left:])):
        runs = regions.runs_of_atoms(regions.Atoms(labels, atoms.table))
        assert len(runs) == n
        for one, mask in zip(runs, masks, strict=True):
            np.testing.assert_array_equal(one, regions.mask_to_runs(mask))


def test_atoms_of_more_than_64_masks_are_exact() -> None:
    stack = blobs(150, 90, 70)
    labels, table = regions.atoms_of_runs([regions.mask_to_runs(m) for m in stack], (90, 70))
    np.testing.assert_array_equal(table[labels].transpose(2, 0, 1), stack)


@pytest.mark.parametrize("count", [65_535, 65_536])
def test_labels_become_uint32_beyond_65535_atoms(count: int) -> None:
    """Pixel i is covered by the masks that are the bits of min(i, count - 1)."""
    number = np.minimum(np.arange(256 * 260), count - 1).reshape(256, 260)
    stack = (number[None] >> np.arange(16)[:, None, None] & 1).astype(bool)
    labels, table = regions.atoms_of_runs([regions.mask_to_runs(m) for m in stack], (256, 260))
    assert len(table) == count
    assert labels.dtype == (np.uint16 if count == 65_535 else np.uint32)
    np.testing.assert_array_equal(table[labels].transpose(2, 0, 1), stack)


@given(STACKS)
@settings(max_examples=80, deadline=None)
def test_region_map_equals_painting_the_largest_mask_first(stack: np.ndarray) -> None:
    n, h, w = stack.shape
    runs = [regions.mask_to_runs(m) for m in stack]
    labels, table = regions.atoms_of_runs(runs, (h, w))
    first = np.array([regions.first_pixel(r, (h, w)) for r in runs], int)
    order = regions.paint_order(stack.sum(axis=(1, 2)), first)
    painted = np.zeros((h, w), int)
    for mask in sorted(range(n), key=lambda i: (-stack[i].sum(), first[i], i)):
        painted[stack[mask]] = mask + 1
    np.testing.assert_array_equal(regions.top_masks(table, order)[labels], painted)


def test_of_equal_masks_the_one_with_the_later_first_pixel_lies_on_top() -> None:
    stack = np.zeros((2, 3, 3), bool)
    stack[0, 1:, 1] = True  # first pixel 4
    stack[1, 1, :2] = True  # first pixel 3, though in an earlier column
    runs = [regions.mask_to_runs(m) for m in stack]
    order = regions.paint_order([2, 2], [regions.first_pixel(r, (3, 3)) for r in runs])
    assert order.tolist() == [1, 0]
    labels, table = regions.atoms_of_runs(runs, (3, 3))
    assert regions.top_masks(table, order)[labels].tolist() == [[0, 0, 0], [2, 1, 0], [0, 1, 0]]


@given(hnp.arrays(np.int32, SIZES, elements=st.integers(0, 3)))
@settings(max_examples=60, deadline=None)
def test_boundary_is_where_a_4_neighbour_inside_differs(labels: np.ndarray) -> None:
    padded = np.pad(labels, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    np.testing.assert_array_equal(regions.boundary(labels), np.any([labels != n for n in neighbours], axis=0))


@given(hnp.arrays(np.int64, SIZES, elements=st.sampled_from([0, 1, 2, 5, 90, 10**9])))
@settings(max_examples=80, deadline=None)
def test_densified_labels_keep_their_partition_and_zero(labels: np.ndarray) -> None:
    dense, n = regions.densify(labels)
    assert dense.dtype == np.int64
    present = np.unique(labels[labels > 0])
    assert n == len(present)
    np.testing.assert_array_equal(np.concatenate(([0], present))[dense], labels)


def test_densify_refuses_negative_labels() -> None:
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        regions.densify(np.array([[0, -1]]))


def test_spe_map_equals_the_released_code() -> None:
    """SAM-DiffSR a18eaf6 on four overlapping masks: sum / (h w), list order, later masks on top."""
    golden = np.load(GOLDEN)
    size = (int(golden["size"][0]), int(golden["size"][1]))
    runs = [regions.parse_counts(str(counts), size) for counts in golden["counts"]]
    labels, table = regions.atoms_of_runs(runs, size)
    top = regions.top_masks(table, np.arange(len(runs)))
    values = np.array([0.0, *(regions.spe_sum(r, size) for r in runs)]) / (size[0] * size[1])
    np.testing.assert_allclose(values[top][labels], golden["spe"], rtol=1e-4, atol=1e-6 * np.abs(golden["spe"]).max())


def rotary(h: int, w: int) -> np.ndarray:
    """R of the SPE, number by number."""
    table = np.ones((h, w))
    for m in range(h):
        for i in range(w // 2):
            angle = m * 10000 ** (-2 * i / w)
            table[m, 2 * i : 2 * i + 2] = np.cos(angle) - np.sin(angle), np.cos(angle) + np.sin(angle)
    return table


@given(SIZES)
@settings(max_examples=60, deadline=None)
def test_the_rotary_table_is_its_formula(size: tuple[int, int]) -> None:
    np.testing.assert_allclose(regions.rotary_table(size), rotary(*size), rtol=0, atol=1e-12)


@given(MASKS)
@settings(max_examples=60, deadline=None)
def test_spe_sum_is_the_sum_of_the_rotary_table_over_the_mask(mask: np.ndarray) -> None:
    h, w = mask.shape
    expected = rotary(h, w)[mask].sum()
    assert regions.spe_sum(regions.mask_to_runs(mask), (h, w)) == pytest.approx(expected, abs=1e-9)
