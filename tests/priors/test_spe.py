"""The SPE map of a record: the released code's values, and crops that are cut from the whole map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sam4ir import regions
from sam4ir.data.masks.from_sam import record_from_sam
from sam4ir.data.masks.record import MaskRecord
from sam4ir.priors.spe import spe_map, spe_of_runs

GOLDEN = np.load(Path(__file__).resolve().parents[1] / "golden" / "golden_spe.npz")  # four overlapping masks, 24x34
SIZE = (int(GOLDEN["size"][0]), int(GOLDEN["size"][1]))


@pytest.fixture(scope="module")
def record() -> MaskRecord:
    masks = [{"segmentation": {"size": list(SIZE), "counts": str(counts)}} for counts in GOLDEN["counts"]]
    return MaskRecord(record_from_sam(masks))


def test_the_whole_map_equals_the_released_code(record: MaskRecord) -> None:
    made = spe_map(record, 0, 0, *SIZE)
    assert made.dtype == np.float32
    assert made.shape == SIZE
    np.testing.assert_allclose(made, GOLDEN["spe"], rtol=0, atol=1e-6 * np.abs(GOLDEN["spe"]).max())


def test_a_crop_is_cut_from_the_whole_map(record: MaskRecord) -> None:
    whole = spe_map(record, 0, 0, *SIZE)
    np.testing.assert_array_equal(spe_map(record, 5, 7, 11, 20), whole[5:16, 7:27])


def test_the_mean_over_a_region_divides_by_its_area(record: MaskRecord) -> None:
    top = record.list_map(0, 0, *SIZE)
    by_image, by_region = spe_map(record, 0, 0, *SIZE), spe_map(record, 0, 0, *SIZE, mean="region")
    share = np.concatenate(([1.0], record.areas / (SIZE[0] * SIZE[1])))[top]
    np.testing.assert_allclose(by_region * share, by_image, rtol=1e-5)
    assert np.abs(by_region).max() <= 2**0.5 + 1e-6  # |cos -+ sin|


def test_empty_masks_and_no_masks_give_zeros() -> None:
    empty = {"segmentation": np.zeros((4, 6), bool)}
    for masks in ([empty], []):
        record = MaskRecord(record_from_sam(masks, (4, 6)))
        assert not spe_map(record, 0, 0, 4, 6, mean="region").any()
        assert not spe_map(record, 0, 0, 4, 6).any()


def test_an_unknown_mean_is_refused(record: MaskRecord) -> None:
    with pytest.raises(ValueError, match="mean: 'area' must be 'image'"):
        spe_map(record, 0, 0, 4, 4, mean="area")  # type: ignore[arg-type]


def drawn(size: tuple[int, int], number: int, seed: int = 0) -> list[np.ndarray]:
    """Overlapping boxes with holes, empty and full masks among them."""
    rng = np.random.default_rng(seed)
    stack = [np.zeros(size, bool), np.ones(size, bool)]
    for _ in range(number):
        mask = np.zeros(size, bool)
        top, left = rng.integers(size[0]), rng.integers(size[1])
        mask[top : top + rng.integers(1, size[0] + 1), left : left + rng.integers(1, size[1] + 1)] = True
        stack.append(mask & (rng.random(size) < rng.choice([0.5, 1.0])))
    return stack


def painted(stack: list[np.ndarray], size: tuple[int, int], mean: str) -> np.ndarray:
    """The definition: one mask after the other."""
    table, out = regions.rotary_table(size), np.zeros(size)
    for mask in stack:
        out[mask] = table[mask].sum() / (out.size if mean == "image" else max(mask.sum(), 1))
    return out


@pytest.mark.parametrize("mean", ["image", "region"])
@pytest.mark.parametrize(("size", "number"), [((24, 34), 5), ((17, 31), 70), ((40, 9), 140), ((1, 1), 1), ((1, 12), 3)])
def test_the_map_from_runs_is_the_painted_one(size: tuple[int, int], number: int, mean: str) -> None:
    """More masks than bits of a word, odd widths, and the same map as by the record."""
    stack = drawn(size, number)
    made = spe_of_runs([regions.mask_to_runs(m) for m in stack], size, mean)  # type: ignore[arg-type]
    want = painted(stack, size, mean)
    assert (made.dtype, made.shape, made.flags.c_contiguous) == (np.float32, size, True)
    np.testing.assert_allclose(made, want, rtol=0, atol=1e-6 * np.abs(want).max())
    record = MaskRecord(record_from_sam([{"segmentation": m} for m in stack]))
    np.testing.assert_array_equal(made, spe_map(record, 0, 0, *size, mean))  # type: ignore[arg-type]


def test_the_map_from_runs_equals_the_released_code() -> None:
    runs = [regions.parse_counts(str(counts), SIZE) for counts in GOLDEN["counts"]]
    want = GOLDEN["spe"]
    np.testing.assert_allclose(spe_of_runs(runs, SIZE), want, rtol=0, atol=1e-6 * np.abs(want).max())


def test_scale_is_a_plain_factor(record: MaskRecord) -> None:
    runs = [regions.parse_counts(str(counts), SIZE) for counts in GOLDEN["counts"]]
    for mean in ("image", "region"):
        once = spe_map(record, 3, 4, 10, 12, mean)
        np.testing.assert_allclose(spe_map(record, 3, 4, 10, 12, mean, scale=8.5), 8.5 * once, rtol=1e-6)
        np.testing.assert_allclose(spe_of_runs(runs, SIZE, mean, scale=8.5)[3:13, 4:16], 8.5 * once, rtol=1e-6)


def test_no_masks_give_zeros_of_the_size() -> None:
    made = spe_of_runs([], (4, 6))
    assert (made.dtype, made.shape) == (np.float32, (4, 6))
    assert not made.any()


def test_runs_of_another_size_are_named() -> None:
    runs = [regions.mask_to_runs(np.ones(size, bool)) for size in ((4, 6), (4, 5))]
    with pytest.raises(ValueError, match=r"mask 1: its runs cover 20 pixels, the size \[4, 6\] has 24"):
        spe_of_runs(runs, (4, 6))


def test_values_far_down_a_large_image_are_exact() -> None:
    """One pixel at the end of 2040x1357, where single precision sums would have lost it."""
    size = (1357, 2040)
    runs = np.array([1357 * 2040 - 1, 1])
    want = regions.rotary_table(size)[-1, -1]
    assert regions.spe_sum(runs, size) == pytest.approx(want, abs=1e-8)
