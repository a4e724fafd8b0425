"""The SPE map of a record: the released code's values, and crops that are cut from the whole map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sam4ir.data.mask_import import record_from_sam
from sam4ir.data.mask_record import MaskRecord
from sam4ir.priors.spe import spe_map

GOLDEN = np.load(Path(__file__).resolve().parents[1] / "data" / "golden_spe.npz")  # four overlapping masks, 24x34
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
