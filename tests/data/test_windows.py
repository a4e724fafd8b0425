"""Places of sub-images: cutting, whole and centred ones, and the table that records them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sam4ir.data.windows import Crop, Cut, SubImage, centre, read_table, whole, windows
from sam4ir.errors import UserError


def test_a_rectangle_is_cut_and_on_a_coarser_grid_divided() -> None:
    image = np.arange(12 * 20).reshape(12, 20)
    sub_image = SubImage("_s001", top=4, left=8, height=6, width=10)
    np.testing.assert_array_equal(sub_image.cut(image), image[4:10, 8:18])
    np.testing.assert_array_equal(sub_image.cut(image[::2, ::2], 2), image[::2, ::2][2:5, 4:9])


def test_a_whole_and_a_centred_sub_image_have_the_images_key() -> None:
    assert whole((5, 7)) == [SubImage("", 0, 0, 5, 7)]
    assert centre((9, 12), 4) == [SubImage("", 2, 4, 4, 4)]  # 2.5 rows are left above: rounded to the top
    assert centre((4, 4), 4) == [SubImage("", 0, 0, 4, 4)]
    for size in ((3, 9), (9, 3)):
        with pytest.raises(UserError, match=f"the image of {size[0]}x{size[1]} .* of 4x4"):
            centre(size, 4)


def test_a_crop_takes_the_rule_that_its_fields_name() -> None:
    assert Crop(4, 3).windows((7, 4)) == windows((7, 4), 4, 3)
    assert Crop(4, 3, thresh=2).windows((6, 6)) == windows((6, 6), 4, 3, 2) == [SubImage("_s001", 0, 0, 4, 4)]
    assert Crop(4, 3, thresh=1).windows((6, 4)) == [SubImage("_s001", 0, 0, 4, 4), SubImage("_s002", 2, 0, 4, 4)]
    assert windows((5, 4), 4, 4) == [SubImage("_s001", 0, 0, 4, 4), SubImage("_s002", 1, 0, 4, 4)]
    assert Crop(4, 3, centre=True).windows((6, 6)) == centre((6, 6), 4)
    assert Crop(4, 3, whole_up_to=6, centre=True).windows((6, 9)) == whole((6, 9))
    assert Crop(4, 3, whole_up_to=5).windows((6, 9)) == windows((6, 9), 4, 3)


@pytest.mark.parametrize("values", [{"size": 0}, {"step": 0}, {"thresh": -1}])
def test_sizes_that_cut_nothing_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(UserError, match="size and step must be at least 1, thresh at least 0"):
        Crop(**{"size": 4, "step": 3, **values})
    assert Crop(1, 1, 0).size == 1


def test_settings_are_the_size_and_what_is_not_default() -> None:
    assert Crop(4, 3).settings() == {"size": 4, "step": 3}
    assert Crop(4, 3, 2, 9, 0.5, True).settings() == {
        "size": 4,
        "step": 3,
        "thresh": 2,
        "whole_up_to": 9,
        "blunt": 0.5,
        "centre": True,
    }


def test_numbers_have_three_digits_up_to_999() -> None:
    for count, last in ((1, "_s001"), (999, "_s999"), (1000, "_s1000")):
        assert windows((1, count), 1, 1)[-1].suffix == last


def test_a_table_gives_back_its_cuts_and_leaves_out_a_line_that_was_not_ended(tmp_path: Path) -> None:
    cuts = [Cut("a/ü", (7, 4), windows((7, 4), 4, 3)), Cut("b", (5, 6), whole((5, 6)))]
    path = tmp_path / "windows.jsonl"
    path.write_text("".join(cut.line() for cut in cuts) + '{"key": "c', encoding="utf-8")
    assert list(read_table(path)) == cuts
    assert cuts[0].keys == ["a/ü_s001", "a/ü_s002"]
    assert cuts[1].keys == ["b"]
    assert "ü" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"key": "a"}', '{"key": "a", "size": [1], "windows": []}', '{"key": "a", "size": 3}']
)
def test_a_damaged_line_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_text(Cut("a", (5, 6), whole((5, 6))).line() + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"windows\.jsonl: line 2 is damaged"):
        list(read_table(path))
