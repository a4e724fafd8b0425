"""Durations in words."""

from __future__ import annotations

import pytest

from sam4ir.utils.durations import in_time


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0421, "0.042 s"),
        (8.07, "8.1 s"),
        (41.4, "41 s"),
        (150, "2 min"),
        (5000, "83 min"),
        (3 * 3600, "3.0 h"),
        (3 * 86400, "3.0 days"),
    ],
)
def test_a_duration_is_rounded_as_people_say_it(seconds: float, text: str) -> None:
    assert in_time(seconds) == text
