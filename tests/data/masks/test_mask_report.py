"""The report of info and the verdict of verify."""

from __future__ import annotations

import json
from pathlib import Path

import lmdb
import numpy as np
import pytest

from sam4ir.data.masks.from_sam import pixel_sha256, record_from_sam
from sam4ir.data.masks.info import half_decades, histogram, inspect_store, whole_bins
from sam4ir.data.masks.record import MaskColumns, MaskRecord, encode_record
from sam4ir.data.masks.store import MaskStore, MaskStoreWriter
from sam4ir.data.masks.verify import CheckRecord, verify
from sam4ir.data.sources import open_source
from sam4ir.data.workers import Failure, attempts
from sam4ir.errors import UserError
from sam4ir.regions import Atoms
from sam4ir.utils.image import write_image


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three images and their masks: none, a half, the same half twice and the whole."""
    half, whole = np.zeros((10, 20), bool), np.ones((10, 20), bool)
    half[:, :10] = True
    with MaskStoreWriter(tmp_path / "m.lmdb", {"generator": "drawn"}) as writer:
        for i, masks in enumerate(([], [half], [half, half, whole])):
            image = np.full((10, 20, 3), i, np.uint8)
            write_image(tmp_path / "gt" / f"{i}.png", image)
            writer.put(f"{i}", [{"segmentation": m} for m in masks], (10, 20), pixel_sha256(image))
    return tmp_path


def damage(store: Path, key: str, at: int, flip: int = 255) -> None:
    """Changes one byte of a stored record."""
    env = lmdb.open(str(store / "m.lmdb"))
    with env.begin(write=True) as transaction:
        data = bytearray(transaction.get(key.encode()))
        data[at] ^= flip
        transaction.put(key.encode(), bytes(data))
    env.close()


def test_figures_are_those_of_the_masks(store: Path) -> None:
    figures = inspect_store(MaskStore(store / "m.lmdb"), None).values()["looked_at"]
    assert figures["masks_an_image"] == {"min": 0, "median": 1, "mean": 4 / 3, "max": 3}
    assert figures["covered"] == {"min": 0, "median": 0.5, "mean": 0.5, "max": 1}
    assert figures["covered_twice"] == {"min": 0, "median": 0, "mean": 0.5 / 3, "max": 0.5}
    assert figures["mask_area_pixels"]["median"] == 100
    assert figures["images_without_masks"] == 1
    json.dumps(figures, allow_nan=False)


def test_a_sample_is_spread_evenly_and_reported(store: Path) -> None:
    report = inspect_store(MaskStore(store / "m.lmdb"), 2)
    assert [figures.masks for figures in report.figures] == [0, 1]
    assert "images looked at: 2, evenly spread (--all looks at every one)" in report.text()
    assert "images looked at: all" in inspect_store(MaskStore(store / "m.lmdb"), 3).text()


def test_an_empty_store_has_a_text(tmp_path: Path) -> None:
    MaskStoreWriter(tmp_path / "m.lmdb", {}).close()
    text = inspect_store(MaskStore(tmp_path / "m.lmdb"), 10).text()
    assert "0 images, 0 masks" in text
    assert "made by: not known" in text


def test_damaged_records_are_listed_by_info_and_verify(store: Path) -> None:
    damage(store, "2", -4)
    report = inspect_store(MaskStore(store / "m.lmdb"), None)
    assert (len(report.figures), len(report.bad)) == (2, 1)
    verdict = verify(MaskStore(store / "m.lmdb"), open_source(store / "gt", None, "--images"))
    assert verdict.wrong == verdict.keys_to_make == ["2"]
    assert "2: damaged" in verdict.problems[0]


def test_areas_that_do_not_fit_the_pixels_are_damage(store: Path) -> None:
    mask = np.zeros((10, 20), bool)
    mask[2:5, 3:9] = True
    good = record_from_sam([{"segmentation": mask}])
    other = record_from_sam([{"segmentation": ~mask}])
    record, wrong = MaskRecord(good), MaskRecord(other)
    columns = MaskColumns(
        wrong.areas.astype(float), wrong.boxes, wrong.predicted_iou, wrong.stability_score, wrong.spe_sum
    )
    atoms = Atoms(record.labels(0, 0, 10, 20), record.table)
    mixed = encode_record(atoms, np.array([0, 1], np.int32), columns)
    with MaskStoreWriter(store / "m.lmdb", {"generator": "drawn"}) as writer:
        writer.put_record("1", mixed)
    verdict = verify(MaskStore(store / "m.lmdb"), open_source(store / "gt", None, "--images"))
    assert verdict.wrong == ["1"]
    assert "the areas do not fit the pixels" in verdict.problems[0]


def test_unreadable_images_are_problems_and_do_not_end_the_check(store: Path) -> None:
    path = store / "gt" / "1.png"
    path.write_bytes(path.read_bytes()[:-20])
    verdict = verify(MaskStore(store / "m.lmdb"), open_source(store / "gt", None, "--images"))
    assert verdict.wrong == ["1"]
    assert "truncated PNG" in verdict.problems[0]


def test_a_hint_names_the_command_that_cuts_masks_like_the_images(store: Path) -> None:
    write_image(store / "gt" / "1.png", np.zeros((8, 8, 3), np.uint8))
    (store / "windows.jsonl").touch()
    verdict = verify(MaskStore(store / "m.lmdb"), open_source(store / "gt", None, "--images"))
    assert f"crop --store WHOLE.lmdb --windows {store / 'windows.jsonl'}" in verdict.hint


def test_histograms_hold_every_value_once() -> None:
    rng = np.random.default_rng(0)
    for values in (rng.integers(0, 70, 200), np.array([0]), np.array([3, 3])):
        lines = list(histogram(values, whole_bins(values), "{:.0f}", inclusive=True))
        assert sum(int(line.split()[-1]) for line in lines) == len(values)
        assert len(lines) <= 12
    for areas in (np.array([1]), np.array([0, 5]), np.array([20, 153877]), np.array([100, 1000, 9999])):
        lines = list(histogram(areas, half_decades(areas), "{:.0f}"))
        assert sum(int(line.split()[-1]) for line in lines) == len(areas)
        assert not lines[0].endswith(" 0")


def halve(number: int) -> int:
    if number % 2:
        raise UserError(f"{number} is odd")
    if number == 8:
        raise OSError("eight")
    return number // 2


def test_tasks_come_back_in_order_with_their_failures() -> None:
    results = list(attempts(halve, range(10)))
    assert [task for task, _ in results] == list(range(10))
    assert [r.message if isinstance(r, Failure) else r for _, r in results] == [
        0, "1 is odd", 1, "3 is odd", 2, "5 is odd", 3, "7 is odd", "eight", "9 is odd",
    ]  # fmt: skip


def allocate(number: int) -> int:
    return len(np.empty(number))


def test_a_task_that_runs_out_of_memory_fails_alone() -> None:
    results = dict(attempts(allocate, [1, 1 << 50, 2]))
    assert (results[1], results[2]) == (1, 2)
    assert isinstance(results[1 << 50], Failure)
    assert results[1 << 50].message.startswith(f"{1 << 50}: not enough memory")


@pytest.mark.slow  # starts interpreters that import torch
def test_many_processes_give_the_results_of_one(store: Path) -> None:
    damage(store, "2", -4)
    images = open_source(store / "gt", None, "--images")
    check = CheckRecord(MaskStore(store / "m.lmdb"), images)
    keys = images.keys * 40
    one = list(attempts(check, keys))
    assert [isinstance(result, Failure) for _, result in one[:3]] == [False, False, True]
    assert list(attempts(check, keys, workers=2)) == one
