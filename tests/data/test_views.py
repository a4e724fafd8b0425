"""Views turn arrays into maps, and the reader cuts and flips them as it does the image."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sam4ir.data.transforms import Flip, Placement, Window
from sam4ir.data.views import LabelView, MapReader, ValueView
from sam4ir.errors import UserError

SIZE = (6, 8)
LABELS = np.arange(48).reshape(SIZE) % 7 * 10


class Store:
    path = Path("some_store")

    def read(self, key: str) -> SimpleNamespace:
        if key != "a":
            raise UserError(f"no record {key}")
        return SimpleNamespace(size=SIZE, labels=LABELS)


class Labels(LabelView):
    def read(self, record: SimpleNamespace, window: Window) -> np.ndarray:
        return window.cut(record.labels)


class Pair(ValueView):
    def read(self, record: SimpleNamespace, window: Window) -> np.ndarray:
        part = window.cut(record.labels)
        return np.stack([part, -part], axis=2)


def placement(top: int, left: int, height: int, width: int, **flip: bool) -> Placement:
    return Placement(Window(top, left, height, width), Flip(**flip))


def test_labels_are_renumbered_in_their_order_and_none_stays_none() -> None:
    dense = LabelView().tensor(np.array([[0, 30], [7, 30]], np.uint16)[:, ::-1])
    assert dense.tolist() == [[2, 0], [2, 1]]
    assert dense.dtype == torch.int64
    assert dense.is_contiguous()


def test_values_come_channels_first_in_float32() -> None:
    flat = ValueView().tensor(np.array([[1, 2, 3]], np.float64))
    assert flat.tolist() == [[[1, 2, 3]]]
    deep = ValueView().tensor(np.arange(12).reshape(2, 3, 2).swapaxes(0, 1))
    assert deep.shape == (2, 3, 2)
    assert deep[1].tolist() == [[1, 7], [3, 9], [5, 11]]
    assert flat.dtype == deep.dtype == torch.float32
    assert deep.is_contiguous()


@pytest.mark.parametrize("where", [(1, 2, 4, 5), (0, 0, 6, 8), (-2, 3, 9, 4), (3, -1, 2, 12)])
def test_maps_are_cut_mirrored_and_flipped_as_numpy_would(where: tuple[int, int, int, int]) -> None:
    top, left, height, width = where
    around = np.pad(LABELS, 12, mode="symmetric")
    expected = around[top + 12 : top + 12 + height, left + 12 : left + 12 + width][:, ::-1].T
    reader = MapReader(Store(), {"regions": Labels(), "pair": Pair()})
    maps = reader.read("a", "a.png", SIZE, placement(*where, horizontal=True, transpose=True))
    assert list(maps) == ["regions", "pair"]
    np.testing.assert_array_equal(maps["pair"].numpy(), np.stack([expected, -expected]))
    values, dense = np.unique(expected, return_inverse=True)
    np.testing.assert_array_equal(maps["regions"].numpy(), dense.reshape(expected.shape) + (values[0] > 0))


def test_maps_are_mirrored_at_the_border_of_what_samples_show() -> None:
    reader = MapReader(Store(), {"pair": Pair()})
    maps = reader.read("a", "a.png", SIZE, placement(0, 0, 6, 8), used=(5, 6))
    expected = np.pad(LABELS[:5, :6], ((0, 1), (0, 2)), mode="symmetric")
    np.testing.assert_array_equal(maps["pair"][0].numpy(), expected)


def test_without_a_store_there_are_no_maps_and_without_views_no_store() -> None:
    assert MapReader().read("a", "a.png", SIZE, placement(0, 0, 2, 2)) == {}
    assert MapReader(None, {"pair": Pair()}).record("a", "a.png", SIZE) is None
    for views in (None, {}):
        with pytest.raises(UserError, match="some_store is given without mask_views"):
            MapReader(Store(), views)


def test_what_does_not_fit_names_image_store_and_sizes() -> None:
    reader = MapReader(Store(), {"pair": Pair()})
    assert reader.record("a", "a.png", SIZE).size == SIZE  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"^b\.png: no masks: no record b"):
        reader.record("b", "b.png", SIZE)
    with pytest.raises(UserError, match=r"some_store: masks of 'a' are 6x8 \(h x w\), their image a\.png is 8x6"):
        reader.read("a", "a.png", (8, 6), placement(0, 0, 2, 2))


@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (2,)])
def test_a_view_that_returns_another_size_is_a_bug(shape: tuple[int, ...]) -> None:
    class Wrong(ValueView):
        def read(self, record: object, window: Window) -> np.ndarray:
            return np.zeros(shape)

    with pytest.raises(ValueError, match=r"view wrong returns .* for a window of 2x2"):
        MapReader(Store(), {"wrong": Wrong()}).read("a", "a.png", SIZE, placement(0, 0, 2, 2))
